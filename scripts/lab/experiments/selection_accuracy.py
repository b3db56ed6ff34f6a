"""Can the label-free scores be trusted? Every snapshot of every run is evaluated with the target's labels.

This is a judge, not a chooser: nothing it reads or writes is seen by a training. What it measures carries the name
``oracle``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import yaml
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.lab.experiments.record import read_record
from scripts.lab.experiments.statistics import rank_correlation
from scripts.selection.choice import best_epoch, read_scores, snapshot_file
from scripts.selection.scores import SCORES

__all__ = ["RuleAccuracy", "ScoredRun", "evaluate_snapshots", "find_runs", "measure_selection", "rule_accuracies"]

CONFIG = Path("configs", "segmentation", "evaluate.yaml")
NOT_TAKEN_OVER = {
    "bundle_root",
    "ckpt_dir",
    "device",
    "card",
    "run_folder",
    "network_def",
    "network",
    "volume_size",
    "run",
}
"""Top-level keys that training and evaluation share and that each has its own value of."""


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run's snapshots, what each score said of them, and what is true.

    Attributes:
        name: such as ``glua, seed 0``, or the run's folder.
        folder: its ``bundle_root``.
        scores: epoch -> column of ``logs/selection.csv`` -> number.
        oracle_dice: epoch -> mean Dice of the target's held-out cases in percent, with their labels.
    """

    name: str
    folder: Path
    scores: dict[int, dict[str, float]]
    oracle_dice: dict[int, float]


@dataclass(frozen=True, kw_only=True)
class RuleAccuracy:
    """How well a rule chooses.

    Attributes:
        name: a score, ``last`` or ``random``.
        correlations: Spearman's rank correlation of the score with the true Dice, for each run where it is defined.
        correlation_over_all: the same over all snapshots of all runs; NaN where it is not defined.
        dice_lost: for each run, percentage points of Dice below the best snapshot's.
    """

    name: str
    correlations: list[float]
    correlation_over_all: float
    dice_lost: list[float]


def measure_selection(folder: Path) -> tuple[list[ScoredRun], list[RuleAccuracy]]:
    """Evaluate what was not evaluated yet, and judge every score by it.

    Args:
        folder: a comparison's, or any folder with runs of the segmentation bundle in it that left snapshots.

    Raises:
        InputError: no run with snapshots, or one of its files is missing.
    """
    runs = [
        ScoredRun(name=name, folder=run, scores=read_scores(_table(run)), oracle_dice=evaluate_snapshots(run))
        for run, name in find_runs(folder).items()
    ]
    return runs, rule_accuracies(runs)


def find_runs(folder: Path) -> dict[Path, str]:
    """The runs with snapshots in a folder and their names: of a comparison's runs, method and seed.

    Runs that learn from the target's own labels are left out: the labelled Dice of ``supervised`` is the truth itself.

    Raises:
        InputError: there is none.
    """
    names: dict[Path, str] = {}
    for record in folder.rglob("comparison.json"):
        comparison = record.parent
        of = "" if comparison == folder else f"{comparison.relative_to(folder).as_posix()}: "
        runs_of_it = read_record(comparison)["runs"]
        names |= {comparison / run["folder"]: f"{of}{run['method']}, seed {run['seed']}" for run in runs_of_it}
    tables = sorted(table for table in folder.rglob("logs/selection.csv") if read_scores(table))
    runs = [table.parents[1] for table in tables if ".old-" not in table.parents[1].name]  # set aside
    runs = [run for run in runs if not _learns_from_target_labels(run)]
    if not runs:
        raise InputError(
            file=folder,
            found="no run with snapshots in it",
            expected="runs of the segmentation bundle that were trained with snapshot_interval above 0",
            remedy="train with --snapshot_interval 1, or name another folder",
        )
    return {run: names.get(run, run.relative_to(folder).as_posix() if run != folder else run.name) for run in runs}


