"""Pictures of cases and of loss curves, as PNG files."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scripts.core.errors import InputError
from scripts.data.geometry import spacing_of
from scripts.evaluation.montage import (
    INK,
    PALE_INK,
    STRUCTURE_COLOURS,
    Panel,
    edge_marks,
    percentile_limits,
    quiet_axes,
    save_figure,
    slice_montage,
)

__all__ = ["case_figure", "informative_slices", "loss_curves", "read_log", "running_mean"]


def case_figure(
    image: NDArray[Any],
    label_maps: Mapping[str, NDArray[Any]],
    affine: NDArray[Any],
    path: str | os.PathLike[str],
    *,
    label_names: Sequence[str],
    title: str,
    orientation: str | None = "RAS",
    slice_axis: int = 2,
) -> None:
    """Show three slices of a case, plain and with each label map, marked with the patient's sides.

    Args:
        image: volume (H, W, D), any unit.
        label_maps: class ids 0..K on the same grid by name; the last one with a label decides on the slices.
        affine: voxel indices to RAS+ coordinates in mm, (4, 4).
        path: PNG file to write.
        label_names: of the classes 1..K.
        title: such as the case's name and its Dice.
        orientation: axes the volumes are turned to; None leaves them as stored.
        slice_axis: axis of the slices, after that.
    """
    shapes = {volume.shape for volume in (image, *label_maps.values())}
    if len(shapes) > 1 or image.ndim != 3:
        raise ValueError(f"one 3D shape is needed: {', '.join(map(str, sorted(shapes)))} were given")
    stored = nib.io_orientation(affine)
    codes = orientation or "".join(nib.aff2axcodes(affine))
    turn = nib.orientations.ornt_transform(stored, nib.orientations.axcodes2ornt(codes))
    image, *maps = (nib.apply_orientation(volume, turn) for volume in (image, *label_maps.values()))
    edges_mm = [spacing_of(affine)[axis] for axis in turn[:, 0].argsort()]
    across, up = (edge for axis, edge in enumerate(edges_mm) if axis != slice_axis)
    slices = informative_slices(next((m for m in reversed(maps) if m.any()), maps[-1]), slice_axis)[::-1]
    rows, limits = [], percentile_limits(image)
    for index in slices:
        plain = Panel(image=image.take(index, slice_axis), limits=limits, style="area")
        rows.append([plain, *(replace(plain, labels=labels.take(index, slice_axis)) for labels in maps)])
    slice_montage(
        rows,
        path,
        column_titles=("image", *label_maps),
        row_titles=[f"slice {index}" for index in slices],
        label_names=label_names,
        title=title,
        pixel_aspect=up / across,
        marks=edge_marks(codes, slice_axis),
    )


def loss_curves(csv_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw every column of a training log against the iteration, with its running mean, into a PNG file."""
    iterations, series = read_log(csv_path)
    columns = min(3, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(2.9 * columns, 1.9 * rows), layout="constrained")
    for number, (name, values) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        known = np.isfinite(values)
        axes.plot(iterations[known], values[known], color=STRUCTURE_COLOURS[1], linewidth=0.6, alpha=0.6)
        axes.plot(iterations[known], running_mean(values[known]), color=STRUCTURE_COLOURS[6], linewidth=1.4)
        axes.set_title(name.replace("_", " "), fontsize=9, loc="left", color=INK)
        quiet_axes(axes)
        if number >= len(series) - columns:
            axes.set_xlabel("iteration", fontsize=8, color=PALE_INK)
    save_figure(figure, path)


def informative_slices(labels: NDArray[Any], axis: int) -> list[int]:
    """Three slices (fewer in a thin range): the largest labelled area and the two quarters farthest from it."""
    area = np.count_nonzero(labels, axis=tuple(other for other in range(3) if other != axis))
    occupied = np.flatnonzero(area)
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, labels.shape[axis] - 1)
    largest = int(area.argmax()) if len(occupied) else int(first + last) // 2
    quarters = [round(first + (last - first) * part / 4) for part in (1, 2, 3)]
    return sorted({largest, *sorted(quarters, key=lambda index: abs(index - largest))[1:]})


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve, smoothed over a twenty-fifth of its length."""
    return uniform_filter1d(values, max(1, len(values) // 25), mode="nearest")


def read_log(csv_path: str | os.PathLike[str]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The iterations and columns of a training log; empty cells are NaN, empty columns are omitted."""
    path = Path(csv_path)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            header, *rows = list(csv.reader(stream)) or [[]]
        table = np.array([[float(cell) if cell else math.nan for cell in row] for row in rows])
    except (OSError, ValueError) as error:
        raise _log_error(path, f"a log that cannot be read ({error})") from error
    if len(header) < 2 or header[0] != "iteration" or not len(table):
        raise _log_error(path, f"the header {','.join(header)!r} and {len(table)} rows")
    if len(header) != table.shape[1]:
        raise _log_error(path, f"{len(header)} names and rows of {table.shape[1]} cells")
    series = {name: values for name, values in zip(header[1:], table.T[1:], strict=True) if np.isfinite(values).any()}
    if not series:
        raise _log_error(path, "no values")
    return table[:, 0], series


def _log_error(path: Path, found: str) -> InputError:
    expected = "a CSV file with the header iteration,<name>,... and rows of numbers"
    return InputError(file=path, found=found, expected=expected, remedy="give the log that a training wrote")
