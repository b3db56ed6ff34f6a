"""The objective functions of both stages (paper, section 3.2) as plain functions."""
