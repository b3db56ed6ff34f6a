"""How fast the project is, each part against its plain form, in one run."""
