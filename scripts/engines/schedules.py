"""Learning-rate factors and weights as functions of the iteration, for ``LambdaLR`` and the trainers."""

from __future__ import annotations

__all__ = ["ConstantThenLinear", "PolynomialDecay", "linear_ramp"]


class PolynomialDecay:
    """Stage 2 (paper, section 4.1): ``(1 - i / iterations) ** power``, after a linear warm-up.

    Args:
        iterations: length of the training.
        power: 0.9 in the paper.
        warmup_iterations: the factor rises linearly over these, because large first steps harm training from scratch.
    """

    def __init__(self, *, iterations: int, power: float = 0.9, warmup_iterations: int = 0) -> None:
        self.iterations, self.power, self.warmup_iterations = iterations, power, warmup_iterations

    def __call__(self, iteration: int) -> float:
        """The factor at ``iteration``, counted from 0."""
        decay = max(1.0 - iteration / self.iterations, 0.0) ** self.power
        return decay * linear_ramp(iteration + 1, self.warmup_iterations)


class ConstantThenLinear:
    """Stage 1: 1 over the first half, then linearly to 0."""

    def __init__(self, *, iterations: int) -> None:
        self.iterations = iterations

    def __call__(self, iteration: int) -> float:
        """The factor at ``iteration``, counted from 0."""
        return min(1.0, 2.0 * max(1.0 - iteration / self.iterations, 0.0))


def linear_ramp(iteration: int, length: int) -> float:
    """From 0 at iteration 0 to 1 at ``length`` and after; 1 if ``length`` is 0."""
    return 1.0 if length <= 0 else min(iteration / length, 1.0)
