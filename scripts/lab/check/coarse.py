"""Volumes on a coarse grid, and measurements without labels: the body mask and the grain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.data.sections import body_mask
from skimage.filters import threshold_otsu

__all__ = ["COARSE_MM", "body_of", "grain", "resample"]

# Spacing of the grid for comparisons of images, coarse enough for hundreds of cases.
COARSE_MM = 4.0

# Smoothing of gradients against noise.
GRAIN_VOXELS = 1.0

_Array = NDArray[Any]


def resample(volume: _Array, spacing_mm: Sequence[float], out_mm: Sequence[float]) -> NDArray[np.float32]:
    """Resample a volume about its centre from ``spacing_mm`` to ``out_mm``, axis by axis with triangular weights.

    The triangle is as wide as the coarser of the two grids: averages towards a coarser grid, linear interpolation
    towards a finer one.
    """
    result = np.asarray(volume, np.float32)
    for axis, (old, new) in enumerate(zip(spacing_mm, out_mm, strict=True)):
        size = result.shape[axis]
        places = (np.arange(max(round(size * old / new), 1)) + 0.5) * new
        places += size * old / 2 - places.mean()
        weights = np.maximum(1 - np.abs(places[:, None] - (np.arange(size) + 0.5) * old) / max(old, new), 0)
        lost = weights.sum(1) == 0
        weights[lost, np.abs(places[lost, None] - (np.arange(size) + 0.5) * old).argmin(1)] = 1.0
        weights /= weights.sum(1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights.astype(np.float32), result, (1, axis)), 0, axis)
    return result


def body_of(coarse: _Array) -> NDArray[np.bool_]:
    """Mask of the patient in a coarse volume: the largest component above Otsu's threshold, filled slice by slice.

    The threshold is computed on square roots, because in MR most of the body is dark compared with fat.
    """
    low, high = np.percentile(coarse, (0.5, 99.0))
    roots = np.sqrt(np.clip((coarse - low) / max(high - low, 1e-6), 0, 1))
    return body_mask(roots, float(threshold_otsu(roots)))


def grain(coarse: _Array, body: _Array, stack_axis: int) -> float:
    """Logarithm of the ratio of mean gradients along the stack and in plane; NaN if the body is too small.

    It differs little between people; a slice spacing that is too large by a factor lowers the ratio by about that
    factor. ``coarse`` and the mask ``body`` are (H, W, D) at :data:`COARSE_MM`.
    """
    inner = ndimage.binary_erosion(body, iterations=2)
    if not inner.any():
        return math.nan
    low, high = np.percentile(coarse, (1.0, 99.0))
    scaled = np.clip((coarse - low) / max(high - low, 1e-6), 0, 1)
    orders = [[int(axis == other) for other in range(3)] for axis in range(3)]
    slopes = [
        float(np.abs(ndimage.gaussian_filter(scaled, GRAIN_VOXELS, order=order)[inner]).mean()) for order in orders
    ]
    if min(slopes) <= 0:
        return math.nan
    along = math.log(slopes.pop(stack_axis))
    return along - sum(map(math.log, slopes)) / 2
