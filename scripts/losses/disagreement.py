"""Two predictors that are kept apart: where they disagree on the target, alignment should work harder.

Source: Luo et al., Taking a closer look at domain shift: category-level adversaries for semantics consistent domain
adaptation (CLAN), 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["disagreement_weights", "predictor_similarity"]


def disagreement_weights(each: Sequence[Tensor], *, base: float, weight: float) -> Tensor:
    """How much each pixel counts: base + weight x (1 - cosine of the two predictors' class probabilities).

    Args:
        each: the logits of two predictors, both (B, K, H, W).
        base: what a pixel counts where both agree; CLAN's epsilon.
        weight: what full disagreement adds; CLAN's lambda_local.

    Returns:
        (B, 1, H, W), from ``base`` to ``base + weight``, float32 and detached: S cannot lower its loss by agreeing.
    """
    first, second = (logits.detach().float().softmax(1) for logits in each)
    return base + weight * (1.0 - F.cosine_similarity(first, second, dim=1)).unsqueeze(1)


def predictor_similarity(first: nn.Module, second: nn.Module) -> Tensor:
    """One plus the cosine of two predictors' convolutions: 2 for copies, 0 for opposites; what S minimises.

    Norm layers are left out: their scales start at 1 in both and would hide the angle between the convolutions.

    Args:
        first: a predictor.
        second: another of the same shape.

    Returns:
        A float32 scalar.
    """
    vectors = [torch.cat([p.flatten() for p in module.parameters() if p.ndim > 1]) for module in (first, second)]
    return 1.0 + F.cosine_similarity(vectors[0], vectors[1], dim=0)
