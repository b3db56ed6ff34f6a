"""The generated cardiac MR/CT phantom."""
