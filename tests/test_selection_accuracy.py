"""Accuracy of the selection scores: computed by hand, and from snapshots that are evaluated once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from comparison_folders import known_results, write_comparison
from conftest import CONFIGS, refused, run_config
from scripts.lab.experiments.selection_accuracy import ScoredRun, find_runs, measure_selection, rule_accuracies
from scripts.lab.experiments.selection_page import accuracy_table, write_selection_page
from scripts.selection.scores import PARTS, SCORES


def scored(name: str, score: list[float], dice: list[float]) -> ScoredRun:
    epochs = range(1, len(dice) + 1)
    row = dict.fromkeys([f"score_{name}" for name in SCORES] + list(PARTS) + ["iteration"], float("nan"))
    scores = {epoch: row | {"score_labelled_dice": value} for epoch, value in zip(epochs, score, strict=True)}
    return ScoredRun(name=name, folder=Path(name), scores=scores, oracle_dice=dict(zip(epochs, dice, strict=True)))


def test_accuracies_by_hand(tmp_path: Path) -> None:
    # One run in the score's order, one against it: rank correlations 1 and -1.
    runs = [scored("a", [1, 2, 3, 4], [50, 60, 70, 80]), scored("b", [1, 2, 3, 4], [80, 70, 60, 30])]
    found = {rule.name: rule for rule in rule_accuracies(runs)}
    assert set(found) == {"labelled_dice", "last", "random"}, "a score that no run has is not rated"
    rated = found["labelled_dice"]
    assert rated.correlations == pytest.approx([1, -1])
    # Ranks of the Dice over all: 2, 3.5, 5.5, 7.5 and 7.5, 5.5, 3.5, 1; the score's: 1.5, 3.5, 5.5, 7.5 twice.
    assert rated.correlation_over_all == pytest.approx(
        np.corrcoef([1.5, 3.5, 5.5, 7.5] * 2, [2, 3.5, 5.5, 7.5, 7.5, 5.5, 3.5, 1])[0, 1]
    )
    assert rated.dice_lost == [0, 50]
    assert found["last"].dice_lost == [0, 50]
    assert found["random"].dice_lost == [15, 20]
    write_selection_page(tmp_path, runs, list(found.values()))
    page = (tmp_path / "selection.md").read_text()
    assert accuracy_table(list(found.values())).as_markdown() in page
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    assert ["labelled_dice", "0.00 (-1.00 to 1.00)"] in [row[:2] for row in rows]
    assert ["last", "-", "-", "25.00 (n = 2)", "50.00"] in rows
    assert len((tmp_path / "selection.csv").read_text().splitlines()) == 9
    assert (tmp_path / "plots" / "selection.png").stat().st_size > 1000


def test_a_correlation_of_two_snapshots_or_of_equal_ones_is_none() -> None:
    (short, *_) = rule_accuracies([scored("a", [1, 2], [50, 60]), scored("b", [1, 1, 1], [50, 60, 70])])
    assert short.correlations == []
    assert short.dice_lost == [0, 0]


def test_a_folder_without_snapshots_is_refused(tmp_path: Path) -> None:
    assert refused(measure_selection, tmp_path).found == "no run with snapshots in it"


def test_runs_of_a_comparison_have_its_names(tmp_path: Path) -> None:
    results = known_results()
    write_comparison(
        tmp_path, {"none": {1: results["none"][0]}, "supervised": results["supervised"]}, failed={("glua", 0): "killed"}
    )
    other = tmp_path / "trained_by_hand"
    for run in (*(tmp_path / "methods").iterdir(), other):
        (run / "logs").mkdir(parents=True, exist_ok=True)
        (run / "logs" / "selection.csv").write_text("epoch,iteration\n1,10\n")
        (run / "config.yaml").unlink(missing_ok=True)
    labelled = {
        "labelled_datalist": "$@dataset_dir + '/ct.json'",
        "oracle_datalist": "data/ct.json",
        "dataset_dir": "data",
    }  # the labelled Dice of supervised is the true one: nothing to rate
    (tmp_path / "methods/supervised_seed0/config.yaml").write_text(json.dumps(labelled))
    (tmp_path / "just_begun" / "logs").mkdir(parents=True)
    (tmp_path / "just_begun" / "logs" / "selection.csv").write_text("epoch,iteration\n")
    assert find_runs(tmp_path) == {
        tmp_path / "methods/glua_seed0": "glua, seed 0",
        tmp_path / "methods/none_seed1": "none, seed 1",
        other: "trained_by_hand",
    }
    # In a folder of comparisons each run names its comparison.
    inner = tmp_path / "first"
    inner.mkdir()
    for name in ("methods", "comparison.json"):
        (tmp_path / name).rename(inner / name)
    assert find_runs(tmp_path)[inner / "methods/glua_seed0"] == "first: glua, seed 0"


@pytest.mark.slow
def test_snapshots_are_evaluated_once(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "methods" / "d1_d2_seed0"
    method = CONFIGS / "methods" / "d1_d2.yaml"
    places = {"bundle_root": run, "dataset_dir": data}
    snapshots = CONFIGS / "selection" / "snapshots.yaml"
    every_epoch = {"max_epochs": 2, "selection#interval": 1, "selection#keep": "last"}
    run_config("training", "segmentation", "train", method, snapshots, **places, **every_epoch)
    runs, found = measure_selection(tmp_path)
    assert {rule.name for rule in found} == {*SCORES, "last", "random"}
    assert [(one.name, sorted(one.oracle_dice)) for one in runs] == [("methods/d1_d2_seed0", [1, 2])]
    assert not list(tmp_path.rglob("*_seg.nii.gz")), "predictions are not kept"
    # The same numbers as the evaluation that users run: the last snapshot is the weights that were kept.
    run_config("evaluating", "segmentation", "evaluate", **places)
    mine, theirs = (
        json.loads(path.read_text()) for path in (run / "oracle" / "epoch_002.json", run / "eval" / "summary.json")
    )
    assert mine["structures"] == theirs["structures"]
    assert mine["selection"] == {"rule": "snapshot", "epoch": 2, "reads_target_labels": False}
    assert mine["oracle"].startswith("measured with target labels")
    written = {path: path.stat().st_mtime_ns for path in (run / "oracle").iterdir()}
    assert measure_selection(tmp_path)[0] == runs
    assert {path: path.stat().st_mtime_ns for path in (run / "oracle").iterdir()} == written, "evaluated once"
    (run / "models" / "snapshots" / "epoch_002.pt").unlink()
    assert refused(measure_selection, tmp_path).found == "no such snapshot"
