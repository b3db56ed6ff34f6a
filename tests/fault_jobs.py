"""Jobs for the fault campaign: how each is started, goes on, and which of its files must equal an undisturbed run's."""

from __future__ import annotations

import gzip
import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from job_process import JobProcess
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.files import PART
from scripts.core.weights import digest_of, read_state, save_weights

TASK = "configs/tasks/phantom_ct2mr.yaml"
SYNTHESIS: dict[str, Any] = {
    **{"slice_size": [32, 32], "generator_channels": 4, "generator_blocks": 1, "discriminator_channels": 4},
    **{"pool_size": 4},
}
NETWORK: dict[str, Any] = {
    **{"network_def#layers": [1, 1, 1, 1], "network_def#width": 4},
    **{"network_def#feature_channels": 16, "network_def#atrous_rates": [1, 2]},
}
SEGMENTATION: dict[str, Any] = {"slice_size": [32, 32], **NETWORK}
# Of seconds, with a checkpoint every two iterations.
TRAINING: dict[str, Any] = {
    **{"max_epochs": 6, "iterations_per_epoch": 2, "batch_size": 2, "checkpoint_interval": 1, "panel_interval": 0}
}
# Longest time that any job may take on a busy machine: seconds on an idle one.
LONGEST_S = 1800.0
LARGE_DISK = "200m"
# Sizes of the disks that fill up, in bytes: smaller than a log, than weights, than a volume, than all results.
DISK_BYTES = (4_096, 12_288, 40_960, 200_704, 1_003_520)


@dataclass(frozen=True)
class Job:
    """A command of the project.

    Attributes:
        name: a row of the table.
        command: words behind ``python -m``; ``{out}`` stands for the output folder.
        results: patterns of the files that are compared.
        resume: words that are added to go on.
        is_locked: a second run in the same folder is refused.
    """

    name: str
    command: Sequence[str]
    results: Sequence[str]
    resume: Sequence[str] = field(default=())
    is_locked: bool = False

    def start(self, out: Path, *, goes_on: bool = False, largest_file: int | None = None) -> JobProcess:
        """Start it; a write beyond ``largest_file`` bytes fails as on a full disk."""
        words = [word.format(out=out) for word in (*self.command, *(self.resume if goes_on else ()))]
        return JobProcess(words, largest_file)


def jobs(data: Path, weights: Path) -> list[Job]:
    """Every kind of job, with tiny networks on the data of the campaign; writes random weights for inference."""
    _write_weights(weights)
    trained = {**TRAINING, "dataset_dir": data, "bundle_root": "{out}"}
    segmented = {**SEGMENTATION, "bundle_root": "{out}", "checkpoint": weights, "output_dir": "{out}/maps"}
    listed, evaluated = {"dataset_dir": data / "mr.json"}, {"dataset_dir": data}
    images, others = str(data / "ct_train"), str(data / "mr_train")
    maps = ("maps/**/*.nii.gz", "maps/*.csv")
    compared = {**NETWORK, **TRAINING, "device": "cpu", "precision": "float32"}
    none = {"d2_def#channels": 4, "val_interval": 0, "learning_rate_warmup": 1}
    return [
        _bundle("training", ["synthesis/train"], SYNTHESIS | trained, ["models/model.pt"]),
        _bundle("inference", ["segmentation/inference"], segmented | listed, maps),
        _bundle("evaluating", ["segmentation/inference", "segmentation/evaluate"], segmented | evaluated, maps),
        _bundle("training", ["segmentation/train", "methods/none"], SEGMENTATION | trained | none, ["models/model.pt"]),
        _script("phantom", ["--cases", "2", "--out", "{out}"], ["**/*.nii.gz", "**/*.json"], is_locked=True),
        _script(
            "prepare",
            ["folder", "--source", images, "--labels", images, "--domain", "ct", "--out", "{out}", "--workers", "2"],
            ["**/*.nii.gz", "ct.json"],
            is_locked=True,
        ),
        _script(
            "datalist",
            ["--images", images, "--labels", images, "--domain", "ct", "--out", "{out}"],
            ["*.json"],
            is_locked=True,
        ),
        _script("check", [str(data / "ct.json"), "--out", "{out}", "--workers", "2"], ["check.json"], is_locked=True),
        _script(
            "adapt",
            [
                *("--source_images", images, "--source_labels", images, "--target_images", others),
                *("--out", "{out}/adapt", "--plan_only"),  # the task has the name of the folder
            ],
            ["adapt/task.yaml", "adapt/data/*.json"],
            is_locked=True,
        ),
        _script(
            "compare",
            [
                *("--task", "phantom_ct2mr", "--methods", "none", "--dataset_dir", str(data), "--out", "{out}"),
                *(f"--set={key}={value}".replace(" ", "") for key, value in compared.items()),
            ],
            ["methods/*/models/model.pt", "methods/*/eval/metrics.csv"],
        ),
        _script(
            "segment",
            [str(weights.parents[1]), str(data / "mr.json"), "--out", "{out}", "--set", "device=cpu"],
            ["*.nii.gz", "*.csv"],
            resume=["--set", "resume=True"],
            is_locked=True,
        ),
        Job(
            "pack",
            ["bundle", "pack", "segmentation", "--task", "phantom_ct2mr", "--out", "{out}"],
            ["*/scripts/**/*.py", "*/configs/*.json"],
            is_locked=True,
        ),
    ]


