"""Speed of stage 2's training step relative to the same networks in eager float32."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from scripts.data.augmentation import BatchAugmentation
from scripts.engines.adversarial_trainer import frozen
from scripts.engines.alignment import DualAlignment, FeatureAdversary, PredictionAdversary
from scripts.engines.dual_alignment_trainer import DualAlignmentTrainer
from scripts.engines.schedules import averaged_model
from scripts.lab.bench.data import random_batches
from scripts.lab.bench.timing import Measurement, Ratio, channels_last, round_robin
from scripts.losses.adversarial import discriminator_loss, generator_loss
from scripts.losses.segmentation import supervised_loss
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.prediction_discriminator import PredictionDiscriminator
from torch import Tensor, nn

__all__ = ["PlainDualAlignmentStep", "dual_alignment_steps", "measure_dual_alignment"]

NUM_CLASSES = 5


class PlainDualAlignmentStep:
    """The updates of :class:`DualAlignmentTrainer` in eager float32 and torch's default memory layout."""

    def __init__(
        self,
        *,
        segmenter: MaskedDeepLab,
        prediction_discriminator: PredictionDiscriminator,
        segmenter_optimizer: torch.optim.Optimizer,
        d1_optimizer: torch.optim.Optimizer,
        d2_optimizer: torch.optim.Optimizer,
    ) -> None:
        self.segmenter, self.d1, self.d2 = segmenter, segmenter.feature_discriminator, prediction_discriminator
        self.segmenter_optimizer, self.d1_optimizer, self.d2_optimizer = segmenter_optimizer, d1_optimizer, d2_optimizer

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Update S, D1 and D2 on a batch, and return the unweighted losses under the trainer's names."""
        size = list(batch["image"].shape[-2:])
        source_features = self.segmenter.forward_features(batch["image"])
        source_logits = self.segmenter.predict_unmasked(source_features, size)
        supervised, parts = supervised_loss(source_logits, batch["label"])
        target_features = self.segmenter.forward_features(batch["target_image"])
        with frozen(self.d1, self.d2):
            d1_logits = self.d1(target_features[0])
            mask = self.segmenter.mask_of_logits(d1_logits)
            target_logits = self.segmenter.predict(target_features, mask, size)
            alignment_d1 = generator_loss(d1_logits, "bce")
            alignment_d2 = generator_loss(self.d2(target_logits.softmax(1)), "bce")
        _update(self.segmenter_optimizer, supervised + 0.01 * alignment_d1 + 0.01 * alignment_d2)
        d1_loss = discriminator_loss(self.d1(source_features[0].detach()), self.d1(target_features[0].detach()), "bce")
        _update(self.d1_optimizer, d1_loss)
        source_map, target_map = source_logits.detach().softmax(1), target_logits.detach().softmax(1)
        d2_loss = discriminator_loss(self.d2(source_map), self.d2(target_map), "bce")
        _update(self.d2_optimizer, d2_loss)
        losses = {"alignment_d1": alignment_d1, "alignment_d2": alignment_d2, "d1": d1_loss, "d2": d2_loss, **parts}
        return {name: loss.detach() for name, loss in losses.items()}


def measure_dual_alignment(device: torch.device, *, quick: bool, rounds: int) -> Measurement:
    """Time stage 2's step, its plain form, and the drawing of a batch."""
    size, batch_size = (64, 2) if quick else (256, 2)
    network: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 4, "feature_channels": 16} if quick else {}
    augmentation = BatchAugmentation(
        rotation_degrees=20.0, scale=0.2, translation=0.1, gamma=0.3, contrast=0.2, brightness=0.1, noise=0.05
    )
    batches = random_batches(
        size=size, batch_size=batch_size, num_classes=NUM_CLASSES, augmentation=augmentation, device=device
    )
    batch = batches.batch(0)
    trainer, plain = dual_alignment_steps(
        segmenter=MaskedDeepLab(num_classes=NUM_CLASSES, **network),
        prediction_discriminator=PredictionDiscriminator(num_classes=NUM_CLASSES, channels=4 if quick else 64),
        device=device,
    )

    def step() -> None:
        trainer.state.iteration += 1
        trainer._iteration(trainer, batch)

    timings = round_robin(
        {"step": step, "plain": lambda: plain(batch), "batch": lambda: batches.batch(1)}, rounds=rounds, device=device
    )
    return Measurement(
        size=f"{batch_size} + {batch_size} slices of {size} px, {'a tiny backbone' if quick else 'ResNet-50'}, "
        "output stride 8",
        timings=timings,
        ratios=[
            Ratio(name="stage 2 step : eager float32", value=timings.ratio("plain", "step"), target=2.0),
            Ratio(
                name="stage 2, share waiting for data", value=timings.share("batch", "step"), target=0.05, is_share=True
            ),
        ],
    )


def dual_alignment_steps(
    *,
    segmenter: MaskedDeepLab,
    prediction_discriminator: PredictionDiscriminator,
    device: torch.device,
    precision: str = "auto",
) -> tuple[DualAlignmentTrainer, PlainDualAlignmentStep]:
    """The trainer and the plain form, on copies of the same networks with the optimisers of the training config."""
    fast = channels_last(copy.deepcopy(segmenter).to(device))
    fast_d2 = channels_last(copy.deepcopy(prediction_discriminator).to(device))
    optimizers = _optimizers(fast, fast_d2)
    trainer = DualAlignmentTrainer(
        segmenter=fast,
        segmenter_optimizer=optimizers["segmenter_optimizer"],
        average=averaged_model(fast, 0.999),
        alignment=DualAlignment(
            d1=FeatureAdversary(network=fast.feature_discriminator, optimizer=optimizers["d1_optimizer"]),
            d2=PredictionAdversary(network=fast_d2, optimizer=optimizers["d2_optimizer"]),
        ),
        device=device,
        max_epochs=1,
        epoch_length=1,
        train_data_loader=[],
        precision=precision,
    )
    plain, plain_d2 = copy.deepcopy(segmenter).to(device), copy.deepcopy(prediction_discriminator).to(device)
    networks: dict[str, Any] = {"segmenter": plain, "prediction_discriminator": plain_d2}
    return trainer, PlainDualAlignmentStep(**networks, **_optimizers(plain, plain_d2))


def _optimizers(segmenter: MaskedDeepLab, d2: nn.Module) -> dict[str, Any]:
    d1 = segmenter.feature_discriminator
    return {
        "segmenter_optimizer": torch.optim.SGD(
            segmenter.segmenter_parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4
        ),
        "d1_optimizer": torch.optim.Adam(d1.parameters(), lr=1e-4, betas=(0.9, 0.99)),
        "d2_optimizer": torch.optim.Adam(d2.parameters(), lr=1e-4, betas=(0.9, 0.99)),
    }


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
