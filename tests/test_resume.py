"""Nothing lost: a run killed at any moment continues to the very result of one that was left alone."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, ROOT, bundle_command, command_environment, listed_files, run_command, run_config
from scripts.core.errors import InputError, find_input_error
from scripts.data.slices import UnpairedSliceBatches

pytestmark = pytest.mark.slow

RUN = {"max_epochs": 6, "iterations_per_epoch": 4, "checkpoint_interval": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "synthesis": RUN,
    # A warm-up that ends in the middle, so that either side of it is continued; and bf16 in one of the stages.
    # The weights that are kept are chosen among snapshots.
    "segmentation": RUN
    | {"adversarial_warmup": 12, "learning_rate_warmup": 3, "val_interval": 2, "precision": "bf16"}
    | {"selection#interval": 2},
}
OVERLAYS = {"synthesis": [], "segmentation": [CONFIGS / "selection" / "snapshots.yaml"]}
CHECKPOINT = Path("models", "resume", "checkpoint.pt")


def settings(stage: str, data: Path, root: Path, **more: Any) -> dict[str, Any]:
    lists = {"labelled_datalist": data / "mr.json"} if stage == "segmentation" else {}
    return SETTINGS[stage] | lists | {"dataset_dir": data, "bundle_root": root} | more


def run_stage(stage: str, **settings: Any) -> None:
    run_config("training", stage, "train", *OVERLAYS[stage], **settings)


def command_of(stage: str, **settings: Any) -> list[str]:
    return bundle_command("training", stage, "train", *OVERLAYS[stage], **settings)


def result(root: Path) -> tuple[dict[str, torch.Tensor], str]:
    return torch.load(root / "models" / "model.pt", weights_only=True), (root / "logs" / "losses.csv").read_text()


def tables(root: Path) -> list[str]:
    """The metadata, with the choice among snapshots where there are any, and their scores."""
    files = [root / "models" / "model.json", root / "logs" / "selection.csv"]
    return [file.read_text() for file in files if file.exists()]


def assert_same_result(first: Path, second: Path) -> None:
    (weights, losses), (other_weights, other_losses) = result(first), result(second)
    assert losses == other_losses
    assert tables(first) == tables(second)
    assert weights.keys() == other_weights.keys()
    assert [name for name in weights if not torch.equal(weights[name], other_weights[name])] == []


@pytest.fixture(scope="module", params=["synthesis", "segmentation"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(stage: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run. It alone draws pictures, which must not change the result."""
    root = tmp_path_factory.mktemp(f"{stage}_whole")
    run_stage(stage, **settings(stage, data, root, panel_interval=3))
    return root


def start_and_kill(command: list[str], checkpoint: Path, wait_s: float) -> int:
    """Start a training, wait for its first checkpoint and a moment more, and kill it as a power cut would."""
    with subprocess.Popen(
        command, cwd=ROOT, env=command_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        return process.wait()


def test_a_killed_run_continues_to_the_same_result(stage: str, whole: Path, data: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    command = command_of(stage, **settings(stage, data, root))
    code = start_and_kill(command, root / CHECKPOINT, wait_s=0.05)
    assert code == -signal.SIGKILL, "the run ended before it was killed"
    assert not (root / "models" / "model.pt").exists()
    reached = torch.load(root / CHECKPOINT, weights_only=True)["trainer"]["iteration"]
    assert 0 < reached < 24
    done = run_command(command_of(stage, **settings(stage, data, root, resume=True)))
    assert done.code == 0, done.stderr
    assert_same_result(whole, root)
    assert not [name for name in listed_files(root / "models") if Path(name).name.startswith(".")]


def test_an_interrupted_run_continues_to_the_same_result(stage: str, whole: Path, data: Path, tmp_path: Path) -> None:
    # Stopped by an exception in the middle of an epoch: batch 14 of 24, two iterations after the checkpoint.
    original = UnpairedSliceBatches.batch

    def batch(self: UnpairedSliceBatches, index: int) -> dict[str, torch.Tensor]:
        if index == 14:
            raise KeyboardInterrupt
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage, **settings(stage, data, tmp_path))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["trainer"]["iteration"] == 12
    run_stage(stage, **settings(stage, data, tmp_path, resume=True))
    assert_same_result(whole, tmp_path)


def test_resuming_a_finished_run_changes_nothing(stage: str, whole: Path, data: Path) -> None:
    before = result(whole)
    run_stage(stage, **settings(stage, data, whole, resume=True))
    after = result(whole)
    assert before[1] == after[1]
    assert [name for name in before[0] if not torch.equal(before[0][name], after[0][name])] == []


AS_THEY_ARE = {f"{side}_intensity": {"_target_": "ScaleIntensityd", "keys": "image"} for side in ("source", "target")}
"""Intensities of either modality; those of the task refuse an MR in a CT's place before any metadata are compared."""

OTHERS: list[tuple[dict[str, Any], str]] = [
    (
        {"source_domain": "ct", "target_domain": "mr", **AS_THEY_ARE},
        r"domains: \['mr', 'ct'\]\. Expected domains: \['ct', 'mr'\]",
    ),
    ({"dataset_name": "other"}, "dataset_name: phantom. Expected dataset_name: other"),
]
SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "synthesis": ({"generator_channels": 6}, "generator_channels: 4. Expected generator_channels: 6"),
    "segmentation": ({"network_def#width": 6}, "width: 4. Expected width: 6"),
}


def test_a_checkpoint_of_another_task_or_size_is_refused_and_kept(stage: str, whole: Path, data: Path) -> None:
    before = (whole / CHECKPOINT).read_bytes()
    for changes, match in [*OTHERS, SIZES[stage]]:
        with pytest.raises(Exception, match=r".") as caught:
            run_config(
                "training", stage, "train", *OVERLAYS[stage], **settings(stage, data, whole, resume=True, **changes)
            )
        error = find_input_error(caught.value)
        assert isinstance(error, InputError), caught.value
        with pytest.raises(InputError, match=match):
            raise error
        assert error.file == str(whole / CHECKPOINT)
    assert (whole / CHECKPOINT).read_bytes() == before


def test_a_new_run_in_a_used_folder_does_not_become_the_old_one(
    stage: str, whole: Path, data: Path, tmp_path: Path
) -> None:
    # An earlier run, of another seed, left its checkpoint; a new one is killed before it saved its own first.
    shutil.copytree(whole, tmp_path / "run")
    old = (whole / CHECKPOINT).read_bytes()

    def interrupt(self: UnpairedSliceBatches, index: int) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stage(stage, **settings(stage, data, tmp_path / "run", seed=1))
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    assert (tmp_path / "run" / CHECKPOINT).with_name("earlier_checkpoint.pt").read_bytes() == old
    run_config(
        "training", stage, "train", *OVERLAYS[stage], **settings(stage, data, tmp_path / "run", seed=1, resume=True)
    )
    run_stage(stage, **settings(stage, data, tmp_path / "fresh", seed=1))
    assert_same_result(tmp_path / "fresh", tmp_path / "run")


def test_the_same_seed_gives_the_same_result(stage: str, whole: Path, data: Path, tmp_path: Path) -> None:
    run_stage(stage, **settings(stage, data, tmp_path))
    assert_same_result(whole, tmp_path)
    run_stage(stage, **settings(stage, data, tmp_path / "other", seed=1))
    assert result(whole)[1] != result(tmp_path / "other")[1]
