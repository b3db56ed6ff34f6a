"""``python -m scripts check``: measure every case, compare, print a table, write the page and the JSON."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from scripts.core.errors import InputError
from scripts.core.processes import available_cores
from scripts.lab.check.across import find_shifted_labels, find_wrong_spacing
from scripts.lab.check.cases import Case, CaseFiles, Finding, find_cases, find_lone_labels
from scripts.lab.check.copies import find_copies
from scripts.lab.check.layout import AXES
from scripts.lab.check.measure import measure_case
from scripts.lab.check.orientation import find_mirrored_images, find_misplaced_structures
from scripts.lab.check.page import Checked, summary_table, write_page
from scripts.lab.check.single import judge_case
from scripts.lab.check.sizes import find_wrong_sizes

__all__ = ["TaskLabels", "check_cases", "judge_cases", "read_task", "run_check"]

STORED_AXES = ("along the first axis", "along the second axis", "along the third axis")

CASES_PER_WORKER = 6
"""A worker takes seconds to start: fewer cases than these are measured sooner without it."""


@dataclass(frozen=True, kw_only=True)
class TaskLabels:
    """What is known of the label maps.

    Attributes:
        names: names of the structures by their value in the files; empty where nothing is known.
        background: values that count as background, besides 0.
        keeps_stored_axes: whether the stored axes are the common frame (``orientation: null``).
        scaled_within: lowest and highest intensity where the task takes volumes that are already scaled; None where it
            scales them itself.
    """

    names: Mapping[float, str]
    background: tuple[float, ...] = ()
    keeps_stored_axes: bool = False
    scaled_within: tuple[float, float] | None = None

    @property
    def known(self) -> tuple[float, ...] | None:
        """Every value that may occur besides 0, or None if any may."""
        return (*self.names, *self.background) if self.names else None


def run_check(where: Sequence[str], out: Path, task: str | None = None, workers: int | None = None) -> list[Finding]:
    """Check all cases that paths name; print a table and the findings, and write ``check.html`` and ``check.json``.

    Args:
        where: datalists, ``dataset.json`` files with ``domains``, or folders.
        out: folder to write into.
        task: a task file, for names and values of the structures.
        workers: processes to measure with; None takes one for each core, but no more than pay.

    Returns:
        What was found, errors first.

    Raises:
        InputError: a path leads nowhere, the task file is none, or the folder cannot be written.
    """
    files = find_cases(where)
    labels = read_task(task) if task else _names_without_task(files)
    cases, findings = check_cases(files, labels, workers=workers, progress=True)
    findings += find_lone_labels(where)
    stored = labels.keeps_stored_axes
    checked = Checked(cases=cases, findings=findings, names=labels.names, keeps_stored_axes=stored)
    print(summary_table(checked))
    page = write_page(out, checked, sources=list(where), task=task)
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{len(cases)} cases, {errors} errors, {len(findings) - errors} warnings; {page}")
    return findings


def check_cases(
    files: Sequence[CaseFiles], labels: TaskLabels | None = None, *, workers: int | None = 1, progress: bool = False
) -> tuple[list[Case], list[Finding]]:
    """Measure cases and judge each by itself and against the others.

    Args:
        files: the cases.
        labels: what is known of their label maps; None takes the names that the datalists give.
        workers: processes to measure with.
        progress: show a progress bar.

    Returns:
        The cases in the same order, and what was found, errors first.
    """
    labels = labels or _names_without_task(files)
    class_of = {value: number for number, value in enumerate(labels.names, start=1)}
    measure = partial(measure_case, class_of=class_of, keeps_stored_axes=labels.keeps_stored_axes)
    cases = list(tqdm(_mapped(measure, files, workers), total=len(files), unit="case", disable=not progress))
    return cases, judge_cases(cases, labels)


def judge_cases(cases: Sequence[Case], labels: TaskLabels) -> list[Finding]:
    """Judge measured cases, each by itself and against the others; errors first.

    Args:
        cases: of all domains.
        labels: what is known of their label maps.
    """
    alone = {id(case): judge_case(case, labels.names, labels.known, labels.scaled_within) for case in cases}
    findings = [finding for case in cases for finding in alone[id(case)]]
    upright = [case for case in cases if all(f.kind != "label mirrored against its image" for f in alone[id(case)])]
    axes = STORED_AXES if labels.keeps_stored_axes else AXES
    misplaced = find_misplaced_structures(upright, labels.names, axes)
    known = {(f.domain, name) for f in misplaced if f.severity == "error" for name in f.cases}
    known |= {tuple(f.domain.split(", ")) for f in misplaced if not f.cases}  # type: ignore[misc]
    findings += [*misplaced, *find_mirrored_images(cases, known, axes), *find_shifted_labels(upright)]
    stretched = find_wrong_spacing(cases)
    explained = {(finding.domain, name) for finding in stretched for name in finding.cases}
    sized = [case for case in cases if (case.domain, case.name) not in explained]
    findings += [*stretched, *find_wrong_sizes(sized, labels.names), *find_copies(cases)]
    return sorted(findings, key=lambda finding: finding.severity != "error")


def read_task(path: str) -> TaskLabels:
    """Names and values of the structures in a task file.

    Raises:
        InputError: it is missing, no YAML, or names no structures.
    """
    expected, remedy = "a task file with label_names and label_values", "name one, such as those in configs/tasks"
    try:
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        names, values = content["label_names"], content["label_values"]
        paired = dict(zip(map(float, values), map(str, names), strict=True))
        background = tuple(map(float, content.get("background_values") or ()))
    except OSError as error:
        raise InputError(file=path, found=error.strerror or str(error), expected=expected, remedy=remedy) from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        found = f"a file without them ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise InputError(file=path, found=found, expected=expected, remedy=remedy) from error
    return TaskLabels(
        names=paired,
        background=background,
        keeps_stored_axes=content.get("orientation", "RAS") is None,
        scaled_within=_scaled_within(content),
    )


def _scaled_within(task: Mapping[str, Any]) -> tuple[float, float] | None:
    """The range that both domains' volumes must already have, if the task has a ``RequireRanged`` for both."""
    steps = [task.get(f"{side}_intensity") for side in ("source", "target")]
    limits = [step["within"] for step in steps if isinstance(step, Mapping) and "within" in step]
    return (float(limits[0][0]), float(limits[0][1])) if len(limits) == 2 else None


def _names_without_task(files: Sequence[CaseFiles]) -> TaskLabels:
    """What the datalists say, if they all say the same."""
    said = {case.label_names for case in files if case.label}
    return TaskLabels(names=dict(said.pop()) if len(said) == 1 else {})


def _mapped(measure: partial[Case], files: Sequence[CaseFiles], workers: int | None) -> Iterator[Case]:
    most = min(available_cores(), len(files) // CASES_PER_WORKER) if workers is None else workers
    if most < 2:
        yield from map(measure, files)
        return
    with ProcessPoolExecutor(most, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(measure, files)
