"""Injects faults into files, settings and jobs with a seed and counts what came of each.

    PYTHONPATH=. python tests/fault_campaign.py --seed 7 --seconds 900

A fault is *refused* (one sentence), *harmless* (the same result as without it), or *missed*: another result without a
word, a traceback, or a run that does not go on. Missed faults are listed, and the command then exits with code 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from pathlib import Path
from threading import Lock

from fault_files import file_faults
from fault_jobs import DISK_BYTES, jobs, run_doubled, run_killed, run_on_bad_disk, run_undisturbed
from scripts.core.errors import InputError
from scripts.core.files import make_folder
from scripts.data.written_datalists import write_datalist
from scripts.lab.case_lists import folder_datalist
from scripts.lab.phantom.generate import write_phantom

# What happens to a job, in turn.
FAULTS = ("killed", "on a full disk", "killed", "started twice", "on a read-only disk")


@dataclass
class Campaign:
    """Counts of results by kind of fault, and the missed ones in words."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def inject(self, kind: str, what: str, work: Callable[[], bool]) -> str:
        """Run some work, which returns whether its result is that without the fault, and return the outcome."""
        try:
            outcome = "harmless" if work() else "missed"
        except InputError:
            outcome = "refused"
        except Exception as error:
            outcome, what = "missed", f"{what}: {type(error).__name__}: {error}"
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "missed":
            self.missed.append(f"{kind}: {what}")
        return outcome

    def table(self) -> str:
        """One row for each kind of fault."""
        columns = ("refused", "harmless", "missed")
        rows = [[kind, *(str(count[column]) for column in columns)] for kind, count in self.counts.items()]
        return "\n".join(f"{row[0]:40}" + "".join(f"{cell:>10}" for cell in row[1:]) for row in [["", *columns], *rows])


def run_faults(out: Path, *, seed: int, seconds: float) -> Campaign:
    """Inject faults until the time is used: files and settings first, then into jobs of every kind.

    Data and runs are in a folder below ``out``, which is removed at the end unless a fault was missed. The last jobs
    may take longer than ``seconds``.
    """
    end, rng, campaign = time.monotonic() + seconds, random.Random(seed), Campaign()
    folder = Path(tempfile.mkdtemp(prefix=f"seed_{seed}_", dir=make_folder(out)))
    _write_data(folder / "data", seed)
    for kind, what, work in file_faults(folder, next((folder / "data").rglob("*.nii.gz")), rng, count=150):
        campaign.inject(kind, what, work)
    print(campaign.table(), flush=True)
    _disturb_jobs(campaign, folder, seed, end)
    print(f"\n{campaign.table()}")
    print("\n".join(campaign.missed) + f"\nFiles: {folder}" if campaign.missed else "No fault was missed.")
    if not campaign.missed:
        shutil.rmtree(folder)
    return campaign


def _disturb_jobs(campaign: Campaign, out: Path, seed: int, end: float) -> None:
    """Kill each job in turn, fill its disk, or start it twice, two jobs at a time, until the time is used.

    Each turn takes the next job, from one that the seed chooses on, and the next fault. The undisturbed run of a job
    precedes its first fault.
    """
    every = jobs(out / "data", out / "run" / "models" / "model.pt")
    turns, locks, start = count(), [Lock() for _ in every], time.monotonic()

    @cache
    def undisturbed(number: int) -> tuple[dict[str, str], float]:
        return run_undisturbed(every[number], out / f"undisturbed_{number}")

    def fault_in(number: int, fault: str, folder: Path, rng: random.Random) -> bool:
        with locks[number]:
            expected, seconds = undisturbed(number)
        if fault == "killed":
            return run_killed(every[number], folder, expected, seconds, rng)
        if fault.endswith("disk"):
            size = 0 if fault == "on a read-only disk" else rng.choice(DISK_BYTES)
            return run_on_bad_disk(every[number], folder, expected, size)
        return run_doubled(every[number], folder, expected)

    def disturb(_: int) -> None:
        while time.monotonic() < end:
            turn = next(turns)
            number, passed = (turn + seed) % len(every), turn // len(every)
            job, fault = every[number], FAULTS[(number + passed) % len(FAULTS)]
            if fault == "started twice" and not job.is_locked:
                continue
            work = partial(fault_in, number, fault, out / f"turn_{turn}", random.Random(f"{seed} {turn}"))
            outcome = campaign.inject(f"{job.name} {fault}", f"turn {turn}", work)
            print(f"{time.monotonic() - start:5.0f} s  {job.name} {fault}: {outcome}", flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(disturb, range(2)))


def _write_data(data: Path, seed: int) -> None:
    write_phantom(data, cases=2, seed=seed, progress=False)
    for domain in ("ct", "mr"):
        folder = str(data / f"{domain}_train")
        listed = folder_datalist(folder, folder, name=domain, modality=domain.upper(), validation_fraction=0.5)
        write_datalist(data / f"{domain}.json", listed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder for data and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=900, help="time for all faults")
    raise SystemExit(bool(run_faults(**vars(parser.parse_args())).missed))