def evaluate_snapshots(run: Path) -> dict[int, float]:
    """True mean Dice (percent) of a run's snapshots, as ``run evaluating`` measures it, each evaluated once.

    The results stay in ``oracle/epoch_NNN.json`` of the run's folder; one older than its snapshot is made again.

    Raises:
        InputError: a snapshot or the run's settings are missing.
    """
    found = {}
    for epoch in read_scores(_table(run)):
        weights = snapshot_file(run / "models" / "snapshots", epoch)
        result = run / "oracle" / f"{weights.stem}.json"
        if not weights.is_file():
            raise InputError(
                file=weights,
                found="no such snapshot",
                expected=f"one for each row of {_table(run)}",
                remedy="restore it, or train the run again",
            )
        if not result.is_file() or result.stat().st_mtime < weights.stat().st_mtime:
            write_json(result, _evaluate(run, weights))
        summary = json.loads(result.read_text(encoding="utf-8"))
        found[epoch] = float(summary["mean_over_structures"]["dice_percent"])
    return found


def rule_accuracies(runs: Sequence[ScoredRun]) -> list[RuleAccuracy]:
    """How each score, ``last`` and a random choice do in these runs."""
    found = []
    for name in SCORES:
        columns = [{epoch: row[f"score_{name}"] for epoch, row in run.scores.items()} for run in runs]
        pairs = [(column, run.oracle_dice) for column, run in zip(columns, runs, strict=True)]
        known = [pair for pair in pairs if not all(np.isnan(list(pair[0].values())))]
        if known:
            within = [_spearman([column[e] for e in truth], list(truth.values())) for column, truth in known]
            everything = [(column[e], dice) for column, truth in known for e, dice in truth.items()]
            found.append(
                RuleAccuracy(
                    name=name,
                    correlations=[value for value in within if not np.isnan(value)],
                    correlation_over_all=_spearman(*zip(*everything, strict=True)),
                    dice_lost=[max(truth.values()) - truth[best_epoch(column)] for column, truth in known],
                )
            )
    truths = [run.oracle_dice for run in runs]
    plain = {
        "last": [max(truth.values()) - truth[max(truth)] for truth in truths],
        "random": [max(truth.values()) - float(np.mean(list(truth.values()))) for truth in truths],
    }
    return found + [
        RuleAccuracy(name=rule, correlations=[], correlation_over_all=np.nan, dice_lost=lost)
        for rule, lost in plain.items()
    ]


def _learns_from_target_labels(run: Path) -> bool:
    """Whether the labelled cases of a training are the target's: its two lists are one file."""
    if not (run / "config.yaml").is_file():  # which its evaluation will say
        return False
    parser = ConfigParser(_trained_settings(run))
    labelled, target = (parser.get_parsed_content(key) for key in ("labelled_datalist", "oracle_datalist"))
    return Path(labelled).absolute() == Path(target).absolute()


def _table(run: Path) -> Path:
    return run / "logs" / "selection.csv"


def _spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """NaN where it is not defined: fewer than three snapshots, or one of the two is constant."""
    found = rank_correlation(first, second)
    return float("nan") if found is None else found


def _evaluate(run: Path, weights: Path) -> dict[str, Any]:
    """The summary of evaluating some weights under a run's own settings; predictions and pictures are not kept."""
    with tempfile.TemporaryDirectory() as temporary:
        overlay, output = Path(temporary, "settings.yaml"), Path(temporary, "eval")
        # A file, not arguments: MONAI drops an argument of None.
        ConfigParser.export_config_file(_settings(run), str(overlay), fmt="yaml", sort_keys=False)
        places = {"bundle_root": str(run), "output_dir": str(output), "checkpoint": str(weights)}
        base = Path(__file__).resolve().parents[3] / CONFIG
        monai.bundle.run(run_id="evaluating", config_file=[str(base), str(overlay)], **places)
        summary: dict[str, Any] = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return summary | {"oracle": "measured with target labels, to judge the choice of snapshots; it chooses nothing"}


def _settings(run: Path) -> dict[str, Any]:
    """What a run's training settings say of an evaluation: task, grid, network, places of the data."""
    base = ConfigParser.load_config_file(str(Path(__file__).resolve().parents[3] / CONFIG))
    trained = _trained_settings(run)
    shared = (base.keys() & trained.keys()) - NOT_TAKEN_OVER
    return {key: trained[key] for key in base if key in shared}


def _trained_settings(run: Path) -> dict[str, Any]:
    try:
        return ConfigParser.load_config_file(str(run / "config.yaml"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            file=run / "config.yaml",
            found=f"no settings ({type(error).__name__})",
            expected="what every training writes into its folder",
            remedy="restore the file, or train the run again",
        ) from error
