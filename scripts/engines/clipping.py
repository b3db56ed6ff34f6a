"""Gradient clipping as part of an optimiser, so that a config can plug it in without a trainer knowing."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

__all__ = ["with_clipped_gradients"]


def with_clipped_gradients(optimizer: Optimizer, max_norm: float) -> Optimizer:
    """Let an optimiser scale the gradients down to a Euclidean norm of ``max_norm`` at the start of each ``step``.

    It is changed in place and returned; its state dict stays as it is.
    """

    def clip(stepped: Optimizer, *_: Any) -> None:
        nn.utils.clip_grad_norm_([p for group in stepped.param_groups for p in group["params"]], max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer
