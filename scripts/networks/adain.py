"""Adaptive instance normalisation and the mapping from a domain label to its scales and shifts (section 3.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["InstanceNorm", "StyleMapping", "adaptive_instance_norm"]


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Adaptive instance normalisation, ``(x - mean) / std * (1 + scale) + shift`` per sample and channel (section 3.1).

    Written as means followed by one affine map, because ``F.instance_norm`` gives up the channels_last layout. The
    arithmetic is float32 whatever the input; style comes in as arguments, so that one batch can mix domains and the
    network can be scripted. Under eager autograd the gradient is the closed form, which takes less time and memory.

    Args:
        x: features, (B, C, H, W), any floating dtype.
        scale: (B, C) or (1, C); 0 leaves the normalised features as they are.
        shift: (B, C) or (1, C).
        eps: added to the (biased) variance.

    Returns:
        (B, C, H, W) in the dtype and the memory format of ``x``. A 1 x 1 map gives ``shift``.

    Source: Huang and Belongie, Arbitrary style transfer in real-time with adaptive instance normalization, 2017.
    """
    scale = scale.float().expand(x.shape[0], -1)
    shift = shift.float().expand(x.shape[0], -1)
    if not torch.jit.is_scripting() and torch.is_grad_enabled() and not torch.jit.is_tracing():
        return _AdaptiveInstanceNorm.apply(x, scale, shift, eps)
    return _normalise(x, scale, shift, eps)


class InstanceNorm(nn.Module):
    """Instance normalisation in the arithmetic of :func:`adaptive_instance_norm`, for the discriminators.

    Args:
        num_features: channels C.
        affine: learn one scale and shift per channel.
    """

    def __init__(self, *, num_features: int, affine: bool = False) -> None:
        super().__init__()
        scale, shift = torch.zeros(1, num_features), torch.zeros(1, num_features)
        if affine:
            self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)
        else:
            self.register_buffer("scale", scale, persistent=False)
            self.register_buffer("shift", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each sample: (B, C, H, W) to the same shape."""
        return adaptive_instance_norm(x, self.scale, self.shift)


class StyleMapping(nn.Module):
    """The MLP that turns a domain label into the AdaIN parameters of a whole encoder or decoder (section 3.1).

    One-hot domain -> ``hidden_channels`` -> ``hidden_channels`` -> two numbers per normalised feature, ReLU between.

    Args:
        num_features: channels of each AdaIN layer, in the order in which the layers run.
        hidden_channels: width of the two hidden layers.
        num_domains: how many domains there are.
    """

    def __init__(self, *, num_features: Sequence[int], hidden_channels: int = 64, num_domains: int = 2) -> None:
        super().__init__()
        self.num_domains = num_domains
        self.sizes = [2 * features for features in num_features]
        self.first = nn.Linear(num_domains, hidden_channels)
        self.second = nn.Linear(hidden_channels, hidden_channels)
        self.last = nn.Linear(hidden_channels, sum(self.sizes))

    def forward(self, domain: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One ``(scale, shift)`` pair per AdaIN layer, each (B, C of that layer).

        Args:
            domain: int64 domain labels, (B,).
        """
        one_hot = F.one_hot(domain, self.num_domains).to(self.first.weight.dtype)
        hidden = F.relu(self.second(F.relu(self.first(one_hot))))
        styles: list[tuple[Tensor, Tensor]] = []
        for parameters in torch.split(self.last(hidden), self.sizes, dim=1):
            scale, shift = torch.chunk(parameters, 2, dim=1)
            styles.append((scale, shift))
        return styles


class _AdaptiveInstanceNorm(torch.autograd.Function):
    """:func:`_normalise` with its closed-form gradient, which keeps one feature tensor for the backward pass."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        context.save_for_backward(x, scale)
        context.eps = eps
        return _normalise(x, scale, shift, eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # The statistics are computed again rather than saved: that is no slower, and makes second derivatives right.
        x, scale = context.saved_tensors
        centred, inverse_std = _statistics(x, context.eps)
        pixels = x.shape[2] * x.shape[3]
        mean_gradient = gradient.mean(dim=[2, 3], keepdim=True, dtype=torch.float32)
        correlation = (gradient * centred).mean(dim=[2, 3], keepdim=True) * inverse_std
        gain = (1.0 + scale)[:, :, None, None] * inverse_std
        through_mean = torch.addcmul(-gain * mean_gradient, gradient.float(), gain)
        x_gradient = torch.addcmul(through_mean, centred, -gain * inverse_std * correlation)
        return x_gradient.to(x.dtype), correlation[:, :, 0, 0] * pixels, mean_gradient[:, :, 0, 0] * pixels, None


def _normalise(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    centred, inverse_std = _statistics(x, eps)
    gain = (1.0 + scale)[:, :, None, None] * inverse_std
    return torch.addcmul(shift[:, :, None, None], centred, gain).to(x.dtype)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The centred features, (B, C, H, W), and 1 / std, (B, C, 1, 1), both float32."""
    # Two means: torch.var_mean over the pixels takes ten times as long on a CPU.
    centred = x - x.mean(dim=[2, 3], keepdim=True, dtype=torch.float32)
    return centred, torch.rsqrt(centred.square().mean(dim=[2, 3], keepdim=True) + eps)
