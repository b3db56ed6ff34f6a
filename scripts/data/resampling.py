"""Resampling to the network's grid and back to the image's own.

Both directions only scale the voxel axes, so that a grid depends on sizes and spacings only. MONAI's ``Spacing`` also
aligns the axes with the world and chooses a corner as origin: for an oblique volume, headers that differed by rounding
gave grids 1.6 mm apart.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, TraceableTransform
from monai.utils import ensure_tuple_rep
from scripts.core.files import AtomicSaveImaged, on_input_grid
from scripts.data.geometry import check_memory, check_resampled_size

__all__ = ["ResampleVolumed", "RestoreAndSaveImaged", "RestoreGridd", "resampled_grid", "restore_grid"]

# Added to the half voxel by which the last voxel centre may lie beyond the new grid's last one. Sizes such as 256 at
# half the resolution meet the half exactly, where rounding errors would decide: an error of 4e-5 mm in the spacing
# moves the end of 512 voxels of 1 mm by 0.02.
SIZE_TOLERANCE = 0.05

SLAB_VALUES = 2**24  # interpolated values held at a time, in either direction

# Peak of the steps that scale intensities, for each resampled voxel: measured for KeepBodyd and a window in HU.
INTENSITY_BYTES = 17
SLAB_BYTES = 12  # of each value of a slab, and of its two neighbours
FIXED_BYTES = 2**26  # of libraries at their first use, and of freed memory that the process keeps
SAME_SPACING = 1e-3  # changes of spacing up to this share are rounding in headers: the volume stays as it is


def resampled_grid(
    affine: np.ndarray, size: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The grid of another spacing that starts at the same voxel centre and runs along the same axes.

    A spacing that is not positive keeps its axis as it is.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    wanted = np.asarray(spacing_mm, np.float64)
    factor = np.where(wanted > 0, wanted / spacing, 1.0)
    new_affine = affine.copy()
    new_affine[:3, :3] *= factor
    extents = (np.asarray(size) - 1) / factor
    return new_affine, tuple(max(math.floor(extent + 1.5 - SIZE_TOLERANCE), 1) for extent in extents)


class ResampleVolumed(MapTransform, TraceableTransform):
    """Resample volumes (C, H, W, D) to a spacing, all keys to the grid of the first one that is present.

    MetaTensors of any real type and equal size become float32, converted slab by slab. The mode is ``bilinear`` or
    ``nearest``, one for all keys or one per key. A result that would be too large is an InputError; so is one for which
    later steps lack memory, which need ``later_bytes`` for each resampled and each original voxel.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing_mm: Sequence[float],
        mode: str | Sequence[str] = "bilinear",
        later_bytes: Sequence[float] = (0, 0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.later_bytes = later_bytes
        self.spacing_mm, self.mode = tuple(spacing_mm), ensure_tuple_rep(mode, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample each key."""
        resampled, size = dict(data), None
        for key, mode in self.key_iterator(resampled, self.mode):
            volume = resampled[key]
            # A label's affine may differ from its image's by rounding: only the first decides on the size.
            affine, own_size = resampled_grid(volume.affine.numpy(), volume.shape[1:], self.spacing_mm)
            size = size or own_size
            file = volume.meta.get("filename_or_obj", f"{key!r}")
            check_resampled_size(affine, size, file)
            resampled_bytes, original_bytes = self.later_bytes
            needed = (4 + resampled_bytes) * math.prod(size) + original_bytes * volume[0].numel()
            slab = SLAB_BYTES * min(SLAB_VALUES, size[0] * volume[0, 0].numel())
            needed = max(needed, INTENSITY_BYTES * math.prod(size), volume.nbytes + slab + 4 * math.prod(size))
            check_memory(
                needed + FIXED_BYTES, file, "segment it without probabilities, mask and largest_component, or crop it"
            )
            resampled[key] = self._resample(volume, affine, size, mode)
        return resampled

    def _resample(self, volume: MetaTensor, affine: np.ndarray, size: Sequence[int], mode: str) -> MetaTensor:
        old_affine, old_size = volume.affine.numpy(), tuple(volume.shape[1:])
        factor = np.linalg.norm(affine[:3, :3], axis=0) / np.linalg.norm(old_affine[:3, :3], axis=0)
        is_unchanged = tuple(size) == old_size and np.allclose(factor, 1, rtol=0, atol=SAME_SPACING)
        values = volume.as_tensor().float() if is_unchanged else _resampled(volume.as_tensor(), size, factor, mode)
        meta = self.track_transform_meta(
            volume,
            sp_size=size,
            affine=None if is_unchanged else np.linalg.solve(old_affine, affine),
            orig_size=old_size,
            transform_info=self.get_transform_info(),
        )
        return MetaTensor(values).copy_meta_from(meta)


def _resampled(volume: torch.Tensor, size: Sequence[int], factor: np.ndarray, mode: str) -> torch.Tensor:
    """Values at every ``factor``-th voxel, beyond the last one its value: (C, H, W, D) to (C, *size) float32."""
    rows, columns, slices = (
        torch.arange(count, dtype=torch.float64).mul(step).clamp_max(old - 1)
        for count, step, old in zip(size, factor.tolist(), volume.shape[1:], strict=True)
    )
    result = torch.empty(len(volume), *size, dtype=torch.float32, device=volume.device)
    thickness = max(SLAB_VALUES // volume[:, 0].numel(), 1)
    for start in range(0, size[0], thickness):
        slab = _interpolate(volume, 1, rows[start : start + thickness], mode)
        for axis, coordinates in ((2, columns), (3, slices)):  # no slab is held longer than its interpolation
            slab = _interpolate(slab, axis, coordinates, mode)
        result[:, start : start + thickness] = slab
    return result


class RestoreGridd(MapTransform):
    """Bring network outputs back to the grid of the image as it was loaded: see :func:`restore_grid`.

    Class ids (uint8) are on that grid already, restored by the inferer; they get the metadata of the image at
    ``ref_key``. With ``argmax`` the class of the largest value replaces the channels.
    """

    def __init__(self, keys: KeysCollection, ref_key: str = "image", argmax: bool = False) -> None:
        super().__init__(keys)
        self.ref_key, self.argmax = ref_key, argmax

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Restore each key."""
        restored = dict(data)
        for key in self.key_iterator(restored):
            output, reference = restored[key], restored[self.ref_key]
            if output.dtype == torch.uint8:
                restored[key] = _on_original_grid(output, reference)
            else:
                restored[key] = restore_grid(output, reference, argmax=self.argmax)
        return restored


class RestoreAndSaveImaged(AtomicSaveImaged):
    """Write outputs (K, H, W, D) on the original grid of their image; what the data hold stays as it is.

    One channel is restored at a time. For the arguments see :class:`AtomicSaveImaged`.
    """

    def input_of(self, key: Hashable) -> Hashable:
        """The preprocessed image."""
        return "image"

    def write(self, volume: torch.Tensor, input_volume: MetaTensor, path: Path) -> None:
        """Write the channels one after another, as the file's last axis."""
        grid = _OriginalGrid(input_volume)
        shape = grid.size if len(volume) == 1 else (*grid.size, len(volume))
        image = on_input_grid(np.broadcast_to(np.float32(0), shape), torch.from_numpy(grid.affine), input_volume.meta)
        image.header.set_slope_inter(1, 0)
        with gzip.open(path, "wb", compresslevel=1) as file:
            image.header.write_to(file)
            for channel in volume:
                restored = restore_grid(channel[None], input_volume)[0].cpu().numpy()
                for index in range(grid.size[2]):
                    file.write(restored[..., index].tobytes(order="F"))


def restore_grid(
    output: torch.Tensor | Iterable[torch.Tensor], reference: MetaTensor, *, axis: int = 2, argmax: bool = False
) -> MetaTensor:
    """Interpolate an output linearly to the original grid of its image.

    Only a block and a slab of interpolated channels are held at a time, so with ``argmax`` an output takes one byte for
    each voxel of the original grid, however many its classes and slices are.

    Args:
        output: (K, H, W, D) on the grid of ``reference``, or its consecutive parts, divided along ``axis``.
        reference: the preprocessed image; its metadata give the original affine and size. Preprocessing may turn, flip,
            scale, crop and pad along the voxel axes.
        axis: a spatial axis of ``reference``, 0, 1 or 2.
        argmax: decide on the class before a slab is stored.

    Returns:
        (K, H0, W0, D0) float32, or (1, H0, W0, D0) uint8 class ids with ``argmax``; 0 outside the reference's voxels.
    """
    grid = _OriginalGrid(reference)
    along = grid.order.index(axis)
    restored, held, last = torch.empty(0), torch.empty(0), -1  # the slices at hand, and the index of the last one
    for block in [output] if isinstance(output, torch.Tensor) else output:
        turned = grid.turned(block)
        if last < 0:
            shape = (1 if argmax else len(turned), *grid.size)
            restored = torch.zeros(shape, dtype=torch.uint8 if argmax else torch.float32, device=turned.device)
        held = turned if last < 0 else torch.cat([held, turned], along + 1)
        previous, last = last, last + turned.shape[along + 1]
        first = last + 1 - held.shape[along + 1]
        thickness = SLAB_VALUES * grid.size[along] // (len(turned) * math.prod(grid.size))
        for chosen in grid.spans[along].ready(previous, last, max(thickness, 1)):
            slab, place = grid.interpolate(held, along, chosen, first)
            restored[place] = slab.max(0, keepdim=True).indices.to(restored) if argmax else slab
        held = held.narrow(along + 1, last - first, 1)
    return _on_original_grid(restored, reference)


def _on_original_grid(values: torch.Tensor, reference: MetaTensor) -> MetaTensor:
    meta = {key: value for key, value in reference.meta.items() if key != "affine"}
    plain = values.as_tensor() if isinstance(values, MetaTensor) else values
    return MetaTensor(plain, affine=torch.from_numpy(_OriginalGrid(reference).affine), meta=meta)


class _OriginalGrid:
    """The grid of a preprocessed image as it was loaded; ``order`` is the reference's axis along each original one."""

    def __init__(self, reference: MetaTensor) -> None:
        self.affine = np.asarray(reference.meta["original_affine"], np.float64)
        self.size = tuple(int(side) for side in reference.applied_operations[0]["orig_size"])
        matrix = np.linalg.solve(np.asarray(reference.affine, np.float64), self.affine)
        self.order = np.abs(matrix[:3, :3]).argmax(0).tolist()
        self.spans = [
            _Span(matrix[row, column], matrix[row, 3], self.size[column], reference.shape[row + 1])
            for column, row in enumerate(self.order)
        ]

    def turned(self, output: torch.Tensor) -> torch.Tensor:
        """An output (K, H, W, D) with its axes in the original order."""
        plain = output.as_tensor() if isinstance(output, MetaTensor) else output
        return plain.permute(0, *(row + 1 for row in self.order))

    def interpolate(
        self, held: torch.Tensor, along: int, chosen: slice, first: int
    ) -> tuple[torch.Tensor, tuple[slice, ...]]:
        """Values of a turned output, held from ``first`` on, at chosen voxels along an axis and at all along others."""
        places = [chosen if axis == along else slice(span.start, span.stop) for axis, span in enumerate(self.spans)]
        coordinates = [span.coordinates[place] for span, place in zip(self.spans, places, strict=True)]
        low, high = int(coordinates[along].min()) - first, int(coordinates[along].max()) + 2 - first
        slab = held.narrow(along + 1, low, min(high, held.shape[along + 1]) - low)
        coordinates[along] = coordinates[along] - (first + low)
        for axis in (2, 0, 1):
            slab = _interpolate(slab, axis + 1, coordinates[axis])
        return slab, (slice(None), *places)


class _Span:
    """The voxels of an original axis that lie within the reference, and their coordinates there.

    A voxel belongs to it up to half a voxel beyond the outermost centres, where the value of the edge holds. ``scale``
    is in reference voxels per original voxel, ``offset`` the coordinate of the first one.
    """

    def __init__(self, scale: float, offset: float, size: int, reference_size: int) -> None:
        coordinates = scale * np.arange(size) + offset
        beyond = 0.5 + SIZE_TOLERANCE
        inside = np.flatnonzero((coordinates >= -beyond) & (coordinates <= reference_size - 1 + beyond))
        self.start, self.stop = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
        # Exact where the grids agree: no error of rounding mixes a neighbour in.
        self.coordinates = torch.from_numpy(coordinates.round(6).clip(0, reference_size - 1))

    def ready(self, previous: int, last: int, thickness: int) -> Iterator[slice]:
        """At most ``thickness`` voxels at a time of those with coordinates above ``previous``, up to ``last``."""
        within = self.coordinates[self.start : self.stop]
        found = ((within > previous) & (within <= last)).nonzero().flatten() + self.start
        for part in found.split(thickness) if len(found) else ():
            yield slice(int(part[0]), int(part[-1]) + 1)


def _interpolate(volume: torch.Tensor, axis: int, coordinates: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Values at coordinates along one axis, in float32: interpolated linearly, or those of the nearest voxels."""
    coordinates = coordinates.round() if mode == "nearest" else coordinates
    low = coordinates.floor()
    weight = (coordinates - low).float().to(volume.device)
    index = low.long().to(volume.device)
    lower = volume.index_select(axis, index).float()
    if not bool((coordinates != low).any()):
        return lower
    upper = volume.index_select(axis, (index + 1).clamp_max(volume.shape[axis] - 1)).float()
    return lower.lerp_(upper, weight.view([-1 if dim == axis else 1 for dim in range(volume.ndim)]))
