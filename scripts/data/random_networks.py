"""GIN: images through small random convolutional networks, so that no grey value or texture can be relied on.

Ouyang et al., Causality-inspired single-source domain generalization for medical image segmentation, IEEE TMI 2023.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["LAYERS", "WIDTH", "through_random_networks"]

LAYERS, WIDTH = 4, 2
"""Convolutions of a random network, and the channels between them: those of the paper."""


def through_random_networks(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mix each sample with its own random network's output, and map the mixture onto the sample's range of values.

    Every network has weights and offsets from the standard normal distribution, leaky ReLUs, and convolutions of 1 x 1
    or 3 x 3 pixels, by the toss of a coin; the output's share is uniform in [0, 1]. The original gives the mixture the
    sample's Frobenius norm; here values must stay in [-1, 1], so the least and the greatest are the sample's own.
    Borders are continued by their own values.

    Args:
        image: (B, 1, H, W), of any floating type; computed in float32.
        generator: CPU generator of every draw.

    Returns:
        Images of the same shape and, sample by sample, of the same range. Edges stay where they are, contrasts may
        turn over.
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
