"""The judgement of the scores as a table of snapshots, a page, and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.core.files import atomic_path
from scripts.evaluation.montage import INK, LINE_COLOURS, PALE_INK, save_figure
from scripts.lab.experiments.selection_accuracy import RuleAccuracy, ScoredRun
from scripts.selection.choice import best_epoch
from scripts.selection.scores import MEASURED, SCORES

__all__ = ["accuracy_table", "score_figure", "write_selection_page"]

LEGEND_LETTERS = 100
"""Letters of runs' names that fit side by side below the panels."""

MARKS = "os^Dv"
"""Marks of the runs: the next one when the colours are used up."""

HEAD = """\
# Which score finds the best snapshot?

Every snapshot was evaluated **with the target's labels** (oracle), to judge the scores that choose without them.
Dice is the mean over the structures of the target's held-out cases, in percent. *Dice lost* is how far the chosen
snapshot lies below the best one of its run, in points; *random* is what a blind choice loses on average. Rank
correlations are Spearman's, between a score and the true Dice, over the snapshots of one run and over all.
"""


def write_selection_page(folder: Path, runs: Sequence[ScoredRun], rules: Sequence[RuleAccuracy]) -> None:
    """Write ``selection.csv``, ``selection.md`` and ``plots/selection.png`` into a folder."""
    with atomic_path(folder / "selection.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["iteration", *MEASURED]
        writer.writerow(["run", "epoch", *columns, "oracle_dice_percent"])
        for run in runs:
            for epoch, row in run.scores.items():
                writer.writerow([run.name, epoch, *(f"{row[key]:.6g}" for key in columns), run.oracle_dice[epoch]])
    chosen = [f"| {run.name} | {len(run.oracle_dice)} | {_range(run)} |" for run in runs]
    listed = "\n".join(["| run | snapshots | true Dice, worst to best; last |", "|---|---|---|", *chosen])
    page = f"{HEAD}\n{accuracy_table(rules)}\n\n{listed}\n\n![Scores and true Dice](plots/selection.png)\n"
    with atomic_path(folder / "selection.md") as temporary:
        temporary.write_text(page, encoding="utf-8")
    score_figure(runs, folder / "plots" / "selection.png")


def accuracy_table(rules: Sequence[RuleAccuracy]) -> str:
    """The accuracy of each rule as a Markdown table, a line for each rule."""
    lines = [
        "| chosen by | rank correlation in a run: mean (least to greatest) | over all | Dice lost: mean | most |",
        "|---|---|---|---|---|",
    ]
    for rule in rules:
        inside = rule.correlations
        within = f"{sum(inside) / len(inside):.2f} ({min(inside):.2f} to {max(inside):.2f})" if inside else "-"
        overall = "-" if math.isnan(rule.correlation_over_all) else f"{rule.correlation_over_all:.2f}"
        lost = rule.dice_lost
        mean = f"{sum(lost) / len(lost):.2f} (n = {len(lost)})"
        lines.append(f"| {rule.name} | {within} | {overall} | {mean} | {max(lost):.2f} |")
    return "\n".join(lines)


def score_figure(runs: Sequence[ScoredRun], path: Path) -> None:
    """Draw true Dice against each score, a panel for each, a colour and mark for each run; a ring about the chosen one.

    A score that no run has, as of a training of earlier code, has no panel.

    Raises:
        InputError: the picture cannot be written.
    """
    columns = 3
    measured = [name for name in SCORES if any(_is_known(run, name) for run in runs)]
    rows = math.ceil(len(measured) / columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows + 0.5), layout="constrained")
    for number, name in enumerate(measured):
        axes = figure.add_subplot(rows, columns, number + 1)
        for index, run in enumerate(runs):
            _draw(axes, run, name, index)
        axes.set_title(name.replace("_", " "), fontsize=9, loc="left", color=INK)
        axes.tick_params(labelsize=7, colors=PALE_INK, length=2)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE_INK)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        if number % columns == 0:
            axes.set_ylabel("true Dice [%]", fontsize=8, color=PALE_INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    beside = max(1, LEGEND_LETTERS // max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=7, labelcolor=INK)
    figure.suptitle("Scores of snapshots and their true Dice (ring: chosen)", fontsize=10, color=INK)
    save_figure(figure, path)


def _is_known(run: ScoredRun, name: str) -> bool:
    return not all(math.isnan(row[f"score_{name}"]) for row in run.scores.values())


def _draw(axes: Axes, run: ScoredRun, name: str, index: int) -> None:
    colour, mark = LINE_COLOURS[index % len(LINE_COLOURS)], MARKS[index // len(LINE_COLOURS) % len(MARKS)]
    values = {epoch: row[f"score_{name}"] for epoch, row in run.scores.items()}
    axes.plot(
        [values[epoch] for epoch in run.oracle_dice],
        list(run.oracle_dice.values()),
        mark,
        color=colour,
        markersize=3.5,
        label=run.name,
    )
    if _is_known(run, name):
        best = best_epoch(values)
        place = ([values[best]], [run.oracle_dice[best]])
        axes.plot(*place, "o", markersize=8, markerfacecolor="none", markeredgecolor=colour)


def _range(run: ScoredRun) -> str:
    truth = run.oracle_dice
    best = max(truth, key=lambda epoch: truth[epoch])
    return f"{min(truth.values()):.2f} to {truth[best]:.2f} (epoch {best}); {truth[max(truth)]:.2f}"
