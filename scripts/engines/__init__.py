"""The two trainers, one algorithm box each."""
