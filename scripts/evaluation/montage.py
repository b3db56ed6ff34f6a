"""Grids of slices with labels, a legend and a colour bar, for all pictures of volumes.

Slices are (H, W) arrays of a volume in RAS order: axis 0 runs from the patient's left to right, axis 1 from posterior
to anterior. :func:`upright` turns them into radiological view.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scripts.core.files import atomic_path
from scripts.inference.structure_codes import STRUCTURE_COLOURS, structure_colour

__all__ = [
    "DOTS_PER_INCH",
    "INK",
    "NORMALISED",
    "PALE_INK",
    "STRUCTURE_COLOURS",
    "Panel",
    "edge_marks",
    "percentile_limits",
    "quiet_axes",
    "save_figure",
    "slice_montage",
    "structure_colour",
    "upright",
]

DOTS_PER_INCH = 160

# Grey limits of images as the networks see them.
NORMALISED = (-1.0, 1.0)

_HEAT_MAP = "magma"
_PANEL_INCHES = 2.0
_GAP_INCHES = 0.05
_OUTLINED: dict[str, Any] = {"color": "white", "path_effects": [withStroke(linewidth=1.5, foreground="black")]}
# Colours of headings, and of axes and annotations.
INK, PALE_INK = "#222222", "#777777"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture of a montage."""

    image: NDArray[Any]  # slice (H, W) in RAS order
    labels: NDArray[Any] | None = None  # class ids 0..K of the overlay, same shape
    style: Literal["outline", "area"] = "outline"  # labels as outlines, or as translucent areas with outlines
    limits: tuple[float, float] | None = None  # values shown black and white; None for the 1st and 99th percentile
    heat: bool = False  # from 0 to the montage's ``heat_max`` instead of grey


def upright(slice_2d: NDArray[Any]) -> NDArray[Any]:
    """Turn a RAS slice into a radiological picture: the first row is anterior, the first column the patient's right."""
    return slice_2d.T[::-1, ::-1]


def edge_marks(orientation: str | None, slice_axis: int) -> tuple[str, ...]:
    """Letters at the left and right edges of :func:`upright` slices: R and L of axial ones in RAS; none for None."""
    across = [end for axis, end in enumerate(orientation or "") if axis != slice_axis]
    return (across[0], "LRPAIS"["RLAPSI".index(across[0])]) if across else ()


def slice_montage(
    rows: Sequence[Sequence[Panel]],
    path: str | os.PathLike[str],
    *,
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    label_names: Sequence[str] = (),
    title: str = "",
    pixel_aspect: float = 1.0,
    heat_max: float = 1.0,
    marks: Sequence[str] = (),
) -> None:
    """Draw a grid of slices with one legend and, where a panel is a heat map, one colour bar.

    Rows have the same number of panels, drawn in the size of the first. ``pixel_aspect`` is the length of a pixel along
    axis 1 over that along axis 0; ``marks`` are :func:`edge_marks` of every panel.
    """
    if not rows or not rows[0] or len({len(row) for row in rows}) != 1:
        raise ValueError(f"a montage needs rows of one length: these have {[len(row) for row in rows]}")
    height, width = rows[0][0].image.shape[1] * pixel_aspect, rows[0][0].image.shape[0]
    has_heat = any(panel.heat for row in rows for panel in row)
    grid = _Grid(
        rows=len(rows),
        columns=len(rows[0]),
        panel_height=_PANEL_INCHES * height / width,
        left=0.3 if row_titles else 0.1,
        right=0.65 if has_heat else 0.1,
        top=(0.32 if title else 0.08) + (0.24 if column_titles else 0.0),
        bottom=0.36 if label_names else 0.1,
    )
    figure = Figure(figsize=(grid.width, grid.height))
    for r, row in enumerate(rows):
        for c, panel in enumerate(row):
            axes = figure.add_axes(grid.place(r, c))
            _draw(axes, panel, pixel_aspect, heat_max)
            for side, x, mark in zip(("left", "right"), (0.02, 0.98), marks, strict=False):
                axes.text(x, 0.5, mark, ha=side, va="center", fontsize=7, transform=axes.transAxes, **_OUTLINED)
    _add_titles(figure, grid, title, column_titles, row_titles)
    if label_names:
        _add_legend(figure, label_names, y=0.04 / grid.height)
    if has_heat:
        _add_colour_bar(figure, grid, heat_max)
    save_figure(figure, path)


