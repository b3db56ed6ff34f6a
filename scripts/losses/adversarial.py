"""The adversarial losses of both stages (section 3.2).

The paper prints every adversarial term as ``E[log D(real)] + E[1 - log D(fake)]``. Taken literally, the discriminator's
share ``-log D(fake)`` is a reward whose gradient never vanishes: logits and loss run off to infinity. It is read as a
misprint of ``log(1 - D(fake))``, the usual minimax game, which is what ``bce`` plays. The generator then minimises
``-log D(fake)`` in place of ``log(1 - D(fake))`` (the non-saturating form): same fixed point, but a gradient also where
the discriminator is sure; up to its constant, this is the printed term as the generator sees it.

Source: Goodfellow et al., Generative adversarial nets, 2014; Mao et al., Least squares generative adversarial networks,
2017; Lim and Ye, Geometric GAN, 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.domains import FAKE, REAL

__all__ = ["ADVERSARIAL_KINDS", "discriminator_loss", "generator_loss"]

ADVERSARIAL_KINDS = ("bce", "lsgan", "hinge")


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, kind: str) -> Tensor:
    """What a discriminator minimises: half the sum of its mean losses on real and on fake (section 3.2).

    * ``bce``: binary cross-entropy of the logits with ``REAL`` and ``FAKE``.
    * ``lsgan``: squared distance of the logits to ``REAL`` and ``FAKE``.
    * ``hinge``: max(0, 1 - z) on real, max(0, 1 + z) on fake.

    Args:
        real_logits: raw logits of what should be called real, any shape.
        fake_logits: raw logits of what should be called fake, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: for another ``kind``.
    """
    if kind == "hinge":
        real = torch.relu(1.0 - real_logits.float()).mean()
        fake = torch.relu(1.0 + fake_logits.float()).mean()
    else:
        real = _distance_to(real_logits, REAL, kind)
        fake = _distance_to(fake_logits, FAKE, kind)
    return 0.5 * (real + fake)


def generator_loss(fake_logits: Tensor, kind: str) -> Tensor:
    """What the deceiver minimises: the mean loss of calling its fakes real, not halved (section 3.2).

    * ``bce``: binary cross-entropy of the logits with ``REAL``, i.e. -log D(fake).
    * ``lsgan``: squared distance of the logits to ``REAL``.
    * ``hinge``: -z.

    Args:
        fake_logits: raw logits of the fakes, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: for another ``kind``.
    """
    if kind == "hinge":
        return -fake_logits.float().mean()
    return _distance_to(fake_logits, REAL, kind)


def _distance_to(logits: Tensor, verdict: float, kind: str) -> Tensor:
    logits = logits.float()
    target = torch.full_like(logits, verdict)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    if kind == "lsgan":
        return F.mse_loss(logits, target)
    raise ValueError(f"kind must be one of {ADVERSARIAL_KINDS}, got {kind!r}")
