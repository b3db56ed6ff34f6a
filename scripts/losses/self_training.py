"""Self-training within a training: S learns from its own confident predictions on target slices.

Source: the selection of Zou et al., Unsupervised domain adaptation for semantic segmentation via class-balanced
self-training, 2018, with the cap of Yu et al., DAST: unsupervised domain adaptation in semantic segmentation based on
discriminator attention and self-training, 2021 (its published code).
"""

from __future__ import annotations

import torch
from scripts.core.processes import all_gather_batch, num_processes, sum_over_processes
from scripts.losses.segmenter_loss import SegmenterLoss, SegmenterStep
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["UNSURE", "SelfTraining", "pseudo_labels"]

# The pseudo-label of a pixel that is ignored.
UNSURE = -1


class SelfTraining(SegmenterLoss):
    """Cross-entropy of the target with the confident predictions of the moving average, batch by batch.

    Args:
        teacher: the moving average of S, in whatever mode.
        weight: factor of the term in the total.
        start: share of the training after which it begins; the term is 0 until then.
        portion: as for :func:`pseudo_labels`.
        cap: as for :func:`pseudo_labels`.
    """

    needs_target = True

    def __init__(
        self, *, teacher: nn.Module, weight: float = 1.0, start: float = 0.0, portion: float = 0.5, cap: float = 0.9
    ) -> None:
        super().__init__(weight=weight)
        self.teacher, self.start, self.portion, self.cap = teacher, start, portion, cap

    def __call__(self, step: SegmenterStep) -> Tensor:
        """See :class:`SegmenterLoss`."""
        assert step.target is not None, "the trainer passes target slices to terms that need them"
        logits = step.target["logits"]
        if step.iteration <= self.start * step.iterations:
            return logits.new_zeros(())
        with torch.no_grad():
            taught = self.teach(step.target["image"])
        return self.loss(logits, taught)

    def teach(self, image: Tensor) -> Tensor:
        """What the teacher says of target slices (B, 1, H, W): its logits, (B, K, H, W)."""
        logits: Tensor = self.teacher.eval()(image)
        return logits

    def loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels where the teacher is confident; 0 where there is none.

        With several processes each returns its own pixels' share: the mean over processes, as gradients are averaged,
        is the loss of one process with the slices of all.

        Args:
            logits: of the student, (B, K, H, W), the same shape on every process.
            taught: logits of the teacher, in the same shape; no gradient reaches it.

        Returns:
            A float32 scalar, unweighted.
        """
        labels = pseudo_labels(taught.detach().float().softmax(1), portion=self.portion, cap=self.cap)
        total = F.cross_entropy(logits.float(), labels, ignore_index=UNSURE, reduction="sum")
        return num_processes() * total / sum_over_processes((labels != UNSURE).sum()).clamp(min=1)


def pseudo_labels(probabilities: Tensor, *, portion: float, cap: float) -> Tensor:
    """Class ids of confident pixels, with a threshold for each class, so that difficult classes are not left out.

    The threshold of a class is the confidence that ``portion`` of its predicted pixels reach, at most ``cap``, and 1
    where it has too few. A pixel gets the class with the largest ratio of probability to threshold, if that is at
    least 1. Several processes have the same thresholds, found among the pixels of all.

    Args:
        probabilities: of each class, (B, K, H, W), the same shape on every process.
        portion: share of the predicted pixels of a class that are confident.
        cap: a confidence that is always sufficient.

    Returns:
        (B, H, W), int64: the class, or ``UNSURE``.
    """
    confidence, winner = (all_gather_batch(values) for values in probabilities.max(1))
    thresholds = []
    for index in range(probabilities.shape[1]):
        wins = winner == index
        ranked = torch.where(wins, confidence, -1.0).flatten().sort(descending=True).values
        count = (portion * wins.sum()).long()  # stays on the device: no step waits for it
        at_rank = ranked.gather(0, (count - 1).clamp(min=0).view(1))
        thresholds.append(torch.where(count > 0, at_rank.clamp(max=cap), 1.0))
    ratio, label = (probabilities / torch.cat(thresholds).view(1, -1, 1, 1)).max(1)
    return label.masked_fill(ratio < 1, UNSURE)
