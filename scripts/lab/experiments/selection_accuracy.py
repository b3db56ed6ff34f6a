"""Accuracy of the label-free scores: every snapshot is evaluated with the target's labels.

The results are named ``oracle``; no training reads them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.schema import read_yaml
from scripts.core.settings import run_bundle
from scripts.lab.cores import exclusive
from scripts.lab.experiments.comparison_record import COMPARISON
from scripts.lab.experiments.results import read_comparison
from scripts.lab.experiments.statistics import rank_correlation
from scripts.selection.choice import best_epoch, read_scores, snapshot_file
from scripts.selection.scores import SCORES

__all__ = ["RuleAccuracy", "ScoredRun", "evaluate_snapshots", "find_runs", "measure_selection", "rule_accuracies"]

CONFIGS = Path(__file__).resolve().parents[3] / "configs" / "segmentation"
FILES = [str(CONFIGS / "inference.yaml"), str(CONFIGS / "evaluate.yaml")]
# Top-level keys that training and evaluation share, each with its own value.
OWN_VALUES = {"bundle_root", "ckpt_dir", "device", "weights_metadata", "run_folder", "network", "tracked_run", "run"}


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """The snapshots of a run with their scores and their true Dice."""

    name: str  # such as ``glua, seed 0``, or the run's folder
    folder: Path  # its ``bundle_root``
    scores: dict[int, dict[str, float]]  # epoch -> column of ``logs/selection.csv`` -> number
    oracle_dice: dict[int, float]  # epoch -> mean Dice in % of the target's held-out cases

    def column(self, score: str) -> dict[int, float]:
        """One score by epoch; NaN where it was not measured."""
        return {epoch: row[f"score_{score}"] for epoch, row in self.scores.items()}

    def has(self, score: str) -> bool:
        """Whether the score was measured for any snapshot."""
        return not all(np.isnan(list(self.column(score).values())))


@dataclass(frozen=True, kw_only=True)
class RuleAccuracy:
    """The accuracy of a selection rule: a score, ``last`` or ``random``."""

    name: str
    correlations: list[float]  # Spearman's, of score and true Dice, of each run where defined
    correlation_over_all: float | None  # over all snapshots of all runs
    dice_lost: list[float]  # points of Dice below the best snapshot, of each run


def measure_selection(folder: Path) -> tuple[list[ScoredRun], list[RuleAccuracy]]:
    """Evaluate the remaining snapshots, and compare every score with the result."""
    runs = [
        ScoredRun(name=name, folder=run, scores=read_scores(_table(run)), oracle_dice=evaluate_snapshots(run))
        for run, name in find_runs(folder).items()
    ]
    return runs, rule_accuracies(runs)


def find_runs(folder: Path) -> dict[Path, str]:
    """The runs with snapshots in a folder by name, without those that were trained with the target's labels."""
    names: dict[Path, str] = {}
    for record in folder.rglob(COMPARISON):
        prefix = "" if record.parent == folder else f"{record.parent.relative_to(folder).as_posix()}: "
        names |= {run.folder: f"{prefix}{run.title}" for run in read_comparison(record.parent).runs}
    tables = sorted(table for table in folder.rglob("logs/selection.csv") if read_scores(table))
    runs = [table.parents[1] for table in tables if not _uses_target_labels(table.parents[1])]
    if not runs:
        expected = "runs of the segmentation bundle that were trained with configs/selection/snapshots.yaml"
        remedy = "train with that file, or name another folder"
        raise InputError(file=folder, found="no run with snapshots in it", expected=expected, remedy=remedy)
    return {run: names.get(run, run.relative_to(folder).as_posix() if run != folder else run.name) for run in runs}


def evaluate_snapshots(run: Path) -> dict[int, float]:
    """True mean Dice (percent) of a run's snapshots by epoch, cached in ``oracle/epoch_NNN.json`` of its folder."""
    with exclusive(run / "oracle"):
        return {epoch: _oracle_dice(run, epoch) for epoch in read_scores(_table(run))}


def _oracle_dice(run: Path, epoch: int) -> float:
    weights = snapshot_file(run / "models" / "snapshots", epoch)
    result = run / "oracle" / f"{weights.stem}.json"
    if not weights.is_file():
        expected, remedy = f"one for each row of {_table(run)}", "restore it, or train the run again"
        raise InputError(file=weights, found="no such snapshot", expected=expected, remedy=remedy)
    if not result.is_file() or result.stat().st_mtime < weights.stat().st_mtime:
        write_json(result, _evaluate(run, weights))
    summary = json.loads(result.read_text(encoding="utf-8"))
    return float(summary["mean_over_structures"]["dice_percent"])


def rule_accuracies(runs: Sequence[ScoredRun]) -> list[RuleAccuracy]:
    """The accuracy of each score, of the last snapshot and of a random choice."""
    found = []
    for name in SCORES:
        pairs = [(run.column(name), run.oracle_dice) for run in runs if run.has(name)]
        if pairs:
            within = [rank_correlation([scores[e] for e in dice], list(dice.values())) for scores, dice in pairs]
            everything = [(scores[epoch], dice) for scores, true in pairs for epoch, dice in true.items()]
            found.append(
                RuleAccuracy(
                    name=name,
                    correlations=[value for value in within if value is not None],
                    correlation_over_all=rank_correlation(*zip(*everything, strict=True)),
                    dice_lost=[max(dice.values()) - dice[best_epoch(scores)] for scores, dice in pairs],
                )
            )
    true = [run.oracle_dice for run in runs]
    last = [max(dice.values()) - dice[max(dice)] for dice in true]
    random = [max(dice.values()) - float(np.mean(list(dice.values()))) for dice in true]
    return found + [
        RuleAccuracy(name=name, correlations=[], correlation_over_all=None, dice_lost=lost)
        for name, lost in (("last", last), ("random", random))
    ]


def _uses_target_labels(run: Path) -> bool:
    """Whether the labelled cases of a training are the target's: both datalists are one file."""
    if not (run / "config.yaml").is_file():  # its evaluation will report that
        return False
    parser = ConfigParser(_trained_settings(run))
    labelled, target = (parser.get_parsed_content(key) for key in ("labelled_datalist", "oracle_datalist"))
    return Path(labelled).absolute() == Path(target).absolute()


def _table(run: Path) -> Path:
    return run / "logs" / "selection.csv"


def _evaluate(run: Path, weights: Path) -> dict[str, Any]:
    """The summary of an evaluation of some weights with the run's own settings; predictions are not kept."""
    base, trained = ConfigParser.load_config_files(FILES), _trained_settings(run)
    shared = {key: trained[key] for key in base if key in trained.keys() - OWN_VALUES}
    with tempfile.TemporaryDirectory() as temporary:
        overlay, output = Path(temporary, "settings.yaml"), Path(temporary, "eval")
        # A file instead of arguments: MONAI drops arguments that are None.
        ConfigParser.export_config_file(shared, str(overlay), fmt="yaml", sort_keys=False)
        places = {"bundle_root": str(run), "output_dir": str(output), "checkpoint": str(weights)}
        run_bundle("evaluating", [*FILES, str(overlay)], **places)
        summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary | {"oracle": "measured with target labels to rate the scores; no training reads it"}


def _trained_settings(run: Path) -> dict[str, Any]:
    expected = "the config.yaml that every training writes into its folder"
    return read_yaml(run / "config.yaml", expected, "restore the file, or train the run again")
