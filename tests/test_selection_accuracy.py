"""The judge of the scores: rule_accuracies by hand, and snapshots evaluated once, as users evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, refused, run_config

from scripts.lab.experiments import selection_accuracy
from scripts.lab.experiments.selection_accuracy import ScoredRun, find_runs, measure_selection, rule_accuracies
from scripts.lab.experiments.selection_page import accuracy_table, write_selection_page
from scripts.selection.scores import PARTS, SCORES

HEAD = ("task", "source_domain", "target_domain", "label_names", "methods")
"""What else a comparison's record holds."""


def judged(name: str, score: list[float], dice: list[float]) -> ScoredRun:
    epochs = range(1, len(dice) + 1)
    row = dict.fromkeys([f"score_{name}" for name in SCORES] + list(PARTS) + ["iteration"], float("nan"))
    scores = {epoch: row | {"score_density": value} for epoch, value in zip(epochs, score, strict=True)}
    return ScoredRun(name=name, folder=Path(name), scores=scores, oracle_dice=dict(zip(epochs, dice, strict=True)))


def test_verdicts_by_hand(tmp_path: Path) -> None:
    # One run in the score's order, one against it: rank correlations 1 and -1.
    runs = [judged("a", [1, 2, 3, 4], [50, 60, 70, 80]), judged("b", [1, 2, 3, 4], [80, 70, 60, 30])]
    found = {rule.name: rule for rule in rule_accuracies(runs)}
    assert set(found) == {"density", "last", "random"}, "a score that no run has is not judged"
    density = found["density"]
    assert density.correlations == pytest.approx([1, -1])
    # Ranks of the Dice over all: 2, 3.5, 5.5, 7.5 and 7.5, 5.5, 3.5, 1; the score's: 1.5, 3.5, 5.5, 7.5 twice.
    assert density.correlation_over_all == pytest.approx(
        np.corrcoef([1.5, 3.5, 5.5, 7.5] * 2, [2, 3.5, 5.5, 7.5, 7.5, 5.5, 3.5, 1])[0, 1]
    )
    assert density.dice_lost == [0, 50]
    assert found["last"].dice_lost == [0, 50]
    assert found["random"].dice_lost == [15, 20]
    write_selection_page(tmp_path, runs, list(found.values()))
    page = (tmp_path / "selection.md").read_text()
    assert accuracy_table(list(found.values())) in page
    assert "| density | 0.00 (-1.00 to 1.00) |" in page
    assert "| last | - | - | 25.00 (n = 2) | 50.00 |" in page
    assert len((tmp_path / "selection.csv").read_text().splitlines()) == 9
    assert (tmp_path / "plots" / "selection.png").stat().st_size > 1000


def test_a_correlation_of_two_snapshots_or_of_equal_ones_is_none() -> None:
    (short, *_) = rule_accuracies([judged("a", [1, 2], [50, 60]), judged("b", [1, 1, 1], [50, 60, 70])])
    assert short.correlations == []
    assert short.dice_lost == [0, 0]


def test_a_folder_without_snapshots_is_refused(tmp_path: Path) -> None:
    assert refused(measure_selection, tmp_path).found == "no run with snapshots in it"


def test_runs_of_a_comparison_have_its_names(tmp_path: Path) -> None:
    for run in ("methods/glua_seed0", "methods/none_seed1", "methods/glua_seed0.old-1"):
        (tmp_path / run / "logs").mkdir(parents=True)
        (tmp_path / run / "logs" / "selection.csv").write_text("epoch,iteration\n1,10\n")
    labelled = {
        "labelled_datalist": "$@dataset_dir + '/ct.json'",
        "oracle_datalist": "data/ct.json",
        "dataset_dir": "data",
    }
    bound = tmp_path / "methods/supervised_seed0"
    (bound / "logs").mkdir(parents=True)
    (bound / "logs" / "selection.csv").write_text("epoch,iteration\n1,10\n")
    (bound / "config.yaml").write_text(json.dumps(labelled))  # its labelled Dice is the truth: nothing to judge
    (tmp_path / "just_begun" / "logs").mkdir(parents=True)
    (tmp_path / "just_begun" / "logs" / "selection.csv").write_text("epoch,iteration\n")
    listed = [{"folder": "methods/glua_seed0", "method": "glua", "seed": 0}]
    (tmp_path / "comparison.json").write_text(json.dumps(dict.fromkeys(HEAD, "") | {"runs": listed}))
    assert find_runs(tmp_path) == {
        tmp_path / "methods/glua_seed0": "glua, seed 0",
        tmp_path / "methods/none_seed1": "methods/none_seed1",
    }
    # In a folder of comparisons each run says which comparison it is of.
    comparison = tmp_path / "comparison"
    comparison.mkdir()
    for name in ("methods", "comparison.json"):
        (tmp_path / name).rename(comparison / name)
    assert find_runs(tmp_path)[comparison / "methods/glua_seed0"] == "comparison: glua, seed 0"


@pytest.mark.slow
def test_snapshots_are_judged_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "methods" / "d1_d2_seed0"
    method = CONFIGS / "methods" / "d1_d2.yaml"
    places = {"bundle_root": run, "dataset_dir": data}
    run_config("training", "segmentation", "train", method, **places, max_epochs=2, snapshot_interval=1)
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
    monkeypatch.setattr(selection_accuracy, "_evaluate", None)  # nothing is left to evaluate
    assert measure_selection(tmp_path)[0] == runs
    (run / "models" / "snapshots" / "epoch_002.pt").unlink()
    assert refused(measure_selection, tmp_path).found == "no such snapshot"
