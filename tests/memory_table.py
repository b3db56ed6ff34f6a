"""Measure the tables of memory and time in the cards of both bundles, on generated volumes.

``PYTHONPATH=. OMP_NUM_THREADS=1 .venv/bin/python tests/memory_table.py synthesis`` (or ``segmentation``)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
TASK = "configs/tasks/phantom_mr2ct.yaml"
SIZES = {
    "96 x 96, small network": ["--slice_size", "[96,96]"],
    "256 x 256, full network": ["--slice_size", "[256,256]", "--spacing_mm", "[0.9375,0.9375,-1.0]"],
}
"""The task's slice size with ``configs/sizes/<bundle>_small.yaml``, and 256 pixels with the base config's network."""

BATCH = {"96 x 96, small network": ["--batch_size", "8"], "256 x 256, full network": ["--batch_size", "2"]}
"""Slices per domain in training: 8 at full size are meant for a GPU."""


def main(name: str) -> None:
    """Print one row per size and job: peak resident memory, and processor seconds."""
    with TemporaryDirectory() as work:
        folder = Path(work)
        run(["scripts", "phantom", "--out", f"{work}/data", "--cases", "2"])
        print("| job | slices, network | peak memory, GiB | seconds |\n|---|---|---|---|", flush=True)
        for size, settings in SIZES.items():
            overlays = [TASK, *([f"configs/sizes/{name}_small.yaml"] if "small" in size else [])]
            short = train(name, overlays, folder, [*settings, *BATCH[size], "--iterations_per_epoch", "1"])
            longer = train(name, overlays, folder, [*settings, *BATCH[size], "--iterations_per_epoch", "3"])
            print(
                f"| training | {size} | {longer[0]:.1f} | {(longer[1] - short[1]) / 2:.2f} an iteration |", flush=True
            )
            where = f"{work}/data" if name == "synthesis" else f"{work}/data/ct_train"
            volumes = 2  # two cases in each domain, of 60 to 75 slices
            places = ["--bundle_root", f"{work}/run", "--dataset_dir", where, "--output_dir", f"{work}/out"]
            peak, seconds = bundle(name, "inference", "inference", overlays, [*settings, *places])
            print(f"| inference | {size} | {peak:.1f} | {seconds / volumes:.2f} a volume, start included |", flush=True)


def train(name: str, overlays: list[str], folder: Path, settings: list[str]) -> tuple[float, float]:
    """One epoch of a training; stage 2 learns from the source's own volumes, which cost the same as translated ones."""
    places = ["--bundle_root", f"{folder}/run", "--dataset_dir", f"{folder}/data", "--max_epochs", "1"]
    if name == "segmentation":
        places += ["--labelled_datalist", f"{folder}/data/mr.json", "--labelled_intensity", "@source_intensity"]
        places += ["--translator", "none"]
    return bundle(name, "train", "training", overlays, [*places, *settings])


def bundle(name: str, config: str, run_id: str, overlays: list[str], settings: list[str]) -> tuple[float, float]:
    """Peak memory in GiB and processor seconds of a run."""
    files = str([f"configs/{name}/{config}.yaml", *overlays])
    return run(["monai.bundle", "run", run_id, "--config_file", files, *settings])


def run(module: list[str]) -> tuple[float, float]:
    """Run a Python module in the project's folder to its end."""
    process = subprocess.Popen([sys.executable, "-m", *module], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(module)} ended with {process.returncode}")
    return usage.ru_maxrss / 2**20, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1])