def _bundle(run_id: str, configs: Sequence[str], settings: Mapping[str, Any], results: Sequence[str]) -> Job:
    files = [f"configs/{name}.yaml" for name in configs]
    files.insert(1, TASK)
    given = {"config_file": repr(files).replace(" ", ""), "device": "cpu", "precision": "float32", **settings}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    name = f"{configs[0].split('/')[0]} training" if run_id == "training" else run_id
    return Job(name, ["monai.bundle", "run", run_id, *words], results, ["--resume", "True"], is_locked=True)


def _script(name: str, words: Sequence[str], results: Sequence[str], **options: Any) -> Job:
    return Job(name, ["scripts", name, *words], results, **options)


def _write_weights(path: Path) -> None:
    """Random weights, in a run folder with the settings of its training."""
    parser = ConfigParser()
    parser.read_config(["configs/segmentation/train.yaml", TASK])
    parser.update(SEGMENTATION)
    torch.manual_seed(0)
    state = parser.get_parsed_content("network_def").state_dict()
    save_weights(path, state, parser.get_parsed_content("weights_metadata"))
    ConfigParser.export_config_file(parser.get(), str(path.parents[1] / "config.yaml"), fmt="yaml", sort_keys=False)


def contents(out: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Digests of the files of a job: of tensors in weights, of voxels and not their compression in volumes.

    Raises:
        RuntimeError: files that are not complete were left.
    """
    left = [str(file) for file in out.rglob(f".*{PART}*")]
    if left:
        raise RuntimeError(f"incomplete files: {left}")
    found = {}
    for file in sorted({file for pattern in patterns for file in out.glob(pattern)}):
        if file.suffix == ".pt":
            found[str(file.relative_to(out))] = digest_of(read_state(file))
        else:
            content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
            text = content.replace(str(out).encode(), b"OUT")
            found[str(file.relative_to(out))] = hashlib.sha256(text).hexdigest()
    return found


def run_undisturbed(job: Job, out: Path) -> tuple[dict[str, str], float]:
    """The results of a job to which nothing happens, and its seconds."""
    start = time.monotonic()
    _end(job.start(out))
    found = contents(out, job.results)
    if not found:
        raise RuntimeError(f"{job.name} wrote none of {job.results}")
    return found, time.monotonic() - start


def run_killed(job: Job, out: Path, expected: dict[str, str], seconds: float, rng: random.Random) -> bool:
    """Kill a job at a random moment, half the time while it writes a file, and let it go on.

    Args:
        job: to kill, worker processes left alone.
        out: its output folder.
        expected: the results of an undisturbed run.
        seconds: that such a run takes.
        rng: chooses the moment.

    Returns:
        Whether the results are those of an undisturbed run.
    """
    is_aimed, moment = rng.random() < 0.5, rng.uniform(0.2, 1) * seconds
    process = job.start(out)
    end = time.monotonic() + (seconds if is_aimed else moment)
    while process.is_running() and time.monotonic() < end:
        if is_aimed and next(out.rglob(f".*{PART}*"), None):
            break
        time.sleep(0.002 if is_aimed else 0.05)
    process.kill()
    process.wait(LONGEST_S)
    _go_on(job, out)
    return contents(out, job.results) == expected


def run_on_bad_disk(job: Job, out: Path, expected: dict[str, str], size: int) -> bool:
    """Run a job on a disk that fills up, or is read-only: it ends with a sentence, and goes on with room.

    The disk is a small tmpfs. Where this process may not mount one, no file may become larger than that instead.

    Args:
        job: to run.
        out: its output folder.
        expected: the results of an undisturbed run.
        size: of the disk in bytes; 0 for one that is read-only.

    Returns:
        Whether the results are those of an undisturbed run.
    """
    out.mkdir(parents=True)
    is_mounted = _mounts("-t", "tmpfs", "-o", f"size={size or LARGE_DISK}{',ro' * (size == 0)}", "tmpfs", str(out))
    try:
        with suppress(InputError):
            _end(job.start(out, largest_file=None if is_mounted else size))
            return contents(out, job.results) == expected
        if is_mounted:
            _mounts("-o", f"remount,rw,size={LARGE_DISK}", str(out))
        _go_on(job, out)
        return contents(out, job.results) == expected
    finally:
        if is_mounted:
            subprocess.run(["umount", str(out)], check=False)


def run_doubled(job: Job, out: Path, expected: dict[str, str]) -> bool:
    """Start a job twice in one folder: one of the two is refused, unless the other has ended; the results are whole."""
    refused = []
    for process in [job.start(out) for _ in range(2)]:
        try:
            _end(process)
        except InputError as error:
            refused.append("in use by" in error.found or "another process is writing it" in error.found)
    return refused in ([], [True]) and contents(out, job.results) == expected


def _go_on(job: Job, out: Path) -> None:
    try:
        _end(job.start(out, goes_on=True))
    except InputError as error:
        raise RuntimeError(f"it does not go on: {error.found}") from error


def _end(process: JobProcess) -> None:
    """Wait for a job.

    Raises:
        InputError: it ended with a sentence.
        RuntimeError: it ended otherwise, or does not end.
    """
    code, errors = process.wait(LONGEST_S)
    if code == 0:
        return
    if code is None:
        process.kill()
        raise RuntimeError("it does not end")
    last = (errors.replace("\r", "\n").strip().splitlines() or ["no output"])[-1]
    if "Traceback" not in errors and "error: " in last:
        raise InputError(file="job", found=last, expected="", remedy="")
    raise RuntimeError(f"exit {code}: {last}")


def _mounts(*arguments: str) -> bool:
    command = shutil.which("mount")
    return (
        command is not None and subprocess.run([command, *arguments], capture_output=True, check=False).returncode == 0
    )
