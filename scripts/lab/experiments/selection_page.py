"""The accuracy of the label-free scores as a table of snapshots, a Markdown page and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scripts.core.files import atomic_path
from scripts.evaluation.montage import INK, PALE_INK, quiet_axes, save_figure
from scripts.lab.experiments.charts import LINE_COLOURS
from scripts.lab.experiments.selection_accuracy import RuleAccuracy, ScoredRun
from scripts.lab.page import Table, write_text
from scripts.selection.choice import best_epoch
from scripts.selection.scores import MEASURED, SCORES

__all__ = ["accuracy_table", "score_figure", "write_selection_page"]

# Number of letters of legend entries that fit into one line.
LEGEND_LETTERS = 100

# Marks of the runs; the next one is used after all colours.
MARKS = "os^Dv"

INTRODUCTION = """\
# Which score finds the best snapshot?

Every snapshot was evaluated **with the target's labels** (oracle) to rate the label-free scores.
Dice is the mean over the structures of the target's held-out cases, in percent. *Dice lost* is the difference between
the chosen snapshot and the best one of its run, in points; *random* is the mean loss of a random choice. Rank
correlations are Spearman's, between a score and the true Dice, over the snapshots of one run and over all."""


def write_selection_page(folder: Path, runs: Sequence[ScoredRun], rules: Sequence[RuleAccuracy]) -> None:
    """Write ``selection.csv``, ``selection.md`` and ``plots/selection.png`` into a folder."""
    with atomic_path(folder / "selection.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = ["iteration", *MEASURED]
        writer.writerow(["run", "epoch", *columns, "oracle_dice_percent"])
        for run in runs:
            for epoch, row in run.scores.items():
                writer.writerow([run.name, epoch, *(f"{row[key]:.6g}" for key in columns), run.oracle_dice[epoch]])
    listed = Table(
        heads=["run", "snapshots", "true Dice, worst to best; last"],
        rows=[[run.name, str(len(run.oracle_dice)), _range(run)] for run in runs],
    )
    figure = "![Scores and true Dice](plots/selection.png)"
    parts = [INTRODUCTION, accuracy_table(rules).as_markdown(), listed.as_markdown(), figure]
    write_text(folder / "selection.md", "\n\n".join(parts) + "\n")
    score_figure(runs, folder / "plots" / "selection.png")


def accuracy_table(rules: Sequence[RuleAccuracy]) -> Table:
    """One row per rule."""
    rows = []
    for rule in rules:
        inside, overall, lost = rule.correlations, rule.correlation_over_all, rule.dice_lost
        within = f"{sum(inside) / len(inside):.2f} ({min(inside):.2f} to {max(inside):.2f})" if inside else "-"
        mean = f"{sum(lost) / len(lost):.2f} (n = {len(lost)})"
        rows.append([rule.name, within, "-" if overall is None else f"{overall:.2f}", mean, f"{max(lost):.2f}"])
    heads = ["chosen by", "rank correlation in a run: mean (least to greatest)", "over all", "Dice lost: mean", "most"]
    return Table(heads=heads, rows=rows)


def score_figure(runs: Sequence[ScoredRun], path: Path) -> None:
    """Draw true Dice against each measured score, one panel per score, one mark per run; rings: the choices."""
    columns = 3
    measured = [name for name in SCORES if any(run.has(name) for run in runs)]
    rows = math.ceil(len(measured) / columns)
    figure = Figure(figsize=(2.9 * columns, 2.3 * rows + 0.5), layout="constrained")
    for number, name in enumerate(measured):
        axes = figure.add_subplot(rows, columns, number + 1)
        for index, run in enumerate(runs):
            _draw(axes, run, name, index)
        axes.set_title(name.replace("_", " "), fontsize=9, loc="left", color=INK)
        quiet_axes(axes)
        axes.locator_params(axis="x", nbins=4)
        if number % columns == 0:
            axes.set_ylabel("true Dice [%]", fontsize=8, color=PALE_INK)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    beside = max(1, LEGEND_LETTERS // max(map(len, labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=beside, frameon=False, fontsize=7, labelcolor=INK)
    figure.suptitle("Scores of snapshots and their true Dice (ring: chosen)", fontsize=10, color=INK)
    save_figure(figure, path)


def _draw(axes: Axes, run: ScoredRun, name: str, index: int) -> None:
    colour, mark = LINE_COLOURS[index % len(LINE_COLOURS)], MARKS[index // len(LINE_COLOURS) % len(MARKS)]
    scores, dice = run.column(name), run.oracle_dice
    axes.plot([scores[e] for e in dice], list(dice.values()), mark, color=colour, markersize=3.5, label=run.name)
    if run.has(name):
        best = best_epoch(scores)
        axes.plot([scores[best]], [dice[best]], "o", markersize=8, markerfacecolor="none", markeredgecolor=colour)


def _range(run: ScoredRun) -> str:
    dice = run.oracle_dice
    best = max(dice, key=lambda epoch: dice[epoch])
    return f"{min(dice.values()):.2f} to {dice[best]:.2f} (epoch {best}); {dice[max(dice)]:.2f}"
