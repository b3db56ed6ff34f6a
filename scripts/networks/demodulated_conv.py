"""Convolutions whose weights carry the style: modulated by it, then normalised (demodulated)."""

import torch
from scripts.networks.generator_layers import upsample_conv
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DemodulatedConv", "DemodulatedUpsampleConv", "demodulate"]


def demodulate(weight: Tensor, scale: Tensor, eps: float = 1e-8) -> Tensor:
    """Scale a kernel's input channels, then give each output channel's kernel the mean 0 and the Euclidean norm 1.

    ``w'_oik = s_i w_oik``, ``w''_oik = w'_oik - mean_ik w'_oik``, over ``sqrt(sum_ik w''_oik^2 + eps)``. On inputs
    that are uncorrelated and of unit variance the outputs have unit variance: the expected statistics are normalised,
    not those of an image. Centring is not part of StyleGAN 2. It keeps out the positive mean that a ReLU gives to its
    outputs, which otherwise grows from layer to layer; training starts faster with it.

    Args:
        weight: (out, in, k, k).
        scale: (in,).
        eps: added to the squared norm.

    Returns:
        (out, in, k, k).

    Source: Karras et al., Analyzing and improving the image quality of StyleGAN, 2020, section 2.2; Brock et al.,
    Characterizing signal propagation to close the performance gap in unnormalized ResNets, 2021.
    """
    modulated = weight * scale[None, :, None, None]
    centred = modulated - modulated.mean(dim=[1, 2, 3], keepdim=True)
    return centred * torch.rsqrt(centred.square().sum(dim=[1, 2, 3], keepdim=True) + eps)


class DemodulatedConv(nn.Module):
    """A convolution with zero padding whose weight and bias depend on a style code.

    A linear layer maps the code to one scale per input channel, which modulates the weight, and one bias per output
    channel. A whole batch has one style, so that modulation costs a pass over the weights and none over the features.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        code_channels: length of a style code.
        gain: norm of each output channel's kernel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, code_channels: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.sizes = [in_channels, out_channels]
        self.padding, self.gain = kernel_size // 2, gain
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        nn.init.kaiming_normal_(self.weight)
        self.style = nn.Linear(code_channels, in_channels + out_channels)
        nn.init.zeros_(self.style.bias)
        with torch.no_grad():
            self.style.weight[in_channels:].zero_()  # no output bias at first

    def weight_and_bias(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """The weight (out, in, k, k) and bias (out,) of a style code (code_channels,)."""
        scale, bias = self.style(code).to(self.weight.dtype).split(self.sizes)
        return self.gain * demodulate(self.weight, 1.0 + scale), bias

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """Convolve a batch in one style.

        Args:
            x: (B, in, H, W).
            code: (code_channels,).

        Returns:
            (B, out, H, W).
        """
        weight, bias = self.weight_and_bias(code)
        return F.conv2d(x, weight, bias, padding=self.padding)


class DemodulatedUpsampleConv(DemodulatedConv):
    """Nearest-neighbour up-sampling by 2, then a demodulated 5 x 5 convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        code_channels: length of a style code.
        gain: norm of each output channel's kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, code_channels: int, gain: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, 5, code_channels=code_channels, gain=gain)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, in, H, W) and a code (code_channels,) to (B, out, 2 H, 2 W)."""
        weight, bias = self.weight_and_bias(code)
        return upsample_conv(x, weight, bias)
