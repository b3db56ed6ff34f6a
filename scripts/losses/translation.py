"""The objective of the synthesis stage (section 3.2), and optional terms that a config adds under ``extra_losses``.

Source of the optional terms: Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial
networks, 2017; Choi et al., StarGAN v2: diverse image synthesis for multiple domains, 2020.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scripts.core.processes import all_gather_batch, local_shard
from scripts.losses.adversarial import discriminator_loss, generator_loss
from scripts.networks.translators import Translator
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "ExtraLoss",
    "Identity",
    "StyleDiversity",
    "StyleReconstruction",
    "Translated",
    "domain_discriminator_loss",
    "drawn_style",
    "generator_translation_loss",
]


def generator_translation_loss(
    *,
    image: Tensor,
    content: Tensor,
    fake_logits: Tensor,
    reconstruction: Tensor | None = None,
    cycle: Tensor | None = None,
    content_of_translation: Tensor | None = None,
    reconstruction_weight: float,
    cycle_weight: float,
    content_weight: float,
    adversarial_weight: float,
    kind: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Generator loss of a batch of images x of domain i, translated to domain j (section 3.2).

    * ``reconstruction``: L_rec_im = |GD(GE(x, i), i) - x|.
    * ``cycle``: L_cyc = |GD(GE(x_ij, j), i) - x| with the translation x_ij = GD(GE(x, i), j). The paper prints the
      labels i, i, j, i, so that x_ij would never appear; this order follows its text.
    * ``content``: L_rec_c = |GE(x_ij, j) - c| with c = GE(x, i), gradients through both.
    * ``adversarial``: L_adv, D(x_ij | j) against the label real.

    Each is a mean over all values. Any of the first three with weight 0 is omitted and its input may be None.

    Args:
        image: x, (B, C, H, W) in [-1, 1].
        content: GE(x, i), (B, F, h, w).
        fake_logits: raw logits D(x_ij | j), any shape.
        reconstruction: x decoded in its own domain, (B, C, H, W).
        cycle: x after the round trip, (B, C, H, W).
        content_of_translation: GE(x_ij, j), (B, F, h, w).
        reconstruction_weight: the paper's 20.
        cycle_weight: the paper's 20.
        content_weight: the paper's 1.
        adversarial_weight: the paper's 1.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        The weighted total and its unweighted parts by name, float32 scalars.
    """
    pairs = {
        "reconstruction": (reconstruction_weight, reconstruction, image),
        "cycle": (cycle_weight, cycle, image),
        "content": (content_weight, content_of_translation, content),
    }
    parts: dict[str, Tensor] = {}
    total = torch.zeros(())
    for name, (weight, found, wanted) in pairs.items():
        if weight != 0 and found is not None:
            parts[name] = F.l1_loss(found.float(), wanted.float())
            total = total + weight * parts[name]
    parts["adversarial"] = generator_loss(fake_logits, kind)
    return total + adversarial_weight * parts["adversarial"], parts


def domain_discriminator_loss(
    *, real_logits: Tensor, fake_logits: Tensor, kind: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Discriminator loss: real images x_j against translations x_ij, both under label j (section 3.2).

    Args:
        real_logits: raw logits D(x_j | j), any shape.
        fake_logits: raw logits D(x_ij | j) of detached translations, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        The loss, and the same under the name ``discriminator``.
    """
    total = discriminator_loss(real_logits, fake_logits, kind)
    return total, {"discriminator": total}


@dataclass(frozen=True, kw_only=True)
class Translated:
    """A batch and its translation within one iteration.

    Attributes:
        image: x_i, (B, C, H, W) in [-1, 1].
        domain: int64 labels i, (B,).
        other: int64 labels j of the domains translated to, (B,).
        content: of the images, output of ``encode``.
        style: of the translations, output of :func:`drawn_style`.
        translation: x_ij, the contents rendered in ``style``, (B, C, H, W) in [-1, 1].
        random: random generator of this iteration, on the CPU.
    """

    image: Tensor
    domain: Tensor
    other: Tensor
    content: Tensor
    style: Tensor
    translation: Tensor
    random: torch.Generator


def drawn_style(generator: Translator, domain: Tensor, random: torch.Generator) -> Tensor:
    """A style for each sample, the same as a single process with the whole batch would draw.

    Args:
        generator: draws styles for the samples of all processes; each process keeps its share.
        domain: int64 domain labels, (B,), the first half of one domain, the second half of the other.
        random: generator on the CPU, in the same state on every process.
    """
    return local_shard(generator.new_style(all_gather_batch(domain, 2), random), 2)


class ExtraLoss(ABC):
    """A term of the generator's loss.

    Args:
        weight: weight of the term; negative to maximise it.
        schedule: factor of the weight at each iteration, counted from 0; None for 1.
    """

    def __init__(self, *, weight: float, schedule: Callable[[int], float] | None = None) -> None:
        self.weight, self.schedule = weight, schedule

    def weight_at(self, iteration: int) -> float:
        """The weight at ``iteration``, counted from 0."""
        return self.weight if self.schedule is None else self.weight * self.schedule(iteration)

    @abstractmethod
    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """The unweighted term, a float32 scalar."""


class Identity(ExtraLoss):
    """CycleGAN's identity loss: translating an image into its own domain should not change it, mean |G_ji(x_i) - x_i|.

    Without it, the two generators may agree on inverted grey values.
    """

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`. Costs one more encoder and decoder pass."""
        content = generator.encode(batch.image, batch.other)
        same = generator.decode(content, generator.own_style(batch.image, batch.domain))
        return F.l1_loss(same.float(), batch.image.float())


class StyleReconstruction(ExtraLoss):
    """StarGAN v2's style reconstruction: a translation should keep the style it was given, mean |E(x_ij) - s_j|."""

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`; gradients reach the style encoder, the translation and the style."""
        found = generator.own_style(batch.translation, batch.other)
        return F.l1_loss(found.float(), batch.style.float())


class StyleDiversity(ExtraLoss):
    """StarGAN v2's style diversity: distance between translations in two styles, mean |x_ij - x'_ij|; weight < 0."""

    def __call__(self, generator: Translator, batch: Translated) -> Tensor:
        """See :class:`ExtraLoss`; only the first translation has a gradient."""
        with torch.no_grad():
            another = generator.decode(batch.content, drawn_style(generator, batch.other, batch.random))
        return F.l1_loss(batch.translation.float(), another.float())
