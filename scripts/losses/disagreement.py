"""Two predictors with different weights: where they disagree on the target, alignment counts more.

Source: Luo et al., Taking a closer look at domain shift: category-level adversaries for semantics consistent domain
adaptation (CLAN), 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scripts.core.errors import SettingError
from scripts.losses.segmenter_loss import SegmenterLoss, SegmenterStep
from scripts.networks.segmenter import Segmenter
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Disagreement", "PredictorSimilarity", "disagreement_weights", "predictor_similarity"]


class Disagreement:
    """Pixel weights for the prediction adversary, see :func:`disagreement_weights`.

    Args:
        segmenter: S with two predictors.
        base: as for :func:`disagreement_weights`.
        weight: as for :func:`disagreement_weights`.

    Raises:
        SettingError: S has one predictor.
    """

    def __init__(self, *, segmenter: Segmenter, base: float, weight: float) -> None:
        _two_predictors(segmenter)
        self.base, self.weight = base, weight

    def __call__(self, heads: Sequence[Tensor]) -> Tensor:
        """(B, 1, H, W) from the logits of two predictors, both (B, K, H, W)."""
        return disagreement_weights(heads, base=self.base, weight=self.weight)


class PredictorSimilarity(SegmenterLoss):
    """The loss term that keeps the weights of two predictors apart, see :func:`predictor_similarity`.

    Args:
        segmenter: S with two predictors.
        weight: factor of the term in the total.

    Raises:
        SettingError: S has one predictor.
    """

    def __init__(self, *, segmenter: Segmenter, weight: float) -> None:
        super().__init__(weight=weight)
        self.predictors = _two_predictors(segmenter)

    def __call__(self, step: SegmenterStep) -> Tensor:
        """See :class:`SegmenterLoss`."""
        return predictor_similarity(*self.predictors)


def disagreement_weights(heads: Sequence[Tensor], *, base: float, weight: float) -> Tensor:
    """Weight of each pixel: base + weight x (1 - cosine of the two predictors' class probabilities).

    Args:
        heads: the logits of two predictors, both (B, K, H, W).
        base: weight of a pixel where both agree; CLAN's epsilon.
        weight: what full disagreement adds; CLAN's lambda_local.

    Returns:
        (B, 1, H, W), from ``base`` to ``base + weight``, float32 and detached: S cannot lower its loss by agreeing.
    """
    first, second = (logits.detach().float().softmax(1) for logits in heads)
    return base + weight * (1.0 - F.cosine_similarity(first, second, dim=1)).unsqueeze(1)


def predictor_similarity(first: nn.Module, second: nn.Module) -> Tensor:
    """One plus the cosine of the convolution weights of two predictors: 2 for copies, 0 for opposites.

    Norm layers are left out: their scales start at 1 in both and would hide the angle between the convolutions.

    Args:
        first: a predictor.
        second: another of the same shape.

    Returns:
        A float32 scalar.
    """
    vectors = [torch.cat([p.flatten() for p in module.parameters() if p.ndim > 1]) for module in (first, second)]
    return 1.0 + F.cosine_similarity(vectors[0], vectors[1], dim=0)


def _two_predictors(segmenter: Segmenter) -> tuple[nn.Module, nn.Module]:
    further: Any = getattr(segmenter, "further_predictors", ())
    if len(further) != 1:
        found, remedy = "one predictor", "give --network_def#predictors 2 as well"
        raise SettingError(setting="network_def", found=found, expected="two predictors to compare", remedy=remedy)
    predictor: Any = segmenter.predictor
    return predictor, further[0]
