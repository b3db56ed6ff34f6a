"""A training step of CycleGAN, the baseline of image translation, as in the authors' code."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from scripts.engines.adversarial_trainer import frozen
from scripts.losses.adversarial import discriminator_loss, generator_loss
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CycleGanStep"]


class CycleGanStep:
    """One update of two ResNet generators (9 blocks in the paper) and two PatchGANs, eager, float32.

    Least-squares adversarial losses, cycle loss of weight 10, identity loss of weight 5 (0 omits it and its passes, as
    in most of the paper), no image pool.

    Source: Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial networks, 2017;
    github.com/junyanz/pytorch-CycleGAN-and-pix2pix, whose defaults these are.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_blocks: int = 9,
        discriminator_channels: int = 64,
        identity_weight: float = 5.0,
        device: torch.device,
    ) -> None:
        self.identity_weight = identity_weight
        self.to_target, self.to_source = (_generator(channels, num_blocks).to(device) for _ in range(2))
        self.target_gan, self.source_gan = (_patch_gan(discriminator_channels).to(device) for _ in range(2))
        generators = itertools.chain(self.to_target.parameters(), self.to_source.parameters())
        discriminators = itertools.chain(self.target_gan.parameters(), self.source_gan.parameters())
        self.generator_optimizer = torch.optim.Adam(generators, lr=2e-4, betas=(0.5, 0.999))
        self.discriminator_optimizer = torch.optim.Adam(discriminators, lr=2e-4, betas=(0.5, 0.999))

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update all four networks on ``image`` and ``target_image``; the unweighted losses, float32 scalars."""
        source, target = batch["image"], batch["target_image"]
        as_target, as_source = self.to_target(source), self.to_source(target)
        losses = {"cycle": F.l1_loss(self.to_source(as_target), source) + F.l1_loss(self.to_target(as_source), target)}
        if self.identity_weight > 0:
            losses["identity"] = F.l1_loss(self.to_target(target), target) + F.l1_loss(self.to_source(source), source)
        with frozen(self.target_gan, self.source_gan):
            losses["adversarial"] = generator_loss(self.target_gan(as_target), "lsgan")
            losses["adversarial"] += generator_loss(self.source_gan(as_source), "lsgan")
        weights = {"cycle": 10.0, "identity": self.identity_weight, "adversarial": 1.0}
        self.generator_optimizer.zero_grad(set_to_none=True)
        torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
        self.generator_optimizer.step()

        losses["discriminator"] = sum(
            (
                discriminator_loss(network(real), network(fake.detach()), "lsgan")
                for network, real, fake in ((self.target_gan, target, as_target), (self.source_gan, source, as_source))
            ),
            start=torch.zeros((), device=source.device),
        )
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        losses["discriminator"].backward()
        self.discriminator_optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_reflected(channels, channels, kernel_size=3),
            nn.ReLU(True),
            *_reflected(channels, channels, kernel_size=3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _generator(channels: int, num_blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = [*_reflected(1, channels, kernel_size=7), nn.ReLU(True)]
    for width in (channels, 2 * channels):
        layers.append(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1))
        layers += [nn.InstanceNorm2d(2 * width), nn.ReLU(True)]
    layers += [_ResidualBlock(4 * channels) for _ in range(num_blocks)]
    for width in (4 * channels, 2 * channels):
        layers.append(nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1))
        layers += [nn.InstanceNorm2d(width // 2), nn.ReLU(True)]
    return nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(channels, 1, 7), nn.Tanh())


def _reflected(in_channels: int, out_channels: int, kernel_size: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size)
    return [nn.ReflectionPad2d(kernel_size // 2), convolution, nn.InstanceNorm2d(out_channels)]


def _patch_gan(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
    for factor, stride in ((1, 2), (2, 2), (4, 1)):
        width = factor * channels
        layers.append(nn.Conv2d(width, 2 * width, 4, stride=stride, padding=1))
        layers += [nn.InstanceNorm2d(2 * width), nn.LeakyReLU(0.2, True)]
    return nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 4, padding=1))
