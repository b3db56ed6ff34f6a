"""Adaptive instance normalisation (AdaIN, section 3.1)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["InstanceNorm", "adaptive_instance_norm"]


def adaptive_instance_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Adaptive instance normalisation, ``(x - mean) / std * (1 + scale) + shift`` per sample and channel (section 3.1).

    Written as means followed by one affine map, because ``F.instance_norm`` leaves the channels_last layout.
    Arithmetic is float32 for any input dtype. The style is an argument, so a batch can mix domains and the network can
    be scripted. Eager autograd uses the closed-form gradient, which takes less time and memory.

    Args:
        x: features, (B, C, H, W), any floating dtype.
        scale: (B, C) or (1, C); 0 leaves the normalised features unchanged.
        shift: (B, C) or (1, C).
        eps: added to the (biased) variance.

    Returns:
        (B, C, H, W) in the dtype and the memory format of ``x``. A 1 x 1 map gives ``shift``.

    Source: Huang and Belongie, Arbitrary style transfer in real-time with adaptive instance normalization, 2017.
    """
    scale = scale.float().expand(x.shape[0], -1)
    shift = shift.float().expand(x.shape[0], -1)
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        return _AdaptiveInstanceNorm.apply(x, scale, shift, eps)
    return _normalise(x, scale, shift, eps)


class InstanceNorm(nn.Module):
    """Instance normalisation computed by :func:`adaptive_instance_norm`, for the discriminators.

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


class _AdaptiveInstanceNorm(torch.autograd.Function):
    """:func:`_normalise` with its closed-form gradient; one feature tensor is kept for the backward pass.

    On a CPU it works in place, sample by sample: float32 copies of a whole batch do not fit the cache, and page faults
    cost more than the arithmetic.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        result, means, inverse_stds = torch.empty_like(x), [], []
        for part, x_part, scale_part, shift_part in _parts(result, x, scale, shift):
            centred = x_part.to(torch.float32, copy=True)
            means.append(centred.mean(dim=[2, 3], keepdim=True))
            centred -= means[-1]
            inverse_stds.append(torch.rsqrt(centred.square().mean(dim=[2, 3], keepdim=True) + eps))
            gain = _per_pixel(1.0 + scale_part) * inverse_stds[-1]
            part.copy_(torch.addcmul(_per_pixel(shift_part), centred, gain, out=centred))
        context.save_for_backward(x, scale, shift, torch.cat(means), torch.cat(inverse_stds))
        context.eps = eps
        return result

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, mean, inverse_std = context.saved_tensors
        if torch.is_grad_enabled():  # for second derivatives: in-place operations have none
            wanted = context.needs_input_grad[:3]
            inputs = [tensor for tensor, is_wanted in zip((x, scale, shift), wanted, strict=True) if is_wanted]
            normalised = _normalise(x, scale, shift, context.eps)
            found = iter(torch.autograd.grad(normalised, inputs, gradient, create_graph=True))
            return *(next(found) if is_wanted else None for is_wanted in wanted), None
        x_gradient, scale_gradients, shift_gradients = torch.empty_like(x), [], []
        pixels = x.shape[2] * x.shape[3]
        for part, x_part, g_part, *statistics in _parts(x_gradient, x, gradient, scale, mean, inverse_std):
            scale_part, mean_part, inverse_std_part = statistics
            centred = x_part.to(torch.float32, copy=True).sub_(mean_part)
            g = g_part.to(torch.float32, copy=True)
            g_mean = g.mean(dim=[2, 3], keepdim=True)
            correlation = (g * centred).mean(dim=[2, 3], keepdim=True) * inverse_std_part
            gain = _per_pixel(1.0 + scale_part) * inverse_std_part
            torch.addcmul(-gain * g_mean, g, gain, out=g)
            part.copy_(g.addcmul_(centred, -gain * inverse_std_part * correlation))
            scale_gradients.append(correlation[:, :, 0, 0] * pixels)
            shift_gradients.append(g_mean[:, :, 0, 0] * pixels)
        return x_gradient, torch.cat(scale_gradients), torch.cat(shift_gradients), None


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Single samples on a CPU; the whole batch elsewhere, where kernel launches dominate."""
    size = 1 if tensors[0].device.type == "cpu" else len(tensors[0])
    return zip(*(tensor.split(size) for tensor in tensors), strict=True)


def _per_pixel(style: Tensor) -> Tensor:
    return style[:, :, None, None]


def _normalise(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    # Two means: torch.var_mean over the pixels takes ten times as long on a CPU.
    centred = x - x.mean(dim=[2, 3], keepdim=True, dtype=torch.float32)
    inverse_std = torch.rsqrt(centred.square().mean(dim=[2, 3], keepdim=True) + eps)
    return torch.addcmul(_per_pixel(shift), centred, _per_pixel(1.0 + scale) * inverse_std).to(x.dtype)
