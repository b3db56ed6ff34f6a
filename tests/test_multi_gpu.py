"""Several processes train as one would with all their slices (on the CPU, by gloo)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, bundle_command, run_command, run_config, torchrun

CHECKPOINT = Path("models", "resume", "checkpoint.pt")

# Three epochs of two iterations and a checkpoint after the second: what is left of an ended run is in its middle.
RUN: dict[str, Any] = {"max_epochs": 3, "iterations_per_epoch": 2, "checkpoint_interval": 2, "panel_interval": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "synthesis": RUN,
    # The warm-up ends on the way, so that either domain sets batch norm's running statistics; validation runs too.
    "segmentation": RUN | {"labelled_intensity": "@source_intensity", "adversarial_warmup": 3, "val_interval": 2},
}
NOT_MEANS = {"mask_std", "content_std"}
"""Standard deviations are logged as the mean of those of the processes' parts."""


def settings(stage: str, data: Path, root: Path, **more: Any) -> dict[str, Any]:
    lists = {"labelled_datalist": data / "mr.json"} if stage == "segmentation" else {}
    return SETTINGS[stage] | lists | {"dataset_dir": data, "bundle_root": root, "cache_dir": data / "cache"} | more


def overlay(stage: str) -> Path:
    return CONFIGS / stage / "multi_gpu_train.yaml"


def losses(root: Path) -> list[dict[str, float]]:
    header, *rows = [line.split(",") for line in (root / "logs" / "losses.csv").read_text().splitlines()]
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def tensors(state: Any) -> dict[str, torch.Tensor]:
    """Every tensor of a nested state, by its path."""
    found = {}
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, torch.Tensor):
            found[str(key)] = value
        elif isinstance(value, dict | list):
            found |= {f"{key}.{name}": tensor for name, tensor in tensors(value).items()}
    return found


def assert_same_training(one: Path, other: Path) -> None:
    for row, expected in zip(losses(one), losses(other), strict=True):
        for name in expected.keys() - NOT_MEANS:
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    for file in (Path("models", "model.pt"), CHECKPOINT):
        found = tensors(torch.load(one / file, weights_only=True))
        expected = tensors(torch.load(other / file, weights_only=True))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(scope="module", params=["synthesis", "segmentation"])
def stage(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one(stage: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with batches of two shares."""
    root = tmp_path_factory.mktemp(f"{stage}_one")
    run_config("training", stage, "train", **settings(stage, data, root), **{"train#batches#shares": 2})
    return root


@pytest.fixture(scope="module")
def two(stage: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes with a share each."""
    root = tmp_path_factory.mktemp(f"{stage}_two")
    done = run_command(torchrun(bundle_command("training", stage, "train", overlay(stage), **settings(stage, data, root))))
    assert done.code == 0, done.stderr[-2000:]
    return root


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(one: Path, two: Path) -> None:
    assert_same_training(two, one)
