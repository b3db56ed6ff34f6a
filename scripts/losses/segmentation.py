"""The objectives of the segmentation stage (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses.utils import compute_tp_fp_fn
from monai.networks import one_hot
from scripts.core.domains import IGNORED
from scripts.core.processes import sum_over_processes
from scripts.losses.adversarial import generator_loss
from torch import Tensor
from torch.nn import functional as F

__all__ = ["alignment_loss", "supervised_loss", "supervised_losses"]

# Added to the numerator and the denominator of a Dice, as MONAI's losses do.
_SMOOTH = 1e-5


def supervised_losses(
    heads: Sequence[Tensor], label: Tensor, weights: Sequence[float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of L_seg over one or more heads.

    Args:
        heads: the logits of each head, as for :func:`supervised_loss`; those of a lower resolution than the label are
            compared with the label resized to theirs by nearest neighbour (deep supervision).
        label: as for :func:`supervised_loss`.
        weights: of each head.

    Returns:
        The weighted sum and its parts ``cross_entropy`` and ``dice``, each weighted and summed alike, float32 scalars.
    """
    total: Tensor | float = 0.0
    parts: dict[str, Tensor | float] = {"cross_entropy": 0.0, "dice": 0.0}
    for logits, weight in zip(heads, weights, strict=False):
        loss, of_head = supervised_loss(logits, _resized(label, logits))
        total = total + weight * loss
        parts = {name: part + weight * of_head[name] for name, part in parts.items()}
    return total, parts  # type: ignore[return-value]


def supervised_loss(logits: Tensor, label: Tensor, *, over_processes: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
    """L_seg: cross-entropy over all classes plus one minus the mean soft Dice of the foreground classes (section 3.2).

    Args:
        logits: (B, K + 1, H, W), class 0 is the background.
        label: class ids 0..K or ``IGNORED``, (B, 1, H, W), integer or whole floats. Ignored pixels leave both parts;
            at least one pixel must stay.
        over_processes: compute the Dice over the slices of all processes, a collective call; False for a measurement
            on one process.

    Returns:
        The sum and its parts ``cross_entropy`` and ``dice``, float32 scalars.
    """
    logits = logits.float()
    parts = {
        "cross_entropy": F.cross_entropy(logits, label[:, 0].long(), ignore_index=IGNORED),
        "dice": _foreground_dice_loss(logits, label, over_processes),
    }
    return parts["cross_entropy"] + parts["dice"], parts


def alignment_loss(
    *,
    d1_logits_target: Tensor | None,
    d2_logits_target: Tensor | None,
    d1_weight: float,
    d2_weight: float,
    kind_d1: str,
    kind_d2: str,
    d2_weights_target: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Adversarial loss of S: the discriminators should classify the target as source (section 3.2).

    Args:
        d1_logits_target: raw logits of D1 on the target's unmasked features; None where D1 is off.
        d2_logits_target: raw logits of D2 on the target's predictions; None where D2 is off.
        d1_weight: the paper's 0.01.
        d2_weight: the paper's 0.01.
        kind_d1: one of ``ADVERSARIAL_KINDS``.
        kind_d2: one of ``ADVERSARIAL_KINDS``.
        d2_weights_target: weight of each target pixel in the D2 term, (B, 1, H, W); None for equal weights.

    Returns:
        The weighted total (0 where both are off) and the unweighted parts ``alignment_d1`` and ``alignment_d2``, each
        only where it is on, float32 scalars.
    """
    parts: dict[str, Tensor] = {}
    total = torch.zeros(())
    if d1_logits_target is not None:
        parts["alignment_d1"] = generator_loss(d1_logits_target, kind_d1)
        total = total + d1_weight * parts["alignment_d1"]
    if d2_logits_target is not None:
        parts["alignment_d2"] = generator_loss(d2_logits_target, kind_d2, d2_weights_target)
        total = total + d2_weight * parts["alignment_d2"]
    return total, parts


def _resized(label: Tensor, logits: Tensor) -> Tensor:
    """The label at the resolution of the logits."""
    if label.shape[2:] == logits.shape[2:]:
        return label
    return F.interpolate(label.float(), size=logits.shape[2:], mode="nearest")


def _foreground_dice_loss(logits: Tensor, label: Tensor, over_processes: bool) -> Tensor:
    """MONAI's ``DiceLoss(batch=True, include_background=False, softmax=True)``, optionally over all processes.

    The Dice of a batch is not the mean of the Dice of its parts, so that the underlying sums are added over processes.
    """
    counted = (label != IGNORED).to(logits.dtype)  # (B, 1, H, W)
    probability = logits.softmax(1)[:, 1:] * counted
    truth = one_hot(label.masked_fill(label == IGNORED, 0), num_classes=logits.shape[1])[:, 1:]  # (B, K, H, W)
    sums = torch.stack(compute_tp_fp_fn(probability, truth, [0, 2, 3], 1, False))
    hits, false_alarms, misses = (sum_over_processes(sums) if over_processes else sums).unbind()
    dice = (2 * hits + _SMOOTH) / (2 * (hits + 0.5 * false_alarms + 0.5 * misses) + _SMOOTH)
    return (1 - dice).mean()
