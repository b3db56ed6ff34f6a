"""Errors, atomic files, processes, settings, run folder, weights and metadata: the layer below all others."""
