"""Pseudo-labels: a network's predictions on unlabelled volumes, cleaned in 3D for self-training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from monai.inferers import Inferer
from monai.transforms import KeepLargestConnectedComponent
from scripts.core.domains import IGNORED
from scripts.core.errors import InputError
from scripts.data.slices import SliceSet, UnpairedSliceBatches, iteration_generator
from scripts.data.volume_prior import VolumePrior
from torch import Tensor, nn

__all__ = ["PseudoLabels", "SelfTrainingBatches", "StructureCount", "cleaned_labels"]


@dataclass(frozen=True)
class StructureCount:
    """Voxels of one structure in one case.

    Attributes:
        case: index of the case.
        structure: class id, 1..K.
        predicted: number of voxels that the network predicted.
        kept: number of them in the pseudo-label; the others are ignored.
    """

    case: int
    structure: int
    predicted: int
    kept: int


class PseudoLabels:
    """Pseudo-labels of the target's training slices, renewed in rounds.

    Each round segments whole volumes with the moving average of the trained network. No label of the target is read.

    Args:
        slices: the target's training slices, in order within each case.
        inferer: maps a volume (1, 1, H, W, D) and a network to class probabilities (1, K + 1, H, W, D).
        slice_axis: the axis of a volume that the inferer slices along.
        smoothing: applied to (probabilities, image (H, W, D), spacing in mm) before the decision; None for none.
        min_confidence: as for :func:`cleaned_labels`.
        volume_prior: shifts classes that are too rare or too frequent, and leaves out cases of implausible volume; None
            for neither.

    Attributes:
        labels: (N, 1, H, W) uint8, class ids or ``IGNORED``; all ``IGNORED`` before the first round.
        labelled_slices: (n,) indices of the slices that have any pseudo-label.
        rounds: number of rounds so far.
        counts: voxels kept in the last round.
        shifts: of the classes' logarithmic probabilities in the last round, (K + 1,).
    """

    def __init__(
        self,
        *,
        slices: SliceSet,
        inferer: Inferer,
        slice_axis: int = 2,
        smoothing: Callable[[Tensor, Tensor, Sequence[float]], Tensor] | None = None,
        min_confidence: float | Sequence[float] = 0.7,
        volume_prior: VolumePrior | None = None,
    ) -> None:
        self.slices, self.inferer, self.slice_axis, self.smoothing = slices, inferer, slice_axis, smoothing
        self.min_confidence, self.volume_prior = min_confidence, volume_prior
        self.labels = torch.full_like(slices.images, IGNORED, dtype=torch.uint8)
        self._labels_changed()
        self.rounds = 0
        self.shifts = torch.zeros(0)
        self.counts: list[StructureCount] = []

    @torch.inference_mode()
    def renew(self, network: nn.Module) -> None:
        """Replace the labels of every volume.

        Args:
            network: maps slices to logits; its training mode is restored.
        """
        is_training = network.training
        network.eval()
        cases = self.slices.case_of.unique().tolist()
        # Half precision: all cases are held until the classes' shifts are known.
        probabilities = [self._probabilities(network, case).half() for case in cases]
        network.train(is_training)
        self.shifts = torch.zeros(len(probabilities[0]))
        if self.volume_prior is not None:
            self.shifts = self.volume_prior.class_shifts(probabilities, [self.slices.voxel_ml[case] for case in cases])
        self.counts = []
        for case, predicted in zip(cases, probabilities, strict=True):
            shifted = (predicted.float().clamp_min(1e-6).log() + self.shifts.view(-1, 1, 1, 1)).softmax(0)
            labels = cleaned_labels(shifted, self.min_confidence)
            chosen, rows, columns = self.slices.region(case)
            framed = torch.zeros_like(self.labels[chosen])  # the padding is background
            framed[:, 0, rows, columns] = labels.movedim(self.slice_axis, 0).to(framed.device)
            self.labels[chosen] = framed
            self.counts += _counts(case, shifted, labels)
        if self.volume_prior is not None:
            self._leave_out_implausible(self.volume_prior)
        self._labels_changed()
        self.rounds += 1

    @property
    def used_cases(self) -> int:
        """The number of cases that have pseudo-labels."""
        return self.slices.case_of[self.labelled_slices].unique().numel()

    def _labels_changed(self) -> None:
        self.labelled_slices = (self.labels != IGNORED).flatten(1).any(1).nonzero()[:, 0].cpu()

    def _probabilities(self, network: nn.Module, case: int) -> Tensor:
        """Smoothed class probabilities of a case, (K + 1, H, W, D)."""
        chosen, rows, columns = self.slices.region(case)
        stack = self.slices.images[chosen][:, 0, rows, columns].to(next(network.parameters()).device)  # (D, H, W)
        volume = stack.movedim(0, self.slice_axis)[None, None]
        probabilities = torch.as_tensor(self.inferer(volume, network))[0].cpu()
        if self.smoothing is None:
            return probabilities
        return self.smoothing(probabilities, volume[0, 0].cpu(), self.slices.spacing_mm[case].tolist())

    def _leave_out_implausible(self, prior: VolumePrior) -> None:
        volumes_ml = torch.zeros(len(self.slices.voxel_ml), len(prior.plausible_ml))  # 0 for cases without any slice
        for count in self.counts:
            volumes_ml[count.case, count.structure - 1] = count.predicted * self.slices.voxel_ml[count.case]
        is_used = prior.plausible_cases(volumes_ml)
        self.labels[~is_used[self.slices.case_of]] = IGNORED
        self.counts = [count if is_used[count.case] else replace(count, kept=0) for count in self.counts]

    def state_dict(self) -> dict[str, Any]:
        """State for resuming."""
        return {"labels": self.labels, "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the pseudo-labels of ``state``.

        Raises:
            InputError: they belong to other slices.
        """
        if state["labels"].shape != self.labels.shape:
            raise InputError(
                file="the checkpoint to resume from",
                found=f"pseudo-labels of shape {tuple(state['labels'].shape)}",
                expected=f"{tuple(self.labels.shape)}, the shape of the target's slices",
                remedy="give the data that the run was started with, or start a new one without --resume",
            )
        self.labels, self.rounds = state["labels"].to(self.labels.device), state["rounds"]
        self._labels_changed()


