"""Metrics on the native grid, summaries, figures, and the handler that collects them."""
