"""Further parts of a translator's loss, which a config adds by name (``extra_losses``).

Source: Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial networks, 2017; Choi et al.,
StarGAN v2: diverse image synthesis for multiple domains, 2020.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.core.processes import all_gather_batch, local_shard
from scripts.networks.translator import Translator

__all__ = ["ExtraLoss", "Identity", "StyleDiversity", "StyleReconstruction", "Translated", "drawn_style"]


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A batch and its translation, as an iteration has them.

    Attributes:
        image: x_i, (B, C, H, W) in [-1, 1].
        domain: int64 labels i, (B,).
        other: int64 labels j of the domains translated to, (B,).
        content: of the images, as ``encode`` gave it.
        style: of the translations, as :func:`drawn_style` gave it.
        translation: x_ij, the contents rendered in ``style``, (B, C, H, W) in [-1, 1].
        random: generator on the CPU, of this iteration.
    """

    image: Tensor
    domain: Tensor
    other: Tensor
    content: Tensor
    style: Tensor
    translation: Tensor
    random: torch.Generator


def drawn_style(generator: Translator, domain: Tensor, random: torch.Generator) -> Tensor:
    """The style of each sample, as one process with the samples of all would draw it.

    Args:
        generator: draws for all processes' samples; each process keeps its own.
        domain: int64 domain labels, (B,), as many samples of the one domain as of the other, one after the other.
        random: generator on the CPU, in the same state on every process.
    """
    return local_shard(generator.new_style(all_gather_batch(domain, 2), random), 2)


class ExtraLoss(ABC):
    """A part of the generator's loss.

    Args:
        weight: factor of the part in the total; below 0 for what is to grow.
        schedule: factor of the weight at an iteration, counted from 0; None for 1.
    """

    def __init__(self, *, weight: float, schedule: Callable[[int], float] | None = None) -> None:
        self.weight, self.schedule = weight, schedule

    def weight_at(self, iteration: int) -> float:
        """The weight at ``iteration``, counted from 0."""
        return self.weight if self.schedule is None else self.weight * self.schedule(iteration)

    @abstractmethod
    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """The part, unweighted, a float32 scalar."""


class Identity(ExtraLoss):
    """What is of a domain already should stay as it is on the way into it: mean |G_ji(x_i) - x_i|.

    CycleGAN's identity loss: without it, two generators may agree on inverted grey values.
    """

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`; one encoder and one decoder pass of its own."""
        content = generator.encode(batch.image, batch.other)
        same = generator.decode(content, generator.own_style(batch.image, batch.domain))
        return F.l1_loss(same.float(), batch.image.float())


class StyleReconstruction(ExtraLoss):
    """StarGAN v2's: the style of a translation should be the one that it was rendered in, mean |E(x_ij) - s_j|."""

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`; gradients reach the style encoder, the translation and the style."""
        found = generator.own_style(batch.translation, batch.other)
        return F.l1_loss(found.float(), batch.style.float())


class StyleDiversity(ExtraLoss):
    """StarGAN v2's: how far another style would have led, mean |x_ij - x'_ij|; of negative weight."""

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`; gradients reach the first translation alone."""
        with torch.no_grad():
            another = generator.decode(batch.content, drawn_style(generator, batch.other, batch.random))
        return F.l1_loss(batch.translation.float(), another.float())
