"""``python -m scripts faults``: injects faults with a seed and counts what came of each.

A fault is *refused* (one sentence), *harmless* (the same result as without it), or *missed*: another result without a
word, a traceback, or a run that does not go on. Missed faults are listed, and the command then exits with code 1.
"""

from __future__ import annotations

import gzip
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scripts.core.errors import InputError
from scripts.core.schema import SCHEMA, check_values
from scripts.core.weights import digest_of, load_weights, read_state, save_weights
from scripts.data.nifti import read_nifti
from scripts.data.written_datalists import write_datalist
from scripts.lab.datalists import folder_datalist
from scripts.lab.phantom.generate import write_phantom
from torch import nn

__all__ = ["Campaign", "damaged_contents", "reads_as", "run_faults"]

CONFIGS = "['configs/synthesis/train.yaml','configs/tasks/phantom_ct2mr.yaml']"
# A training of seconds, which writes a checkpoint every two iterations.
SETTINGS = {
    **{"slice_size": "[32,32]", "generator_channels": 4, "generator_blocks": 1, "discriminator_channels": 4},
    **{"max_epochs": 6, "iterations_per_epoch": 2, "batch_size": 2, "checkpoint_interval": 1, "panel_interval": 0},
    **{"device": "cpu", "precision": "float32", "pool_size": 4},
}
# Values of which none is right for any setting but a switch or a name.
WRONG_VALUES = [-7, 1.5e300, float("nan"), "banana", [], {}, [[1]], "1e-3", True]


