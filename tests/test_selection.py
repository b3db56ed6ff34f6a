"""Snapshots and the choice among them: what is kept, what is refused, and that target labels decide nothing unasked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, assert_same_weights, refused, run_config
from ignite.engine import Engine
from scripts.core.weights import digest_of
from scripts.engines.schedules import averaged_model
from scripts.handlers.checkpoints import FinalWeights
from scripts.handlers.snapshots import Snapshots
from scripts.selection.choice import read_scores
from scripts.selection.scores import PARTS, SCORES
from torch import nn

METADATA = {"stage": "segmentation"}


class ScoreByWeight:
    """Looks up the labelled Dice of a network whose only weight is its epoch."""

    labelled_cases, target = "held-out", "some slices"

    def __init__(self, dice: dict[int, float]) -> None:
        self.dice = dice

    def parts(self, network: nn.Module) -> dict[str, float]:
        return dict.fromkeys(PARTS, 0.0) | {"labelled_dice": self.dice[int(network.weight.item())]}


def train(
    root: Path, dice: dict[int, float], *, start: int = 0, stop: int | None = None, epochs: int = 5, **settings: Any
) -> Snapshots:
    """Train a weight that counts epochs, two iterations each, and keep what the settings say."""
    network = nn.Linear(1, 1, bias=False)
    average = averaged_model(network, 0.0)

    def step(engine: Engine, batch: Any) -> None:
        if engine.state.epoch == stop:
            raise KeyboardInterrupt
        nn.init.constant_(average.module.weight, engine.state.epoch)

    snapshots = Snapshots(
        folder=str(root / "models" / "snapshots"),
        log=str(root / "logs" / "selection.csv"),
        average=average,
        metadata=METADATA,
        scorer=ScoreByWeight(dice),  # type: ignore[arg-type]
        **{"interval": 2, "keep": "labelled_dice"} | settings,
    )
    engine = Engine(step)
    snapshots.attach(engine)
    FinalWeights(path=str(root / "models" / "model.pt"), average=average, metadata=METADATA, chooser=snapshots).attach(
        engine
    )
    engine.load_state_dict({"iteration": start * 2, "epoch_length": 2, "max_epochs": epochs})
    engine.run(range(2), max_epochs=epochs, epoch_length=2)
    return snapshots


def kept(root: Path) -> tuple[float, dict[str, Any]]:
    """The weight that was kept, and its metadata."""
    weight = torch.load(root / "models" / "model.pt", weights_only=True)["weight"].item()
    return weight, json.loads((root / "models" / "model.json").read_text())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "models" / "snapshots").glob("*.pt"))


def test_snapshots_are_taken_every_few_epochs_and_after_the_last(tmp_path: Path) -> None:
    train(tmp_path, {2: 0.1, 4: 0.9, 5: 0.5})
    assert names(tmp_path) == ["epoch_002.pt", "epoch_004.pt", "epoch_005.pt"]
    metadata = json.loads((tmp_path / "models" / "snapshots" / "epoch_004.json").read_text())
    assert metadata == METADATA | {
        "iterations": 8,
        "selection": {"rule": "snapshot", "epoch": 4, "reads_target_labels": False},
        "weights_sha256": digest_of(torch.load(tmp_path / "models" / "snapshots" / "epoch_004.pt", weights_only=True)),
    }
    header, *rows = (tmp_path / "logs" / "selection.csv").read_text().splitlines()
    assert header.split(",") == ["epoch", "iteration", *(f"score_{name}" for name in SCORES), *PARTS]
    assert [row.split(",")[:4] for row in rows] == [
        ["2", "4", "0.1", "0.1"],
        ["4", "8", "0.9", "0.9"],
        ["5", "10", "0.5", "0.5"],
    ]


def test_the_best_snapshot_is_kept_and_its_card_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshots = train(tmp_path, {2: 0.1, 4: 0.9, 5: 0.5})
    weight, metadata = kept(tmp_path)
    assert (weight, metadata["iterations"]) == (4, 8)
    assert metadata["selection"] == snapshots.choice
    assert metadata["selection"] == {
        "rule": "label_free",
        "epoch": 4,
        "score": "labelled_dice",
        "labelled_cases": "held-out",
        "value": 0.9,
        "reads_target_labels": False,
    }
    assert "epoch 4, selected without target labels by labelled_dice = 0.9000" in capsys.readouterr().out


def test_of_equal_snapshots_the_latest_is_kept(tmp_path: Path) -> None:
    train(tmp_path, {2: 0.9, 4: 0.9, 5: 0.5})
    assert kept(tmp_path)[0] == 4


def test_snapshots_without_a_choice_keep_the_last_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, {2: 0.9, 4: 0.1, 5: 0.1}, keep="last")
    weight, metadata = kept(tmp_path)
    assert (weight, metadata["iterations"]) == (5, 10)
    assert metadata["selection"] == {"rule": "last", "epoch": 5, "reads_target_labels": False}
    assert names(tmp_path) == ["epoch_002.pt", "epoch_004.pt", "epoch_005.pt"]
    assert "the last (epoch 5); nothing was selected" in capsys.readouterr().out


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    dice = {2: 0.7, 4: 0.9, 5: 0.5}
    train(tmp_path / "whole", dice)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", dice, stop=5)
    # The checkpoint is of epoch 3; what was seen of epoch 4 (another score, as it were) counts no more.
    log = tmp_path / "killed" / "logs" / "selection.csv"
    log.write_text(log.read_text().replace("0.9", "0.1"))
    train(tmp_path / "killed", dice, start=3)
    assert log.read_text() == (tmp_path / "whole" / "logs" / "selection.csv").read_text()
    assert kept(tmp_path / "killed") == kept(tmp_path / "whole")


def test_a_row_that_was_cut_short_after_the_checkpoint_is_made_again(tmp_path: Path) -> None:
    dice = {2: 0.7, 4: 0.9, 5: 0.5}
    train(tmp_path / "whole", dice)
    whole = (tmp_path / "whole" / "logs" / "selection.csv").read_text()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", dice, stop=5)
    log = tmp_path / "killed" / "logs" / "selection.csv"
    log.write_text(whole[: whole.index("\n4,8,") + 7])
    train(tmp_path / "killed", dice, start=3)
    assert log.read_text() == whole


def test_a_run_killed_before_its_first_snapshot_continues(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, {}, stop=2)
    train(tmp_path, {2: 0.7, 4: 0.9, 5: 0.5}, start=1)
    assert kept(tmp_path)[0] == 4


@pytest.mark.parametrize("lost", ["models/snapshots/epoch_002.pt", "logs/selection.csv"])
def test_a_missing_snapshot_is_named(lost: str, tmp_path: Path) -> None:
    dice = {2: 0.7, 4: 0.9, 5: 0.5}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, dice, stop=4)
    (tmp_path / lost).unlink()
    error = refused(train, tmp_path, dice, start=3)
    assert error.file == str(tmp_path / lost)
    assert "without --resume" in error.remedy


def test_a_row_of_a_snapshot_that_is_missing_is_named(tmp_path: Path) -> None:
    dice = {2: 0.7, 4: 0.9, 5: 0.5}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, dice, stop=4)
    log = tmp_path / "logs" / "selection.csv"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    error = refused(train, tmp_path, dice, start=3)
    assert (error.file, error.found) == (str(log), "no row of epoch 2")


def test_a_new_run_sets_an_earlier_ones_snapshots_aside(tmp_path: Path) -> None:
    train(tmp_path, {2: 0.9, 4: 0.1, 5: 0.1})
    train(tmp_path, {5: 0.3}, interval=5)
    assert names(tmp_path) == ["epoch_005.pt"]
    assert kept(tmp_path)[0] == 5
    assert len(list((tmp_path / "models" / "earlier_snapshots").glob("*.pt"))) == 3


# ---- through the configs ----

DIRECT = CONFIGS / "methods" / "d1_d2.yaml"
"""Adapts without a translator."""

SNAPSHOTS = CONFIGS / "selection" / "snapshots.yaml"

LONG = {"max_epochs": 3, "checkpoint_interval": 1}
EVERY_EPOCH = LONG | {"selection#interval": 1}


def run_with_snapshots(*overlays: Path, **settings: Any) -> None:
    run_config("training", "segmentation", "train", *overlays, SNAPSHOTS, **EVERY_EPOCH | settings)


@pytest.fixture(scope="module")
def chosen(without_labels: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a training with a rule of selection, on target labels in some state; each is run once."""
    done: dict[tuple[str | None, str], Path] = {}

    def run(keep: str | None, labels: str = "as they are") -> Path:
        if (keep, labels) not in done:
            root = tmp_path_factory.mktemp("run")
            places = {"bundle_root": root, "dataset_dir": without_labels(labels)}
            if keep is None:  # as users run it: without snapshots
                run_config("training", "segmentation", "train", DIRECT, **places, **LONG)
            else:
                run_with_snapshots(DIRECT, **places, **{"selection#keep": keep})
            done[keep, labels] = root
        return done[keep, labels]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["deleted", "scrambled"])
