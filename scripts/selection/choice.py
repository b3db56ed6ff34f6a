"""The choice among snapshots, in numbers and in a sentence."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from scripts.core.errors import InputError, SettingError, check_choice
from scripts.selection.scores import MEASURED, SCORES

__all__ = ["KEPT", "best_epoch", "check_choice_is_possible", "read_scores", "snapshot_file"]

# Which weights can be kept: the last, the best by a score without target labels, the best by target labels.
KEPT = ("last", *SCORES, "oracle")


def check_choice_is_possible(keep: str, interval: int, *, has_target: bool) -> None:
    """Refuse settings that cannot work, before training.

    Raises:
        SettingError: unknown ``keep``, no snapshots, or no target slices to score.
    """
    check_choice("selection#keep", keep, KEPT)
    if interval < 1:
        raise SettingError(
            setting="selection#interval",
            found=str(interval),
            expected="epochs between two snapshots, 1 or more",
            remedy="give --selection#interval as well, or leave the selection's config file out",
        )
    if keep == "masked_consistency" and not has_target:
        raise SettingError(
            setting="selection#keep",
            found="masked_consistency without target slices to score",
            expected="a datalist of target images, which are scored without their labels",
            remedy="name one with --scored_datalist, or give --selection#keep last",
        )


def best_epoch(values: Mapping[int, float]) -> int:
    """The epoch of the greatest value; the latest of equal ones, which is nearest to what is kept by default.

    Raises:
        InputError: there is no value.
    """
    known = {epoch: value for epoch, value in values.items() if not math.isnan(value)}
    if not known:
        raise InputError(
            file="the snapshots",
            found="no score to choose by",
            expected="a number for at least one of them",
            remedy="give --selection#keep last",
        )
    return max(known, key=lambda epoch: (known[epoch], epoch))


def snapshot_file(folder: Path, epoch: int) -> Path:
    """Where a snapshot's weights lie in the folder of snapshots."""
    return folder / f"epoch_{epoch:03d}.pt"


def read_scores(path: Path) -> dict[int, dict[str, float]]:
    """The table of snapshots that a training writes: epoch -> column -> number.

    An unfinished last line is skipped. A column that is absent is NaN.

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
            expected="a row for each epoch with a snapshot, as configs/selection/snapshots.yaml has it written",
            remedy="restore it, or start the training anew without --resume",
        ) from error
    return {epoch: dict.fromkeys(MEASURED, math.nan) | row for epoch, row in found.items()}
