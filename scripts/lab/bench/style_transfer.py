"""Speed of stage 1's training step relative to a plain implementation and to CycleGAN."""

from __future__ import annotations

import copy
from typing import Any

import torch
from scripts.data.augmentation import BatchAugmentation
from scripts.engines.image_pool import ImagePool
from scripts.engines.schedules import averaged_model
from scripts.engines.style_transfer_trainer import StyleTransferTrainer
from scripts.lab.bench.cyclegan import CycleGanStep
from scripts.lab.bench.data import random_batches
from scripts.lab.bench.term_by_term import TermByTermStep
from scripts.lab.bench.timing import Measurement, Ratio, channels_last, round_robin
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from torch import nn

__all__ = ["measure_style_transfer", "style_transfer_steps"]


def measure_style_transfer(device: torch.device, *, quick: bool, rounds: int) -> Measurement:
    """Time stage 1's step, the same terms one by one, CycleGAN's step, and the drawing of a batch."""
    channels, blocks, d_channels, size, batch_size = (4, 1, 4, 32, 1) if quick else (64, 4, 64, 128, 2)
    cyclegan_blocks = 1 if quick else 9
    augmentation = BatchAugmentation(rotation_degrees=30.0, scale=0.1, translation=0.1)
    batches = random_batches(size=size, batch_size=batch_size, num_classes=5, augmentation=augmentation, device=device)
    batch = batches.batch(0)
    trainer, plain = style_transfer_steps(
        generator=StyleTransferGenerator(channels=channels, num_blocks=blocks),
        discriminator=DomainDiscriminator(channels=d_channels),
        device=device,
    )
    cyclegan, without_identity = (
        CycleGanStep(
            channels=channels,
            num_blocks=cyclegan_blocks,
            discriminator_channels=d_channels,
            identity_weight=weight,
            device=device,
        )
        for weight in (5.0, 0.0)
    )

    def step() -> None:
        trainer.state.iteration += 1
        trainer._iteration(trainer, batch)

    timings = round_robin(
        {
            "step": step,
            "term_by_term": lambda: plain(batch),
            "cyclegan": lambda: cyclegan(batch),
            "cyclegan_without_identity": lambda: without_identity(batch),
            "batch": lambda: batches.batch(1),
        },
        rounds=rounds,
        device=device,
    )
    return Measurement(
        size=f"{batch_size} + {batch_size} slices of {size} px, G {channels} channels and {blocks} + {blocks} blocks, "
        f"D {d_channels} channels; CycleGAN {channels} channels and {cyclegan_blocks} blocks",
        timings=timings,
        ratios=[
            Ratio(name="stage 1 step : its terms one by one", value=timings.ratio("term_by_term", "step"), target=4.0),
            Ratio(name="stage 1 step : CycleGAN, images a second", value=timings.ratio("cyclegan", "step"), target=1.7),
            Ratio(
                name="... : CycleGAN without identity loss", value=timings.ratio("cyclegan_without_identity", "step")
            ),
            Ratio(
                name="stage 1, share waiting for data", value=timings.share("batch", "step"), target=0.05, is_share=True
            ),
        ],
    )


def style_transfer_steps(
    *,
    generator: StyleTransferGenerator,
    discriminator: DomainDiscriminator,
    device: torch.device,
    precision: str = "auto",
) -> tuple[StyleTransferTrainer, TermByTermStep]:
    """The trainer and the plain form, on copies of the same networks with the optimisers of the training config."""
    plain_networks = (copy.deepcopy(generator).to(device), copy.deepcopy(discriminator).to(device))
    fast_generator = channels_last(copy.deepcopy(generator).to(device))
    fast_discriminator = channels_last(copy.deepcopy(discriminator).to(device))
    trainer = StyleTransferTrainer(
        image_pool=ImagePool(),
        average=averaged_model(fast_generator, 0.999),
        device=device,
        max_epochs=1,
        epoch_length=1,
        train_data_loader=[],
        precision=precision,
        **_with_optimizers(fast_generator, fast_discriminator),
    )
    return trainer, TermByTermStep(**_with_optimizers(*plain_networks))


def _with_optimizers(generator: nn.Module, discriminator: nn.Module) -> dict[str, Any]:
    settings: dict[str, Any] = {"lr": 2e-4, "betas": (0.5, 0.99), "weight_decay": 1e-4}
    return {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": torch.optim.Adam(generator.parameters(), **settings),
        "discriminator_optimizer": torch.optim.Adam(discriminator.parameters(), **settings),
    }