@pytest.mark.parametrize("keep", [None, "masked_consistency"])
def test_target_labels_change_nothing(keep: str | None, labels: str, chosen: Callable[..., Path]) -> None:
    honest, other = chosen(keep), chosen(keep, labels)
    assert_same_weights(honest / "models" / "model.pt", other / "models" / "model.pt")
    for name in ["logs/losses.csv", *(["logs/selection.csv"] if keep else [])]:
        assert (honest / name).read_text() == (other / name).read_text()
    assert json.loads((other / "models" / "model.json").read_text())["selection"]["reads_target_labels"] is False


@pytest.mark.slow
def test_the_oracle_reads_them_and_says_so(
    chosen: Callable[..., Path], without_labels: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    places = {"bundle_root": tmp_path / "run", "dataset_dir": without_labels("deleted")}
    error = refused(run_with_snapshots, DIRECT, **places, **{"selection#keep": "oracle"})
    assert "label" in str(error)
    assert not list((tmp_path / "run" / "models").rglob("*.pt")), "refused before any work"
    honest, other = chosen("oracle"), chosen("oracle", "scrambled")
    first, second = (json.loads((root / "models" / "model.json").read_text())["selection"] for root in (honest, other))
    assert first["value"] != second["value"]
    assert (first["rule"], first["reads_target_labels"]) == ("oracle", True)
    # What it is told is true of the labels: the best of its own table, by a Dice that scrambled labels cannot have.
    table = dict(line.split(",") for line in (honest / "logs" / "oracle.csv").read_text().splitlines()[1:])
    assert first["value"] == pytest.approx(max(map(float, table.values())), abs=1e-6)
    # The trainings are equal: only the choice may differ.
    assert (honest / "logs" / "losses.csv").read_text() == (other / "logs" / "losses.csv").read_text()
    assert_same_weights(honest / "models/snapshots/epoch_003.pt", other / "models/snapshots/epoch_003.pt")
    # The word goes with the weights into provenance and every evaluation.
    assert json.loads((honest / "provenance.json").read_text())["selection"] == first
    run_config("evaluating", "segmentation", "evaluate", bundle_root=honest, dataset_dir=data)
    assert json.loads((honest / "eval" / "summary.json").read_text())["selection"] == first


@pytest.mark.slow
def test_training_does_not_notice_that_snapshots_are_taken(chosen: Callable[..., Path]) -> None:
    plain, watched = chosen(None), chosen("masked_consistency")
    assert (plain / "logs" / "losses.csv").read_text() == (watched / "logs" / "losses.csv").read_text()
    # The snapshot after the last epoch is what `last` keeps.
    assert_same_weights(plain / "models" / "model.pt", watched / "models" / "snapshots" / "epoch_003.pt")
    # And what is kept is the snapshot that the metadata name.
    epoch = json.loads((watched / "models" / "model.json").read_text())["selection"]["epoch"]
    assert_same_weights(watched / "models" / "model.pt", watched / "models" / "snapshots" / f"epoch_{epoch:03d}.pt")


@pytest.mark.slow
def test_the_rule_may_change_when_a_finished_run_is_resumed(chosen: Callable[..., Path], data: Path) -> None:
    root = chosen("oracle", "scrambled")
    places = {"bundle_root": root, "dataset_dir": data, "resume": True}
    run_with_snapshots(DIRECT, **places, **{"selection#keep": "masked_consistency"})
    assert_same_weights(root / "models" / "model.pt", chosen("masked_consistency") / "models" / "model.pt")
    # But not the epochs at which there are snapshots.
    error = refused(run_with_snapshots, DIRECT, **places, **{"selection#interval": 2})
    assert error.found == "a run with selection#interval: 1"


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"selection#keep": "luck"}, {"selection#interval": 0}])
def test_settings_that_choose_nothing(setting: dict[str, Any], data: Path, tmp_path: Path) -> None:
    (key,) = setting
    error = refused(run_with_snapshots, DIRECT, dataset_dir=data, bundle_root=tmp_path / "run", **setting)
    assert error.file == f"setting '{key}'"
    assert not list((tmp_path / "run" / "models").rglob("*.pt"))


