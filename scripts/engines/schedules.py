"""Learning-rate factors, loss weights and averages of weights as functions of the iteration."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["ConstantThenLinear", "PolynomialDecay", "averaged_model", "linear_ramp"]

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


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


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of a network's weights; buffers are copied.

    Early on the decay is ``(1 + n) / (10 + n)``, so that the average does not remember the initial weights.

    Args:
        model: the trained network.
        decay: weight of the old average in each update, 0.999 for long trainings.
    """

    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, updates: torch.Tensor | int) -> None:
        count = int(result.n_averaged)  # on the host; reading ``updates`` would make a GPU wait
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + count) / (10 + count)))

    result = AveragedModel(model, multi_avg_fn=average)
    return result
