"""Nearest-neighbour up-sampling followed by a 5 x 5 convolution, computed at the low resolution."""

from typing import Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FoldedUpsampleConv", "upsample_conv"]


def upsample_conv(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """``conv5x5(nearest_x2(x))``, exactly, as four 3 x 3 phase kernels and a pixel shuffle.

    Nearest up-sampling repeats each row, so that the five vertical taps of an even output row fall on three input rows
    as ``w0 + w1, w2 + w3, w4``, and of an odd one as ``w0, w1 + w2, w3 + w4``; likewise the columns. That makes 9
    products per output value instead of 25. The zero padding of 2 at the high resolution is one of 1 at the low. Unlike
    a transposed convolution it leaves no checkerboard.

    Args:
        x: (B, in, H, W).
        weight: of the ordinary convolution, (out, in, 5, 5).
        bias: (out,).

    Returns:
        (B, out, 2 H, 2 W).
    """
    out_channels, in_channels = weight.shape[:2]
    phases = _fold(_fold(weight, 2), 4)  # (out, in, 2 row phases, 3, 2 column phases, 3)
    kernels = phases.permute(0, 2, 4, 1, 3, 5).reshape(4 * out_channels, in_channels, 3, 3)
    phase_bias = None if bias is None else bias.repeat_interleave(4)
    return F.pixel_shuffle(F.conv2d(x, kernels, phase_bias, padding=1), 2)


class FoldedUpsampleConv(nn.Module):
    """:func:`upsample_conv` with a weight of its own and no bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 5, 5))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, 2 H, 2 W)."""
        return upsample_conv(x, self.weight)


def _fold(weight: Tensor, dim: int) -> Tensor:
    """Replace the axis ``dim`` of 5 taps by two axes: 2 output phases and 3 taps at the offsets -1, 0, +1."""
    # Sums rather than a product with a fold matrix: under autocast they stay in the weight's float32.
    w0, w1, w2, w3, w4 = torch.unbind(weight, dim)
    even = torch.stack([w0 + w1, w2 + w3, w4], dim)
    odd = torch.stack([w0, w1 + w2, w3 + w4], dim)
    return torch.stack([even, odd], dim)
