"""Several processes do what one would: train with all their slices, share volumes (on the CPU, by gloo)."""

from __future__ import annotations

import json
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
from conftest import (
    CONFIGS,
    ROOT,
    Finished,
    bundle_command,
    command_environment,
    processes_of,
    run_command,
    run_config,
    torchrun,
)
from scripts.core import processes
from scripts.core.errors import InputError
from scripts.data.written_datalists import TranslatedDatalist
from test_worklist import CASES, assert_same_evaluation, predictions, run_two

TIMEOUT_S = 240

RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""To what the two trainings' weights, statistics and optimisers' states agree after six steps in float32."""

ABSOLUTE_OF_STATES = {"starganv2": 5e-4}
"""Adam's states of a few parameters, where a training needs more."""

WEIGHTS, CHECKPOINT = Path("models", "model.pt"), Path("models", "resume", "checkpoint.pt")

SELF_TRAINING = {
    "_target_": "scripts.losses.self_training.SelfTraining",
    "teacher": "$@average.module",
    "start": 0.5,  # the last three iterations
}

# Three epochs of two iterations and a checkpoint after the second: what is left of an ended run is in its middle.
RUN: dict[str, Any] = {"max_epochs": 3, "iterations_per_epoch": 2, "checkpoint_interval": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "synthesis": RUN,
    "starganv2": RUN,  # draws styles at random
    # The warm-up ends on the way, so that either domain sets batch norm's running statistics; validation runs too. A
    # network this small turns rounding errors into other weights within a few large steps: the rate is low.
    "segmentation": RUN
    | {"labelled_intensity": "@source_intensity", "adversarial_warmup": 3, "val_interval": 2, "learning_rate": 1e-4}
    | {"selection#interval": 1}  # the first process alone scores the snapshots
    | {"extra_losses#self_training": SELF_TRAINING},
}
STAGE = {"synthesis": "synthesis", "starganv2": "synthesis", "segmentation": "segmentation"}
"""Of each training."""

NOT_MEANS = {"mask_std", "content_std"}
"""Standard deviations are logged as the mean of those of the processes' parts."""


def settings(training: str, data: Path, root: Path, **more: Any) -> dict[str, Any]:
    lists = {"labelled_datalist": data / "mr.json"} if training == "segmentation" else {}
    return SETTINGS[training] | lists | {"dataset_dir": data, "bundle_root": root, "cache_dir": root / "cache"} | more


def train(training: str, data: Path, root: Path, **more: Any) -> None:
    """One process's training, here."""
    run_config("training", STAGE[training], "train", *overlays(training), **settings(training, data, root, **more))


def command_of(training: str, data: Path, root: Path, **more: Any) -> list[str]:
    """What each of several processes runs."""
    files = [*overlays(training), CONFIGS / STAGE[training] / "multi_gpu_train.yaml"]
    return bundle_command("training", STAGE[training], "train", *files, **settings(training, data, root, **more))


def overlays(training: str) -> list[Path]:
    files = {"starganv2": ["translators/starganv2.yaml"], "segmentation": ["selection/snapshots.yaml"]}
    return [CONFIGS / name for name in files.get(training, [])]


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


def assert_same_training(one: Path, other: Path, *files: Path, absolute_of_states: float = ABSOLUTE) -> None:
    for row, expected in zip(losses(one), losses(other), strict=True):
        for name in expected.keys() - NOT_MEANS:
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
    for file in files or (WEIGHTS, CHECKPOINT):
        found = tensors(torch.load(one / file, weights_only=True))
        expected = tensors(torch.load(other / file, weights_only=True))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            atol = absolute_of_states if "optimizer" in name else ABSOLUTE
            torch.testing.assert_close(
                found[name], tensor, rtol=RELATIVE, atol=atol, msg=lambda said, n=name: f"{n}: {said}"
            )


