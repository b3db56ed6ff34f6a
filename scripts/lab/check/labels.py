"""Measurements of a label map: values, structures, and rims caused by interpolation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.lab.check.cases import Structure

__all__ = ["RankedLabels", "find_structures", "ranked", "rim_shares"]

_Array = NDArray[Any]

# A face counts if the structure is at least that many voxels thick behind it.
SOLID_VOXELS = 3

# Largest thickness of a thin rim, in voxels.
RIM_VOXELS = 2

SMALL_RANGE = 1 << 16


@dataclass(frozen=True)
class RankedLabels:
    """A label map as ranks of its values, so that large values need no more memory than 1, 2, 3."""

    values: NDArray[np.float64]  # 0 and all values above it, ascending
    counts: NDArray[np.int64]  # voxels of each
    ranks: NDArray[np.int32]  # (H, W, D), index of each voxel's value in ``values``
    negative: Mapping[float, int] = field(default_factory=dict)  # voxels of each negative value, which has rank 0


def ranked(label: _Array) -> RankedLabels:
    """Rank the values of a label map (H, W, D)."""
    rounded = np.rint(label)
    low, high = float(label.min()), float(label.max())
    if low >= 0 and high < SMALL_RANGE and np.array_equal(rounded, label):
        counts = np.bincount(rounded.astype(np.int32).ravel())
        values = np.flatnonzero((counts > 0) | (np.arange(len(counts)) == 0))
        places = np.zeros(len(counts), np.int32)
        places[values] = np.arange(len(values))
        return RankedLabels(values.astype(np.float64), counts[values], places[rounded.astype(np.int32)])
    values, inverse, counts = np.unique(label, return_inverse=True, return_counts=True)
    zero = int(np.searchsorted(values, 0))
    if zero == len(values) or values[zero] != 0:
        values, counts = np.insert(values, zero, 0), np.insert(counts, zero, 0)
        inverse = inverse + (inverse >= zero)
    ranks = np.maximum(inverse.reshape(label.shape) - zero, 0).astype(np.int32)
    negative = dict(zip(values[:zero].tolist(), counts[:zero].tolist(), strict=True))
    return RankedLabels(values.astype(np.float64)[zero:], counts[zero:], ranks, negative)


def find_structures(label: RankedLabels, affine: _Array, centre_voxel: _Array) -> dict[float, Structure]:
    """Volume, position (mm from ``centre_voxel``) and extent of each value above 0."""
    steps = np.asarray(affine, float)[:3, :3]
    spacing_mm = np.linalg.norm(steps, axis=0)
    structures = {}
    for rank, box in enumerate(ndimage.find_objects(label.ranks), start=1):
        if box is None:
            continue
        inside = label.ranks[box] == rank
        count = int(inside.sum())
        mean, spread = np.zeros(3), np.zeros(3)
        for axis in range(3):
            along = inside.sum(tuple(other for other in range(3) if other != axis))
            places = np.arange(len(along)) + box[axis].start
            mean[axis] = (along * places).sum() / count
            spread[axis] = np.sqrt((along * (places - mean[axis]) ** 2).sum() / count + 1 / 12)
        centre, spread = steps @ (mean - np.asarray(centre_voxel)), spread * spacing_mm
        structures[float(label.values[rank])] = Structure(
            volume_ml=count * abs(float(np.linalg.det(steps))) / 1000,
            centre_mm=(float(centre[0]), float(centre[1]), float(centre[2])),
            spread_mm=(float(spread[0]), float(spread[1]), float(spread[2])),
        )
    return structures


def rim_shares(label: RankedLabels, axes: Sequence[int], smallest: int) -> dict[float, float]:
    """For each value, the share of its faces towards lower values that a thin rim of a value in between covers.

    Linear interpolation writes 1, 2 or 3 between 0 and 4. Real structures are thicker than :data:`RIM_VOXELS`, so that
    the share is near 0. ``axes`` are those in plane, as along the stack a real structure may be one thick slice high;
    values with fewer than ``smallest`` faces are left out.
    """
    box = ndimage.find_objects((label.ranks > 0).astype(np.uint8))
    if not box:
        return {}
    cut = np.pad(label.ranks[box[0]], RIM_VOXELS + 2)
    size = len(label.values)
    faces, covered = np.zeros(size, int), np.zeros(size, int)
    for axis in axes:
        for line in (np.moveaxis(cut, axis, 0), np.moveaxis(cut, axis, 0)[::-1]):
            ranks, is_rim = _steps_up(line)
            faces += np.bincount(ranks, minlength=size)
            covered += np.bincount(ranks[is_rim], minlength=size)
    return {float(label.values[rank]): float(covered[rank] / faces[rank]) for rank in np.flatnonzero(faces >= smallest)}


def _steps_up(line: _Array) -> tuple[_Array, _Array]:
    """Rank of each solid structure that starts along axis 0, and whether a thin rim precedes it."""
    length = RIM_VOXELS + SOLID_VOXELS
    window = [line[k : line.shape[0] - length + k] for k in range(length + 1)]
    earliest, before_that, before, first = window[0], window[RIM_VOXELS - 1], window[RIM_VOXELS], window[RIM_VOXELS + 1]
    is_face = before < first
    for other in window[RIM_VOXELS + 1 :]:
        is_face &= other == first
    is_rim = (before_that < before) | ((before_that == before) & (earliest < before))
    return first[is_face], is_rim[is_face]
