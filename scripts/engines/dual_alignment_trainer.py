"""Stage 2: the segmenter S against the two discriminators D1 and D2 (paper, section 3.1, local alignment)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from scripts.core.errors import SettingError
from scripts.engines.adversarial_trainer import AdversarialTrainer, frozen
from scripts.engines.alignment import Adversary, DualAlignment
from scripts.engines.batch_norm import running_statistics
from scripts.losses.adversarial import discriminator_loss
from scripts.losses.segmentation import alignment_loss, supervised_losses
from scripts.losses.segmenter_loss import ForwardPass, SegmenterLoss, SegmenterStep
from scripts.networks.segmenter import Segmenter
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

__all__ = ["DualAlignmentTrainer"]

Losses = dict[str, Tensor]


class DualAlignmentTrainer(AdversarialTrainer):
    """Train S, D1 and D2 on labelled source slices and unlabelled target slices (paper, section 3.2, stage two).

    The labelled slices are the translated source x_s->t. A batch without ``target_image``, or weights of 0 for both
    discriminators, makes this a plain supervised trainer.

    Args:
        segmenter: S with D1 inside.
        segmenter_optimizer: optimiser of ``segmenter.segmenter_parameters()``.
        average: the moving average of the weights of S, which are kept in the end.
        alignment: D1 and D2 with their weights. During its warm-up the source alone sets the batch-norm statistics,
            afterwards the target alone.
        extra_losses: further terms of the loss of S by name.
        mask_source: mask the features of labelled slices too (an ablation; the paper masks the target's only).
        arguments: see :class:`AdversarialTrainer`.

    The output of an iteration: ``loss`` (total of S), ``cross_entropy``, ``dice``, and with a target ``alignment_d1``,
    ``alignment_d2``, ``d1``, ``d2``, ``mask_mean``, ``mask_std``; the extra losses by their names; and ``image``,
    ``label``, ``pred``.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        segmenter_optimizer: torch.optim.Optimizer,
        average: AveragedModel,
        alignment: DualAlignment,
        extra_losses: Mapping[str, SegmenterLoss] | None = None,
        mask_source: bool = False,
        **arguments: Any,
    ) -> None:
        if segmenter.mask_mode != "off":
            _check_mask_will_learn(alignment, arguments)
        self.segmenter, self.segmenter_optimizer, self.average = segmenter, segmenter_optimizer, average
        self.alignment, self.extra_losses = alignment, dict(extra_losses or {})
        self.mask_source = mask_source
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        image, label = self.prepare(batchdata, "image", "label")
        has_target = "target_image" in batchdata and self.uses_target
        ramp = self.alignment.ramp(engine.state.iteration - 1)
        segmenter, target = self.segmenter.train(), None

        # S step: separate passes for source and target, so that each is normalised by its own statistics.
        with frozen(self.alignment.d1.network, self.alignment.d2.network), self.autocast():
            with running_statistics(segmenter, update=not has_target or ramp < 1):
                source = self.source_pass(image) | {"label": label}
            loss, parts = supervised_losses(source["heads"], label, segmenter.head_weights)
            if has_target:
                with running_statistics(segmenter, update=ramp >= 1):
                    target = self.target_pass(*self.prepare(batchdata, "target_image"))
                adversarial, adversarial_parts = self.alignment_losses(target, ramp)
                loss, parts = loss + adversarial, parts | adversarial_parts
            for name, term in self.extra_terms(engine, source, target).items():
                loss, parts[name] = loss + self.extra_losses[name].weight * term, term
        self.report_forward(engine, image=image, label=label, pred=source["logits"])
        self.report_loss(engine, loss)
        self.step(self.segmenter_optimizer, loss, engine)

        # D steps: the source is the reference that the target should resemble.
        if target is not None:
            parts |= self.discriminator_steps(source, target)
            parts |= {"mask_mean": target["mask"].mean(), "mask_std": target["mask"].std()}
        self.average.update_parameters(segmenter)
        return self.finish(engine, {"image": image, "label": label, "pred": source["logits"], "loss": loss, **parts})

    @property
    def uses_target(self) -> bool:
        """Whether any term of the loss needs target slices."""
        return self.alignment.is_on or any(extra.needs_target for extra in self.extra_losses.values())

    def source_pass(self, image: Tensor) -> ForwardPass:
        """S on source slices: features and logits, unmasked as in the paper unless ``mask_source``."""
        features = self.segmenter.forward_features(image.contiguous(memory_format=self.segmenter.memory_format))
        mask = self.segmenter.feature_mask(features) if self.mask_source else None
        return {"image": image, "features": features, **self.predictions(features, mask, image)}

    def target_pass(self, image: Tensor) -> ForwardPass:
        """S on target slices: features, D1's logits on them, the local mask, the logits of the masked features."""
        segmenter, image = self.segmenter, image.contiguous(memory_format=self.segmenter.memory_format)
        features = segmenter.forward_features(image)
        d1_logits = segmenter.feature_discriminator(features[0])  # type: ignore[operator]  # (B, 1, h, w)
        mask = segmenter.mask_of_logits(d1_logits)
        predictions = self.predictions(features, mask, image)
        weights = self.alignment.d2.weigh(predictions["heads"])
        judged = {"image": image, "features": features, "d1_logits": d1_logits, "mask": mask}
        return judged | predictions | {"pixel_weights": weights}

    def predictions(self, features: list[Tensor], mask: Tensor | None, image: Tensor) -> ForwardPass:
        """The logits of each head, ``heads``, and those of S, ``logits``."""
        seen = features if mask is None else self.segmenter.apply_mask(features, mask)
        heads = self.segmenter.predict_heads(seen, list(image.shape[-2:]))
        return {"heads": heads, "logits": self.segmenter.decide(heads)}

    def alignment_losses(self, target: ForwardPass, ramp: float) -> tuple[Tensor, Losses]:
        """The adversarial loss of S and its parts, with weights scaled by ``ramp``."""
        d1, d2 = self.alignment.d1, self.alignment.d2
        return alignment_loss(
            d1_logits_target=target["d1_logits"] if d1.is_on else None,
            d2_logits_target=d2.network(d2.see(target["logits"])) if d2.is_on else None,
            d2_weights_target=target["pixel_weights"],
            d1_weight=d1.weight * ramp,
            d2_weight=d2.weight * ramp,
            kind_d1=d1.kind,
            kind_d2=d2.kind,
        )

    def extra_terms(self, engine: Engine, source: ForwardPass, target: ForwardPass | None) -> Losses:
        """The extra losses, unweighted; those that need target slices only with a target."""
        iterations = engine.state.max_epochs * engine.state.epoch_length
        step = SegmenterStep(source=source, target=target, iteration=engine.state.iteration, iterations=iterations)
        wanted = {name: loss for name, loss in self.extra_losses.items() if target or not loss.needs_target}
        return {name: loss(step) for name, loss in wanted.items()}

    def discriminator_steps(self, source: ForwardPass, target: ForwardPass) -> Losses:
        """Update D1 on detached features and D2 on detached predictions; their losses as ``d1`` and ``d2``."""
        d1, d2, losses = self.alignment.d1, self.alignment.d2, {}
        if d1.is_on:
            losses["d1"] = self.discriminator_step(d1, (source["features"][0], target["features"][0]))
        if d2.is_on:
            pair = (d2.see(source["logits"]), d2.see(target["logits"]))
            losses["d2"] = self.discriminator_step(d2, pair, target["pixel_weights"])
        return losses

    def discriminator_step(
        self, adversary: Adversary, pair: tuple[Tensor, Tensor], target_weights: Tensor | None = None
    ) -> Tensor:
        """Train one discriminator to tell source from target; its loss."""
        with self.autocast():
            source_logits, target_logits = adversary.network(torch.cat([seen.detach() for seen in pair])).chunk(2)
            loss = discriminator_loss(source_logits, target_logits, adversary.kind, target_weights)
        self.step(adversary.optimizer, loss)
        return loss


def _check_mask_will_learn(alignment: DualAlignment, arguments: Mapping[str, Any]) -> None:
    """Refuse a training from scratch that masks and never trains D1; fine-tuning loads a D1 that was trained."""
    has_target = getattr(arguments["train_data_loader"], "target", True) is not None
    is_fine_tuning = any(isinstance(handler, CheckpointLoader) for handler in arguments.get("train_handlers") or ())
    if not is_fine_tuning and not (alignment.d1.is_on and has_target):
        setting = "setting 'd1_weight'" if has_target else "setting 'target_datalist'"
        found = f"{0 if has_target else 'none'} with a mask, which would come from a D1 that is never trained"
        expected, remedy = "target slices and a positive d1_weight, or no mask", "give --mask_mode off as well"
        raise SettingError(setting=setting, found=found, expected=expected, remedy=remedy)
