"""One command from two folders of volumes to label maps: plan, check, cost, training, segmentation, report."""
