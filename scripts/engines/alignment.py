"""The adversaries of stage 2: D1 on features and D2 on predictions, with their optimisers and loss weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from scripts.core.errors import check_choice
from scripts.engines.schedules import linear_ramp
from scripts.losses.adversarial import ADVERSARIAL_KINDS
from scripts.networks.prediction_discriminator import PREDICTION_MAPS, prediction_map
from torch import Tensor, nn

__all__ = ["Adversary", "DualAlignment", "FeatureAdversary", "PredictionAdversary"]

# Maps the logits of the heads of S, each (B, K, H, W), to the weight of each pixel, (B, 1, H, W).
PixelWeights = Callable[[Sequence[Tensor]], Tensor]


@dataclass(kw_only=True)
class Adversary:
    """A discriminator with its optimiser and the weight of its adversarial term.

    Args:
        network: the discriminator.
        optimizer: of its parameters.
        weight: lambda of its term in the loss of S, 0.01 in the paper; 0 disables it.
        kind: ``bce``, ``lsgan`` or ``hinge``.
    """

    name: ClassVar[str]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    weight: float = 0.01
    kind: str = "bce"

    def __post_init__(self) -> None:
        check_choice(f"{self.name}_kind", self.kind, ADVERSARIAL_KINDS)

    @property
    def is_on(self) -> bool:
        """Whether it takes part in training."""
        return self.weight > 0


@dataclass(kw_only=True)
class FeatureAdversary(Adversary):
    """D1. With ``bce`` the local mask marks the domain gap, see ``docs/method.md``; for arguments see above."""

    name = "d1"


@dataclass(kw_only=True)
class PredictionAdversary(Adversary):
    """D2.

    Args:
        input_map: the ``kind`` of :func:`prediction_map` that makes its input.
        pixel_weights: weight of each target pixel, from the logits of all heads; None for equal weights.
    """

    name = "d2"
    input_map: str = "softmax"
    pixel_weights: PixelWeights | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("input_map", self.input_map, PREDICTION_MAPS)

    def see(self, logits: Tensor) -> Tensor:
        """The input of the discriminator for the logits of S, (B, K, H, W), in the same shape."""
        return prediction_map(logits, self.input_map)

    def weigh(self, heads: Sequence[Tensor]) -> Tensor | None:
        """Weight of each pixel, (B, 1, H, W); None for equal weights."""
        return None if self.pixel_weights is None else self.pixel_weights(heads)


@dataclass(kw_only=True)
class DualAlignment:
    """D1 and D2, and the warm-up of their weights.

    Args:
        d1: the feature adversary.
        d2: the prediction adversary.
        warmup: iterations over which both weights rise linearly from 0.
    """

    d1: FeatureAdversary
    d2: PredictionAdversary
    warmup: int = 0

    @property
    def is_on(self) -> bool:
        """Whether at least one of them takes part in training."""
        return self.d1.is_on or self.d2.is_on

    def ramp(self, iteration: int) -> float:
        """The factor of both weights at ``iteration``, counted from 0."""
        return linear_ramp(iteration, self.warmup)
