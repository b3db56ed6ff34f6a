"""A plain implementation of stage 1's step: separate passes for every loss term in eager float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.engines.adversarial_trainer import frozen
from scripts.losses.adversarial import discriminator_loss, generator_loss
from scripts.networks.adain import InstanceNorm
from scripts.networks.domain_discriminator import DomainDiscriminator, logits_of_domain
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TermByTermStep"]

Style = tuple[Tensor, Tensor]


class TermByTermStep:
    """The updates of :class:`scripts.engines.style_transfer_trainer.StyleTransferTrainer` as the paper writes them.

    It uses the same parameters with plain operations: AdaIN by ``F.instance_norm``, up-sampling by nearest neighbour
    and a 5 x 5 convolution at the high resolution. It needs eleven encoder and decoder passes instead of the trainer's
    five, and has no moving average, image pool or events.
    """

    def __init__(
        self,
        *,
        generator: StyleTransferGenerator,
        discriminator: DomainDiscriminator,
        generator_optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
    ) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.generator_optimizer, self.discriminator_optimizer = generator_optimizer, discriminator_optimizer
        self.translation = torch.empty(0)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update G and D on a batch, and return the unweighted losses under the trainer's names."""
        image = torch.cat([batch["image"], batch["target_image"]])
        domain = torch.tensor([SOURCE, TARGET], device=image.device).repeat_interleave(len(batch["image"]))
        other = domain.flip(0)
        losses: dict[str, Tensor] = {}
        self.generator_optimizer.zero_grad(set_to_none=True)
        with frozen(self.discriminator):
            for name, (weight, term) in self._terms().items():
                loss = term(image, domain, other)
                (weight * loss).backward()
                losses[name] = loss.detach()
        self.generator_optimizer.step()

        self.discriminator_optimizer.zero_grad(set_to_none=True)
        real = _domain_logits(self.discriminator, image, domain)
        fake = _domain_logits(self.discriminator, self.translation, other)
        loss = discriminator_loss(real, fake, "lsgan")
        loss.backward()
        self.discriminator_optimizer.step()
        return losses | {"discriminator": loss.detach()}

    def _terms(self) -> dict[str, tuple[float, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
        return {
            "reconstruction": (20.0, self._reconstruction),
            "cycle": (20.0, self._cycle),
            "content": (1.0, self._content),
            "adversarial": (1.0, self._adversarial),
        }

    def _translate(self, image: Tensor, domain: Tensor, other: Tensor) -> Tensor:
        return _decode(self.generator, _encode(self.generator, image, domain), other)

    def _reconstruction(self, image: Tensor, domain: Tensor, other: Tensor) -> Tensor:
        return F.l1_loss(self._translate(image, domain, domain), image)

    def _cycle(self, image: Tensor, domain: Tensor, other: Tensor) -> Tensor:
        return F.l1_loss(self._translate(self._translate(image, domain, other), other, domain), image)

    def _content(self, image: Tensor, domain: Tensor, other: Tensor) -> Tensor:
        content = _encode(self.generator, image, domain)
        return F.l1_loss(_encode(self.generator, _decode(self.generator, content, other), other), content)

    def _adversarial(self, image: Tensor, domain: Tensor, other: Tensor) -> Tensor:
        translation = self._translate(image, domain, other)
        self.translation = translation.detach()
        return generator_loss(_domain_logits(self.discriminator, translation, other), "lsgan")


def _encode(generator: StyleTransferGenerator, image: Tensor, domain: Tensor) -> Tensor:
    encoder = generator.encoder
    styles = encoder.mapping(domain)
    x = F.relu(_adain(encoder.stem(image), styles[0]))
    x = F.relu(_adain(encoder.down1(x), styles[1]))
    x = F.relu(_adain(encoder.down2(x), styles[2]))
    for block, first, second in zip(encoder.blocks, styles[3::2], styles[4::2], strict=True):
        x = _residual(block, x, first, second)
    return x


def _decode(generator: StyleTransferGenerator, content: Tensor, domain: Tensor) -> Tensor:
    decoder = generator.decoder
    styles = decoder.mapping(domain)
    x = content
    for block, first, second in zip(decoder.blocks, styles[:-2:2], styles[1:-2:2], strict=True):
        x = _residual(block, x, first, second)
    for layer, style in ((decoder.up1, styles[-2]), (decoder.up2, styles[-1])):
        wide = F.interpolate(x, scale_factor=2, mode="nearest")
        x = F.relu(_adain(F.conv2d(wide, layer.weight, padding=2), style))
    return torch.tanh(decoder.to_image(x))


def _residual(block: Any, x: Tensor, first: Style, second: Style) -> Tensor:
    return x + _adain(block.conv2(F.relu(_adain(block.conv1(x), first))), second)


def _adain(x: Tensor, style: Style) -> Tensor:
    scale, shift = style
    return F.instance_norm(x) * (1.0 + scale[:, :, None, None]) + shift[:, :, None, None]


def _domain_logits(discriminator: DomainDiscriminator, image: Tensor, domain: Tensor) -> Tensor:
    x = image
    for layer in discriminator.layers:
        x = F.instance_norm(x) if isinstance(layer, InstanceNorm) else layer(x)
    return logits_of_domain(x, domain)