class SelfTrainingBatches(UnpairedSliceBatches):
    """Batches of labelled slices and target slices with pseudo-labels (``target_label``).

    Args:
        pseudo_labels: of the target's slices.
        target_augmentation: additional augmentation of target images, so that the student's input is harder than the
            input from which the pseudo-labels were predicted.
        arguments: those of :class:`UnpairedSliceBatches` except ``target``.
    """

    def __init__(self, *, pseudo_labels: PseudoLabels, target_augmentation: Any, **arguments: Any) -> None:
        super().__init__(target=pseudo_labels.slices, **arguments)
        self.pseudo_labels, self.target_augmentation = pseudo_labels, target_augmentation

    def _share(self, index: int, share: int) -> dict[str, Tensor]:
        generator = iteration_generator(self.seed, index, share=share)
        batch = self._augmented_source(self._draw(self.source, generator), generator)
        slices = self.pseudo_labels.slices
        labelled = self.pseudo_labels.labelled_slices
        if len(labelled) == 0:  # nothing is confident yet: the target adds nothing to the loss
            labelled = torch.arange(len(slices))
        chosen = labelled[torch.randint(len(labelled), (self.batch_size,), generator=generator)]
        image, label = self._window(slices, chosen, generator, self.pseudo_labels.labels)
        image, _ = self.target_augmentation(image, None, generator)
        return batch | {"target_image": image, "target_label": cast(Tensor, label)}


def cleaned_labels(probabilities: Tensor, min_confidence: float | Sequence[float]) -> Tensor:
    """The most probable class of each reliable voxel, and ``IGNORED`` elsewhere.

    A voxel is reliable if it belongs to the largest connected component of its structure and reaches the confidence of
    its class. Smaller components are ignored, not background: they may belong to the structure.

    Args:
        probabilities: of each class, (K + 1, H, W, D); class 0 is the background.
        min_confidence: minimum probability of the most probable class; one for all classes, or K + 1 values, the
            background's first.

    Returns:
        (H, W, D), uint8.

    Raises:
        InputError: another number of confidences than classes.
    """
    classes = len(probabilities)
    confidence, winner = probabilities.max(0)  # (H, W, D)
    keep_largest = KeepLargestConnectedComponent(applied_labels=range(1, classes), independent=True, is_onehot=False)
    largest = torch.as_tensor(keep_largest(winner[None].clone()))[0]  # it works in place
    trusted = (largest == winner) & (confidence >= _thresholds(min_confidence, classes).to(confidence)[winner])
    return torch.where(trusted, winner, IGNORED).to(torch.uint8)


def _thresholds(min_confidence: float | Sequence[float], classes: int) -> Tensor:
    given = [min_confidence] * classes if isinstance(min_confidence, int | float) else list(min_confidence)
    if len(given) != classes:
        found = f"{len(given)} confidences"
        expected = f"one number, or {classes}: the background's, then one for each structure"
        raise InputError(file="setting 'min_confidence'", found=found, expected=expected, remedy="correct the setting")
    return torch.tensor(given)


def _counts(case: int, probabilities: Tensor, labels: Tensor) -> list[StructureCount]:
    winner = probabilities.argmax(0)
    return [
        StructureCount(case, structure, int((winner == structure).sum()), int((labels == structure).sum()))
        for structure in range(1, len(probabilities))
    ]
