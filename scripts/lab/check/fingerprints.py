"""Fingerprints of volumes, to find copies and mirrored volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scripts.lab.check.coarse import COARSE_MM, resample

__all__ = ["Fingerprint", "agreement", "detail_of", "mirrored", "similarity", "spectrum_of"]

_Array = NDArray[Any]

# The spectrum's volume: the middle 384 mm at 8 mm. One comparison takes less than a millisecond.
PRINT_MM, PRINT_SIZE = 8.0, 48

# The detail's volume: the middle 256 mm at 4 mm, one byte per voxel.
DETAIL_SIZE = 64

# Share of the smaller of two volumes that must overlap.
LEAST_OVERLAP = 0.4

Fingerprint = NDArray[np.complex64]


def spectrum_of(coarse: _Array) -> Fingerprint:
    """The spectrum of a volume's coarse structure (H, W, D, in RAS), robust to scale, data type and small crops."""
    volume = resample(_scaled(coarse), (COARSE_MM,) * 3, (PRINT_MM,) * 3)
    band = _middle(_band(volume, 0.7, 2.0), PRINT_SIZE)
    return np.asarray(fft.rfftn(band / max(float(np.linalg.norm(band)), 1e-6), (PRINT_SIZE,) * 3), np.complex64)


def similarity(first: Fingerprint, second: Fingerprint) -> float:
    """The highest correlation of two spectra's volumes over all shifts, at most 1."""
    return float(fft.irfftn(first * second.conj(), (PRINT_SIZE,) * 3).max())


def mirrored(spectrum: Fingerprint, axes: Sequence[int]) -> Fingerprint:
    """The spectrum of the same volume flipped along axes (0 left/right, 1 anterior/posterior, 2 head/feet)."""
    # The last axis holds half of the spectrum: flipping it is flipping all three (the conjugate) and the others back.
    others = {0, 1} - set(axes) if 2 in axes else set(axes)
    result = spectrum.conj() if 2 in axes else spectrum
    for axis in others:
        result = np.roll(np.flip(result, axis), 1, axis)
    return result


def detail_of(coarse: _Array, body: _Array) -> NDArray[np.int8]:
    """The fine structure of the centre of a volume (H, W, D, in RAS, with a mask of the body), for :func:`agreement`.

    Values are clipped to the percentiles 1 and 99 of the body, because the edge of the skin would dominate.
    """
    inside = coarse[body] if body.any() else coarse
    band = _middle(_band(np.clip(coarse, *np.percentile(inside, (1.0, 99.0))), 0.5, 1.5), DETAIL_SIZE)
    return np.clip(np.rint(band * (40 / max(float(band.std()), 1e-6))), -127, 127).astype(np.int8)


def agreement(first: NDArray[np.int8], second: NDArray[np.int8]) -> float:
    """The correlation of two details over their overlap, at the best shift, at most 1."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    size = [fft.next_fast_len(m + n, real=True) for m, n in zip(a.shape, b.shape, strict=True)]
    correlation = fft.irfftn(fft.rfftn(a, size) * fft.rfftn(b, size).conj(), size)
    peak = np.unravel_index(int(correlation.argmax()), correlation.shape)
    shift = [int(p) if p < m else int(p) - n for p, m, n in zip(peak, a.shape, size, strict=True)]
    here = tuple(slice(max(s, 0), min(m, n + s)) for s, m, n in zip(shift, a.shape, b.shape, strict=True))
    there = tuple(slice(max(-s, 0), min(n, m - s)) for s, m, n in zip(shift, a.shape, b.shape, strict=True))
    seen, other = a[here].ravel(), b[there].ravel()
    if seen.size < LEAST_OVERLAP * min(a.size, b.size):
        return 0.0
    seen, other = seen - seen.mean(), other - other.mean()
    return float(seen @ other / max(float(np.linalg.norm(seen) * np.linalg.norm(other)), 1e-6))


def _scaled(volume: _Array) -> _Array:
    low, high = np.percentile(volume, (1.0, 99.0))
    return np.clip((volume - low) / max(high - low, 1e-6), 0, 1)


def _band(volume: _Array, fine: float, broad: float) -> _Array:
    return ndimage.gaussian_filter(volume, fine) - ndimage.gaussian_filter(volume, broad)


def _middle(volume: _Array, size: int) -> _Array:
    return volume[tuple(slice(max(n - size, 0) // 2, max(n - size, 0) // 2 + size) for n in volume.shape)]
