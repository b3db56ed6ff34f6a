"""Encoder and decoder of a generator, with AdaIN parameters from a mapping module (section 3.1).

Up-sampling is nearest-neighbour followed by a 5 x 5 convolution, computed at the low resolution.
"""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from scripts.networks.adain import adaptive_instance_norm
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "ContentEncoder",
    "FoldedUpsampleConv",
    "ImageDecoder",
    "MakeMapping",
    "initialise_generator",
    "upsample_conv",
]

# From the channels of each normalisation, in execution order, to a module that returns ``(scale, shift)`` for each.
MakeMapping = Callable[[Sequence[int]], nn.Module]


class ContentEncoder(nn.Module):
    """Image to content: a 7 x 7 convolution, two of stride 2, ``num_blocks`` residual blocks, AdaIN in every norm.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks.
        mapping: builds the module that returns the AdaIN parameters.
    """

    def __init__(self, *, in_channels: int, channels: int, num_blocks: int, mapping: MakeMapping) -> None:
        super().__init__()
        wide = 4 * channels
        self.mapping = mapping([channels, 2 * channels] + [wide] * (1 + 2 * num_blocks))
        self.stem = _ReflectConvolution(in_channels, channels, kernel_size=7)
        self.down1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.down2 = nn.Conv2d(2 * channels, wide, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList([_ResidualBlock(wide) for _ in range(num_blocks)])

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        """The content, (B, 4 * channels, H / 4, W / 4).

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            style: input of the mapping, first axis B.
        """
        styles = self.mapping(style)
        x = F.relu(adaptive_instance_norm(self.stem(image), styles[0][0], styles[0][1]))
        x = F.relu(adaptive_instance_norm(self.down1(x), styles[1][0], styles[1][1]))
        x = F.relu(adaptive_instance_norm(self.down2(x), styles[2][0], styles[2][1]))
        for index, block in enumerate(self.blocks):
            x = block(x, styles[3 + 2 * index], styles[4 + 2 * index])
        return x


class ImageDecoder(nn.Module):
    """Content to image: ``num_blocks`` residual blocks, two up-samplings, a 7 x 7 convolution, tanh.

    Args:
        out_channels: channels of an image.
        channels: width at full resolution.
        num_blocks: residual blocks.
        mapping: builds the module that returns the AdaIN parameters.
    """

    def __init__(self, *, out_channels: int, channels: int, num_blocks: int, mapping: MakeMapping) -> None:
        super().__init__()
        wide = 4 * channels
        self.mapping = mapping([wide] * (2 * num_blocks) + [2 * channels, channels])
        self.blocks = nn.ModuleList([_ResidualBlock(wide) for _ in range(num_blocks)])
        self.up1 = FoldedUpsampleConv(in_channels=wide, out_channels=2 * channels)
        self.up2 = FoldedUpsampleConv(in_channels=2 * channels, out_channels=channels)
        self.to_image = _ReflectConvolution(channels, out_channels, kernel_size=7, bias=True)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """The image, (B, out_channels, H, W) in [-1, 1].

        Args:
            content: (B, 4 * channels, H / 4, W / 4).
            style: input of the mapping, first axis B.
        """
        styles = self.mapping(style)
        x = content
        for index, block in enumerate(self.blocks):
            x = block(x, styles[2 * index], styles[2 * index + 1])
        x = F.relu(adaptive_instance_norm(self.up1(x), styles[-2][0], styles[-2][1]))
        x = F.relu(adaptive_instance_norm(self.up2(x), styles[-1][0], styles[-1][1]))
        return torch.tanh(self.to_image(x))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _ReflectConvolution(channels, channels, kernel_size=3)
        self.conv2 = _ReflectConvolution(channels, channels, kernel_size=3)

    def forward(self, x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        residual = F.relu(adaptive_instance_norm(self.conv1(x), first[0], first[1]))
        return x + adaptive_instance_norm(self.conv2(residual), second[0], second[1])


class _ReflectConvolution(nn.Conv2d):
    """A convolution of odd kernel size and stride 1 with reflection padding in the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, padding_mode="reflect", bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        # CPU autocast would pad in float32, and the convolution would convert back to bf16.
        with torch.autocast(x.device.type, enabled=False):
            margin = self.kernel_size[0] // 2
            padded = F.pad(x, [margin, margin, margin, margin], mode="reflect")
        return F.conv2d(padded, self.weight, self.bias)


def initialise_generator(module: nn.Module) -> None:
    """Kaiming normal weights and zero biases, for ``nn.Module.apply``."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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
