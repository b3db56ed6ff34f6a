"""Which of a training's weights are kept, by what score, and whether that score can be trusted."""
