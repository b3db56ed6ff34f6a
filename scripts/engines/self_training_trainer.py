"""Self-training: S continues training on labelled slices and on its own pseudo-labels of target slices."""

from __future__ import annotations

from typing import Any, cast

import torch
from ignite.engine import Engine
from scripts.engines.adversarial_trainer import AdversarialTrainer, frozen
from scripts.engines.batch_norm import running_statistics
from scripts.losses.segmentation import supervised_losses
from scripts.networks.segmenter import Segmenter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["SelfTrainingTrainer"]


class SelfTrainingTrainer(AdversarialTrainer):
    """Train S on labelled slices and on target slices with pseudo-labels, with one loss over both.

    S starts from trained weights. Target features are masked as at inference; D1 is not trained.

    Args:
        segmenter: S with D1 inside.
        optimizer: optimiser of ``segmenter.segmenter_parameters()``.
        average: the moving average of S's weights, which predicts the pseudo-labels and is saved at the end.
        mask_source: mask the features of labelled slices too, as the first training did.
        arguments: see :class:`AdversarialTrainer`. Batches are those of
            :class:`scripts.data.pseudo_labels.SelfTrainingBatches`.

    The output of an iteration: ``loss``, ``cross_entropy``, ``dice``; ``image``, ``label`` and ``pred`` of the target.
    """

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel,
        mask_source: bool = False,
        **arguments: Any,
    ) -> None:
        self.segmenter, self.optimizer, self.average, self.mask_source = segmenter, optimizer, average, mask_source
        super().__init__(**arguments)

    def _iteration(self, engine: Engine, batchdata: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        segmenter = self.segmenter.train()
        image, label = self.prepare(batchdata, "image", "label")
        target_image, target_label = self.prepare(batchdata, "target_image", "target_label")
        with frozen(cast(nn.Module, segmenter.feature_discriminator)), self.autocast():
            # Separate passes: each domain is normalised by its own statistics; inference uses the target's.
            with running_statistics(segmenter, update=False):
                labelled = self.heads(image, is_masked=self.mask_source)
            target = self.heads(target_image, is_masked=True)
            heads = [torch.cat(pair) for pair in zip(labelled, target, strict=True)]  # (2 B, K + 1, h, w)
            loss, parts = supervised_losses(heads, torch.cat([label, target_label]), segmenter.head_weights)
        prediction = segmenter.decide(target)
        self.report_forward(engine, image=target_image, label=target_label, pred=prediction)
        self.report_loss(engine, loss)
        self.step(self.optimizer, loss, engine)
        self.average.update_parameters(segmenter)
        output = {"image": target_image, "label": target_label, "pred": prediction, "loss": loss, **parts}
        return self.finish(engine, output)

    def heads(self, image: Tensor, *, is_masked: bool) -> list[Tensor]:
        """The logits of each head of S, with the local mask or without."""
        features = self.segmenter.forward_features(image.contiguous(memory_format=self.segmenter.memory_format))
        if is_masked:
            features = self.segmenter.apply_mask(features, self.segmenter.feature_mask(features))
        return self.segmenter.predict_heads(features, list(image.shape[-2:]))
