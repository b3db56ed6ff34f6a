"""Both stages together adapt: on slices with two discs, whose contrast is reversed in the target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.evaluation.metrics import dice_per_class
from scripts.networks.masked_unet import MaskedUNet
from scripts.networks.translators import Translator
from test_trainers import OFF, Batch, dual_trainer, style_trainer
from torch import Tensor
from torch.optim import Adam

pytestmark = pytest.mark.slow

SOURCE_VALUES, TARGET_VALUES = [-0.8, 0.2, 0.8], [0.6, -0.2, -0.8]
"""Intensities of background, large disc and small disc."""


def test_glua_is_better_than_no_adaptation() -> None:
    random = torch.Generator().manual_seed(9)
    truth = discs(16, random)
    image = painted(truth, TARGET_VALUES, random)
    generator = trained_translator(150)
    without = segment(image, trained_segmenter(list(batches(60)), "off", d1=OFF, d2=OFF))
    adapted = segment(image, trained_segmenter([translated(batch, generator) for batch in batches(60)], "abs"))
    assert mean_dice(adapted, truth) > mean_dice(without, truth) + 0.3
    assert mean_dice(adapted, truth) > 0.7


def discs(count: int, random: torch.Generator) -> Tensor:
    """Label maps with a large disc, class 1, and a small one, class 2, in opposite quarters of the slice."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    label = torch.zeros(count, 1, 32, 32, dtype=torch.uint8)
    for slice_ in label:
        for class_id, first, radius_squared in ((1, 8, 40), (2, 20, 20)):
            y, x = torch.randint(first, first + 5, (2,), generator=random)
            slice_[0, (rows - y) ** 2 + (columns - x) ** 2 < radius_squared] = class_id
        for axis in (1, 2):
            if torch.rand(1, generator=random) < 0.5:
                slice_.copy_(slice_.flip(axis))
    return label


def painted(label: Tensor, values: list[float], random: torch.Generator) -> Tensor:
    return torch.tensor(values)[label.long()] + 0.05 * torch.randn(label.shape, generator=random)


def batches(count: int) -> Iterator[Batch]:
    """Labelled source slices and slices of other anatomies in the target's contrast."""
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        source, target = discs(4, random), discs(4, random)
        yield {
            "image": painted(source, SOURCE_VALUES, random),
            "label": source,
            "target_image": painted(target, TARGET_VALUES, random),
        }


def trained_translator(iterations: int) -> Translator:
    trainer = style_trainer(iterations, list(batches(iterations)))
    trainer.generator_optimizer = Adam(trainer.generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    trainer.discriminator_optimizer = Adam(trainer.discriminator.parameters(), lr=1e-3, betas=(0.5, 0.999))
    trainer.run()
    return trainer.generator


def translated(batch: Batch, generator: Translator) -> Batch:
    domain = torch.full((len(batch["image"]),), SOURCE)
    with torch.no_grad():
        content = generator.encode(batch["image"], domain)
        return batch | {"image": generator.decode(content, torch.full_like(domain, TARGET))}


def trained_segmenter(training: list[Batch], mask_mode: str, **adversaries: Any) -> MaskedUNet:
    torch.manual_seed(0)
    segmenter = MaskedUNet(
        num_classes=3, channels=8, levels=4, alignment_level=2, feature_discriminator_channels=(8,), mask_mode=mask_mode
    )
    optimizer = Adam(segmenter.segmenter_parameters(), lr=3e-3)
    dual_trainer(len(training), training, segmenter, segmenter_optimizer=optimizer, **adversaries).run()
    return segmenter


def segment(image: Tensor, segmenter: MaskedUNet) -> Tensor:
    """Class ids, with batch norm by the statistics of the slices, as in training."""
    with torch.no_grad():
        return segmenter.predict_unmasked(segmenter.forward_features(image), [32, 32]).argmax(1)


def mean_dice(prediction: Tensor, truth: Tensor) -> float:
    return float(dice_per_class(prediction.numpy(), truth[:, 0].numpy(), 2).mean())
