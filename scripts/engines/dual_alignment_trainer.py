"""Stage 2: the segmenter S against the two discriminators D1 and D2 (paper, section 3.1, local alignment)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from torch.optim.swa_utils import AveragedModel

from scripts.core.errors import SettingError, check_choice
from scripts.engines.adversarial_trainer import AdversarialTrainer, frozen
from scripts.engines.batch_norm import running_statistics
from scripts.engines.schedules import linear_ramp
from scripts.losses.adversarial import ADVERSARIAL_KINDS
from scripts.losses.disagreement import disagreement_weights, predictor_similarity
from scripts.losses.segmentation import alignment_discriminator_loss, alignment_loss, supervised_losses
from scripts.losses.self_training import SelfTraining
from scripts.networks.prediction_discriminator import PREDICTION_MAPS, PredictionDiscriminator, prediction_map
from scripts.networks.segmenter import Segmenter

__all__ = ["DualAlignmentTrainer"]

Passed = dict[str, Any]
"""The results of a forward pass of S by name: tensors, and the lists of features and of logits of each head."""


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
        d2_input: what D2 looks at, ``softmax`` (the paper's) or ``entropy``; see :func:`prediction_map`.
        disagreement_weight: how much more a target pixel counts with D2 where two predictors disagree; 0 for the same
            everywhere.
        disagreement_base: with the above, what a pixel counts where they agree.
        predictor_similarity_weight: of the loss that keeps two predictors apart; 0 switches it off.
        self_training: when the target learns from the moving average's sure predictions; never by default.
        adversarial_warmup: iterations over which both weights rise from 0; the source alone sets the batch-norm
            statistics until then, the target alone after it.
        mask_source: mask the source's features too (an ablation; the paper masks the target's only).
        arguments: see :class:`AdversarialTrainer`.

    Raises:
        InputError: another word for a kind, a mask whose D1 would never learn, or one predictor where two are needed.

    The output of an iteration: ``loss`` (S's total), ``cross_entropy``, ``dice``, and with a target ``alignment_d1``,
    ``alignment_d2``, ``d1``, ``d2``, ``mask_mean``, ``mask_std``; ``predictor_similarity`` and
    ``self_training`` where they are on; and ``image``, ``label``, ``pred``.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        prediction_discriminator: PredictionDiscriminator,
        segmenter_optimizer: torch.optim.Optimizer,
        d1_optimizer: torch.optim.Optimizer,
        d2_optimizer: torch.optim.Optimizer,
        average: AveragedModel,
        d1_weight: float = 0.01,
        d2_weight: float = 0.01,
        d1_kind: str = "bce",
        d2_kind: str = "bce",
        d2_input: str = "softmax",
        disagreement_weight: float = 0.0,
        disagreement_base: float = 1.0,
        predictor_similarity_weight: float = 0.0,
        self_training: SelfTraining | None = None,
        adversarial_warmup: int = 0,
        mask_source: bool = False,
        **arguments: Any,
    ) -> None:
        for setting, kind in (("d1_kind", d1_kind), ("d2_kind", d2_kind)):
            check_choice(setting, kind, ADVERSARIAL_KINDS)
        check_choice("d2_input", d2_input, PREDICTION_MAPS)
        if len(getattr(segmenter, "further_predictors", ())) == 0:
            _check_needs_no_second("disagreement_weight", disagreement_weight)
            _check_needs_no_second("predictor_similarity_weight", predictor_similarity_weight)
        if segmenter.mask_mode != "off":
            _check_mask_will_learn(d1_weight, arguments)
        self.segmenter, self.prediction_discriminator = segmenter, prediction_discriminator
        self.segmenter_optimizer, self.d1_optimizer, self.d2_optimizer = segmenter_optimizer, d1_optimizer, d2_optimizer
        self.d1_weight, self.d2_weight, self.d1_kind, self.d2_kind = d1_weight, d2_weight, d1_kind, d2_kind
        self.d2_input, self.predictor_similarity_weight = d2_input, predictor_similarity_weight
        self.disagreement_weight, self.disagreement_base = disagreement_weight, disagreement_base
        self.self_training = self_training or SelfTraining()
        self.adversarial_warmup, self.mask_source = adversarial_warmup, mask_source
        self.average = average
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        image, label = self.prepare(batchdata, "image", "label")
        aligned = "target_image" in batchdata and max(self.d1_weight, self.d2_weight, self.self_training.weight) > 0
        ramp = linear_ramp(engine.state.iteration - 1, self.adversarial_warmup)
        segmenter, d1, d2 = self.segmenter, self.segmenter.feature_discriminator, self.prediction_discriminator
        segmenter.train()

        # S step: source and target pass separately, so that each is normalised by its own statistics.
        with frozen(d1, d2), self.autocast():
            with running_statistics(segmenter, update=not aligned or ramp < 1):
                source = self.source_pass(image)
            loss, parts = self.supervision(source, label)
            if aligned:
                with running_statistics(segmenter, update=ramp >= 1):
                    target = self.target_pass(self.prepare(batchdata, "target_image")[0])
                adversarial, adversarial_parts = self.alignment(target, ramp)
                loss, parts = loss + adversarial, parts | adversarial_parts
                if self.self_training.weight > 0:
                    parts["self_training"] = self.self_training_loss(engine, target)
                    loss = loss + self.self_training.weight * parts["self_training"]
        self.report_forward(engine, image=image, label=label, pred=source["logits"])
        self.report_loss(engine, loss)
        self.step(self.segmenter_optimizer, loss, engine)

        # D steps: source is what the target should look like.
        if aligned:
            parts |= self.discriminator_steps(source, target)
            parts |= {"mask_mean": target["mask"].mean(), "mask_std": target["mask"].std()}
        self.average.update_parameters(segmenter)
        return self.finish(engine, {"image": image, "label": label, "pred": source["logits"], "loss": loss, **parts})

    def source_pass(self, image: torch.Tensor) -> Passed:
        """S on source slices: features and logits, unmasked as in the paper unless ``mask_source``."""
        features = self.segmenter.forward_features(image.contiguous(memory_format=torch.channels_last))
        mask = self.segmenter.feature_mask(features) if self.mask_source else None
        return {"features": features, **self.predictions(features, mask, image)}

    def target_pass(self, image: torch.Tensor) -> Passed:
        """S on target slices: features, D1's verdict on them, the local mask, the logits of the masked features."""
        segmenter, image = self.segmenter, image.contiguous(memory_format=torch.channels_last)
        features = segmenter.forward_features(image)
        d1_logits = segmenter.feature_discriminator(features[0])
        mask = segmenter.mask_of_logits(d1_logits)
        predictions = self.predictions(features, mask, image)
        judged = {"image": image, "features": features, "d1_logits": d1_logits, "mask": mask}
        return judged | predictions | {"pixel_weights": self.pixel_weights(predictions["heads"])}

    def predictions(self, features: list[torch.Tensor], mask: torch.Tensor | None, image: torch.Tensor) -> Passed:
        """The logits of each head, ``heads``, and what S makes of them, ``logits``."""
        seen = features if mask is None else self.segmenter.apply_mask(features, mask)
        heads = self.segmenter.predict_heads(seen, list(image.shape[-2:]))
        return {"heads": heads, "logits": self.segmenter.decide(heads)}

    def supervision(self, source: Passed, label: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What S learns from the labels, and what keeps its predictors apart."""
        loss, parts = supervised_losses(source["heads"], label, self.segmenter.head_weights)
        if self.predictor_similarity_weight > 0:
            similarity = predictor_similarity(self.segmenter.predictor, self.segmenter.further_predictors[0])
            loss = loss + self.predictor_similarity_weight * similarity
            parts = parts | {"predictor_similarity": similarity}
        return loss, parts

    def alignment(self, target: Passed, ramp: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What S minimises against D1 and D2, with weights that have risen to ``ramp`` of their height."""
        seen_by_d2 = prediction_map(target["logits"], self.d2_input) if self.d2_weight > 0 else None
        return alignment_loss(
            d1_logits_target=target["d1_logits"] if self.d1_weight > 0 else None,
            d2_logits_target=self.prediction_discriminator(seen_by_d2) if self.d2_weight > 0 else None,
            d2_weights_target=target["pixel_weights"],
            d1_weight=self.d1_weight * ramp,
            d2_weight=self.d2_weight * ramp,
            kind_d1=self.d1_kind,
            kind_d2=self.d2_kind,
        )

    def self_training_loss(self, engine: Engine, target: Passed) -> torch.Tensor:
        """What S learns from the moving average's sure predictions on the target; 0 until it is time."""
        if engine.state.iteration <= self.self_training.start * engine.state.max_epochs * engine.state.epoch_length:
            return target["logits"].new_zeros(())
        with torch.no_grad():
            taught = self.average.module.eval()(target["image"])
        return self.self_training.loss(target["logits"], taught)

    def pixel_weights(self, heads: list[torch.Tensor]) -> torch.Tensor | None:
        """How much each target pixel counts with D2, (B, 1, H, W); None for the same everywhere."""
        if self.disagreement_weight == 0:
            return None
        return disagreement_weights(heads, base=self.disagreement_base, weight=self.disagreement_weight)

    def discriminator_steps(self, source: Passed, target: Passed) -> dict[str, torch.Tensor]:
        """Update D1 on detached features and D2 on detached predictions; their losses as ``d1`` and ``d2``."""
        losses = {}
        if self.d1_weight > 0:
            pair = (source["features"][0], target["features"][0])
            d1 = self.segmenter.feature_discriminator
            losses["d1"] = self.discriminator_step(d1, self.d1_optimizer, self.d1_kind, pair)
        if self.d2_weight > 0:
            d2, weights = self.prediction_discriminator, target["pixel_weights"]
            pair = (prediction_map(source["logits"], self.d2_input), prediction_map(target["logits"], self.d2_input))
            losses["d2"] = self.discriminator_step(d2, self.d2_optimizer, self.d2_kind, pair, weights)
        return losses

    def discriminator_step(
        self,
        discriminator: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        kind: str,
        pair: tuple[torch.Tensor, torch.Tensor],
        target_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Teach one discriminator to tell source from target on what it sees of them; its loss."""
        with self.autocast():
            source_logits, target_logits = discriminator(torch.cat([seen.detach() for seen in pair])).chunk(2)
            loss, _ = alignment_discriminator_loss(
                source_logits=source_logits, target_logits=target_logits, kind=kind, target_weights=target_weights
            )
        self.step(optimizer, loss)
        return loss


def _check_mask_will_learn(d1_weight: float, arguments: Mapping[str, Any]) -> None:
    """Refuse a training from scratch that masks and never trains D1; fine-tuning loads a D1 that was trained."""
    has_target = getattr(arguments["train_data_loader"], "target", True) is not None
    is_fine_tuning = any(isinstance(handler, CheckpointLoader) for handler in arguments.get("train_handlers") or ())
    if not is_fine_tuning and (d1_weight == 0 or not has_target):
        raise SettingError(
            setting=f"setting '{'d1_weight' if has_target else 'target_datalist'}'",
            found=f"{0 if has_target else 'none'} with a mask: D1 would stay random, and its mask with it",
            expected="target slices and a positive d1_weight, or no mask",
            remedy="give --mask_mode off as well",
        )


def _check_needs_no_second(setting: str, weight: float) -> None:
    """Refuse what compares two predictors where there is one."""
    if weight > 0:
        raise SettingError(
            setting=f"setting '{setting}'",
            found=f"{weight} with one predictor",
            expected="two predictors to compare",
            remedy="give --predictors 2 as well",
        )
