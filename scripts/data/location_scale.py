"""Location-scale augmentation: random Bezier curves, scales and shifts of a slice or of each of its structures.

Source: Su et al., Rethinking data augmentation for single-source domain generalization in medical image segmentation
(SLAug), AAAI 2023, and its published code for the numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LocationScale", "bezier"]

# Points at which a curve is computed; between them it is linear.
STEPS = 256

# Factors are normal about 1 with the first as standard deviation, and within it; shifts about 0 with the second.
SCALE, LOCATION = 0.1, 0.5

# Shifts leave this share of a region's values below the upper end of the range, and as many above the lower.
KEPT_SHARE = 0.2

# Pixels so close to a slice's minimum, of the range from 0 to 1, are air.
AIR = 0.05


class LocationScale:
    """Random intensity changes of labelled slices: global, of a whole slice, or local, of each structure on its own.

    A region's values go through a Bezier curve that keeps their minimum and maximum, are multiplied and shifted. A
    region is a slice, or with ``num_structures`` each structure and the background less its air, which stays.

    Args:
        num_structures: number of structures K of the local form; 0 for the global one.
        falling: probability that a structure's curve falls, which exchanges dark and bright.
        background_falling: the same of the background's curve, or of the slice's in the global form.
    """

    def __init__(self, *, num_structures: int = 0, falling: float = 0.0, background_falling: float = 0.0) -> None:
        self.num_structures, self.falling, self.background_falling = num_structures, falling, background_falling

    def __call__(self, image: Tensor, label: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Change images (B, 1, H, W) in [-1, 1]. Labels, which the local form needs, stay as they are."""
        values = (image.float() + 1) / 2
        result = values
        for structure in range(self.num_structures + 1):
            inside = torch.ones_like(values, dtype=torch.bool)
            if self.num_structures and label is not None:
                inside = label == structure
            falling = self.falling if structure else self.background_falling
            result = torch.where(inside, _changed(values, inside, falling, generator), result)
        if self.num_structures:
            is_air = values <= values.amin((2, 3), keepdim=True) + AIR
            result = torch.where(is_air & (label == 0), values, result)
        return (result * 2 - 1).to(image.dtype), label


def bezier(place: Tensor, inner: Tensor) -> Tensor:
    """Values of rising cubic Bezier curves from (0, 0) to (1, 1) at ``place`` (B, P) in [0, 1], in the same shape.

    ``inner`` (B, 2, 2) are the two inner points of each curve: both x, then both y, in [0, 1].
    """
    t = torch.linspace(0, 1, STEPS, device=place.device)
    weights = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # (3, T)
    x, y = (F.pad(inner, (0, 1), value=1.0) @ weights).unbind(1)  # (B, T) each
    right = torch.searchsorted(x.contiguous(), place.contiguous()).clamp(1, STEPS - 1)
    (x0, y0), (x1, y1) = ((x.gather(1, at), y.gather(1, at)) for at in (right - 1, right))
    share = (place - x0) / (x1 - x0).clamp_min(torch.finfo(x.dtype).eps)
    return torch.lerp(y0, y1, share.clamp(0, 1))


def _changed(values: Tensor, inside: Tensor, falling: float, generator: torch.Generator) -> Tensor:
    """All values (B, 1, H, W) in [0, 1], changed as the region (B, 1, H, W) demands; undefined outside of it."""
    batch, device = len(values), values.device
    inner = torch.rand(batch, 2, 2, generator=generator).to(device)
    falls = (torch.rand(batch, 1, generator=generator) < falling).to(device)
    drawn = torch.randn(2, batch, 1, generator=generator).to(device)
    flat, own = values.flatten(1), inside.flatten(1)  # (B, P)
    low = flat.masked_fill(~own, torch.inf).amin(1, keepdim=True)
    high = flat.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    place = ((flat - low) / (high - low).clamp_min(torch.finfo(flat.dtype).eps)).clamp(0, 1)
    curve = bezier(place, inner)
    bent = low + torch.where(falls, 1 - curve, curve) * (high - low)
    ends = torch.tensor([KEPT_SHARE, 1 - KEPT_SHARE], device=device)
    lower, upper = bent.masked_fill(~own, torch.nan).nanquantile(ends, 1, keepdim=True)  # (B, 1) each
    scale = (1 + SCALE * drawn[0]).clamp(1 - SCALE, 1 + SCALE)
    location = (LOCATION * drawn[1]).clamp(-lower, 1 - upper)
    return (bent * scale + location).clamp(0, 1).view_as(values)
