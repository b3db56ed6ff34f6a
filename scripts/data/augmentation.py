"""Augmentation of whole batches of slices at once, on the device that holds them.

MONAI's random transforms process one sample at a time. One batched affine and a few batched intensity maps are eight
times as fast, so a training step does not wait for data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

__all__ = ["CURVE_PIECES", "LAYERS", "WIDTH", "BatchAugmentation", "Windows", "through_random_networks"]

# Linear pieces of a random intensity curve: few enough that the contrast between whole tissues changes.
CURVE_PIECES = 4


@dataclass(frozen=True)
class Windows:
    """One window of ``size`` (height, width) in each slice of a batch; ``first`` (B, 2): first row and column."""

    first: torch.Tensor
    size: tuple[int, ...]

    def cut(self, slices: torch.Tensor) -> torch.Tensor:
        """The windows of slices (B, C, H, W), as (B, C, h, w)."""
        if tuple(slices.shape[2:]) == self.size:
            return slices
        (height, width), corners = self.size, self.first.tolist()
        pairs = zip(slices, corners, strict=True)
        return torch.stack([one[:, row : row + height, column : column + width] for one, (row, column) in pairs])


class BatchAugmentation:
    """Random affine and intensity changes, drawn separately for each sample of a batch. All off by default.

    Args:
        rotation_degrees: rotations are uniform in +- this value.
        scale: zoom factors are log-uniform in [1 / (1 + scale), 1 + scale].
        translation: shifts are uniform in +- this fraction of the window's size.
        flip_axes: spatial axes (0, 1) to flip with probability 1/2; none by default, because left and right are
            separate organs.
        intensity_curve: strength in [0, 1] of random intensity curves, as the Bezier maps of SLAug (Su et al., AAAI
            2023). Each rises from -1 to 1 in ``CURVE_PIECES`` linear pieces, of arbitrary slopes at strength 1.
            Contrasts between tissues grow or nearly vanish, and their order stays.
        structure_curves: fraction of the labelled samples in which each structure and the background have separate
            curves, so that relative brightness carries no information (the *local* variant of SLAug).
        num_structures: number of classes K, for ``structure_curves``.
        random_networks: fraction of the samples that pass through small random networks (GIN), before the curves.
        gamma: exponents are log-uniform in [1 / (1 + gamma), 1 + gamma], applied to the image mapped to [0, 1].
        contrast: factors are uniform in 1 +- this value, about the image's mean.
        brightness: offsets are uniform in +- this value.
        noise: standard deviations of Gaussian noise are uniform between 0 and this value.
    """

    def __init__(
        self,
        *,
        rotation_degrees: float = 0.0,
        scale: float = 0.0,
        translation: float = 0.0,
        flip_axes: tuple[int, ...] = (),
        intensity_curve: float = 0.0,
        structure_curves: float = 0.0,
        num_structures: int = 0,
        random_networks: float = 0.0,
        gamma: float = 0.0,
        contrast: float = 0.0,
        brightness: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.rotation_degrees, self.scale, self.translation = rotation_degrees, scale, translation
        self.flip_axes = tuple(flip_axes)
        self.intensity_curve, self.structure_curves = intensity_curve, structure_curves
        self.num_structures, self.random_networks = num_structures, random_networks
        self.gamma, self.contrast, self.brightness, self.noise = gamma, contrast, brightness, noise

    def __call__(
        self,
        image: torch.Tensor,
        label: torch.Tensor | None,
        generator: torch.Generator,
        windows: Windows | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Augment a batch.

        Args:
            image: (B, 1, H, W) in [-1, 1].
            label: (B, 1, H, W) class ids, transformed like the image; or None.
            generator: CPU generator of all random numbers.
            windows: the window to cut from each slice; None for whole slices. Cutting and the affine change are one
                interpolation, so a rotated or shifted window shows the slice's content beyond the plain window.

        Returns:
            The augmented image, in [-1, 1], and label: (B, 1, h, w), the size of the windows.
        """
        windows = windows or Windows(torch.zeros(len(image), 2, dtype=torch.int64), tuple(image.shape[2:]))
        if self.rotation_degrees or self.scale or self.translation or self.flip_axes:
            theta = self._transforms(image.shape[2:], windows, generator).to(image.device)
            grid = F.affine_grid(theta, [*image.shape[:2], *windows.size], align_corners=False)
            # Zero padding outside: shift so that zero is the background's -1.
            image = F.grid_sample(image + 1, grid, mode="bilinear", align_corners=False) - 1
            if label is not None:
                label = F.grid_sample(label.float(), grid, mode="nearest", align_corners=False).to(label.dtype)
        else:
            image, label = windows.cut(image), None if label is None else windows.cut(label)
        if self.random_networks:
            is_sent = (torch.rand(len(image), generator=generator) < self.random_networks).to(image.device)
            image = torch.where(is_sent.view(-1, 1, 1, 1), through_random_networks(image, generator), image)
        if self.intensity_curve:
            image = self._bend(image, label, generator)
        return self._change_intensity(image, generator), label

    def _transforms(self, frame: torch.Size, windows: Windows, generator: torch.Generator) -> torch.Tensor:
        """Maps from the windows' coordinates to their slices', both scaled to [-1, 1]: (B, 2, 3)."""
        batch, (height, width) = len(windows.first), windows.size
        angle = _uniform(batch, math.radians(self.rotation_degrees), generator)
        zoom = torch.exp(_uniform(batch, math.log1p(self.scale), generator))
        cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        # In pixels the map is a rotation. Scaled coordinates are half a side long: the window's on the right, the
        # slice's on the left.
        rows = [
            torch.stack([cosine * (width / frame[1]), -sine * height / frame[1]], 1),
            torch.stack([sine * width / frame[0], cosine * (height / frame[0])], 1),
        ]
        matrix = torch.stack(rows, 1)
        for axis in self.flip_axes:
            sign = 1.0 - 2.0 * torch.randint(2, (batch,), generator=generator)
            matrix[:, :, 1 - axis] *= sign[:, None]
        shift = torch.stack([_uniform(batch, 2 * self.translation, generator) for _ in range(2)], 1)  # (B, 2): x, y
        sides = torch.tensor([(width, height), (frame[1], frame[0])], dtype=torch.float32)
        middle = (2 * windows.first.flip(1) + sides[0]) / sides[1] - 1
        return torch.cat([matrix, (shift * (sides[0] / sides[1]) + middle)[:, :, None]], 2)

    def _bend(self, image: torch.Tensor, label: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Map each sample through one curve, or each of its structures through a separate one."""
        batch = len(image)
        curves = 1 if label is None or not self.structure_curves else self.num_structures + 1
        shares = _random_shares(batch * curves, CURVE_PIECES, generator)
        rises = torch.lerp(torch.full_like(shares, 1.0 / CURVE_PIECES), shares, self.intensity_curve)
        curve_of = torch.zeros_like(image, dtype=torch.int64)
        if label is not None and curves > 1:
            apart = (torch.rand(batch, generator=generator) < self.structure_curves).to(image.device)
            curve_of = label.long() * apart.view(-1, 1, 1, 1)
        return _through_curves(image, rises.view(batch, curves, CURVE_PIECES).to(image.device), curve_of)

    def _change_intensity(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        batch, device = image.shape[0], image.device
        if self.gamma:
            exponent = torch.exp(_uniform(batch, math.log1p(self.gamma), generator)).to(device).view(-1, 1, 1, 1)
            image = ((image + 1) / 2).clamp_min(0).pow(exponent) * 2 - 1
        if self.contrast or self.brightness:
            factor = (1 + _uniform(batch, self.contrast, generator)).to(device).view(-1, 1, 1, 1)
            offset = _uniform(batch, self.brightness, generator).to(device).view(-1, 1, 1, 1)
            mean = image.mean((1, 2, 3), keepdim=True)
            image = (image - mean) * factor + mean + offset
        if self.noise:
            strength = (torch.rand(batch, generator=generator) * self.noise).to(device).view(-1, 1, 1, 1)
            image = image + strength * torch.randn(image.shape, generator=generator).to(device)
        return image.clamp(-1, 1)


def _uniform(count: int, half_width: float, generator: torch.Generator) -> torch.Tensor:
    return (torch.rand(count, generator=generator) * 2 - 1) * half_width


def _random_shares(count: int, parts: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` uniformly random partitions of 1 into ``parts``: normalised exponential draws, (count, parts)."""
    draws = -torch.log1p(-torch.rand(count, parts, generator=generator))
    return F.normalize(draws, p=1.0, dim=1)


def _through_curves(image: torch.Tensor, rises: torch.Tensor, curve_of: torch.Tensor) -> torch.Tensor:
    """Map (B, 1, H, W) in [-1, 1] through rising curves, given the (B, N, P) rises of their equal pieces."""
    pieces = rises.shape[2]
    place = (image.flatten(1) + 1) / 2 * pieces
    piece = place.long().clamp(0, pieces - 1)
    starts = F.pad(rises.cumsum(2)[..., :-1], (1, 0))
    index = curve_of.flatten(1) * pieces + piece
    value = starts.flatten(1).gather(1, index) + (place - piece) * rises.flatten(1).gather(1, index)
    return value.view_as(image) * 2 - 1


# Number of convolutions of a random network of GIN, and channels between them, as in the paper.
LAYERS, WIDTH = 4, 2


def through_random_networks(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """GIN: mix each sample with the output of a random network, and rescale the mixture to the sample's value range.

    Ouyang et al., Causality-inspired single-source domain generalization for medical image segmentation, IEEE TMI 2023.
    Weights and offsets are standard normal, activations leaky ReLUs; each convolution is 1 x 1 or 3 x 3 with
    probability 1/2; the mixing weight is uniform in [0, 1]. The original keeps the sample's Frobenius norm; here values
    must stay in [-1, 1], so the minimum and maximum are kept. Padding replicates the border. Images (B, 1, H, W) of any
    floating type are computed in float32; the generator is on the CPU.
    """
    with torch.autocast(image.device.type, enabled=False):
        given = image.float()
        output = _networks_output(given, generator)
        share = torch.rand(len(given), 1, 1, 1, generator=generator).to(given.device)
        mixture = torch.lerp(given, output, share)
        low, high = given.amin((2, 3), keepdim=True), given.amax((2, 3), keepdim=True)
        least, greatest = mixture.amin((2, 3), keepdim=True), mixture.amax((2, 3), keepdim=True)
        spread = (greatest - least).clamp_min(torch.finfo(given.dtype).tiny)
        return (low + (mixture - least) / spread * (high - low)).to(image.dtype)


def _networks_output(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One network for each sample: all run as groups of the same convolutions."""
    batch, width = len(image), 1
    features = image.transpose(0, 1)  # (1, B, H, W): samples are groups of channels
    for layer in range(LAYERS):
        is_last = layer == LAYERS - 1
        wide = 1 if is_last else WIDTH
        weight = torch.randn(batch, wide, width, 3, 3, generator=generator)
        is_pointwise = torch.rand(batch, generator=generator) < 0.5
        weight[is_pointwise] *= F.pad(torch.ones(1, 1), (1, 1, 1, 1))
        offset = torch.randn(batch * wide, generator=generator)
        padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
        features = F.conv2d(padded, weight.flatten(0, 1).to(image), offset.to(image), groups=batch)
        features = features if is_last else F.leaky_relu(features)
        width = wide
    return features.transpose(0, 1)