def percentile_limits(image: NDArray[Any]) -> tuple[float, float]:
    """Robust grey limits: the 1st and the 99th percentile."""
    low, high = np.percentile(image, (1.0, 99.0)).tolist()
    return low, high


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG, by the suffix of the path: atomically and reproducibly."""
    FigureCanvasAgg(figure)
    kind = "svg" if Path(path).suffix == ".svg" else "png"
    settings: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
    with atomic_path(path) as temporary, rc_context({"svg.hashsalt": "glua"}):
        figure.savefig(temporary, format=kind, dpi=DOTS_PER_INCH, **settings)


def quiet_axes(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    """Style of charts: pale ticks, two spines, a faint grid along one axis."""
    axes.tick_params(labelsize=7, colors=PALE_INK, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(PALE_INK)
    axes.grid(axis=grid, color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Positions of the panels of a montage in inches, so that every picture has a known size in pixels."""

    rows: int
    columns: int
    panel_height: float
    left: float
    right: float
    top: float
    bottom: float

    @property
    def width(self) -> float:
        return self.left + self.columns * (_PANEL_INCHES + _GAP_INCHES) - _GAP_INCHES + self.right

    @property
    def height(self) -> float:
        return self.top + self.rows * (self.panel_height + _GAP_INCHES) - _GAP_INCHES + self.bottom

    def place(self, row: int, column: int) -> tuple[float, float, float, float]:
        left = self.left + column * (_PANEL_INCHES + _GAP_INCHES)
        bottom = self.bottom + (self.rows - 1 - row) * (self.panel_height + _GAP_INCHES)
        width, height = _PANEL_INCHES / self.width, self.panel_height / self.height
        return left / self.width, bottom / self.height, width, height


def _draw(axes: Axes, panel: Panel, pixel_aspect: float, heat_max: float) -> None:
    picture = upright(panel.image)
    low, high = (0.0, heat_max) if panel.heat else panel.limits or percentile_limits(panel.image)
    axes.imshow(picture, cmap=_HEAT_MAP if panel.heat else "gray", vmin=low, vmax=high, aspect=pixel_aspect)
    if panel.labels is not None:
        _draw_labels(axes, upright(panel.labels), panel.style, pixel_aspect)
    axes.set(xticks=[], yticks=[], xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    axes.spines[:].set_visible(False)


def _draw_labels(axes: Axes, labels: NDArray[Any], style: str, pixel_aspect: float) -> None:
    framed = np.pad(labels, 1)  # so that outlines close at the edge of the picture
    height, width = framed.shape
    for class_id in np.unique(labels[labels > 0]):
        colour = structure_colour(int(class_id))
        if style == "area":
            area = np.zeros((*labels.shape, 4))
            area[labels == class_id] = to_rgba(colour, 0.5)
            axes.imshow(area, aspect=pixel_aspect, interpolation="nearest")
        inside = (framed == class_id).astype(float)
        axes.contour(np.arange(width) - 1, np.arange(height) - 1, inside, levels=[0.5], colors=[colour], linewidths=1.0)


def _add_titles(
    figure: Figure, grid: _Grid, title: str, column_titles: Sequence[str], row_titles: Sequence[str]
) -> None:
    if title:
        y = 1 - 0.09 / grid.height
        figure.text(0.5, y, title, ha="center", va="top", fontsize=11, fontweight="bold", color=INK)
    for c, text in enumerate(column_titles):
        left, bottom, width, height = grid.place(0, c)
        figure.text(left + width / 2, bottom + height + 0.06 / grid.height, text, ha="center", fontsize=9, color=INK)
    for r, text in enumerate(row_titles):
        left, bottom, _, height = grid.place(r, 0)
        x, y = left - 0.06 / grid.width, bottom + height / 2
        figure.text(x, y, text, ha="right", va="center", rotation="vertical", fontsize=8, color=PALE_INK)


def _add_legend(figure: Figure, label_names: Sequence[str], y: float) -> None:
    handles = [Patch(color=structure_colour(k), label=name) for k, name in enumerate(label_names, start=1)]
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, y), "ncols": len(handles)}
    sizes = {"handlelength": 1.0, "handleheight": 1.0, "columnspacing": 1.2, "borderpad": 0.2}
    figure.legend(handles=handles, **place, frameon=False, fontsize=8, labelcolor=INK, **sizes)


def _add_colour_bar(figure: Figure, grid: _Grid, heat_max: float) -> None:
    _, bottom, _, height = grid.place(grid.rows - 1, grid.columns - 1)
    axes = figure.add_axes((1 - (grid.right - 0.1) / grid.width, bottom, 0.1 / grid.width, height))
    colours = ScalarMappable(Normalize(0, heat_max), _HEAT_MAP)
    bar = figure.colorbar(colours, cax=axes, ticks=[0, heat_max / 2, heat_max])
    bar.ax.tick_params(labelsize=7, colors=PALE_INK, length=2)
    bar.outline.set_visible(False)
