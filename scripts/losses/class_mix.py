"""Class-mixed slices: structures of labelled slices pasted into target slices, which a mean teacher labels.

Source: Tranheden et al., DACS: domain adaptation via cross-domain mixed sampling, WACV 2021.
"""

from __future__ import annotations

import torch
from scripts.core.processes import rank
from scripts.data.slices import iteration_generator
from scripts.losses.segmenter_loss import SegmenterLoss, SegmenterStep
from scripts.networks.segmenter import Segmenter
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ClassMix", "half_of_the_structures", "weighted_cross_entropy"]

# Stream of random numbers for the structures to paste.
MIX_STREAM = 211


class ClassMix(SegmenterLoss):
    """Cross-entropy of slices that are mixed of both domains; the moving average labels the target's part.

    Half of the structures of each labelled slice, and their labels, are pasted into a target slice of the batch. Pasted
    pixels have weight 1. The others have the share of the target slice's pixels of which the teacher is sure. Mixed
    slices update the running statistics of batch norms, as target slices do.

    Args:
        segmenter: S, the student.
        teacher: the moving average of S, in whatever mode.
        weight: factor of the term in the total.
        min_confidence: probability of the most probable class from which the teacher is sure.
        seed: of the choice of structures, together with the iteration and the process.
    """

    needs_target = True

    def __init__(
        self,
        *,
        segmenter: Segmenter,
        teacher: nn.Module,
        weight: float = 1.0,
        min_confidence: float = 0.968,
        seed: int = 0,
    ) -> None:
        super().__init__(weight=weight)
        self.segmenter, self.teacher = segmenter, teacher
        self.min_confidence, self.seed = min_confidence, seed

    def __call__(self, step: SegmenterStep) -> Tensor:
        """See :class:`SegmenterLoss`."""
        assert step.target is not None, "the trainer passes target slices to terms that need them"
        with torch.no_grad():
            taught = self.teacher.eval()(step.target["image"]).float().softmax(1)
        generator = iteration_generator(self.seed, step.iteration, MIX_STREAM, rank())
        is_pasted = half_of_the_structures(step.source["label"], taught.shape[1], generator)
        image, label, weights = self.mixed(step.source, step.target["image"], taught, is_pasted)
        logits = self.segmenter(image.contiguous(memory_format=self.segmenter.memory_format))
        return weighted_cross_entropy(logits, label, weights)

    def mixed(
        self, source: dict[str, Tensor], target: Tensor, taught: Tensor, is_pasted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and pixel weights of mixed slices, each (B, 1, H, W).

        Args:
            source: ``image`` and ``label`` of the labelled slices, (B, 1, H, W).
            target: target slices, (B, 1, H, W).
            taught: the teacher's probabilities of each class on them, (B, K + 1, H, W).
            is_pasted: which pixels of the labelled slices are pasted, (B, 1, H, W).
        """
        confidence, winner = taught.max(1, keepdim=True)
        sure_share = (confidence >= self.min_confidence).float().mean((1, 2, 3), keepdim=True)
        image = torch.where(is_pasted, source["image"], target)
        label = torch.where(is_pasted, source["label"].long(), winner)
        return image, label, torch.where(is_pasted, 1.0, sure_share)


def half_of_the_structures(label: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """Pixels of a random half, rounded up, of the structures that each slice has; none of the background.

    Args:
        label: class ids, (B, 1, H, W).
        classes: number of classes, K + 1, background included.
        generator: CPU generator of the choice.

    Returns:
        (B, 1, H, W), bool.
    """
    structures = F.one_hot(label[:, 0].long(), classes)[..., 1:].bool()  # (B, H, W, K)
    is_there = structures.flatten(1, 2).any(1)  # (B, K)
    draws = torch.rand(is_there.shape, generator=generator).to(label.device)
    place = draws.masked_fill(~is_there, 1.0).argsort(1).argsort(1)  # absent structures come last
    is_chosen = place < (is_there.sum(1, keepdim=True) + 1) // 2
    return (structures & is_chosen[:, None, None]).any(3)[:, None]


def weighted_cross_entropy(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Mean over all pixels of weight x cross-entropy, a float32 scalar.

    Args:
        logits: (B, K + 1, H, W).
        label: class ids, (B, 1, H, W), int64.
        weights: of each pixel, (B, 1, H, W).
    """
    return (weights[:, 0] * F.cross_entropy(logits.float(), label[:, 0], reduction="none")).mean()
