"""Whether data are right before anything trains on them: ``python -m scripts check``."""
