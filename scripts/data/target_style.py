"""Labelled slices in the style of random target slices, without a network: by spectrum or by histogram.

Source: Yang and Soatto, FDA: Fourier domain adaptation for semantic segmentation, CVPR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scripts.core.errors import SettingError
from scripts.data.augmentation import BatchAugmentation, Windows
from scripts.data.slices import SliceSet
from skimage.exposure import match_histograms
from torch import Tensor

__all__ = ["TargetStyle", "with_histogram", "with_low_frequencies"]


class TargetStyle:
    """The last augmentation of labelled slices: each takes the style of a random target slice. Labels stay.

    Args:
        target: the target's slices, of windows as large as the labelled ones; no label of theirs is read.
        augmentation: of the labelled slices, before the style.
        restyle: maps images and style images, both (B, 1, H, W) in [-1, 1], to images in the same shape and range.

    Raises:
        SettingError: there are no target slices.
    """

    def __init__(
        self, *, target: SliceSet | None, augmentation: BatchAugmentation, restyle: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        if target is None:
            expected, remedy = "target slices, whose style the labelled ones take", "give the target's datalist"
            raise SettingError(setting="target_datalist", found="none", expected=expected, remedy=remedy)
        self.target, self.augmentation, self.restyle = target, augmentation, restyle

    def __call__(
        self, image: Tensor, label: Tensor | None, generator: torch.Generator, windows: Windows | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`BatchAugmentation`."""
        image, label = self.augmentation(image, label, generator, windows)
        chosen = torch.randint(len(self.target), (len(image),), generator=generator)
        style = self.target.windows(chosen, generator).cut(self.target.images[chosen])
        return self.restyle(image, style.to(image.device)), label


def with_low_frequencies(image: Tensor, style: Tensor, *, beta: float) -> Tensor:
    """FDA: images (B, 1, H, W) in [-1, 1] with the amplitudes of style images at low frequencies; all phases stay.

    ``beta`` is the share of the shorter side that is replaced, in both directions: up to ``beta x min(H, W)`` periods
    per image. 0 replaces the mean alone. The result is clipped to [-1, 1].
    """
    height, width = image.shape[2:]
    # From 0 upwards: with a negative mean, the phase would turn that of the style over.
    spectrum, other = (torch.fft.rfft2(values.float() + 1) for values in (image, style))  # (B, 1, H, W // 2 + 1)
    rows, columns = torch.fft.fftfreq(height).abs() * height, torch.fft.rfftfreq(width) * width  # periods per image
    is_low = torch.maximum(rows[:, None], columns) <= int(beta * min(height, width))
    amplitude = torch.where(is_low.to(image.device), other.abs(), spectrum.abs())
    restyled = torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=(height, width))
    return (restyled - 1).clamp(-1, 1).to(image.dtype)


def with_histogram(image: Tensor, style: Tensor) -> Tensor:
    """Images (B, 1, H, W) with the distribution of values of the style images, by scikit-image on the host."""
    pairs = zip(image.cpu().numpy(), style.cpu().numpy(), strict=True)
    matched = np.stack([match_histograms(one, other) for one, other in pairs])
    return torch.from_numpy(matched).to(image)
