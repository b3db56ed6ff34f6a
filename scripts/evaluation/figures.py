"""Pictures of results: cases, translations, local masks and loss curves, as PNG files."""

from __future__ import annotations

import base64
import csv
import math
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from scripts.core.errors import InputError
from scripts.evaluation.montage import (
    INK,
    NORMALISED,
    PALE_INK,
    STRUCTURE_COLOURS,
    Panel,
    percentile_limits,
    quiet_axes,
    save_figure,
    slice_montage,
)

__all__ = [
    "Translation",
    "case_figure",
    "image_to_data_uri",
    "informative_slices",
    "loss_curves",
    "read_log",
    "running_mean",
    "segmentation_panel",
    "translation_panel",
]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Slices of one direction of the style transfer (section III-A), each (N, H, W) in [-1, 1].

    Attributes:
        direction: such as ``"MR → CT"``.
        original: slices of the domain translated from.
        translated: the same slices in the style of the other domain.
        cycle: the translated slices translated back.
        labels: class ids of the original (N, H, W), or None; drawn on both, they show that the anatomy is preserved.
    """

    direction: str
    original: NDArray[Any]
    translated: NDArray[Any]
    cycle: NDArray[Any]
    labels: NDArray[Any] | None = None


def case_figure(
    image: NDArray[Any],
    prediction: NDArray[Any],
    truth: NDArray[Any],
    spacing_mm: Sequence[float],
    label_names: Sequence[str],
    title: str,
    path: str | os.PathLike[str],
    *,
    through_plane_axis: int = 2,
) -> None:
    """Show image, prediction and truth of one case in three slices.

    The slices are the one with the largest true area and two at quarters of the labelled range, far from it.

    Args:
        image: volume (H, W, D) in RAS order, any unit.
        prediction: class ids 0..K on the same grid.
        truth: class ids 0..K on the same grid.
        spacing_mm: edge lengths of a voxel along the three axes.
        label_names: names of the classes 1..K.
        title: heading, such as the case's name and its Dice.
        path: PNG file to write.
        through_plane_axis: the axis the slices are stacked along.

    Raises:
        ValueError: the shapes differ or are not three-dimensional.
        InputError: the file cannot be written.
    """
    if image.ndim != 3 or not image.shape == prediction.shape == truth.shape:
        raise ValueError(f"one 3D shape is needed: {image.shape}, {prediction.shape} and {truth.shape} were given")
    spacing = [edge for axis, edge in enumerate(spacing_mm) if axis != through_plane_axis % 3]
    limits = percentile_limits(image)
    rows, row_titles = [], []
    for index in reversed(informative_slices(prediction, truth, through_plane_axis)):
        plain, predicted, true = (np.take(v, index, through_plane_axis) for v in (image, prediction, truth))
        panel = Panel(image=plain, limits=limits, style="area")
        rows.append([panel, replace(panel, labels=predicted), replace(panel, labels=true)])
        row_titles.append(f"slice {index}")
    slice_montage(
        rows,
        path,
        column_titles=("image", "prediction", "truth"),
        row_titles=row_titles,
        label_names=label_names,
        title=title,
        pixel_aspect=spacing[1] / spacing[0],
    )


def translation_panel(
    translations: Sequence[Translation],
    path: str | os.PathLike[str],
    *,
    label_names: Sequence[str] = (),
    title: str = "",
) -> None:
    """Show slices before and after translation and back, with the original's label outlines on the first two.

    Args:
        translations: one for each direction.
        path: PNG file to write.
        label_names: names of the classes 1..K for the legend.
        title: heading, such as the iteration.

    Raises:
        ValueError: there is no slice to show.
        InputError: the file cannot be written.
    """
    rows, row_titles = [], []
    for translation in translations:
        for n in range(len(translation.original)):
            labels = None if translation.labels is None else translation.labels[n]
            outlined = [
                Panel(image=images[n], labels=labels, limits=NORMALISED)
                for images in (translation.original, translation.translated)
            ]
            rows.append([*outlined, Panel(image=translation.cycle[n], limits=NORMALISED)])
            row_titles.append(translation.direction)
    slice_montage(
        rows,
        path,
        column_titles=("original", "translated", "cycle"),
        row_titles=row_titles,
        label_names=label_names,
        title=title,
    )


def segmentation_panel(
    image: NDArray[Any],
    prediction: NDArray[Any],
    local_mask: NDArray[Any],
    path: str | os.PathLike[str],
    *,
    label_names: Sequence[str],
    title: str = "",
    row_titles: Sequence[str] = (),
) -> None:
    """Show slices, their prediction and the local mask (section III-B) as a heat map.

    Args:
        image: (N, H, W) in [-1, 1].
        prediction: class ids 0..K (N, H, W).
        local_mask: (N, h, w) in [0, 1), in any resolution.
        path: PNG file to write.
        label_names: names of the classes 1..K.
        title: heading, such as the iteration.
        row_titles: one for each slice, or none.

    Raises:
        ValueError: there is no slice to show.
        InputError: the file cannot be written.
    """
    plain = [Panel(image=each, limits=NORMALISED, style="area") for each in image]
    rows = [
        [panel, replace(panel, labels=prediction[n]), Panel(image=local_mask[n], heat=True)]
        for n, panel in enumerate(plain)
    ]
    columns = ("image", "prediction", "local mask")
    slice_montage(rows, path, column_titles=columns, row_titles=row_titles, label_names=label_names, title=title)


def loss_curves(csv_path: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Draw every column of a training log against the iteration, with its running mean.

    Args:
        csv_path: file with the header ``iteration,<name>,...``; empty cells are skipped.
        path: PNG file to write.

    Raises:
        InputError: the log is invalid or empty, or the picture cannot be written.
    """
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


def image_to_data_uri(path: str | os.PathLike[str]) -> str:
    """A picture file as ``data:image/...;base64,...``, for a self-contained HTML page."""
    kind = mimetypes.guess_type(os.fspath(path))[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode('ascii')}"


def informative_slices(prediction: NDArray[Any], truth: NDArray[Any], axis: int) -> list[int]:
    """Three slices (fewer in a thin range): the largest labelled area and the two quarters farthest from it."""
    labels = truth if truth.any() else prediction
    others = tuple(other for other in range(3) if other != axis % 3)
    area = np.count_nonzero(labels, axis=others)
    occupied = np.flatnonzero(area)
    first, last = (occupied[0], occupied[-1]) if len(occupied) else (0, labels.shape[axis] - 1)
    largest = int(area.argmax()) if len(occupied) else int(first + last) // 2
    quarters = [round(first + (last - first) * part / 4) for part in (1, 2, 3)]
    return sorted({largest, *sorted(quarters, key=lambda index: abs(index - largest))[1:]})


def running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve, smoothed over a twenty-fifth of its length."""
    return uniform_filter1d(values, max(1, len(values) // 25), mode="nearest")


def read_log(csv_path: str | os.PathLike[str]) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
    """The iterations and columns of a training log; empty cells are NaN, empty columns are omitted.

    Raises:
        InputError: the log is invalid or empty.
    """
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
    return InputError(
        file=path,
        found=found,
        expected="a CSV file with the header iteration,<name>,... and rows of numbers",
        remedy="give the log that a training wrote",
    )
