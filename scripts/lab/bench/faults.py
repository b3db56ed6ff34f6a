"""``python -m scripts faults``: injects faults with a seed and counts what came of each.

A fault is *refused* (one sentence), *harmless* (the same result as without it), or *missed*: another result without a
word, a traceback, or a run that does not go on. Missed faults are listed, and the command then exits with code 1.
"""

from __future__ import annotations

import gzip
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from scripts.core.errors import InputError
from scripts.core.schema import SCHEMA, check_values
from scripts.core.weights import digest_of, load_weights, read_state, save_weights
from scripts.data.nifti import read_nifti
from scripts.data.written_datalists import write_datalist
from scripts.lab.bench.fault_jobs import jobs, run_doubled, run_killed, run_on_full_disk, run_undisturbed
from scripts.lab.case_lists import folder_datalist
from scripts.lab.phantom.generate import write_phantom
from torch import nn

__all__ = ["Campaign", "damaged_contents", "reads_as", "run_faults"]

# Values of which none is right for any setting but a switch or a name.
WRONG_VALUES = [-7, 1.5e300, float("nan"), "banana", [], {}, [[1]], "1e-3", True]

# What happens to a job, in turn.
FAULTS = ("killed", "on a full disk", "killed", "started twice")


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
        return "\n".join(f"{row[0]:40}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in [["", *columns], *rows])


def run_faults(out: Path, *, seed: int = 0, seconds: float = 900.0) -> Campaign:
    """Inject faults until the time is used: files and settings first, then into jobs of every kind.

    Args:
        out: folder for the data and the runs.
        seed: of every choice.
        seconds: for all; the last jobs may take longer.
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
    _disturb_jobs(campaign, out, seed, end)
    print(campaign.table())
    print("\n".join(campaign.missed))
    return campaign


def _disturb_jobs(campaign: Campaign, out: Path, seed: int, end: float) -> None:
    """Kill each job in turn, fill its disk, or start it twice, two jobs at a time, until the time is used.

    Each turn takes the next job and the next fault. The undisturbed run of a job precedes its first fault.
    """
    every = jobs(out / "data", out / "run" / "models" / "model.pt")
    turns, locks = count(), [Lock() for _ in every]

    @cache
    def undisturbed(number: int) -> tuple[dict[str, str], float]:
        return run_undisturbed(every[number], out / f"undisturbed_{number}")

    def fault_in(number: int, fault: str, folder: Path, rng: random.Random) -> bool:
        with locks[number]:
            expected, seconds = undisturbed(number)
        if fault == "killed":
            return run_killed(every[number], folder, expected, seconds, rng)
        if fault == "on a full disk":
            return run_on_full_disk(every[number], folder, expected, rng)
        return run_doubled(every[number], folder, expected)

    def disturb(_: int) -> None:
        while time.monotonic() < end:
            turn = next(turns)
            number, passed = turn % len(every), turn // len(every)
            job, fault = every[number], FAULTS[(number + passed) % len(FAULTS)]
            if fault == "started twice" and not job.is_locked:
                continue
            work = partial(fault_in, number, fault, out / f"turn_{turn}", random.Random(f"{seed} {turn}"))
            campaign.inject(f"{job.name} {fault}", f"turn {turn}", work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(disturb, range(2)))


def _write_data(data: Path, seed: int) -> None:
    write_phantom(data, cases=2, seed=seed, progress=False)
    for domain in ("ct", "mr"):
        folder = str(data / f"{domain}_train")
        listed = folder_datalist(folder, folder, name=domain, modality=domain.upper(), validation_fraction=0.5)
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
