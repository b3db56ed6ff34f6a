"""Several processes train as one would with all their slices (on the CPU, by gloo)."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, ROOT, Finished, bundle_command, command_environment, run_command, run_config, torchrun

from scripts import processes
from scripts.errors import InputError

TIMEOUT_S = 240

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""To what the two trainings' weights, statistics and optimisers' states agree after six steps in float32."""

CHECKPOINT = Path("models", "resume", "checkpoint.pt")

# Three epochs of two iterations and a checkpoint after the second: what is left of an ended run is in its middle.
RUN: dict[str, Any] = {"max_epochs": 3, "iterations_per_epoch": 2, "checkpoint_interval": 2, "panel_interval": 3}
SETTINGS: dict[str, dict[str, Any]] = {
    "synthesis": RUN,
    # The warm-up ends on the way, so that either domain sets batch norm's running statistics; validation runs too. A
    # network this small turns rounding errors into other weights within a few large steps: the rate is low.
    "segmentation": RUN
    | {"labelled_intensity": "@source_intensity", "adversarial_warmup": 3, "val_interval": 2, "learning_rate": 1e-4},
}
NOT_MEANS = {"mask_std", "content_std"}
"""Standard deviations are logged as the mean of those of the processes' parts."""


def settings(stage: str, data: Path, root: Path, **more: Any) -> dict[str, Any]:
    lists = {"labelled_datalist": data / "mr.json"} if stage == "segmentation" else {}
    return SETTINGS[stage] | lists | {"dataset_dir": data, "bundle_root": root, "cache_dir": root / "cache"} | more


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
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    for file in (Path("models", "model.pt"), CHECKPOINT):
        found = tensors(torch.load(one / file, weights_only=True))
        expected = tensors(torch.load(other / file, weights_only=True))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=RELATIVE, atol=ABSOLUTE, msg=name)


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
    done = run_command(
        torchrun(bundle_command("training", stage, "train", overlay(stage), **settings(stage, data, root))),
        timeout_s=TIMEOUT_S,
    )
    assert done.code == 0, done.stderr[-2000:]
    return root


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(one: Path, two: Path) -> None:
    assert_same_training(two, one)


@pytest.mark.slow
def test_another_number_of_processes_continues_a_run(
    stage: str, data: Path, one: Path, two: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(two, root)
    (root / "models" / "model.pt").unlink()
    run_config("training", stage, "train", **settings(stage, data, root, resume=True))
    assert_same_training(root, one)


def workers_of(launcher: subprocess.Popen[str]) -> dict[str, int]:
    """Process ids of a launcher's workers by their rank."""
    found = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {entry[5:].decode(): int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return found


def run_and_kill_a_worker(command: list[str], *, when: Callable[[], bool]) -> tuple[Finished, list[int]]:
    """Run a launcher to its end; kill the second of its workers, when it is time. Gives all first workers too."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=command_environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        deadline, workers = time.monotonic() + TIMEOUT_S, dict[str, int]()
        try:
            while not (len(workers) == 2 and when()):
                assert launcher.poll() is None, "it ended before a worker was killed"
                assert time.monotonic() < deadline
                time.sleep(0.005)
                workers = workers_of(launcher)
            os.kill(workers["1"], signal.SIGKILL)
            out, errors = launcher.communicate(timeout=TIMEOUT_S)
        except BaseException:
            launcher.terminate()  # and, with it, its workers
            raise
    return Finished(launcher.returncode, out, errors), list(workers.values())


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")


@pytest.mark.slow
@needs_proc
def test_a_killed_worker_is_replaced_and_the_run_continues(data: Path, tmp_path: Path) -> None:
    stage, one, root = "synthesis", tmp_path / "one", tmp_path / "two"
    run_config("training", stage, "train", **settings(stage, data, one), **{"train#batches#shares": 2})
    changes = {"resume": True, "checkpoint_interval": 1, "logging_file": CONFIGS / "logging.conf"}
    command = bundle_command("training", stage, "train", overlay(stage), **settings(stage, data, root, **changes))
    checkpoint = root / CHECKPOINT
    done, workers = run_and_kill_a_worker(torchrun(command, "--max-restarts=1"), when=checkpoint.exists)
    assert done.code == 0, done.stderr[-2000:]
    assert "continuing from iteration" in done.stdout + done.stderr
    checkpoint.write_bytes((one / CHECKPOINT).read_bytes())  # its own is of the last epoch
    assert_same_training(root, one)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.slow
@needs_proc
def test_a_dead_worker_ends_the_run_with_its_name(data: Path, tmp_path: Path) -> None:
    command = bundle_command("training", "synthesis", "train", **settings("synthesis", data, tmp_path))
    done, workers = run_and_kill_a_worker(torchrun(command), when=lambda: True)
    assert done.code == 1
    assert f"Signal 9 (SIGKILL) received by PID {workers[1]}" in done.stderr
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_launcher_whose_restarts_would_fail_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InputError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment"):
        processes.join()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_ends_every_process(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = bundle_command("training", "synthesis", "train", **settings("synthesis", data, tmp_path / "file" / "run"))
    done = run_command(torchrun(command), timeout_s=TIMEOUT_S)
    assert done.code == 1
    sentences = re.findall(r"^\[rank\d\]: error: .*$", done.stderr, re.MULTILINE)
    assert sentences
    assert all("found a folder that cannot be written (Not a directory)" in sentence for sentence in sentences)
    assert "Traceback (most recent call last)" not in "".join(re.findall(r"^\[rank.*$", done.stderr, re.MULTILINE))
