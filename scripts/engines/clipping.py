"""Gradient clipping as part of an optimiser, so that a config can plug it in without a trainer knowing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["with_clipped_gradients"]


def with_clipped_gradients(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """Scale the gradients down to a given total norm at the start of each ``step`` of an optimiser.

    Args:
        optimizer: changed in place; its state dict stays as it is.
        max_norm: largest Euclidean norm of all gradients together.

    Returns:
        The same optimiser.
    """

    def clip(stepped: Optimizer, *_: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in stepped.param_groups for p in group["params"]], max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
