"""The commands of a run: the trainings of the schedule's method, then inference and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.lab.adapt.request import AdaptRequest
from scripts.lab.adapt.training_lengths import Schedule
from scripts.lab.experiments.plan import (
    LOGGING,
    ComparisonRequest,
    PlannedRun,
    Step,
    bundle_command,
    network_options,
    plan,
)
from scripts.lab.experiments.run_record import run_process

__all__ = ["evaluate", "plan_trainings", "segment"]

USE = Path("configs") / "segmentation"


def plan_trainings(request: AdaptRequest, schedule: Schedule, out: Path) -> list[PlannedRun]:
    """The trainings of a schedule, without evaluations; the last one gives the segmenter."""
    comparison = ComparisonRequest(
        str(request.task_file),
        [schedule.method],
        [request.seed],
        out,
        schedule.size,
        dataset_dir=out / "data",
        data_set="other",
    )
    return [_shortened(run, schedule) for run in plan(comparison)]


def _shortened(run: PlannedRun, schedule: Schedule) -> PlannedRun:
    """The run without evaluations, of the schedule's length."""
    count = max(1, round(int(run.settings["iterations_per_epoch"]) * schedule.length))
    changed: dict[str, Any] = {"iterations_per_epoch": count, **schedule.settings}
    changed = {key: value for key, value in changed.items() if run.settings[key] != value}
    options = [word for key, value in changed.items() for word in (f"--{key}", str(value))]
    steps = [
        Step(step.name, [*step.command, *options]) if step.name == "training" else step
        for step in run.steps
        if step.name in ("training", "translation")
    ]
    return replace(run, steps=steps, settings={**run.settings, **changed})


def segment(run: PlannedRun, where: Path, out: Path, log: Path) -> None:
    """Segment the volumes of a file, a folder or a datalist that have no label map yet, with the last training."""
    files = [USE / "inference.yaml", *run.files]
    options = ["--dataset_dir", str(where), "--output_dir", str(out), "--largest_component", "True"]
    options += ["--write_file_values", "True", "--resume", "True"]
    _run("inference", files, run, options, log)


def evaluate(run: PlannedRun, data: Path, out: Path, log: Path) -> None:
    """Compare with the labels of the target's held-out cases."""
    files = [USE / "inference.yaml", USE / "evaluate.yaml", *run.files]
    options = ["--dataset_dir", str(data), "--output_dir", str(out), "--largest_component", "True", "--resume", "True"]
    _run("evaluating", files, run, options, log)


def _run(run_id: str, files: Sequence[Path], run: PlannedRun, options: Sequence[str], log: Path) -> None:
    command = bundle_command(run_id, files, run.folder, *options, *network_options(run.settings, files), *LOGGING)
    code, last_line = run_process(command, log, shown="progress")
    if code:
        raise InputError(
            file=log,
            found=f"{run_id} ended with exit code {code} ({last_line})",
            expected="a command that ends without errors",
            remedy="correct what the last lines name, and repeat the command: finished volumes are kept",
        )
