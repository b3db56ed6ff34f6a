"""Pseudo-labels: a network's predictions on unlabelled volumes, cleaned in 3D for self-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from monai.inferers import Inferer
from monai.transforms import KeepLargestConnectedComponent
from scripts.core.domains import IGNORED
from scripts.core.errors import InputError
from scripts.data.slices import SliceSet, UnpairedSliceBatches, iteration_generator
from torch import Tensor, nn

__all__ = [
    "PseudoLabels",
    "SelfTrainingBatches",
    "cleaned_labels",
    "plausible_cases",
    "volume_ranges_ml",
    "with_volume_limits",
]

LEAST_SHARE = 0.25  # of the target's cases, in each round, if not more are plausible
TOO_SMALL = 0.9  # of the labelled cases' median volume: a structure below it has to grow

_STATE = ("labels", "rounds", "volumes_ml", "kept_ml", "limits_ml")


class PseudoLabels:
    """Pseudo-labels of the target's training slices, renewed in rounds.

    Each round segments whole volumes with the moving average of the network; no label of the target is read. A student
    takes more voxels for a structure than its pseudo-labels have, so structures grow from round to round. One that is
    too small should: its median volume over the cases is below ``TOO_SMALL`` of the labelled cases' median. Once none
    is, and in the early rounds none is below that median itself, the pseudo-labels stay: further rounds would only
    repeat errors. Until then, one that is large enough may not grow: in each case its largest component keeps at most
    its volume of the last round in which it was too small, or the least plausible volume if larger.

    Args:
        slices: the target's training slices, in order within each case.
        inferer: maps a volume (1, 1, H, W, D) and a network to class probabilities (1, K + 1, H, W, D).
        volume_ranges_ml: as for :func:`plausible_cases`, (K, 3).
        slice_axis: the axis of a volume that the inferer slices along.
        min_confidence: as for :func:`cleaned_labels`.
        early_rounds: number of rounds in which it is enough that a median is below that of the labelled cases.

    Attributes:
        labels: (N, 1, H, W) uint8, class ids or ``IGNORED``; all ``IGNORED`` before the first round.
        labelled_slices: (n,) indices of the slices that have any pseudo-label.
        cases: indices of the cases that have slices.
        rounds: number of rounds so far.
        volumes_ml: predicted volume of each structure of ``cases`` when they were labelled, (cases, K).
        kept_ml: how much of it is in the pseudo-labels; the rest is ignored. (cases, K).
        limits_ml: largest volume of each structure while it may not grow, (cases, K).
    """

    def __init__(
        self,
        *,
        slices: SliceSet,
        inferer: Inferer,
        volume_ranges_ml: Tensor,
        slice_axis: int = 2,
        min_confidence: float | Sequence[float] = 0.7,
        early_rounds: int = 1,
    ) -> None:
        self.slices, self.inferer, self.slice_axis, self.early_rounds = slices, inferer, slice_axis, early_rounds
        self.min_confidence, self.volume_ranges_ml = min_confidence, volume_ranges_ml
        self.labels = torch.full_like(slices.images, IGNORED, dtype=torch.uint8)
        self.cases = slices.case_of.unique()
        self.volumes_ml = torch.zeros(len(self.cases), len(volume_ranges_ml))
        self.kept_ml = torch.zeros_like(self.volumes_ml)
        self.limits_ml = torch.full_like(self.volumes_ml, torch.inf)
        self.rounds = 0
        self._labels_changed()

    @torch.inference_mode()
    def renew(self, network: nn.Module) -> bool:
        """Start a round unless all structures were large enough in the last one; return whether the labels are new."""
        usual_ml = self.volume_ranges_ml[:, 1].nan_to_num(posinf=0.0)  # (K,), 0 where no labelled case has it
        median_ml = self.volumes_ml.quantile(0.5, dim=0)  # (K,), 0 before the first round
        may_grow = median_ml < TOO_SMALL * usual_ml
        least_ml = (1.0 if self.rounds < self.early_rounds else TOO_SMALL) * usual_ml
        is_due = self.rounds == 0 or bool((median_ml < least_ml).any())
        if is_due:
            is_training = network.training
            network.eval()
            limits_ml = self.limits_ml.maximum(self.volume_ranges_ml[:, 0]).masked_fill(may_grow, torch.inf)
            cases = zip(self.cases.tolist(), limits_ml, strict=True)
            volumes_ml = [self._label_case(case, network, limits) for case, limits in cases]
            network.train(is_training)
            self.volumes_ml, largest_ml, self.kept_ml = torch.stack(volumes_ml, 1)  # (cases, K) each
            self.limits_ml = largest_ml.where(may_grow, self.limits_ml)
            self._leave_out_implausible()
        self.rounds += 1
        return is_due

    @property
    def used_cases(self) -> Tensor:
        """Indices of the cases that have pseudo-labels."""
        return self.slices.case_of[self.labelled_slices].unique()

    def _labels_changed(self) -> None:
        self.labelled_slices = (self.labels != IGNORED).flatten(1).any(1).nonzero()[:, 0].cpu()

    def _label_case(self, case: int, network: nn.Module, limits_ml: Tensor) -> Tensor:
        """Label a case within limits, (K,); returns its structures' volumes: all, largest component, kept. (3, K)."""
        device, voxel_ml, classes = next(network.parameters()).device, self.slices.voxel_ml[case], len(limits_ml) + 1
        chosen, rows, columns = self.slices.region(case)
        stack = self.slices.images[chosen][:, 0, rows, columns].to(device)  # (D, H, W)
        volume = stack.movedim(0, self.slice_axis)[None, None]
        probabilities = torch.as_tensor(self.inferer(volume, network))[0].cpu()  # (K + 1, H, W, D)
        probabilities = with_volume_limits(probabilities, limits_ml / voxel_ml)
        winner, labels = probabilities.argmax(0), cleaned_labels(probabilities, self.min_confidence)
        framed = torch.zeros_like(self.labels[chosen])  # the padding is background
        framed[:, 0, rows, columns] = labels.movedim(self.slice_axis, 0).to(framed.device)
        self.labels[chosen] = framed
        return torch.stack([_voxels(of, classes) for of in (winner, _largest_components(winner), labels)]) * voxel_ml

    def _leave_out_implausible(self) -> None:
        is_used = plausible_cases(self.volumes_ml, self.volume_ranges_ml)
        self.labels[~torch.isin(self.slices.case_of, self.cases[is_used])] = IGNORED
        self.kept_ml[~is_used] = 0
        self._labels_changed()

    def state_dict(self) -> dict[str, Any]:
        """State for resuming."""
        return {key: getattr(self, key) for key in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the pseudo-labels of ``state``.

        Raises:
            InputError: they belong to other slices.
        """
        if state["labels"].shape != self.labels.shape:
            found = f"pseudo-labels of shape {tuple(state['labels'].shape)}"
            expected = f"{tuple(self.labels.shape)}, the shape of the target's slices"
            remedy = "give the data that the run was started with, or start a new one without --resume"
            raise InputError("the checkpoint to resume from", found=found, expected=expected, remedy=remedy)
        for key in _STATE:
            setattr(self, key, state[key])
        self.labels = self.labels.to(self.slices.images.device)
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
    is_sure = confidence >= _thresholds(min_confidence, classes).to(confidence)[winner]
    trusted = (_largest_components(winner) == winner) & is_sure
    return torch.where(trusted, winner, IGNORED).to(torch.uint8)


def with_volume_limits(probabilities: Tensor, limits: Tensor) -> Tensor:
    """Lower the probabilities of structures that are too large until each keeps only its most certain voxels.

    Probabilities (K + 1, H, W, D) keep a sum of 1; ``limits`` (K,) are voxels of the largest component, infinity for
    none.
    """
    if limits.isinf().all():
        return probabilities
    limited, largest = probabilities.clone(), _largest_components(probabilities.argmax(0))
    for structure, limit in enumerate(limits.tolist(), start=1):
        own = probabilities[:, largest == structure]  # (K + 1, voxels)
        if own.shape[1] > limit:
            others = torch.cat([own[:structure], own[structure + 1 :]]).amax(0)
            lead = own[structure] / others.clamp_min(1e-12)  # at least 1, as the structure is the most probable
            limited[structure] /= lead.sort(descending=True).values[int(limit)]
    return limited / limited.sum(0)


def plausible_cases(volumes_ml: Tensor, ranges_ml: Tensor) -> Tensor:
    """Which cases to learn from: those with the fewest structures of an implausible volume.

    All whose structures are plausible, and where these are less than ``LEAST_SHARE`` of the cases, also those with one
    implausible structure, and so on. A case is taken or left whole: where a structure is far too small, most of it was
    taken for background, which would teach the same mistake again; and where the background alone is left out,
    structures grow from round to round.

    Args:
        volumes_ml: (cases, K), predicted.
        ranges_ml: of :func:`volume_ranges_ml`, (K, 3).

    Returns:
        (cases,), bool.
    """
    wrong = ((volumes_ml < ranges_ml[:, 0]) | (volumes_ml > ranges_ml[:, 2])).sum(1)  # (cases,)
    least = math.ceil(LEAST_SHARE * len(wrong))
    return wrong <= wrong.sort().values[least - 1]


def volume_ranges_ml(slices: SliceSet, num_structures: int, tolerance: float) -> Tensor:
    """Plausible volumes (K, 3) in ml: the labelled cases' 5th percentile over ``tolerance``, median, 95th times it.

    Cases without a structure do not count for it; 0, infinity and infinity for a structure that no case has.
    """
    volumes = slices.volumes_ml(num_structures)  # (cases, K)
    seen = volumes.float().masked_fill(volumes == 0, torch.nan)
    least, usual, greatest = seen.nanquantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)  # (K,) each
    upper = torch.stack([usual, greatest * tolerance], 1).nan_to_num(torch.inf)
    return torch.cat([(least / tolerance).nan_to_num(0)[:, None], upper], 1)


def _largest_components(winner: Tensor) -> Tensor:
    """The largest component of each structure, and the background; ``IGNORED`` elsewhere. (H, W, D)."""
    structures = range(1, int(winner.max()) + 1)
    keep_largest = KeepLargestConnectedComponent(applied_labels=structures, independent=True, is_onehot=False)
    largest = torch.as_tensor(keep_largest(winner[None].clone()))[0]  # it works in place
    return torch.where(largest == winner, winner, IGNORED)


def _thresholds(min_confidence: float | Sequence[float], classes: int) -> Tensor:
    given = [min_confidence] * classes if isinstance(min_confidence, int | float) else list(min_confidence)
    if len(given) != classes:
        found = f"{len(given)} confidences"
        expected = f"one number, or {classes}: the background's, then one for each structure"
        raise InputError(file="setting 'min_confidence'", found=found, expected=expected, remedy="correct the setting")
    return torch.tensor(given)


def _voxels(labels: Tensor, classes: int) -> Tensor:
    """Voxels of each structure, (K,), of class ids and ``IGNORED``."""
    return labels.flatten().long().bincount(minlength=IGNORED + 1)[1:classes]
