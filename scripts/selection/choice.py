"""The choice among snapshots by their scores."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from scripts.core.errors import InputError, SettingError, check_choice
from scripts.selection.scores import MEASURED, SCORES

__all__ = ["KEPT", "best_epoch", "check_choice_is_possible", "read_scores", "snapshot_file"]

# Values of ``selection#keep``: the last, the best by a label-free score, the best by target labels (oracle).
KEPT = ("last", *SCORES, "oracle")


def check_choice_is_possible(keep: str, interval: int, *, has_target: bool) -> None:
    """Refuse settings that cannot work, before training.

    Raises:
        SettingError: unknown ``keep``, no snapshots, or no target slices to score.
    """
    check_choice("selection#keep", keep, KEPT)
    if interval < 1:
        expected = "epochs between two snapshots, 1 or more"
        remedy = "give --selection#interval as well, or omit the config file of the selection"
        raise SettingError(setting="selection#interval", found=str(interval), expected=expected, remedy=remedy)
    if keep == "masked_consistency" and not has_target:
        raise SettingError(
            setting="selection#keep",
            found="masked_consistency without target slices to score",
            expected="a datalist of target images; labels are not read",
            remedy="name one with --scored_datalist, or give --selection#keep last",
        )


def best_epoch(values: Mapping[int, float]) -> int:
    """The epoch of the highest value; the latest of equal ones.

    Raises:
        InputError: there is no value.
    """
    known = {epoch: value for epoch, value in values.items() if not math.isnan(value)}
    if not known:
        found, expected = "no score to choose by", "a number for at least one of them"
        raise InputError(file="the snapshots", found=found, expected=expected, remedy="give --selection#keep last")
    return max(known, key=lambda epoch: (known[epoch], epoch))


def snapshot_file(folder: Path, epoch: int) -> Path:
    """The file of a snapshot's weights in the folder of snapshots."""
    return folder / f"epoch_{epoch:03d}.pt"


def read_scores(path: Path) -> dict[int, dict[str, float]]:
    """The table of snapshots of a training: epoch -> column -> number.

    An incomplete last line is skipped. Missing columns are NaN.

    Raises:
        InputError: the file is missing or not such a table.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader(line for line in lines if line.endswith("\n"))
        found = {int(row["epoch"]): {key: float(value) for key, value in row.items()} for row in rows}
    except (OSError, KeyError, ValueError, TypeError) as error:
        what = f"no table of snapshots ({type(error).__name__}: {error})"
        expected = "the table that a training with configs/selection/snapshots.yaml writes"
        raise InputError(path, what, expected, "restore it, or start a new training without --resume") from error
    return {epoch: dict.fromkeys(MEASURED, math.nan) | row for epoch, row in found.items()}
