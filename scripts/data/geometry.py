"""Checks of geometry: valid affines, equal grids, and the size of resampled volumes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from scripts.core.errors import InputError

__all__ = [
    "AFFINE_TOLERANCE_MM",
    "affine_gap_mm",
    "check_affine",
    "check_memory",
    "check_resampled_size",
    "check_same_grid",
    "check_shape",
    "free_memory_bytes",
    "spacing_of",
]

# Largest difference between the entries of two affines of one grid: 0.25 mm at the 256th voxel. Tools that write single
# precision stay below a tenth of it.
AFFINE_TOLERANCE_MM = 1e-3

VOXEL_EDGE_MM = (1e-4, 1e3)  # shortest and longest plausible one
LARGEST_OFFSET_MM = 1e6  # of a volume from the scanner's origin
SMALLEST_DETERMINANT = 1e-3  # of the three unit directions; below it they count as linearly dependent
LARGEST_RESAMPLED_VOXELS = 2**29  # 2 GiB in float32; a scan of 512 x 512 x 1500 voxels has 0.7 of it
CONTAINER = "/sys/fs/cgroup"  # where Linux shows its limits


def spacing_of(affine: Any) -> tuple[float, float, float]:
    """Voxel edges of an affine (4, 4), in mm."""
    edges = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    return float(edges[0]), float(edges[1]), float(edges[2])


def check_affine(affine: Any, source: object) -> None:
    """Refuse an affine (4, 4) to RAS+ coordinates in mm that is not finite, not invertible or of odd lengths."""
    matrix = np.asarray(affine, np.float64)
    if matrix.shape != (4, 4):
        raise _no_geometry(source, f"an affine of shape {matrix.shape}", "a 4 x 4 matrix")
    if not np.isfinite(matrix).all():
        raise _no_geometry(source, "NaN or infinite values in the affine", "finite values")
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise _no_geometry(source, f"an affine whose last row is {matrix[3].tolist()}", "0, 0, 0, 1")
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    if edges.min() < VOXEL_EDGE_MM[0] or edges.max() > VOXEL_EDGE_MM[1]:
        lengths = f"edges of {VOXEL_EDGE_MM[0]:g} to {VOXEL_EDGE_MM[1]:g} mm"
        raise _no_geometry(source, f"voxels of {' x '.join(f'{edge:.4g}' for edge in edges)} mm", lengths)
    if abs(np.linalg.det(matrix[:3, :3] / edges)) < SMALLEST_DETERMINANT:
        raise _no_geometry(source, "an affine that cannot be inverted", "three independent axes")
    if np.abs(matrix[:3, 3]).max() > LARGEST_OFFSET_MM:
        found = f"an origin {np.abs(matrix[:3, 3]).max():.3g} mm away from the scanner's"
        raise _no_geometry(source, found, f"at most {LARGEST_OFFSET_MM:g} mm")


def check_shape(shape: Sequence[int], source: object) -> None:
    """Refuse anything but a 3D volume with at least 2 voxels along each axis."""
    if len(shape) != 3 or min(shape) < 2:
        expected, remedy = "a 3D volume, at least 2 voxels each way", "split a 4D file into its volumes, stack 2D files"
        raise InputError(source, f"{len(shape)} dimensions {tuple(shape)}", expected=expected, remedy=remedy)


def check_resampled_size(affine: Any, size: Sequence[int], source: object) -> None:
    """Refuse a resampled grid without extent, or too large for the memory, before anything is allocated."""
    gibibytes = 4 * float(np.prod(size, dtype=np.float64)) / 2**30
    if gibibytes <= 4 * LARGEST_RESAMPLED_VOXELS / 2**30 and min(size) > 1:
        return
    spacing = spacing_of(affine)
    extent = " x ".join(f"{count * edge:.4g}" for count, edge in zip(size, spacing, strict=True))
    found = f"a volume of {extent} mm, which has {' x '.join(map(str, size))} voxels when resampled to "
    found += f"{' x '.join(f'{edge:.3g}' for edge in spacing)} mm ({gibibytes:.0f} GiB)"
    expected = f"at least 2 voxels along each axis, and at most {4 * LARGEST_RESAMPLED_VOXELS / 2**30:.0f} GiB"
    remedy = "correct the spacing or the unit of length in the header, or crop the volume"
    raise InputError(file=source, found=found, expected=expected, remedy=remedy)


def check_memory(
    needed_bytes: float, source: object, remedy: str = "crop it, or use a larger machine", what: str = "a volume"
) -> None:
    """Refuse what needs more memory than is free, rather than being killed half-way; state more than 4 GiB."""
    free, found = free_memory_bytes(), f"{what} that needs {needed_bytes / 2**30:.1f} GiB of memory"
    if needed_bytes > free:
        expected, remedy = f"at most the {free / 2**30:.1f} GiB that are free", f"free memory, or {remedy}"
        raise InputError(file=source, found=found, expected=expected, remedy=remedy)
    if needed_bytes > 4 * 2**30:
        logging.getLogger(__name__).warning("%s: %s", source, found)


def free_memory_bytes() -> float:
    """Memory that this process may still take, on this machine and in its container; infinite where unknown."""
    free = [math.inf]
    with suppress(OSError, ValueError, KeyError):
        free.append(1024 * float(_fields("/proc/meminfo")["MemAvailable:"]))
    with suppress(OSError, ValueError, KeyError):  # "max" is no number
        limit = float(Path(CONTAINER, "memory.max").read_text(encoding="ascii"))
        free.append(limit - float(_fields(f"{CONTAINER}/memory.stat")["anon"]))
    return min(free)


def _fields(file: str) -> dict[str, str]:
    return {w[0]: w[1] for line in Path(file).read_text(encoding="ascii").splitlines() if len(w := line.split()) > 1}


def check_same_grid(
    image_shape: Sequence[int],
    image_affine: Any,
    label_shape: Sequence[int],
    label_affine: Any,
    image_path: str,
    label_path: str,
) -> None:
    """Refuse a label map whose shape (H, W, D) or affine (4, 4) differs from its image's."""
    if tuple(image_shape) != tuple(label_shape):
        found = f"a label of {tuple(label_shape)} voxels"
        expected = f"{tuple(image_shape)} as in {image_path}"
    elif not (gap := affine_gap_mm(image_affine, label_affine)) <= AFFINE_TOLERANCE_MM:  # NaN is refused, too
        found, expected = f"an affine that differs by up to {gap:.3g} mm", f"the affine of {image_path}"
    else:
        return
    remedy = "resample the label to the image's grid, or copy the image's header if only that is wrong"
    raise InputError(file=label_path, found=found, expected=expected, remedy=remedy)


def affine_gap_mm(first: Any, second: Any) -> float:
    """Largest difference between the entries of two affines (4, 4)."""
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).max())


def _no_geometry(source: object, found: str, expected: str) -> InputError:
    remedy = "copy the geometry from the original, or convert the DICOM series again"
    return InputError(file=source, found=found, expected=expected, remedy=remedy)
