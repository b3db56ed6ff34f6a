"""A comparison's charts: Dice by method, Dice and ASD by structure, the gap, loss curves.

Each is written as ``<stem>.png`` and ``<stem>.svg``; the functions return the latter. A method without results is
marked as such; nothing to draw at all raises ``InputError``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scripts.core.errors import InputError
from scripts.evaluation.figures import read_log, running_mean
from scripts.evaluation.montage import INK, PALE_INK, STRUCTURE_COLOURS, quiet_axes, save_figure
from scripts.lab.experiments.method_summaries import MethodSummary
from scripts.lab.experiments.results import LOWER, UPPER, RunResult
from scripts.lab.experiments.statistics import Spread

__all__ = ["LINE_COLOURS", "dice_chart", "gap_chart", "line_style", "loss_chart", "structure_chart"]

# For lines and marks, the most distinct first, without yellow, which is hardly visible on white.
LINE_COLOURS = (*(STRUCTURE_COLOURS[k] for k in (6, 4, 2, 0, 5, 1)), INK)
_DARK_BLUE, _VERMILION = LINE_COLOURS[:2]
_DASHES = ["-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2))]
# Maximum number of points of a curve, to keep the SVG small.
_MOST_POINTS = 300

# Surface distances are drawn on a logarithmic axis above this.
_LINEAR_BELOW_MM = 1.0


def dice_chart(summaries: Sequence[MethodSummary], stem: Path) -> Path:
    """Mean Dice of each method: every seed, mean and standard deviation; the bounds as lines."""
    _need(any(summary.dice.values for summary in summaries), stem, "no run with results")
    figure = Figure(figsize=(7.4, 0.36 * len(summaries) + 1.25), layout="constrained")
    axes = figure.add_subplot()
    means = {summary.name: summary.dice.mean for summary in summaries}
    for name, dash in ((LOWER, ":"), (UPPER, "--")):
        if (mean := means.get(name)) is not None:
            axes.axvline(mean, color=PALE_INK, linestyle=dash, linewidth=1.1, label=f"mean of {name}")
    for row, summary in enumerate(summaries):
        _draw_spread(axes, row, summary.dice)
    _label_axes(axes, rows=[summary.name for summary in summaries], x="mean Dice over the structures [%]")
    _legend(figure, [*_spread_marks(), *axes.get_legend_handles_labels()[0]])
    return _save(figure, stem)


def structure_chart(summaries: Sequence[MethodSummary], label_names: Sequence[str], stem: Path) -> Path:
    """Dice and average surface distance of each structure: every seed, mean and standard deviation, one panel each."""
    _need(any(summary.dice.values for summary in summaries), stem, "no run with results")
    figure = Figure(figsize=(2.3 * len(label_names) + 1.2, 0.46 * len(summaries) + 1.9), layout="constrained")
    panels = figure.subplots(2, len(label_names), squeeze=False, sharex="row")
    for line, (measure, label) in zip(panels, (("dice_percent", "Dice [%]"), ("asd_mm", "ASD [mm]")), strict=True):
        for column, (axes, name) in enumerate(zip(line, label_names, strict=True)):
            for row, summary in enumerate(summaries):
                _draw_spread(axes, row, summary.structures[name][measure])
            _label_axes(axes, rows=[summary.name if column == 0 else "" for summary in summaries], x=label)
            axes.set_title(name, fontsize=8.5, loc="left", color=INK)
    for axes in panels[1]:
        # The distance of a missing structure is the image diagonal.
        axes.set_xscale("symlog", linthresh=_LINEAR_BELOW_MM)
        axes.margins(x=0.1)
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_formatter("{x:g}")
    _legend(figure, _spread_marks())
    return _save(figure, stem)


def gap_chart(summaries: Sequence[MethodSummary], label_names: Sequence[str], stem: Path) -> Path:
    """The domain gap of each structure (Fig. 1 of the paper), and how much of it each method closes.

    A bar starts at the mean of the lower bound; its length is the mean gain over the seeds that the method and both
    bounds have, as is the share beside it.
    """
    known = {summary.name: summary for summary in summaries if summary.dice.values}
    _need(LOWER in known and UPPER in known, stem, f"no results of both bounds, {LOWER} and {UPPER}")
    shown = [summary for name, summary in known.items() if name not in (LOWER, UPPER)]
    columns = min(4, len(label_names))
    lines = math.ceil(len(label_names) / columns)
    figure = Figure(figsize=(2.3 * columns + 1.0, lines * (0.3 * max(len(shown), 1) + 0.8) + 0.5), layout="constrained")
    for number, name in enumerate(label_names):
        axes = figure.add_subplot(lines, columns, number + 1)
        ends = [known[bound].structure_dice(name) for bound in (LOWER, UPPER)]
        _gap_panel(axes, shown, name, ends)
        lower, upper = ends
        gap = "" if lower is None or upper is None else f"\ngap {upper - lower:.1f} points"
        axes.set_title(name + gap, fontsize=8.5, loc="left", color=INK)
        is_first = number % columns == 0
        _label_axes(
            axes,
            rows=[summary.name if is_first else "" for summary in shown],
            x="Dice [%]" if number >= len(label_names) - columns else "",
        )
        axes.set_xlim(0, 125)  # room for the share beside the longest bar
        axes.set_xticks(range(0, 101, 25))
    marks = {"#DDDDDD": f"gap: {LOWER} to {UPPER}", _DARK_BLUE: f"gained over {LOWER}"}
    any_lost = any((gain.mean or 0) < 0 for s in shown for name in label_names if (gain := _gain(s, name)))
    marks |= {_VERMILION: f"lost against {LOWER}"} if any_lost else {}
    _legend(figure, [Patch(color=colour, label=label) for colour, label in marks.items()])
    return _save(figure, stem)


def loss_chart(runs: Mapping[str, Sequence[RunResult]], stem: Path) -> Path:
    """Losses of several trainings, one panel per loss, running means; one colour per name, one line per seed."""
    logs = {name: [log for run in listed if (log := _log_or_none(run))] for name, listed in runs.items()}
    logs = {name: found for name, found in logs.items() if found}
    _need(bool(logs), stem, "no training log")
    names = list(dict.fromkeys(column for found in logs.values() for _, series in found for column in series))
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(2.6 * columns, 5.2), 1.8 * rows + 0.4 + 0.07 * len(logs)), layout="constrained")
    for number, column in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        for order, found in enumerate(logs.values()):
            for iterations, series in found:
                if column in series:
                    _plot_curve(axes, iterations, series[column], line_style(order))
        axes.set_title(column.replace("_", " "), fontsize=8.5, loc="left", color=INK)
        quiet_axes(axes)
        if number >= len(names) - columns:
            axes.set_xlabel("iteration", fontsize=8, color=PALE_INK)
    _legend(figure, [Line2D([], [], label=name, **line_style(order)) for order, name in enumerate(logs)])
    return _save(figure, stem)


def line_style(order: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line of a chart; they repeat after 28."""
    return {
        "color": LINE_COLOURS[order % len(LINE_COLOURS)],
        "linestyle": _DASHES[order // len(LINE_COLOURS) % len(_DASHES)],
        "linewidth": 1.2,
    }


def _label_axes(axes: Axes, *, rows: Sequence[str], x: str) -> None:
    """Name the rows of a horizontal chart, the first on top, and its axis."""
    quiet_axes(axes, grid="x")
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(x, fontsize=8, color=PALE_INK)


def _save(figure: Figure, stem: Path) -> Path:
    """Write a chart as ``<stem>.png`` and ``<stem>.svg``; return the latter."""
    for suffix in (".png", ".svg"):
        save_figure(figure, stem.with_name(stem.name + suffix))
    return stem.with_name(stem.name + ".svg")


def _draw_spread(axes: Axes, row: int, spread: Spread) -> None:
    """One row of a chart: mean and standard deviation, and each seed as a ring below."""
    if spread.mean is None:
        note = axes.text(0.01, row, "no results", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        note.set(color=PALE_INK, backgroundcolor="white")
        return
    axes.errorbar(spread.mean, row, xerr=spread.sd, fmt="o", color=_DARK_BLUE, markersize=6, capsize=3, zorder=3)
    places = [row + 0.24] * len(spread.values)
    axes.scatter(spread.values, places, s=20, facecolors="white", edgecolors=_VERMILION, zorder=4)


def _spread_marks() -> list[Line2D]:
    return [
        Line2D([], [], marker="o", color=_DARK_BLUE, label="mean ± sd over seeds"),
        Line2D([], [], marker="o", linestyle="", color=_VERMILION, markerfacecolor="white", label="one seed"),
    ]


def _gain(summary: MethodSummary, structure: str) -> Spread:
    return summary.structure_gap_closed[structure].gain


def _gap_panel(axes: Axes, shown: Sequence[MethodSummary], name: str, ends: Sequence[float | None]) -> None:
    lower, upper = ends
    if lower is None or upper is None:
        return
    axes.axvspan(*sorted((lower, upper)), color="#DDDDDD", linewidth=0)
    for row, summary in enumerate(shown):
        gain, closed = _gain(summary, name).mean, summary.structure_gap_closed[name].percent
        if gain is None:
            continue
        axes.barh(row, gain, left=lower, height=0.5, color=_DARK_BLUE if gain >= 0 else _VERMILION)
        if closed.mean is not None:
            spread = "" if closed.sd is None else f" ± {closed.sd:.0f}"
            place = max(lower + gain, lower) + 1.5
            axes.text(place, row, f"{closed.mean:.0f}{spread} %", va="center", fontsize=7, color=INK)


def _plot_curve(axes: Axes, iterations: np.ndarray, values: np.ndarray, style: Mapping[str, Any]) -> None:
    known = np.isfinite(values)
    step = max(1, int(known.sum()) // _MOST_POINTS)
    axes.plot(iterations[known][::step], running_mean(values[known])[::step], **style)


def _log_or_none(run: RunResult) -> tuple[np.ndarray, dict[str, np.ndarray]] | None:
    try:
        return read_log(run.folder / "logs" / "losses.csv")
    except InputError:
        return None


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    inches = 0.55 + 0.062 * max(len(handle.get_label()) for handle in handles)  # of a column
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(handles), int(figure.get_figwidth() / inches))),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handlelength=2.0,
    )


def _need(is_there: bool, stem: Path, found: str) -> None:
    if not is_there:
        raise InputError(file=stem.name, found=found, expected="finished runs", remedy="run more of the comparison")
