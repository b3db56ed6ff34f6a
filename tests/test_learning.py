"""The segmenter's trainer learns: it overfits one batch, with either network, and lowers the losses it should lower."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from ignite.engine import Events
from scripts.evaluation.metrics import dice_per_class
from scripts.networks.masked_unet import MaskedUNet
from scripts.networks.segmenter import Segmenter
from test_trainers import Batch, dual_trainer, tiny_deeplab
from torch import Tensor


def tiny_unet() -> MaskedUNet:
    torch.manual_seed(0)
    return MaskedUNet(num_classes=3, channels=8, levels=4, alignment_level=2, discriminator_channels=(8,))


def one_batch() -> Batch:
    """Two slices with a disc and a square, in two grey values, and target slices with both values exchanged."""
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    label = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    label[:, 0, (rows - 10) ** 2 + (columns - 10) ** 2 < 36] = 1
    label[:, 0, 18:28, 18:28] = 2
    label[1] = label[0].flip(1)
    noise = 0.1 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    source, target = (torch.tensor(values)[label.long()] + noise for values in ([-1.0, 0.0, 1.0], [-1.0, 1.0, 0.0]))
    return {"image": source, "label": label, "target_image": target}


@pytest.mark.parametrize(
    ("build", "rate", "iterations"), [(tiny_deeplab, 0.05, 120), (tiny_unet, 0.01, 60)], ids=["deeplab", "unet"]
)
def test_one_batch_is_overfitted(build: Callable[[], Segmenter], rate: float, iterations: int) -> None:
    batch, segmenter = one_batch(), build()
    optimizer = torch.optim.Adam(segmenter.segmenter_parameters(), lr=rate)
    trainer = dual_trainer(iterations, itertools.repeat(batch), segmenter, segmenter_optimizer=optimizer)
    trainer.run()
    # As training sees the slices: batch norm by the statistics of the batch, source features unmasked.
    with torch.no_grad():
        features = segmenter.forward_features(batch["image"])
        prediction = segmenter.predict_unmasked(features, [32, 32]).argmax(1)
    assert min(dice(prediction, batch["label"])) > 0.9


def dice(prediction: Tensor, label: Tensor) -> list[float]:
    return list(dice_per_class(prediction.numpy(), label[:, 0].numpy(), 2))


def test_d1_learns_to_tell_the_domains_apart() -> None:
    trainer = dual_trainer(60, itertools.repeat(one_batch()), tiny_unet())
    trainer.alignment.d1.optimizer = torch.optim.Adam(trainer.segmenter.feature_discriminator.parameters(), lr=1e-2)
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: losses.append(float(engine.state.output[0]["d1"]))
    )
    trainer.run()
    assert losses[-1] < 0.5 * losses[0]
