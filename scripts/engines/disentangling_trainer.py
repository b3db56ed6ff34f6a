"""Stage 1 of a rival, DRIT++: content that no discriminator can assign to a domain, and exchanged attributes."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from scripts.core.domains import SOURCE, TARGET
from scripts.data.slices import iteration_generator
from scripts.engines.adversarial_trainer import frozen
from scripts.engines.style_transfer_trainer import StyleTransferTrainer
from scripts.losses.adversarial import discriminator_loss
from scripts.losses.disentangling import confusion_loss, mode_seeking_loss, normality_loss
from scripts.losses.translation import domain_discriminator_loss, drawn_style, generator_translation_loss
from scripts.networks.domain_discriminator import logits_of_domain
from scripts.networks.dritpp_generator import DritppGenerator
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DisentanglingTrainer"]

Losses = dict[str, Tensor]


class DisentanglingTrainer(StyleTransferTrainer):
    """Train DRIT++ on unpaired slices of both domains.

    A source and a target image exchange their attributes, and the results exchange them again: the *cross-cycle*, which
    must return both images. Another translation has random attributes, which its own attributes must be (latent
    regression). D judges both translations. A content discriminator learns which domain a content is from, and the
    encoder that it cannot.

    Args:
        content_discriminator: maps contents to logits that they are from the source, any shape with first axis B. Its
            parameters belong to ``discriminator_optimizer``, as those of D.
        confusion_weight: of the content's adversarial loss, 1 in the original.
        latent_weight: of the latent regression, 10 in the original.
        normality_weight: of the divergence of attributes from N(0, I), 0.01 in the original.
        mode_seeking_weight: of the ratio of distances of styles and translations.
        arguments: see :class:`StyleTransferTrainer`. ``generator`` is a :class:`DritppGenerator`; ``cycle_weight`` is
            that of the cross-cycle; ``adversarial_weight`` is of the mean over both translations; there is no content
            loss.

    The output of an iteration: ``loss`` (total of G), ``reconstruction``, ``cycle``, ``adversarial``, ``confusion``,
    ``latent``, ``normality``, ``mode_seeking``, ``discriminator``, ``content_discriminator``, ``content_std``.

    Source: Lee et al., DRIT++: diverse image-to-image translation via disentangled representations, 2020.
    """

    generator: DritppGenerator

    def __init__(
        self,
        *,
        content_discriminator: nn.Module,
        confusion_weight: float = 1.0,
        latent_weight: float = 10.0,
        normality_weight: float = 0.01,
        mode_seeking_weight: float = 1.0,
        **arguments: Any,
    ) -> None:
        self.content_discriminator = content_discriminator
        self.weights = {
            "confusion": confusion_weight,
            "latent": latent_weight,
            "normality": normality_weight,
            "mode_seeking": mode_seeking_weight,
        }
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        source, target = self.prepare(batchdata, "image", "target_image")
        image = torch.cat([source, target]).contiguous(memory_format=torch.channels_last)
        domain = torch.tensor([SOURCE, TARGET], device=image.device).repeat_interleave(len(source))
        other, kind = domain.flip(0), self.loss_arguments["kind"]

        # G step: exchange attributes and exchange them back; draw attributes and find them again.
        random = iteration_generator(self.seed, engine.state.iteration, stream=2)
        with frozen(self.discriminator, self.content_discriminator), self.autocast():
            passes, terms = self.disentangle(image, domain, other, random)
            fakes = torch.cat([passes.pop("exchanged"), passes.pop("translation")])
            fake = logits_of_domain(self.discriminator(fakes), other.repeat(2))
            self.report_forward(engine, translation=fakes[len(image) :], **passes)
            loss, parts = generator_translation_loss(image=image, fake_logits=fake, **self.loss_arguments, **passes)
            for name, weight in self.weights.items():
                loss = loss + weight * terms[name]
        self.report_loss(engine, loss)
        self.step(self.generator_optimizer, loss, engine)
        self.average.update_parameters(self.generator)

        # D step: real images of each domain against both translations into it. Content step: source against target.
        exchanged, translation = fakes.detach().chunk(2)
        shown, shown_domain = self.image_pool.query(translation, other, engine.state.iteration)
        content = passes["content"].detach()
        with self.autocast():
            logits = self.discriminator(torch.cat([image, exchanged, shown]))
            logits = logits_of_domain(logits, torch.cat([domain, other, shown_domain]))
            real, fake = logits.split([len(image), 2 * len(image)])
            judged, judged_parts = domain_discriminator_loss(real_logits=real, fake_logits=fake, kind=kind)
            of_source, of_target = self.content_discriminator(content).chunk(2)
            guessed = discriminator_loss(of_source, of_target, "bce")
        self.step(self.discriminator_optimizer, judged + guessed)
        judged_parts |= {"content_discriminator": guessed, "content_std": content.float().std()}
        return self.finish(engine, {"loss": loss, **parts, **terms, **judged_parts})

    def disentangle(
        self, image: Tensor, domain: Tensor, other: Tensor, random: torch.Generator
    ) -> tuple[dict[str, Any], Losses]:
        """The passes of G by name, and the unweighted terms of its loss that D and the images have no part in.

        Args:
            image: x, the source's images, then as many of the target, (B, C, H, W) in [-1, 1].
            domain: int64 labels of the images, (B,).
            other: int64 labels of the domains translated to, (B,).
            random: random generator of this iteration, on the CPU.

        Returns:
            ``content``; ``reconstruction``, each image with its own attributes; ``exchanged``, with those of the other
            domain's image of the same place; ``cycle``, exchanged once more; ``translation``, with random attributes.
        """
        generator, half = self.generator, len(image) // 2
        content = generator.encode(image, domain)
        mean, log_variance = generator.attributes(image, domain)
        noise, first, second = (drawn_style(generator, to, random) for to in (domain, other, other))
        own = generator.map_noise(mean + (0.5 * log_variance).exp() * noise[:, 1:], domain)
        styles = torch.cat([own, own.roll(half, 0), first, second])
        decoded = generator.decode(content.repeat(4, 1, 1, 1), styles)
        reconstruction, exchanged, translation, another = decoded.chunk(4)

        attributes = generator.own_style(exchanged, other).roll(half, 0)
        passes: dict[str, Any] = {
            "content": content,
            "reconstruction": reconstruction,
            "exchanged": exchanged,
            "translation": translation,
            "cycle": generator.decode(generator.encode(exchanged, other), attributes),
        }
        found = generator.own_style(translation, other)
        return passes, {
            "confusion": confusion_loss(self.content_discriminator(content)),
            "latent": F.l1_loss(found[:, 1:], first[:, 1:]),
            "normality": normality_loss(mean, log_variance),
            "mode_seeking": mode_seeking_loss(translation, another, first[:, 1:], second[:, 1:]),
        }
