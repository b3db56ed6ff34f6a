"""Selection of weights: label-free scores of snapshots, and the choice among them."""
