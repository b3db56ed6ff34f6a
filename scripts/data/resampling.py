"""Resampling to the network's grid and back to the image's own.

Both directions only scale the voxel axes, so that a grid depends on sizes and spacings only. MONAI's ``Spacing`` also
aligns the axes with the world and chooses a corner as origin: for an oblique volume, headers that differed by rounding
gave grids 1.6 mm apart.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample
from monai.utils import ensure_tuple_rep
from scripts.data.geometry import check_resampled_size

__all__ = ["ResampleVolumed", "RestoreGridd", "resampled_grid", "restore_grid"]

# Added to the half voxel by which the last voxel centre may lie beyond the new grid's last one. Sizes such as 256 at
# half the resolution meet the half exactly, where rounding errors would decide: an error of 4e-5 mm in the spacing
# moves the end of 512 voxels of 1 mm by 0.02.
SIZE_TOLERANCE = 0.05

# Number of interpolated values held at a time on the way back to the image's grid.
SLAB_VALUES = 2**24


def resampled_grid(
    affine: np.ndarray, size: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The grid of another spacing that starts at the same voxel centre and runs along the same axes.

    Args:
        affine: voxel indices to world coordinates in mm, (4, 4).
        size: (H, W, D).
        spacing_mm: new spacing per axis; a value that is not positive keeps the axis as it is.

    Returns:
        The new affine and size.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.asarray(spacing_mm, np.float64)
    factor = np.where(wanted > 0, wanted / spacing, 1.0)
    new_affine = affine.copy()
    new_affine[:3, :3] *= factor
    extents = (np.asarray(size) - 1) / factor
    return new_affine, tuple(max(math.floor(extent + 1.5 - SIZE_TOLERANCE), 1) for extent in extents)


class ResampleVolumed(MapTransform):
    """Resample volumes (C, H, W, D) to a spacing, all keys to the grid of the first one that is present.

    Args:
        keys: keys of MetaTensors of equal size.
        spacing_mm: as for :func:`resampled_grid`.
        mode: ``bilinear`` or ``nearest``, one for all keys or one per key.

    Raises:
        InputError: the resampled volume would be too large; nothing was allocated.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float],
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing_mm, self.mode = tuple(spacing_mm), ensure_tuple_rep(mode, len(self.keys))
        self.resample = SpatialResample(padding_mode="border", dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample each key."""
        resampled, size = dict(data), None
        for key, mode in self.key_iterator(resampled, self.mode):
            volume = resampled[key]
            # A label's affine may differ from its image's by rounding: only the first decides on the size.
            affine, own_size = resampled_grid(volume.affine.numpy(), volume.shape[1:], self.spacing_mm)
            size = size or own_size
            check_resampled_size(affine, size, volume.meta.get("filename_or_obj", f"{key!r}"))
            resampled[key] = self.resample(volume, dst_affine=affine, spatial_size=size, mode=mode)
        return resampled


class RestoreGridd(MapTransform):
    """Bring network outputs back to the grid of the image as it was loaded: see :func:`restore_grid`.

    Args:
        keys: keys of outputs (K, H, W, D).
        ref_key: key of the preprocessed image that they were computed from.
        argmax: replace the channels by the class of the largest value.
    """

    def __init__(self, keys: KeysCollection, ref_key: str = "image", argmax: bool = False) -> None:
        super().__init__(keys)
        self.ref_key, self.argmax = ref_key, argmax

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore each key."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            restored[key] = restore_grid(restored[key], restored[self.ref_key], argmax=self.argmax)
        return restored


def restore_grid(output: torch.Tensor, reference: MetaTensor, *, argmax: bool = False) -> MetaTensor:
    """Interpolate an output linearly to the original grid of its image, one slab of slices after the other.

    Only a slab of interpolated channels is held at a time, so with ``argmax`` the original grid takes one byte a voxel.

    Args:
        output: (K, H, W, D) on the grid of ``reference``.
        reference: the preprocessed image; its metadata give the original affine and size. Preprocessing may turn, flip,
            scale, crop and pad along the voxel axes.
        argmax: decide on the class before a slab is stored.

    Returns:
        (K, H0, W0, D0) float32, or (1, H0, W0, D0) uint8 class ids with ``argmax``; 0 outside the reference's voxels.
    """
    original = np.asarray(reference.meta["original_affine"], np.float64)
    size = [int(side) for side in reference.applied_operations[0]["orig_size"]]
    matrix = np.linalg.solve(np.asarray(reference.affine, np.float64), original)
    order = np.abs(matrix[:3, :3]).argmax(0)  # the reference's axis along each original one
    plain = output.as_tensor() if isinstance(output, MetaTensor) else output
    turned = plain.permute(0, *(int(axis) + 1 for axis in order))  # (K, ...) in the original order of axes
    spans = [
        _Span(matrix[row, column], matrix[row, 3], size[column], turned.shape[column + 1])
        for column, row in enumerate(order)
    ]
    dtype, channels = (torch.uint8, 1) if argmax else (torch.float32, len(plain))
    restored = torch.zeros((channels, *size), dtype=dtype, device=plain.device)
    rows, columns, slices = spans
    thickness = max(SLAB_VALUES // (len(plain) * size[0] * size[1]), 1)
    for start in range(slices.start, slices.stop, thickness):
        stop = min(start + thickness, slices.stop)
        slab = slices.interpolate(turned, 3, start, stop)
        slab = columns.interpolate(rows.interpolate(slab, 1), 2)
        inside = restored[:, rows.start : rows.stop, columns.start : columns.stop, start:stop]
        inside.copy_(slab.max(0, keepdim=True).indices if argmax else slab)
    meta = {key: value for key, value in reference.meta.items() if key != "affine"}
    return MetaTensor(restored, affine=torch.as_tensor(original), meta=meta)


class _Span:
    """The voxels of an original axis that lie within the reference, and their coordinates there.

    A voxel belongs to it up to half a voxel beyond the outermost centres, where the value of the edge holds.

    Args:
        scale: reference voxels per original voxel.
        offset: coordinate of the first original voxel.
        size: original voxels.
        reference_size: reference voxels.
    """

    def __init__(self, scale: float, offset: float, size: int, reference_size: int) -> None:
        coordinates = scale * np.arange(size) + offset
        beyond = 0.5 + SIZE_TOLERANCE
        inside = np.flatnonzero((coordinates >= -beyond) & (coordinates <= reference_size - 1 + beyond))
        self.start, self.stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        # Exact where the grids agree: no error of rounding mixes a neighbour in.
        self.coordinates = torch.from_numpy(coordinates.round(6).clip(0, reference_size - 1))

    def interpolate(self, volume: torch.Tensor, axis: int, start: int | None = None, stop: int | None = None) -> Any:
        """Linear interpolation along one axis, of the voxels from ``start`` to ``stop`` or of all within."""
        coordinates = self.coordinates[self.start if start is None else start : self.stop if stop is None else stop]
        low = coordinates.floor()
        weight = (coordinates - low).float().to(volume.device)
        index = low.long().to(volume.device)
        lower = volume.index_select(axis, index)
        if not bool((coordinates != low).any()):
            return lower
        upper = volume.index_select(axis, (index + 1).clamp_max(volume.shape[axis] - 1))
        return torch.lerp(lower, upper, weight.view([-1 if dim == axis else 1 for dim in range(volume.ndim)]))
