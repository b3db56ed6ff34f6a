"""Development tools, which no bundle contains. Unusable files and settings raise ``InputError``, for the user."""
