"""Self-training: the target learns from its own sure predictions, late in a training.

Source: the selection of Zou et al., Unsupervised domain adaptation for semantic segmentation via class-balanced
self-training, 2018, with the cap of Yu et al., DAST: unsupervised domain adaptation in semantic segmentation based on
discriminator attention and self-training, 2021 (its published code).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.core.processes import all_gather_batch, num_processes, sum_over_processes

__all__ = ["UNSURE", "SelfTraining", "pseudo_labels"]

UNSURE = -1
"""The pseudo-label of a pixel that teaches nothing."""


@dataclass(frozen=True)
class SelfTraining:
    """When and from which predictions the target learns.

    Args:
        weight: of the cross-entropy with the pseudo-labels; 0 switches self-training off.
        start: share of the training's iterations after which it begins.
        portion: as for :func:`pseudo_labels`.
        cap: likewise.
    """

    weight: float = 0.0
    start: float = 0.0
    portion: float = 0.5
    cap: float = 0.9

    def loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels of which the teacher is sure; 0 where there is none.

        Of several processes each returns its own pixels' share of that: the mean over processes, as gradients are
        averaged, is the loss of one process with the slices of all.

        Args:
            logits: what learns, (B, K, H, W), the same shape on every process.
            teacher_logits: what teaches, of the same shape; no gradient reaches it.

        Returns:
            A float32 scalar, not yet weighted.
        """
        labels = pseudo_labels(teacher_logits.detach().float().softmax(1), portion=self.portion, cap=self.cap)
        total = F.cross_entropy(logits.float(), labels, ignore_index=UNSURE, reduction="sum")
        return num_processes() * total / sum_over_processes((labels != UNSURE).sum()).clamp(min=1)


def pseudo_labels(probabilities: Tensor, *, portion: float, cap: float) -> Tensor:
    """Class ids of sure pixels, with a threshold for each class, so that hard classes are not left out.

    The threshold of a class is the confidence that ``portion`` of the pixels it wins reach, but ``cap`` at most, and 1
    where it wins too few. A pixel gets the class with the largest ratio of probability to threshold, if it reaches 1.
    Several processes have the same thresholds, found among the pixels of all.

    Args:
        probabilities: of each class, (B, K, H, W), the same shape on every process.
        portion: share of a class's pixels that are sure.
        cap: a confidence that is always enough.

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
