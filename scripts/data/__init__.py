"""From volumes on disk to batches of unpaired slices."""
