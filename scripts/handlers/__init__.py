"""Side effects of training and evaluation, as ignite handlers."""
