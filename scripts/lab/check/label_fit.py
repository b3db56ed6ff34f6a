"""Fit of a label map to its image: the share of variance that it explains in place, shifted and mirrored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.lab.check.cases import Alignment

__all__ = ["measure_alignment"]

_Array = NDArray[Any]

# Largest tested shift along each axis, in voxels.
REACH = 2

# Distance in voxels from a border between classes up to which voxels are used.
BAND_VOXELS = 3

# More voxels are subsampled evenly.
MOST_VOXELS = 300_000


def measure_alignment(image: _Array, label: _Array) -> Alignment | None:
    """Compare the fit of a label map in place with its fit shifted by one and two voxels and mirrored.

    The fit is the between-class variance of the image over its variance, in a band along the borders of the classes
    (background included) that moves with the label. The best shift is searched along each axis in turn, twice. None if
    the label map is empty or cannot be shifted within the volume.
    """
    band = _Band(label)
    if not band.is_usable:
        return None
    image = _windowed(image, label)
    explained = band.explained(image, (0, 0, 0))
    best, curve_of = [0, 0, 0], {}
    for axis in (0, 1, 2, 0, 1, 2):
        curve = [
            band.explained(image, [step if other == axis else best[other] for other in range(3)])
            for step in range(-REACH, REACH + 1)
        ]
        best[axis] = int(np.argmax(curve)) - REACH
        curve_of[axis] = curve
    shift = [best[axis] + _between(curve_of[axis]) for axis in range(3)]
    flipped = [_Band(np.flip(label, axis)).explained(image, (0, 0, 0)) for axis in range(3)]
    return Alignment(
        explained=explained,
        best_explained=max(max(curve) for curve in curve_of.values()),
        shift_voxel=(shift[0], shift[1], shift[2]),
        flipped_explained=(flipped[0], flipped[1], flipped[2]),
    )


def _windowed(image: _Array, label: _Array) -> NDArray[np.float32]:
    """The image clipped to three times the range of the structures' values, to limit the effect of skin and air."""
    low, high = np.percentile(image[label > 0], (2.0, 98.0))
    return np.clip(image, low - (high - low), high + (high - low)).astype(np.float32)


class _Band:
    """The voxels along the borders between classes that stay within the volume when shifted."""

    def __init__(self, label: _Array) -> None:
        self.shape = label.shape
        self.is_usable = False
        box = ndimage.find_objects((label > 0).astype(np.uint8))
        if not box:
            return
        grown = tuple(slice(max(part.start - BAND_VOXELS - 1, 0), part.stop + BAND_VOXELS + 1) for part in box[0])
        cut = label[grown]
        edge = np.zeros(cut.shape, bool)
        for axis in range(3):
            differs = np.diff(cut, axis=axis) != 0
            edge |= np.pad(differs, [(0, int(other == axis)) for other in range(3)])
        near = ndimage.binary_dilation(edge, iterations=BAND_VOXELS)
        indices = [axis_indices + part.start for axis_indices, part in zip(np.nonzero(near), grown, strict=True)]
        kept = np.ones(len(indices[0]), bool)
        for axis_indices, size in zip(indices, label.shape, strict=True):
            kept &= (axis_indices >= REACH) & (axis_indices < size - REACH)
        places = np.flatnonzero(kept)
        places = places[:: max(len(places) // MOST_VOXELS, 1)]
        self.indices = [axis_indices[places] for axis_indices in indices]
        values, self.classes = np.unique(label[tuple(self.indices)], return_inverse=True)
        self.counts = np.bincount(self.classes, minlength=len(values))
        self.is_usable = len(values) > 1

    def explained(self, image: _Array, shift: Any) -> float:
        """Between-class variance over variance, with the label map moved by whole voxels; 0 for a constant image."""
        if not self.is_usable:
            return 0.0
        moved = tuple(indices + step for indices, step in zip(self.indices, shift, strict=True))
        seen = image[moved].astype(np.float64)
        total = float(((seen - seen.mean()) ** 2).sum())
        means = np.bincount(self.classes, weights=seen) / np.maximum(self.counts, 1)
        between = float((self.counts * (means - seen.mean()) ** 2).sum())
        return between / total if total > 0 else 0.0


def _between(curve: list[float]) -> float:
    """Offset of the peak of a parabola through the highest value and its neighbours; 0 at an end."""
    top = int(np.argmax(curve))
    if top in (0, len(curve) - 1):
        return 0.0
    left, middle, right = curve[top - 1 : top + 2]
    bend = left - 2 * middle + right
    return 0.5 * (left - right) / bend if bend < 0 else 0.0
