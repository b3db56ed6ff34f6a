"""The adversarial losses of both stages (section 3.2).

The paper prints every adversarial term as ``E[log D(real)] + E[1 - log D(fake)]``. Taken literally, the gradient of the
discriminator's term ``-log D(fake)`` never vanishes: logits and loss diverge. We read it as a misprint of
``log(1 - D(fake))``, the usual minimax game, which is ``bce``. The generator minimises ``-log D(fake)`` instead of
``log(1 - D(fake))`` (the non-saturating form): the same fixed point, but with a gradient where the discriminator is
confident. Up to its constant this is the printed term of the generator.

Source: Goodfellow et al., Generative adversarial nets, 2014; Mao et al., Least squares generative adversarial networks,
2017; Lim and Ye, Geometric GAN, 2017.
"""

from __future__ import annotations

import torch
from scripts.core.domains import FAKE, REAL
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ADVERSARIAL_KINDS", "discriminator_loss", "generator_loss"]

ADVERSARIAL_KINDS = ("bce", "lsgan", "hinge")


def discriminator_loss(
    real_logits: Tensor, fake_logits: Tensor, kind: str, fake_weights: Tensor | None = None
) -> Tensor:
    """Discriminator loss: half the sum of the mean losses on real and fake samples (section 3.2).

    * ``bce``: binary cross-entropy of the logits with ``REAL`` and ``FAKE``.
    * ``lsgan``: squared distance of the logits to ``REAL`` and ``FAKE``.
    * ``hinge``: max(0, 1 - z) on real, max(0, 1 + z) on fake.

    Args:
        real_logits: raw logits of real samples, any shape.
        fake_logits: raw logits of fake samples, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.
        fake_weights: weight of each pixel of the fakes, as in :func:`generator_loss`.

    Returns:
        A float32 scalar.
    """
    if kind == "hinge":
        real = torch.relu(1.0 - real_logits.float()).mean()
        fake = _mean(torch.relu(1.0 + _at_pixels(fake_logits, fake_weights)), fake_weights)
    else:
        real = _distance_to(real_logits, REAL, kind)
        fake = _distance_to(fake_logits, FAKE, kind, fake_weights)
    return 0.5 * (real + fake)


def generator_loss(fake_logits: Tensor, kind: str, weights: Tensor | None = None) -> Tensor:
    """Generator loss: the mean loss of its fakes being classified as real, not halved (section 3.2).

    * ``bce``: binary cross-entropy of the logits with ``REAL``, i.e. -log D(fake).
    * ``lsgan``: squared distance of the logits to ``REAL``.
    * ``hinge``: -z.

    Args:
        fake_logits: raw logits of the fakes, any shape; (B, 1, h, w) with weights.
        kind: one of ``ADVERSARIAL_KINDS``.
        weights: weight of each pixel, (B, 1, H, W); logits of a coarser grid are interpolated bilinearly. The loss is
            the mean of weight x loss, so that weights of 1 change nothing on the same grid. None for 1 everywhere.

    Returns:
        A float32 scalar.
    """
    if kind == "hinge":
        return -_mean(_at_pixels(fake_logits, weights), weights)
    return _distance_to(fake_logits, REAL, kind, weights)


def _distance_to(logits: Tensor, goal: float, kind: str, weights: Tensor | None = None) -> Tensor:
    logits = _at_pixels(logits, weights)
    target = torch.full_like(logits, goal)
    reduction = "mean" if weights is None else "none"
    if kind == "bce":
        distance = F.binary_cross_entropy_with_logits(logits, target, reduction=reduction)
    elif kind == "lsgan":
        distance = F.mse_loss(logits, target, reduction=reduction)
    else:
        raise ValueError(f"kind must be one of {ADVERSARIAL_KINDS}, got {kind!r}")
    return distance if weights is None else _mean(distance, weights)


def _at_pixels(logits: Tensor, weights: Tensor | None) -> Tensor:
    """Float32 logits, on the grid of the weights if there are any."""
    logits = logits.float()
    if weights is None or weights.shape[2:] == logits.shape[2:]:
        return logits
    return F.interpolate(logits, size=weights.shape[2:], mode="bilinear", align_corners=False)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses.mean() if weights is None else (weights * losses).mean()
