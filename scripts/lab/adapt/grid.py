"""The grid of a task from the headers of its volumes: orientation, slice axis, spacing and window size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
from scripts.core.errors import InputError
from scripts.lab.adapt.choices import Choice
from scripts.lab.check.limits import LIMITS

__all__ = ["Header", "TaskGrid", "choose_grid", "read_headers"]

AXIS_NAMES = ("sagittal", "coronal", "axial")

# Pixel sizes are rounded up to this; sides of windows to as many pixels as five levels of a U-Net need.
PIXEL_STEP_MM, SIDE_STEP = 0.05, 16
SMALLEST_SIDE = 32


@dataclass(frozen=True)
class Header:
    """Geometry of a volume as stored."""

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    axes: tuple[int, ...]  # nearest axis of the body: 0 left-right, 1 front-back, 2 head-feet

    @property
    def stack(self) -> int | None:
        """The stored axis that slices are stacked along; None if no spacing stands out."""
        largest = int(np.argmax(self.spacing_mm))
        others = [edge for axis, edge in enumerate(self.spacing_mm) if axis != largest]
        return largest if self.spacing_mm[largest] > LIMITS.thickest * max(others) else None

    def along(self, axis: int, orientation: str | None) -> tuple[float, float]:
        """Spacing and extent in mm along an axis of the slices' frame."""
        stored = axis if orientation is None else self.axes.index(axis)
        return self.spacing_mm[stored], self.spacing_mm[stored] * self.shape[stored]


@dataclass(frozen=True)
class TaskGrid:
    """The grid of the networks."""

    orientation: str | None  # ``RAS``, or None to keep the stored axes
    slice_axis: int
    choices: tuple[Choice, ...]  # keys of the task file


def read_headers(files: Sequence[str]) -> list[Header]:
    """The geometry of volumes; files that cannot be read, which the check names, are left out."""
    headers = []
    for file in files:
        try:
            image = nib.load(file)
            axes = nib.orientations.io_orientation(image.affine)[:, 0].astype(int)
        except Exception:  # nibabel raises many kinds; the check reads the file again and says what is wrong
            continue
        spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
        if len(image.shape) == 3:
            headers.append(Header(Path(file), image.shape, tuple(map(float, spacing)), tuple(map(int, axes))))
    return headers


def choose_grid(domains: Mapping[str, Sequence[Header]], pixels: int) -> TaskGrid:
    """Choose the grid of a task, with windows of at most ``pixels`` a side, from the headers of each domain."""
    for name in (name for name, group in domains.items() if not group):
        found, remedy = "no 3D volume that can be read", "python -m scripts check FOLDER says what is wrong with each"
        raise InputError(f"the images of {name}", found, "NIfTI volumes", remedy)
    headers = [header for group in domains.values() for header in group]
    orientation, slice_axis, reason = _frame(headers)
    plane = [axis for axis in range(3) if axis != slice_axis]
    fields, pixel_sizes, distances = {}, {}, {}
    for name, group in domains.items():
        along = [[header.along(axis, orientation) for axis in plane] for header in group]
        fields[name] = median(max(extent for _, extent in sides) for sides in along)
        pixel_sizes[name] = median(max(spacing for spacing, _ in sides) for sides in along)
        distances[name] = median(header.along(slice_axis, orientation)[0] for header in group)
    smallest = min(fields, key=lambda name: fields[name])
    wanted = max(fields[smallest] / pixels, *pixel_sizes.values())
    pixel = round(math.ceil(wanted / PIXEL_STEP_MM - 1e-6) * PIXEL_STEP_MM, 2)
    side = min(pixels, max(SMALLEST_SIDE, math.ceil(fields[smallest] / pixel / SIDE_STEP) * SIDE_STEP))
    is_fine = all(distance < pixel for distance in distances.values())
    through = pixel if is_fine else -1.0
    spacing = [pixel if axis != slice_axis else through for axis in range(3)]
    shown = {name: f"{name} {value:.3g} mm" for name, value in distances.items()}
    why = f"pixels: the field of {smallest}, {fields[smallest]:.0f} mm, in {side} pixels. Slices "
    why += f"({', '.join(shown.values())} apart) "
    why += "are finer than pixels: resampled" if is_fine else "keep their own spacing: -1.0"
    choices = (
        Choice("orientation", orientation, reason),
        Choice("spacing_mm", spacing, why),
        Choice("slice_axis", slice_axis, _axis_reason(headers, orientation, slice_axis)),
        Choice("slice_size", [side, side], "pixels of a window; larger slices are covered by several"),
    )
    return TaskGrid(orientation, slice_axis, choices)


def _frame(headers: Sequence[Header]) -> tuple[str | None, int, str]:
    """Orientation, slice axis and the reason; the check names volumes that are stacked along another axis."""
    stacked = [header for header in headers if header.stack is not None]
    in_body = Counter(header.axes[header.stack] for header in stacked if header.stack is not None)
    stored = {header.stack for header in stacked}
    if not stacked:
        return "RAS", 2, "by the headers"
    if len(in_body) > 1 and len(stored) == 1:
        reason = "the stored axes: slices are stacked along the same stored axis, but along different axes of the body"
        return None, int(stored.pop() or 0), reason
    return "RAS", in_body.most_common(1)[0][0], "by the headers"


def _axis_reason(headers: Sequence[Header], orientation: str | None, slice_axis: int) -> str:
    thick = sum(header.stack is not None for header in headers)
    kind = f"stored axis {slice_axis}" if orientation is None else f"{AXIS_NAMES[slice_axis]} slices"
    if not thick:
        return f"{kind}: no axis has thicker slices than the others"
    return f"{kind}: the axis of the largest spacing in {thick} of {len(headers)} volumes"
