"""The objectives of the segmentation stage (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from scripts.losses.adversarial import discriminator_loss, generator_loss

__all__ = ["alignment_discriminator_loss", "alignment_loss", "supervised_loss", "supervised_losses"]

# Plain (not squared) denominators over the whole batch; the background counts only in the cross-entropy.
_FOREGROUND_DICE = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, squared_pred=False, batch=True)


def supervised_losses(each: Sequence[Tensor], label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L_seg of one or more predictors, summed: each learns from the labels by itself.

    Args:
        each: the logits of each predictor, as for :func:`supervised_loss`.
        label: as for :func:`supervised_loss`.

    Returns:
        The sum and its parts ``cross_entropy`` and ``dice``, each summed over the predictors, float32 scalars.
    """
    total, parts = supervised_loss(each[0], label)
    for logits in each[1:]:
        further, further_parts = supervised_loss(logits, label)
        total, parts = total + further, {name: part + further_parts[name] for name, part in parts.items()}
    return total, parts


def supervised_loss(logits: Tensor, label: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L_seg: cross-entropy over all classes plus one minus the mean soft Dice of the foreground classes (section 3.2).

    Args:
        logits: (B, K + 1, H, W), class 0 is the background.
        label: class ids 0..K, (B, 1, H, W), integer or whole floats.

    Returns:
        The sum and its parts ``cross_entropy`` and ``dice``, float32 scalars.
    """
    logits = logits.float()
    parts = {
        "cross_entropy": F.cross_entropy(logits, label[:, 0].long()),
        "dice": _FOREGROUND_DICE(logits, label),
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
    """What S minimises against its discriminators: the target should be taken for the source (section 3.2).

    Args:
        d1_logits_target: raw logits of D1 on the target's unmasked features; None where D1 is off.
        d2_logits_target: raw logits of D2 on the target's predictions; None where D2 is off.
        d1_weight: the paper's 0.01.
        d2_weight: the paper's 0.01.
        kind_d1: one of ``ADVERSARIAL_KINDS``.
        kind_d2: one of ``ADVERSARIAL_KINDS``.
        d2_weights_target: how much each pixel of the target counts with D2, (B, 1, H, W); None for the same everywhere.

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


def alignment_discriminator_loss(
    *, source_logits: Tensor, target_logits: Tensor, kind: str, target_weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """What D1 or D2 minimises: the (translated) source called real, the target called fake (section 3.2).

    Args:
        source_logits: raw logits on detached source features or predictions, any shape.
        target_logits: raw logits on detached target features or predictions, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.
        target_weights: how much each pixel of the target counts, (B, 1, H, W); None for the same everywhere.

    Returns:
        The loss, and the same by its name ``discriminator``.
    """
    total = discriminator_loss(source_logits, target_logits, kind, target_weights)
    return total, {"discriminator": total}
