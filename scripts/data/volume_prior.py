"""Volumes of the labelled cases' structures as a prior for pseudo-labels of other cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scripts.data.slices import SliceSet
from torch import Tensor

__all__ = ["VolumePrior"]

# Of the target's cases, in each round, if not more are plausible.
LEAST_SHARE = 0.25

# Bisections of the shifts: to 0.1 % of the greatest one.
STEPS = 10


class VolumePrior:
    """Which cases are plausible by their volumes, and how far a class is too rare or too frequent in all of them.

    Args:
        slices: labelled slices; cases without a structure do not count for it.
        num_structures: K.
        tolerance: a volume is plausible between the labelled cases' 5th percentile divided by this factor and their
            95th multiplied by it.
        max_shift: of a class's logarithmic probability; 0 for none.

    Attributes:
        plausible_ml: (K, 2), the least and the greatest plausible volume; 0 and infinity for a structure that no
            labelled case has.
        median_ml: (K, 2), quartiles of the labelled cases: the range for the median of the other cases.
    """

    def __init__(self, slices: SliceSet, num_structures: int, tolerance: float = 1.0, max_shift: float = 0.0) -> None:
        volumes = slices.volumes_ml(num_structures).float()
        known = volumes.masked_fill(volumes == 0, torch.nan)
        low, first, third, high = known.nanquantile(torch.tensor([0.05, 0.25, 0.75, 0.95]), dim=0)  # (K,) each
        self.plausible_ml = torch.stack([(low / tolerance).nan_to_num(0), (high * tolerance).nan_to_num(torch.inf)], 1)
        self.median_ml = torch.stack([first.nan_to_num(0), third.nan_to_num(torch.inf)], 1)
        self.max_shift = max_shift

    def plausible_cases(self, predicted_ml: Tensor) -> Tensor:
        """Which cases to learn from: those with the fewest structures of an implausible volume.

        All whose structures are plausible, and where these are less than ``LEAST_SHARE`` of the cases, also those with
        one implausible structure, and so on. A case is taken or left whole: where a structure is far too small, most of
        it was taken for background, which would teach the same mistake again; and where the background alone is left
        out, structures grow from round to round.

        Args:
            predicted_ml: (cases, K).

        Returns:
            (cases,), bool.
        """
        wrong = ((predicted_ml < self.plausible_ml[:, 0]) | (predicted_ml > self.plausible_ml[:, 1])).sum(1)  # (cases,)
        least = math.ceil(LEAST_SHARE * len(wrong))
        return wrong <= wrong.sort().values[least - 1]

    def class_shifts(self, probabilities: Sequence[Tensor], voxel_ml: Sequence[float]) -> Tensor:
        """What to add to the logarithmic probability of each class so that the median volumes are in their range.

        A structure whose median volume over the cases lies between the labelled cases' quartiles is not shifted.

        Args:
            probabilities: of each case, (K + 1, ...).
            voxel_ml: of each case.

        Returns:
            (K + 1,); 0 for the background.
        """
        shifts = torch.zeros(len(self.median_ml) + 1)
        if self.max_shift == 0:
            return shifts
        logs = [_undecided(case, self.max_shift) for case in probabilities]  # (K + 1, n) each
        median_ml = _median_ml(logs, voxel_ml, shifts)
        wanted_ml = median_ml.maximum(self.median_ml[:, 0]).minimum(self.median_ml[:, 1])
        for step in range(1, STEPS + 1):
            shifts[1:] += (wanted_ml - median_ml).sign() * self.max_shift / 2**step
            median_ml = _median_ml(logs, voxel_ml, shifts)
        return shifts


def _undecided(probabilities: Tensor, max_shift: float) -> Tensor:
    """Logarithms of the voxels that are not background whatever the shifts are, (K + 1, n)."""
    logs = probabilities.float().flatten(1).clamp_min(1e-6).log()
    return logs[:, logs[1:].amax(0) + max_shift >= logs[0]]


def _median_ml(logs: Sequence[Tensor], voxel_ml: Sequence[float], shifts: Tensor) -> Tensor:
    """The median volume of each structure over the cases, (K,)."""
    counts = [
        (log + shifts[:, None]).argmax(0).bincount(minlength=len(shifts))[1:] * ml
        for log, ml in zip(logs, voxel_ml, strict=True)
    ]
    return torch.stack(counts).float().quantile(0.5, dim=0)