@pytest.fixture(scope="module", params=list(SETTINGS))
def training(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def one(training: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with batches of two shares."""
    root = tmp_path_factory.mktemp(f"{training}_one")
    train(training, data, root, **{"train#batches#shares": 2})
    return root


@pytest.fixture(scope="module")
def two(training: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes with a share each."""
    root = tmp_path_factory.mktemp(f"{training}_two")
    done = run_command(torchrun(command_of(training, data, root)), timeout_s=TIMEOUT_S)
    assert done.code == 0, done.stderr[-2000:]
    return root


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(training: str, one: Path, two: Path) -> None:
    assert_same_training(two, one, absolute_of_states=ABSOLUTE_OF_STATES.get(training, ABSOLUTE))
    if training == "segmentation":  # it taught itself in both, by thresholds that both found among all pixels
        assert [row["self_training"] > 0 for row in losses(two)] == [False] * 3 + [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("begun_by", ["one", "two"])
def test_another_number_of_processes_continues_a_run(
    training: str, data: Path, one: Path, two: Path, begun_by: str, tmp_path: Path
) -> None:
    if (training, begun_by) == ("starganv2", "one"):
        pytest.skip("the synthesis run covers this direction")
    root = tmp_path / "run"
    shutil.copytree(one if begun_by == "one" else two, root)
    (root / WEIGHTS).unlink()
    if begun_by == "one":
        changes = {"resume": True, "logging_file": CONFIGS / "logging.conf"}
        done = run_command(torchrun(command_of(training, data, root, **changes)), timeout_s=TIMEOUT_S)
        assert done.code == 0, done.stderr[-2000:]
        assert re.findall(r"continuing from iteration (\d+)", done.stdout + done.stderr) == ["4"] * 2
    else:
        train(training, data, root, resume=True)
    assert_same_training(root, one, absolute_of_states=ABSOLUTE_OF_STATES.get(training, ABSOLUTE))


def workers_of(launcher: subprocess.Popen[str]) -> dict[str, int]:
    """Process ids of a launcher's workers by their rank."""
    found = {}
    for pid in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {entry[5:].decode(): int(pid) for entry in environment if entry.startswith(b"RANK=")}
    return found


def run_and_kill_a_worker(command: list[str], *, when: Callable[[], bool]) -> tuple[Finished, list[int]]:
    """Run a launcher to its end; kill the second of its workers, when it is time. Gives the first workers' ids too."""
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
    return Finished(launcher.returncode, out, errors), [workers["0"], workers["1"]]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers in /proc")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("training", ["segmentation"], indirect=True, scope="module")
def test_a_killed_worker_is_replaced_and_the_run_continues(
    training: str, data: Path, one: Path, tmp_path: Path
) -> None:
    changes = {"resume": True, "checkpoint_interval": 1, "logging_file": CONFIGS / "logging.conf"}
    command = torchrun(command_of(training, data, tmp_path, **changes), "--max-restarts=1")
    done, _ = run_and_kill_a_worker(command, when=(tmp_path / CHECKPOINT).exists)
    assert done.code == 0, done.stderr[-2000:]
    continued = re.findall(r"continuing from iteration (\d+)", done.stdout + done.stderr)
    assert continued in (["2"] * 2, ["4"] * 2), "both second workers, from one of the checkpoints on the way"
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["trainer"]["iteration"] == 6
    assert_same_training(tmp_path, one, WEIGHTS)
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@needs_proc
def test_a_dead_worker_ends_the_run_with_its_name(data: Path, tmp_path: Path) -> None:
    command = bundle_command("training", "synthesis", "train", **settings("synthesis", data, tmp_path))
    done, workers = run_and_kill_a_worker(torchrun(command), when=lambda: True)
    assert done.code == 1
    assert f"Signal 9 (SIGKILL) received by PID {workers[1]}" in done.stderr
    assert processes_of(tmp_path) == []


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
    assert all("a folder that cannot be written (Not a directory)" in sentence for sentence in sentences)
    assert "Traceback (most recent call last)" not in "".join(re.findall(r"^\[rank.*$", done.stderr, re.MULTILINE))


@pytest.mark.slow
def test_two_processes_continue_an_evaluation(data: Path, trained: Path, tmp_path: Path) -> None:
    """They do the one volume that is left, which leaves the second of them none, and report on all."""
    out, alone, listed = tmp_path / "eval", tmp_path / "alone", tmp_path / "ct.json"
    entries = [{key: str(data / f"{case}_{key}.nii.gz") for key in ("image", "label")} for case in CASES]
    listed.write_text(json.dumps({"validation": entries}))
    places = {"bundle_root": trained / "segmentation", "evaluation_datalist": listed, "output_dir": out}
    run_config("evaluating", "segmentation", "evaluate", **places)
    shutil.copytree(out, alone)
    (out / "done" / "ct_1_image.json").unlink()
    before = predictions(out)
    command = bundle_command("evaluating", "segmentation", "evaluate", **places, resume=True)
    done, cases = run_two(tmp_path, command)
    assert done.code == 0, done.stderr[-2000:]
    assert cases == [("ct_1", "0")]
    after = predictions(out)
    assert [name for name in after if after[name][0] != before[name][0]] == ["ct_1_image_seg.nii.gz"]
    assert_same_evaluation(out, alone)
    assert json.loads((out / "summary.json").read_text())["provenance"]["processes"] == 2


@pytest.mark.slow
def test_two_processes_translate_as_one(data: Path, trained: Path, tmp_path: Path) -> None:
    out, alone = tmp_path / "translated", tmp_path / "alone"
    places = {"bundle_root": trained / "synthesis", "dataset_dir": data}
    run_config("inference", "synthesis", "inference", **places, output_dir=alone)
    done, cases = run_two(tmp_path, bundle_command("inference", "synthesis", "inference", **places, output_dir=out))
    assert done.code == 0, done.stderr[-2000:]
    assert cases == [("mr_0", "0"), ("mr_1", "1"), ("mr_2", "0")]
    assert [file.name for file in sorted(out.glob("*.nii.gz"))] == [f"mr_{n}_image_translated.nii.gz" for n in range(3)]
    for file in [*out.glob("*.nii.gz"), out / "datalist.json"]:  # the list's paths of what lies beside it are relative
        assert file.read_bytes() == (alone / file.name).read_bytes(), file.name


def test_the_first_process_alone_writes_the_translated_list(
    data: Path, tmp_path: Path, as_process: Callable[[int, int], None]
) -> None:
    translated = TranslatedDatalist(datalist=str(data / "mr.json"), folder=str(tmp_path), postfix="t", domain="ct")
    for place, written in [(1, []), (0, ["datalist.json"])]:
        as_process(place, 2)
        translated.write()
        assert [file.name for file in tmp_path.iterdir()] == written