@dataclass
class Campaign:
    """Counts of results by kind of fault, and the missed ones in words."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def inject(self, kind: str, what: str, work: Callable[[], bool]) -> None:
        """Run some work under a fault.

        Args:
            kind: a row of the table.
            what: the fault, for the list of missed ones.
            work: returns whether its result is that without the fault.
        """
        try:
            outcome = "harmless" if work() else "missed"
        except InputError:
            outcome = "refused"
        except Exception as error:
            outcome, what = "missed", f"{what}: {type(error).__name__}: {error}"
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "missed":
            self.missed.append(f"{kind}: {what}")

    def table(self) -> str:
        """One row for each kind of fault."""
        columns = ("refused", "harmless", "missed")
        rows = [[kind, *(str(count[column]) for column in columns)] for kind, count in self.counts.items()]
        return "\n".join(f"{row[0]:24}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in [["", *columns], *rows])


def run_faults(out: Path, *, seed: int = 0, seconds: float = 900.0) -> Campaign:
    """Inject faults until the time is used: files and settings first, then killed and doubled trainings.

    Args:
        out: folder for the data and the runs.
        seed: of every choice.
        seconds: for all; the last training may take longer.
    """
    end, rng, campaign = time.monotonic() + seconds, random.Random(seed), Campaign()
    _write_data(out / "data", seed)
    volume = next((out / "data").rglob("*.nii.gz"))
    for changed, what in damaged_contents(
        gzip.decompress(volume.read_bytes())[:348], volume.read_bytes(), rng, count=150
    ):
        campaign.inject("NIfTI file", what, partial(reads_as, out / "damaged.nii.gz", changed, volume))
    weights = out / "weights" / "model.pt"
    save_weights(weights, nn.Linear(64, 64).state_dict(), {"stage": "test"})
    for changed, what in damaged_contents(b"", weights.read_bytes(), rng, count=150):
        campaign.inject("weights", what, partial(_loads_as, weights, changed))
    for name in SCHEMA:
        for value in WRONG_VALUES:
            if not SCHEMA[name][1](value):
                campaign.inject("setting", f"{name}: {value!r}", partial(_is_accepted, name, value))
    expected = _train(out / "uninterrupted", out / "data")
    turn = 0
    while time.monotonic() < end:
        fault = (_killed, _full_disk, _doubled)[turn % 3]
        campaign.inject(fault.__name__.strip("_"), f"turn {turn}", partial(fault, out, turn, rng, expected))
        turn += 1
    print(campaign.table())
    print("\n".join(campaign.missed))
    return campaign


def _write_data(data: Path, seed: int) -> None:
    write_phantom(data, cases=2, seed=seed, progress=False)
    for domain in ("ct", "mr"):
        folder = str(data / f"{domain}_train")
        listed = folder_datalist(folder, folder, name=domain, modality=domain.upper(), validation_fraction=0)
        write_datalist(data / f"{domain}.json", listed)


def damaged_contents(header: bytes, content: bytes, rng: random.Random, count: int) -> Iterator[tuple[bytes, str]]:
    """Contents of a damaged file: flipped bits, cut ends, blocks of zeros, and changed headers, packed anew."""
    for number in range(count):
        place = rng.randrange(len(content))
        if number % 4 == 0:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            yield bytes(flipped), f"bit of byte {place} flipped"
        elif number % 4 == 1:
            yield content[:place], f"cut at {place}"
        elif number % 4 == 2 or not header:
            yield content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :], f"zeros at {place}"
        else:
            volume, at = bytearray(gzip.decompress(content)), rng.randrange(40, len(header))
            volume[at] ^= 1 << rng.randrange(8)
            yield gzip.compress(bytes(volume), 1), f"header byte {at} changed, checksum right"


def reads_as(file: Path, content: bytes, original: Path) -> bool:
    """Whether a damaged volume reads as the original does; a header changed on purpose may say something else."""
    file.write_bytes(content)
    found, expected = read_nifti(file), read_nifti(original)
    if content[:2] == b"\x1f\x8b" and gzip.decompress(content)[:348] != gzip.decompress(original.read_bytes())[:348]:
        return True  # a valid file with another header
    return np.array_equal(found.voxels, expected.voxels) and np.array_equal(found.affine, expected.affine)


def _loads_as(weights: Path, content: bytes) -> bool:
    damaged = weights.with_name("damaged.pt")
    damaged.write_bytes(content)
    damaged.with_suffix(".json").write_bytes(weights.with_suffix(".json").read_bytes())
    network = load_weights(str(damaged), nn.Linear(64, 64), {"stage": "test"})
    return digest_of(network.state_dict()) == digest_of(read_state(weights))


def _is_accepted(name: str, value: Any) -> bool:
    check_values({name: value})
    return False


def _command(run: Path, data: Path, resume: bool) -> list[str]:
    settings = {"bundle_root": run, "dataset_dir": data, "resume": resume, **SETTINGS}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", CONFIGS, *words]


def _run(run: Path, data: Path, *, resume: bool = False, largest_file: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:  # a write beyond it fails as on a full disk
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.Popen(
        _command(run, data, resume), preexec_fn=limit, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def _ended(process: subprocess.Popen[str]) -> bool:
    """Whether a run succeeded.

    Raises:
        InputError: it ended with a sentence.
        RuntimeError: it ended otherwise.
    """
    _, errors = process.communicate()
    if process.returncode == 0:
        return True
    last = errors.replace("\r", "\n").strip().splitlines()[-1]
    if "Traceback" not in errors and "error: " in last:
        raise InputError(file=process.pid, found=last, expected="", remedy="")
    raise RuntimeError(f"exit {process.returncode}: {last}")


def _train(run: Path, data: Path) -> str:
    _ended(_run(run, data))
    return digest_of(read_state(run / "models" / "model.pt"))


def _resumed(run: Path, data: Path, expected: str) -> bool:
    _ended(_run(run, data, resume=True))
    return digest_of(torch.load(run / "models" / "model.pt", weights_only=True)) == expected


def _killed(out: Path, turn: int, rng: random.Random, expected: str) -> bool:
    """Kill a training at a random moment, a third of the time while it writes, and resume it."""
    process = _run(out / f"killed_{turn}", out / "data")
    losses, deadline = out / f"killed_{turn}" / "logs" / "losses.csv", time.monotonic() + 60
    while process.poll() is None and not losses.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 3))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return _resumed(out / f"killed_{turn}", out / "data", expected)


def _full_disk(out: Path, turn: int, rng: random.Random, expected: str) -> bool:
    """Train on a disk that fills up: it ends with a sentence, and resumes with room.

    The disk is a small tmpfs. Where this process may not mount one, no file may become larger than that instead.
    """
    run, size = out / f"full_{turn}", rng.choice([4_096, 20_000, 200_000, 1_000_000])
    run.mkdir(parents=True)
    is_mounted = _mounts("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(run))
    try:
        _ended(_run(run, out / "data", largest_file=None if is_mounted else size))
    except InputError:
        if is_mounted:
            _mounts("-o", "remount,size=100m", str(run))
        return _resumed(run, out / "data", expected)
    else:
        return digest_of(read_state(run / "models" / "model.pt")) == expected
    finally:
        if is_mounted:
            subprocess.run(["umount", str(run)], check=False)


def _mounts(*arguments: str) -> bool:
    command = shutil.which("mount")
    return (
        command is not None and subprocess.run([command, *arguments], capture_output=True, check=False).returncode == 0
    )


def _doubled(out: Path, turn: int, rng: random.Random, expected: str) -> bool:
    """Start a training twice: one of the two is refused, the other unharmed."""
    both = [_run(out / f"doubled_{turn}", out / "data") for _ in range(2)]
    refused = 0
    for process in both:
        try:
            _ended(process)
        except InputError as error:
            refused += "in use by" in error.found
    weights = out / f"doubled_{turn}" / "models" / "model.pt"
    return refused == 1 and digest_of(read_state(weights)) == expected
