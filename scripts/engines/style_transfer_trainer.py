"""Stage 1: the style transfer G against the domain discriminator D (paper, section 3.1, global alignment)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from scripts.core.domains import SOURCE, TARGET
from scripts.core.errors import check_choice
from scripts.data.slices import iteration_generator
from scripts.engines.adversarial_trainer import AdversarialTrainer, frozen
from scripts.engines.image_pool import ImagePool
from scripts.losses.adversarial import ADVERSARIAL_KINDS
from scripts.losses.translation import (
    ExtraLoss,
    Translated,
    domain_discriminator_loss,
    drawn_style,
    generator_translation_loss,
)
from scripts.networks.domain_discriminator import DomainDiscriminator, logits_of_domain
from scripts.networks.translators import Translator
from torch.optim.swa_utils import AveragedModel

__all__ = ["StyleTransferTrainer"]


class StyleTransferTrainer(AdversarialTrainer):
    """Train G and D on unpaired slices of both domains (paper, section 3.2, stage one).

    Each image goes through G once: content, reconstruction, translation, the translation's content and the cycle
    serve all four losses: two encoder and three decoder passes instead of eleven for the terms one by one. A
    reconstruction, cycle or content loss of weight 0 is omitted, with the passes that only it needs.

    G may be any :class:`Translator`. It provides the style of each translation, and the config may add further losses.

    Args:
        generator: G.
        discriminator: D, one output map per domain.
        generator_optimizer: optimiser of G.
        discriminator_optimizer: optimiser of D.
        image_pool: earlier translations shown to D.
        average: moving average of G's weights, which is saved at the end.
        reconstruction_weight: lambda of L_rec_im, 20 in the paper.
        cycle_weight: lambda of L_cyc, 20 in the paper.
        content_weight: lambda of L_rec_c, 1 in the paper.
        adversarial_weight: lambda of L_adv, 1 in the paper.
        adversarial_kind: ``lsgan`` (default, as in the related code), ``bce`` or ``hinge``.
        extra_losses: further terms of G's loss by name.
        seed: seed of the styles that G draws; a draw depends on the seed and the iteration only.
        arguments: see :class:`AdversarialTrainer`.

    Raises:
        InputError: an unknown kind.

    The output of an iteration: ``loss`` (G's total), ``reconstruction``, ``cycle``, ``content`` (each where its weight
    is not 0), ``adversarial``, the extra losses by their names, ``discriminator``, ``content_std`` (a shrinking content
    lowers the content loss without any improvement).
    """

    def __init__(
        self,
        *,
        generator: Translator,
        discriminator: DomainDiscriminator,
        generator_optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        image_pool: ImagePool,
        average: AveragedModel,
        reconstruction_weight: float = 20.0,
        cycle_weight: float = 20.0,
        content_weight: float = 1.0,
        adversarial_weight: float = 1.0,
        adversarial_kind: str = "lsgan",
        extra_losses: Mapping[str, ExtraLoss] | None = None,
        seed: int = 0,
        **arguments: Any,
    ) -> None:
        check_choice("adversarial_kind", adversarial_kind, ADVERSARIAL_KINDS)
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.image_pool = image_pool
        self.loss_arguments: dict[str, Any] = {
            "reconstruction_weight": reconstruction_weight,
            "cycle_weight": cycle_weight,
            "content_weight": content_weight,
            "adversarial_weight": adversarial_weight,
            "kind": adversarial_kind,
        }
        self.average, self.extra_losses, self.seed = average, dict(extra_losses or {}), seed
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        source, target = self.prepare(batchdata, "image", "target_image")
        image = torch.cat([source, target]).contiguous(memory_format=torch.channels_last)
        domain = torch.tensor([SOURCE, TARGET], device=image.device).repeat_interleave(len(source))
        other = domain.flip(0)

        # G step: reconstruct every x_i, translate it to x_ij, and back.
        random = iteration_generator(self.seed, engine.state.iteration, stream=2)
        with frozen(self.discriminator), self.autocast():
            style = drawn_style(self.generator, other, random)
            translation, passes = self.translate(image, domain, other, style)
            fake = logits_of_domain(self.discriminator(translation), other)
            self.report_forward(engine, translation=translation, **passes)
            loss, parts = generator_translation_loss(image=image, fake_logits=fake, **self.loss_arguments, **passes)
            batch = Translated(
                image=image,
                domain=domain,
                other=other,
                content=passes["content"],
                style=style,
                translation=translation,
                random=random,
            )
            for name, extra in self.extra_losses.items():
                parts[name] = extra(self.generator, batch)
                loss = loss + extra.weight_at(engine.state.iteration - 1) * parts[name]
        self.report_loss(engine, loss)
        self.step(self.generator_optimizer, loss, engine)
        self.average.update_parameters(self.generator)

        # D step: real images of each domain against translations into it.
        shown, shown_domain = self.image_pool.query(translation.detach(), other, engine.state.iteration)
        with self.autocast():
            logits = self.discriminator(torch.cat([image, shown]))
            real_logits, fake_logits = logits_of_domain(logits, torch.cat([domain, shown_domain])).chunk(2)
            discriminator_loss, discriminator_parts = domain_discriminator_loss(
                real_logits=real_logits, fake_logits=fake_logits, kind=self.loss_arguments["kind"]
            )
        self.step(self.discriminator_optimizer, discriminator_loss)

        content_std = passes["content"].detach().float().std()
        return self.finish(engine, {"loss": loss, **parts, **discriminator_parts, "content_std": content_std})

    def translate(
        self, image: torch.Tensor, domain: torch.Tensor, other: torch.Tensor, style: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The shared passes of G: x_ij, and by name c and, where needed, x_ii, x_iji and the content of x_ij.

        Args:
            image: x, (B, C, H, W) in [-1, 1].
            domain: int64 labels i, (B,).
            other: int64 labels j, (B,).
            style: of domain j, input of G's ``decode``.
        """
        weights, generator = self.loss_arguments, self.generator
        own, content = generator.own_style(image, domain), generator.encode(image, domain)
        passes: dict[str, Any] = {"content": content}
        if weights["reconstruction_weight"] != 0:
            both = generator.decode(torch.cat([content, content]), torch.cat([own, style]))
            passes["reconstruction"], translation = both.chunk(2)
        else:
            translation = generator.decode(content, style)
        if weights["cycle_weight"] != 0 or weights["content_weight"] != 0:
            passes["content_of_translation"] = generator.encode(translation, other)
        if weights["cycle_weight"] != 0:
            passes["cycle"] = generator.decode(passes["content_of_translation"], own)
        return translation, passes
