"""``python -m scripts compare``: execute the missing runs of a comparison and continue interrupted ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from scripts.core.errors import InputError, SettingError
from scripts.core.files import make_folder, remove_parts, write_json
from scripts.core.schema import read_yaml
from scripts.core.settings import deciding_settings
from scripts.lab.experiments.comparison_record import write_comparison, writing_alone
from scripts.lab.experiments.plan import (
    ComparisonRequest,
    PlannedRun,
    named_file,
    plan,
    shown_items,
    size_files,
    task_settings,
)
from scripts.lab.experiments.run_record import RunRecord, Shown, run_process

__all__ = ["LOCK", "changed_settings", "execute_runs", "run_comparison"]

# In the folder of a run while its steps are executed; each step holds the lock of its own run folder, ``.lock``.
LOCK = ".steps.lock"

# Changes that a warning names, and the longest text of one that it shows.
_MOST_NAMED = 4
_LONGEST = 80


def run_comparison(request: ComparisonRequest, *, jobs: int = 1) -> bool:
    """Execute all runs of a comparison that are not done, ``jobs`` at a time; return whether all are done."""
    runs = plan(request)
    make_folder(request.out)
    write_comparison(request, runs)
    _provide_data(request)
    return execute_runs(runs, jobs=jobs)


def execute_runs(runs: Sequence[PlannedRun], *, jobs: int = 1, shown: Shown = "all") -> bool:
    """Execute the steps of runs that are not done, those of earlier runs first, and name the runs that did not end.

    ``jobs`` runs are executed in parallel, each with its share of the cores and nothing on the screen. Returns whether
    every run is done.
    """
    for run in runs:
        _register(run)
    for wave in _waves(runs):
        execute = partial(_execute, runs, jobs, "nothing" if jobs > 1 else shown)
        if jobs == 1:  # in this thread, so that an interruption starts no further run
            for run in wave:
                execute(run)
        else:
            with ThreadPoolExecutor(jobs) as pool:
                list(pool.map(execute, wave))
    unfinished = {run.title: RunRecord(run.folder) for run in runs if RunRecord(run.folder).status != "done"}
    for title, record in unfinished.items():
        advice = "Repeat the command to continue it; if its settings have changed, delete the folder first"
        print(f"{title}: {record.status}. See {record.folder}. {advice}.", file=sys.stderr)
    return not unfinished


def _register(run: PlannedRun) -> None:
    """Register the run in its record, and warn if a finished run differs from the current files."""
    with suppress(Timeout), FileLock(make_folder(run.folder) / LOCK, blocking=False):
        remove_parts(run.folder, depth=0, stem=Path(RunRecord.FILE).stem)
        record = RunRecord(run.folder)
        record.register(run)
        if record.status == "done" and (sentence := changed_settings(run)):
            print(sentence, file=sys.stderr, flush=True)


def changed_settings(run: PlannedRun) -> str:
    """A sentence on the differences between a finished run's ``config.yaml`` and the current files; empty without any.

    Keys missing on either side are ignored, because they come and go with the code.
    """
    try:
        written = read_yaml(run.folder / "config.yaml", "the settings of a run", "restore it")
        then, now = deciding_settings(written), deciding_settings(run.settings)
    except (InputError, AttributeError):
        return ""
    keys = [key for key in then.keys() & now.keys() if _same_separators(then[key]) != _same_separators(now[key])]
    if not keys:
        return ""
    keys.sort(key=lambda key: ("#" in key, key))  # top-level keys first: task, size and method files set them
    changes = {key: f"{key}: {then[key]}, now {now[key]}" for key in keys[:_MOST_NAMED]}
    named = [text if len(text) <= _LONGEST else key for key, text in changes.items()]
    named += [f"{len(keys) - len(named)} more"] if len(keys) > len(named) else []
    return (
        f"{run.title}: trained with settings that differ from today's files ({'; '.join(named)}). "
        f"It is kept; to train it again, delete {run.folder}."
    )


def _same_separators(value: Any) -> Any:
    """A setting with one separator of ids: MONAI writes ``a::b`` for ``a#b``."""
    if isinstance(value, str):
        return value.replace("#", "::")
    if isinstance(value, Mapping):
        return {key: _same_separators(item) for key, item in value.items()}
    return [_same_separators(item) for item in value] if isinstance(value, Sequence) else value


def _waves(runs: Sequence[PlannedRun]) -> Iterator[list[PlannedRun]]:
    """The runs by seed, in groups that depend only on earlier groups."""
    for seed in dict.fromkeys(run.seed for run in runs):
        waiting = [run for run in runs if run.seed == seed]
        while waiting:
            folders = {run.folder for run in waiting}
            yield (wave := [run for run in waiting if not folders.intersection(run.needs)])
            waiting = [run for run in waiting if run not in wave]


def _provide_data(request: ComparisonRequest) -> None:
    """Generate the phantom if no data set is given, and list the target's held-out images without labels."""
    task = task_settings(named_file("tasks", request.task))
    datalists = [request.data / f"{task[f'{domain}_domain']}.json" for domain in ("source", "target")]
    phantom = size_files(request.size, task).get("phantom")
    if request.dataset_dir is None and phantom is None:
        expected = f"the folder with {' and '.join(path.name for path in datalists)}"
        remedy = "make them with python -m scripts datalist, or prepare, and name their folder"
        raise SettingError(setting="--dataset_dir", found="nothing", expected=expected, remedy=remedy)
    with FileLock(request.out / ".data.lock"):
        if phantom and request.dataset_dir is None and not all(path.is_file() for path in datalists):
            settings = {"seed": request.seeds[0], **phantom}
            options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
            command = ["-m", "scripts", "phantom", "--out", str(request.data), *options]
            code, _ = run_process(command, request.out / "logs" / "phantom.log")
            if code:
                raise SystemExit(code)
    unseen = shown_items(datalists[1])
    images = [{"image": os.path.abspath(item["image"])} for item in unseen]
    with writing_alone(request.out):
        write_json(request.out / "unseen.json", {"name": task["target_domain"], "validation": images})


def _execute(runs: Sequence[PlannedRun], jobs: int, shown: Shown, run: PlannedRun) -> None:
    """Execute one run, unless it is done, another process works on it, or a run that it needs is not done."""
    try:
        with FileLock(make_folder(run.folder) / LOCK, blocking=False):
            record = RunRecord(run.folder)
            if record.status == "done":
                return
            needed = [other for other in runs if other.folder in run.needs]
            for other in needed:
                with FileLock(make_folder(other.folder) / LOCK):  # wait for a process that works on it
                    pass
                if RunRecord(other.folder).status != "done":
                    return record.fail(run, "training", f"its {other.kind}, {other.title}, is not done")
            environment = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
            if jobs > 1:
                environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
            done = sum(RunRecord(other.folder).status == "done" for other in runs)
            progress = f"{done} of {len(runs)} runs done"
            record.execute(run, environment=environment, shown=shown, progress=progress)
    except Timeout:
        print(f"== {run.title}: another process is working on it", flush=True)
