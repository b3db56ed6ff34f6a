"""The moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["averaged_model"]

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


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
