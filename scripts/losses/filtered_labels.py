"""Filtered pseudo-labels: what several views of a target slice agree on counts, and sure slices count more.

Source: Wu et al., FPL-UDA: filtered pseudo label-based unsupervised cross-modality adaptation for vestibular schwannoma
segmentation, ISBI 2022, and FPL+, IEEE TMI 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scripts.core.errors import SettingError
from scripts.losses.class_mix import weighted_cross_entropy
from scripts.losses.self_training import SelfTraining
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FilteredSelfTraining", "agreement_weights"]


class FilteredSelfTraining(SelfTraining):
    """Cross-entropy of the target with the mean prediction of the moving average over several views of each slice.

    Args:
        teacher: the moving average of S, in whatever mode.
        scales: zoom factors of the views.
        weight: factor of the term in the total.
        start: share of the training after which it begins; the term is 0 until then.
        doubtful_weight: as for :func:`agreement_weights`.

    Raises:
        SettingError: fewer than two views.
    """

    def __init__(
        self,
        *,
        teacher: nn.Module,
        scales: Sequence[float],
        weight: float = 1.0,
        start: float = 0.0,
        doubtful_weight: float = 0.5,
    ) -> None:
        if len(scales) < 2:
            expected, remedy = "at least two zoom factors, whose predictions are compared", "give [0.8, 1.0, 1.25]"
            raise SettingError(setting="scales", found=f"{list(scales)}", expected=expected, remedy=remedy)
        super().__init__(teacher=teacher, weight=weight, start=start)
        self.scales, self.doubtful_weight = list(scales), doubtful_weight

    def teach(self, image: Tensor) -> Tensor:
        """The teacher's class probabilities in each view of (B, 1, H, W): (V, B, K + 1, H, W)."""
        views = []
        for scale in self.scales:
            seen = F.interpolate(image, scale_factor=scale, mode="bilinear", align_corners=False)
            probabilities = self.teacher.eval()(seen).float().softmax(1)
            views.append(F.interpolate(probabilities, size=image.shape[2:], mode="bilinear", align_corners=False))
        return torch.stack(views)

    def loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Weighted mean cross-entropy, a float32 scalar.

        Args:
            logits: of the student, (B, K + 1, H, W).
            taught: of :meth:`teach`; no gradient reaches it.
        """
        taught = taught.detach()
        label = taught.mean(0).argmax(1, keepdim=True)
        return weighted_cross_entropy(logits, label, agreement_weights(taught, self.doubtful_weight))


def agreement_weights(probabilities: Tensor, doubtful_weight: float) -> Tensor:
    """Weight of each pixel of a pseudo-label: its own times its slice's.

    A pixel has weight 1 where all views predict the same class, and ``doubtful_weight`` elsewhere. A slice has the
    share of agreed pixels among those in which any view sees a structure, whatever its size; 1 if there are none.

    Args:
        probabilities: of each class in each view, (V, B, K + 1, H, W).
        doubtful_weight: of a pixel on which the views differ.

    Returns:
        (B, 1, H, W), float32.
    """
    winners = probabilities.argmax(2)  # (V, B, H, W)
    is_agreed, is_structure = (winners == winners[0]).all(0), (winners > 0).any(0)  # (B, H, W)
    count = is_structure.sum((1, 2))
    agreed_share = torch.where(count > 0, (is_agreed & is_structure).sum((1, 2)) / count.clamp_min(1), 1.0)  # (B,)
    return (torch.where(is_agreed, 1.0, doubtful_weight) * agreed_share[:, None, None])[:, None]
