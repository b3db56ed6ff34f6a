"""``python -m scripts compare``: run what is missing, resume what broke, and keep going past what fails."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from filelock import FileLock, Timeout

from scripts.core.errors import InputError
from scripts.core.files import make_folder, write_json
from scripts.data.datalists import read_datalist
from scripts.lab.experiments.changes import changes_sentence
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun, named_file, plan, size_files, task_settings
from scripts.lab.experiments.record import FAILURE, note_failure, note_start, status_of, write_record
from scripts.lab.experiments.restart import restart_option, set_aside
from scripts.lab.experiments.step_runner import StepFailed, StepRunner

__all__ = ["run_comparison", "write_unseen"]


def run_comparison(request: ComparisonRequest, *, jobs: int = 1, restart: Sequence[str] = ()) -> bool:
    """PlannedRun a comparison from its data to ``comparison.json``; several processes may share one folder.

    A run that is done stays as it is, and is named if today's files would train it with other settings.

    Args:
        request: what to run.
        jobs: runs side by side; each gets its share of the cores.
        restart: folders of runs within the comparison's, such as ``methods/glua_seed0``: they are set aside first.

    Returns:
        Whether every run is done.

    Raises:
        InputError: a request that cannot be run, or a folder that holds another comparison.
        StepFailed: the phantom could not be generated.
    """
    runs = plan(request)
    make_folder(request.out)
    content = write_record(request, runs)
    if restart:
        set_aside(request, content, restart)
        write_record(request, runs)
    for run in runs:
        if status_of(run) == "done" and (sentence := changes_sentence(run, restart_option(request, run))):
            print(sentence, file=sys.stderr, flush=True)
    _provide_data(request)
    # Methods train on what the translators wrote.
    for seed, kind in itertools.product(request.seeds, ("translator", "method")):
        wave = [run for run in runs if (run.seed, run.kind) == (seed, kind)]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(partial(_run, request, runs, jobs), wave))
    write_record(request, runs)
    for run in runs:
        if (status := status_of(run)) != "done":
            print(f"{run.title}: {status}; {_advice(request, run, status)}", file=sys.stderr)
    return all(status_of(run) == "done" for run in runs)


def _advice(request: ComparisonRequest, run: PlannedRun, status: str) -> str:
    """What to do about a run that is not done."""
    if status != "failed":
        return f"see {run.folder}"
    anew = f"if its settings changed meanwhile, {restart_option(request, run)} sets its folder aside and starts it anew"
    return f"see {run.folder}; the same command goes on with it, or {anew}"


def _provide_data(request: ComparisonRequest) -> None:
    """Generate the phantom where the task asks for it, and list what inference is shown."""
    task = task_settings(named_file("tasks", request.task))
    if request.dataset_dir is None:
        phantom = size_files(request.size, task).get("phantom")
        if phantom is None:
            raise InputError(
                file="--dataset_dir",
                found="nothing",
                expected=f"the folder with {task['source_domain']}.json and {task['target_domain']}.json",
                remedy="make them with python -m scripts datalist, or prepare, and name their folder",
            )
        with FileLock(request.out / ".data.lock"):
            options = [word for key, value in phantom.items() for word in (f"--{key}", str(value))]
            command = ["-m", "scripts", "phantom", "--out", str(request.data), *options]
            StepRunner(request.data, resume=True).run("phantom", command)
    write_unseen(request)


def write_unseen(request: ComparisonRequest) -> None:
    """List the target's held-out images in ``unseen.json``, without their labels: what inference is shown.

    Raises:
        InputError: the target's datalist cannot be read or names no held-out case.
    """
    task = task_settings(named_file("tasks", request.task))
    unseen = read_datalist(str(request.data / f"{task['target_domain']}.json"), section="validation")
    images = [{"image": os.path.abspath(item["image"])} for item in unseen]
    write_json(request.out / "unseen.json", {"name": task["target_domain"], "validation": images})


def _run(request: ComparisonRequest, runs: Sequence[PlannedRun], jobs: int, run: PlannedRun) -> None:
    """One run, unless it is done, another process has it, or its translator failed."""
    if status_of(run) == "done":
        return
    try:
        with FileLock(make_folder(run.folder) / ".lock", blocking=False):
            _steps_of(request, runs, jobs, run)
    except Timeout:
        print(f"== {run.title}: another process is at it", flush=True)


def _steps_of(request: ComparisonRequest, runs: Sequence[PlannedRun], jobs: int, run: PlannedRun) -> None:
    (run.folder / FAILURE).unlink(missing_ok=True)
    needed = [r for r in runs if r.kind == "translator" and (r.name, r.seed) == (run.translator, run.seed)]
    for translator in needed if run.kind == "method" else ():
        with FileLock(make_folder(translator.folder) / ".lock"):  # another process may be at it: wait for its end
            pass
    if run.kind == "method" and any(status_of(r) != "done" for r in needed):
        note_failure(run, "training", f"its translator, {needed[0].title}, is not done")
        return
    cores = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(cores)} if jobs > 1 else {}
    steps = StepRunner(run.folder, resume=True, logs=run.folder / "logs", quiet=jobs > 1, environment=environment)
    for step in run.steps:
        if step.name in steps.seconds:
            continue
        print(f"== {time.strftime('%H:%M')} {_progress(runs)}: {run.kind} {run.title}, {step.name}", flush=True)
        try:
            note_start(run, step, resumed=step.name in steps.interrupted)
            steps.run(step.name, step.command, *step.resumed)
        except StepFailed as failed:
            _note_failed_step(run, step.name, failed)
            break
    write_record(request, runs)


def _note_failed_step(run: PlannedRun, step: str, failed: StepFailed) -> None:
    code = int(failed.code or 0)
    said = f"{failed.last_line} (exit code {code})" if failed.last_line else f"exit code {code}"
    signal = -code if code < 0 else None
    error = said if signal is None else f"interrupted by signal {signal}"
    note_failure(run, step, error, signal=signal)
    print(f"== {run.title}: {step}: {error}", file=sys.stderr, flush=True)


def _progress(runs: Sequence[PlannedRun]) -> str:
    """How many runs are done."""
    done = [run for run in runs if status_of(run) == "done"]
    return f"{len(done)} of {len(runs)} runs done"
