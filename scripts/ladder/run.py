"""``python -m scripts ladder``: run what is missing, resume what broke, and keep going past what fails."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from filelock import FileLock, Timeout

from scripts.data.datalists import read_datalist
from scripts.data.writers import make_folder, write_json
from scripts.errors import InputError
from scripts.ladder.plan import Order, Run, named_file, plan, size_files, task_settings
from scripts.ladder.record import FAILURE, status_of, write_ladder
from scripts.steps import StepFailed, Steps

__all__ = ["run_ladder", "write_unseen"]


def run_ladder(order: Order, *, jobs: int = 1) -> bool:
    """Run a ladder from its data to ``ladder.json``; several processes may share one folder.

    Args:
        order: what to run.
        jobs: runs side by side; each gets its share of the cores.

    Returns:
        Whether every run is done.

    Raises:
        InputError: an order that cannot be run, or a folder that holds another ladder.
        StepFailed: the phantom could not be generated.
    """
    runs = plan(order)
    make_folder(order.out)
    write_ladder(order, runs)
    _provide_data(order)
    # Methods train on what the translators wrote.
    for seed, kind in itertools.product(order.seeds, ("translator", "method")):
        wave = [run for run in runs if (run.seed, run.kind) == (seed, kind)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(partial(_run, order, runs, jobs), wave))
    write_ladder(order, runs)
    for run in runs:
        if status_of(run) != "done":
            print(f"{run.title}: {status_of(run)}; see {run.folder}", file=sys.stderr)
    return all(status_of(run) == "done" for run in runs)


def _provide_data(order: Order) -> None:
    """Generate the phantom where the task asks for it, and list what inference is shown."""
    task = task_settings(named_file("tasks", order.task))
    if order.dataset_dir is None:
        phantom = size_files(order.size, task).get("phantom")
        if phantom is None:
            raise InputError(
                file="--dataset_dir",
                found="nothing",
                expected=f"the folder with {task['source_domain']}.json and {task['target_domain']}.json",
                remedy="make them with python -m scripts datalist, or prepare, and name their folder",
            )
        with FileLock(order.out / ".data.lock"):
            options = [word for key, value in phantom.items() for word in (f"--{key}", str(value))]
            command = ["-m", "scripts", "phantom", "--out", str(order.data), *options]
            Steps(order.data, resume=True).run("phantom", command)
    write_unseen(order)


def write_unseen(order: Order) -> None:
    """List the target's held-out images in ``unseen.json``, without their labels: what inference is shown.

    Raises:
        InputError: the target's datalist cannot be read or names no held-out case.
    """
    task = task_settings(named_file("tasks", order.task))
    unseen = read_datalist(str(order.data / f"{task['target_domain']}.json"), section="validation")
    images = [{"image": os.path.abspath(item["image"])} for item in unseen]
    write_json(order.out / "unseen.json", {"name": task["target_domain"], "validation": images})


def _run(order: Order, runs: Sequence[Run], jobs: int, run: Run) -> None:
    """One run, unless it is done, another process has it, or its translator failed."""
    if status_of(run) == "done":
        return
    try:
        with FileLock(make_folder(run.folder) / ".lock", blocking=False):
            _steps_of(order, runs, jobs, run)
    except Timeout:
        print(f"== {run.title}: another process is at it", flush=True)


def _steps_of(order: Order, runs: Sequence[Run], jobs: int, run: Run) -> None:
    failure = run.folder / FAILURE
    failure.unlink(missing_ok=True)
    needed = [r for r in runs if r.kind == "translator" and (r.name, r.seed) == (run.translator, run.seed)]
    for translator in needed if run.kind == "method" else ():
        with FileLock(make_folder(translator.folder) / ".lock"):  # another process may be at it: wait for its end
            pass
    if run.kind == "method" and any(status_of(r) != "done" for r in needed):
        write_json(failure, {"step": "training", "error": f"its translator, {needed[0].title}, is not done"})
        return
    cores = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(cores)} if jobs > 1 else {}
    steps = Steps(run.folder, resume=True, logs=run.folder / "logs", quiet=jobs > 1, environment=environment)
    for step in run.steps:
        if step.name in steps.seconds:
            continue
        print(f"== {time.strftime('%H:%M')} {_progress(runs)}: {run.kind} {run.title}, {step.name}", flush=True)
        try:
            steps.run(step.name, step.command, *step.resumed)
        except StepFailed as failed:
            error = failed.last_line or f"exit code {failed.code}"
            write_json(failure, {"step": step.name, "error": error})
            print(f"== {run.title}: {step.name} failed: {error}", file=sys.stderr, flush=True)
            break
    write_ladder(order, runs)


def _progress(runs: Sequence[Run]) -> str:
    """How many runs are done."""
    done = [run for run in runs if status_of(run) == "done"]
    return f"{len(done)} of {len(runs)} runs done"
