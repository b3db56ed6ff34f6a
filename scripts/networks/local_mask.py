"""The local feature mask m (section 3.1)."""

import torch
from torch import Tensor

__all__ = ["MASK_MODES", "local_mask"]

MASK_MODES = ("abs", "target_confidence", "uncertainty", "source_distance", "off")


def local_mask(logits: Tensor, mode: str) -> Tensor:
    """The local mask m from the logits of D1; target features become ``f * (1 + m)`` (section 3.1).

    * ``abs``: tanh|z|, the paper's: high where D1 is confident, of either domain.
    * ``target_confidence``: tanh(relu(-z)): high only where D1 is confident of the target, where the gap remains.
    * ``uncertainty``: 4 p (1 - p) with p = sigmoid(z): high where D1 is uncertain, as in the introduction.
    * ``source_distance``: tanh|z - 1|: high where z is far from 1, the target value of the source for a D1 of kind
      ``lsgan``; it rises with the gap where ``abs`` would fall.
    * ``off``: 0.

    Args:
        logits: raw logits z of the feature discriminator, (B, 1, h, w); positive means source.
        mode: one of ``MASK_MODES``.

    Returns:
        The mask in the shape and dtype of ``logits``, from 0 up to 1 (which tanh reaches only by rounding).

    Raises:
        ValueError: for another ``mode``.
    """
    z = logits.float()
    if mode == "abs":
        mask = torch.tanh(torch.abs(z))
    elif mode == "target_confidence":
        mask = torch.tanh(torch.relu(-z))
    elif mode == "uncertainty":
        probability = torch.sigmoid(z)
        mask = 4.0 * probability * (1.0 - probability)
    elif mode == "source_distance":
        mask = torch.tanh(torch.abs(z - 1.0))
    elif mode == "off":
        mask = torch.zeros_like(z)
    else:
        raise ValueError(f"mask mode must be abs, target_confidence, uncertainty, source_distance or off, got {mode}")
    return mask.to(logits.dtype)
