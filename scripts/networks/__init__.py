"""The networks of both stages (paper, section 3.1)."""
