"""Stage 2: the segmenter S against the two discriminators D1 and D2 (paper, section 3.1, local alignment)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch import nn
from torch.optim.swa_utils import AveragedModel

from scripts.engines.adversarial_trainer import AdversarialTrainer, frozen
from scripts.engines.schedules import linear_ramp
from scripts.errors import InputError, check_choice
from scripts.losses.adversarial import ADVERSARIAL_KINDS
from scripts.losses.segmentation import alignment_discriminator_loss, alignment_loss, supervised_loss
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.prediction_discriminator import PredictionDiscriminator

__all__ = ["DualAlignmentTrainer"]


class DualAlignmentTrainer(AdversarialTrainer):
    """Train S, D1 and D2 on labelled source slices and unlabelled target slices (paper, section 3.2, stage two).

    The labelled slices are the translated source x_s->t. A batch without ``target_image``, or weights of 0 for both
    discriminators, makes this a plain supervised trainer.

    Args:
        segmenter: S with D1 inside.
        prediction_discriminator: D2.
        segmenter_optimizer: optimiser of ``segmenter.segmenter_parameters()``.
        d1_optimizer: optimiser of D1's parameters.
        d2_optimizer: optimiser of D2's parameters.
        average: the moving average of S's weights, which is what is kept.
        d1_weight: lambda_d1, 0.01 in the paper; 0 switches D1's alignment off.
        d2_weight: lambda_d2, 0.01 in the paper; 0 switches D2 off.
        d1_kind: ``bce`` (default: with it the mask marks the domain gap), ``lsgan`` or ``hinge``.
        d2_kind: likewise.
        adversarial_warmup: iterations over which both weights rise from 0; the source alone sets the batch-norm
            statistics until then, the target alone after it.
        mask_source: mask the source's features too (an ablation; the paper masks the target's only).
        arguments: see :class:`AdversarialTrainer`.

    Raises:
        InputError: another word for a kind, or a mask whose D1 would never learn.

    The output of an iteration: ``loss`` (S's total), ``cross_entropy``, ``dice``, and with a target ``alignment_d1``,
    ``alignment_d2``, ``d1``, ``d2``, ``mask_mean``, ``mask_std``; and ``image``, ``label``, ``pred``.
    """

    def __init__(
        self,
        *,
        segmenter: MaskedDeepLab,
        prediction_discriminator: PredictionDiscriminator,
        segmenter_optimizer: torch.optim.Optimizer,
        d1_optimizer: torch.optim.Optimizer,
        d2_optimizer: torch.optim.Optimizer,
        average: AveragedModel,
        d1_weight: float = 0.01,
        d2_weight: float = 0.01,
        d1_kind: str = "bce",
        d2_kind: str = "bce",
        adversarial_warmup: int = 0,
        mask_source: bool = False,
        **arguments: Any,
    ) -> None:
        for setting, kind in (("d1_kind", d1_kind), ("d2_kind", d2_kind)):
            check_choice(setting, kind, ADVERSARIAL_KINDS)
        if segmenter.mask_mode != "off":
            _check_mask_will_learn(d1_weight, arguments)
        self.segmenter, self.prediction_discriminator = segmenter, prediction_discriminator
        self.segmenter_optimizer, self.d1_optimizer, self.d2_optimizer = segmenter_optimizer, d1_optimizer, d2_optimizer
        self.d1_weight, self.d2_weight, self.d1_kind, self.d2_kind = d1_weight, d2_weight, d1_kind, d2_kind
        self.adversarial_warmup, self.mask_source = adversarial_warmup, mask_source
        self.average = average
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        image, label = self.prepare(batchdata, "image", "label")
        aligned = "target_image" in batchdata and (self.d1_weight > 0 or self.d2_weight > 0)
        ramp = linear_ramp(engine.state.iteration - 1, self.adversarial_warmup)
        segmenter, d1, d2 = self.segmenter, self.segmenter.feature_discriminator, self.prediction_discriminator
        segmenter.train()

        # S step: source and target pass separately, so that each is normalised by its own statistics.
        with frozen(d1, d2), self.autocast():
            with _running_statistics(segmenter, update=not aligned or ramp < 1):
                source = self.source_pass(image)
            loss, parts = supervised_loss(source["logits"], label)
            if aligned:
                with _running_statistics(segmenter, update=ramp >= 1):
                    target = self.target_pass(self.prepare(batchdata, "target_image")[0])
                adversarial, adversarial_parts = alignment_loss(
                    d1_logits_target=target["d1_logits"] if self.d1_weight > 0 else None,
                    d2_logits_target=d2(target["logits"].softmax(1)) if self.d2_weight > 0 else None,
                    d1_weight=self.d1_weight * ramp,
                    d2_weight=self.d2_weight * ramp,
                    kind_d1=self.d1_kind,
                    kind_d2=self.d2_kind,
                )
                loss, parts = loss + adversarial, parts | adversarial_parts
        self.report_forward(engine, image=image, label=label, pred=source["logits"])
        self.report_loss(engine, loss)
        self.step(self.segmenter_optimizer, loss, engine)

        # D steps: source is what the target should look like.
        if aligned:
            parts |= self.discriminator_steps(source, target)
            parts |= {"mask_mean": target["mask"].mean(), "mask_std": target["mask"].std()}
        self.average.update_parameters(segmenter)
        return self.finish(engine, {"image": image, "label": label, "pred": source["logits"], "loss": loss, **parts})

    def source_pass(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """S on source slices: features and logits, unmasked as in the paper unless ``mask_source``."""
        features = self.segmenter.forward_features(image.contiguous(memory_format=torch.channels_last))
        size = list(image.shape[-2:])
        if not self.mask_source:
            return {"features": features, "logits": self.segmenter.predict_unmasked(features, size)}
        return {
            "features": features,
            "logits": self.segmenter.predict(features, self.segmenter.feature_mask(features), size),
        }

    def target_pass(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """S on target slices: features, D1's verdict on them, the local mask and the logits of the masked features."""
        segmenter = self.segmenter
        features = segmenter.forward_features(image.contiguous(memory_format=torch.channels_last))
        d1_logits = segmenter.feature_discriminator(features)
        mask = segmenter.mask_of_logits(d1_logits)
        logits = segmenter.predict(features, mask, list(image.shape[-2:]))
        return {"features": features, "d1_logits": d1_logits, "mask": mask, "logits": logits}

    def discriminator_steps(
        self, source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Update D1 on detached features and D2 on detached softmax maps; their losses as ``d1`` and ``d2``."""
        d1, d2, losses = self.segmenter.feature_discriminator, self.prediction_discriminator, {}
        steps = [
            ("d1", d1, self.d1_optimizer, self.d1_weight, self.d1_kind, source["features"], target["features"]),
            (
                "d2",
                d2,
                self.d2_optimizer,
                self.d2_weight,
                self.d2_kind,
                source["logits"].softmax(1),
                target["logits"].softmax(1),
            ),
        ]
        for name, discriminator, optimizer, weight, kind, from_source, from_target in steps:
            if weight > 0:
                with self.autocast():
                    logits = discriminator(torch.cat([from_source.detach(), from_target.detach()]))
                    source_logits, target_logits = logits.chunk(2)
                    loss, _ = alignment_discriminator_loss(
                        source_logits=source_logits, target_logits=target_logits, kind=kind
                    )
                self.step(optimizer, loss)
                losses[name] = loss
        return losses


def _check_mask_will_learn(d1_weight: float, arguments: Mapping[str, Any]) -> None:
    """Refuse a training from scratch that masks and never trains D1; fine-tuning loads a D1 that was trained."""
    has_target = getattr(arguments["train_data_loader"], "target", True) is not None
    is_fine_tuning = any(isinstance(handler, CheckpointLoader) for handler in arguments.get("train_handlers") or ())
    if not is_fine_tuning and (d1_weight == 0 or not has_target):
        raise InputError(
            file=f"setting '{'d1_weight' if has_target else 'target_datalist'}'",
            found=f"{0 if has_target else 'none'} with a mask: D1 would stay random, and its mask with it",
            expected="target slices and a positive d1_weight, or no mask",
            remedy="give --mask_mode off as well",
        )


@contextmanager
def _running_statistics(module: nn.Module, *, update: bool) -> Iterator[None]:
    """Whether batch-norm layers take this pass into their running statistics; they use batch statistics anyway."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    if not update:
        for layer in layers:
            layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