@pytest.mark.slow
def test_a_method_without_the_target_is_scored_on_its_images(data: Path, tmp_path: Path) -> None:
    method = CONFIGS / "methods" / "none.yaml"
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    run_config("training", "segmentation", "train", method, bundle_root=plain, dataset_dir=data, **LONG)
    run_with_snapshots(method, bundle_root=scored, dataset_dir=data)
    rows = read_scores(scored / "logs" / "selection.csv")
    assert [epoch for epoch, row in rows.items() if math.isfinite(row["score_masked_consistency"])] == [1, 2, 3]
    # The training itself does not notice: the target's images are looked at, and no batch is drawn from them.
    assert (plain / "logs" / "losses.csv").read_text() == (scored / "logs" / "losses.csv").read_text()
    assert_same_weights(plain / "models" / "model.pt", scored / "models" / "snapshots" / "epoch_003.pt")


@pytest.mark.slow
def test_without_target_images_there_is_nothing_to_score(data: Path, tmp_path: Path) -> None:
    places = {"bundle_root": tmp_path, "dataset_dir": data, "scored_datalist": tmp_path / "no.json"}
    method = CONFIGS / "methods" / "none.yaml"
    error = refused(run_with_snapshots, method, **places)
    assert error.found == "masked_consistency without target slices to score"
    assert "--scored_datalist" in error.remedy
