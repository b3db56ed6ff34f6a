"""The choice among snapshots, in numbers and in a sentence."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from scripts.core.errors import InputError, SettingError, check_choice
from scripts.selection.scores import MEASURED, SCORES

__all__ = [
    "RULES",
    "best_epoch",
    "check_selection",
    "read_scores",
    "snapshot_file",
]

RULES = ("last", "label_free", "oracle")
"""What may choose the weights: nothing, a score without target labels, or Dice with target labels."""


def check_selection(rule: str, score: str, interval: int, *, has_target: bool) -> None:
    """Refuse what cannot choose, before any work.

    Raises:
        InputError: an unknown word, no snapshots to choose from, or no target slices to score.
    """
    check_choice("selection", rule, RULES)
    check_choice("selection_score", score, tuple(SCORES))
    if rule != "last" and interval < 1:
        raise SettingError(
            setting="setting 'snapshot_interval'",
            found=f"{interval} with selection: {rule}",
            expected="epochs between two snapshots to choose from, 1 or more",
            remedy="give --snapshot_interval as well, or --selection last",
        )
    if rule == "label_free" and not has_target:
        raise SettingError(
            setting="setting 'selection'",
            found="label_free, and no target slices to score",
            expected="a datalist of the target's images, which scores read without their labels",
            remedy="name one with --scored_datalist, or give --selection last",
        )


def best_epoch(values: Mapping[int, float]) -> int:
    """The epoch of the greatest value; of equal ones the latest, which is nearest to what is kept by default.

    Raises:
        InputError: there is no value.
    """
    known = {epoch: value for epoch, value in values.items() if not math.isnan(value)}
    if not known:
        raise InputError(
            file="the snapshots",
            found="no score to choose by",
            expected="a number for at least one of them",
            remedy="give --selection last, or another selection_score",
        )
    return max(known, key=lambda epoch: (known[epoch], epoch))


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where a snapshot's weights lie in the folder of snapshots."""
    return folder / f"epoch_{epoch:03d}.pt"


def read_scores(path: Path) -> dict[int, dict[str, float]]:
    """The table of snapshots that a training writes: epoch -> column -> number.

    A last line without an end is skipped. What a training of earlier code did not measure is NaN.

    Raises:
        InputError: there is no such file, or it is no such table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        found = {int(row["epoch"]): {key: float(value) for key, value in row.items()} for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            file=path,
            found=f"no table of snapshots ({type(error).__name__}: {error})",
            expected="what a training with snapshot_interval writes: a row for each epoch with a snapshot",
            remedy="restore it, or start the training anew without --resume",
        ) from error
    return {epoch: dict.fromkeys(MEASURED, math.nan) | row for epoch, row in found.items()}
