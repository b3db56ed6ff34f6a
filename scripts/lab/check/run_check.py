"""``python -m scripts check``: measure all cases, compare them, print a table, write the page and the JSON file."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.core import task_files
from scripts.core.errors import InputError
from scripts.lab.check.across import find_shifted_labels, find_wrong_spacing
from scripts.lab.check.anatomy import find_wrong_sides
from scripts.lab.check.case_search import find_cases, find_files_left_out
from scripts.lab.check.cases import Finding, ListedCase, MeasuredCase
from scripts.lab.check.check_report import CheckResult, summary_table, write_check
from scripts.lab.check.copies import find_copies
from scripts.lab.check.layout import AXES
from scripts.lab.check.limits import LIMITS
from scripts.lab.check.measure import measure_case
from scripts.lab.check.orientation import find_mirrored_images, find_misplaced_structures
from scripts.lab.check.preprocessed import find_preprocessing_faults
from scripts.lab.check.single import find_unlabelled_structures, judge_case
from scripts.lab.check.sizes import find_wrong_sizes
from scripts.lab.check.slicing import find_turned_volumes, find_wrong_slice_axis
from scripts.lab.cores import available_cores, exclusive, start_worker
from tqdm import tqdm

__all__ = ["TaskLabels", "judge_cases", "measure_and_judge", "measure_cases", "run_check", "task_labels"]

logger = logging.getLogger(__name__)

STORED_AXES = ("along the first axis", "along the second axis", "along the third axis")

# Minimum number of cases per worker process, whose start takes seconds.
CASES_PER_WORKER = 6


@dataclass(frozen=True, kw_only=True)
class TaskLabels:
    """Information on the label maps from the task or the datalists."""

    names: Mapping[float, str]  # of the structures by their value in the files; empty if unknown
    background: tuple[float, ...] = ()  # values that count as background, besides 0
    scaled_within: tuple[float, float] | None = None  # intensity range of volumes that must be scaled already
    source_domain: str | None = None  # whose labels are trained on
    orientation: str | None = "RAS"  # axes of the slices' frame; None for the stored axes
    slice_axis: int | None = None

    @property
    def keeps_stored_axes(self) -> bool:
        """Whether cases are compared along the stored axes."""
        return self.orientation is None

    @property
    def known(self) -> tuple[float, ...] | None:
        """All values that may occur besides 0; None for any."""
        return (*self.names, *self.background) if self.names else None


def run_check(where: Sequence[str], out: Path, task: str | None = None, workers: int | None = None) -> list[Finding]:
    """Check cases, print a table and the findings, and write ``check.html`` and ``check.json`` into ``out``.

    Args:
        where: datalists, ``dataset.json`` files with ``domains``, or folders.
        out: output folder.
        task: a task file, for names and values of the structures.
        workers: processes; None for at most one per core, depending on the number of cases.
    """
    files = find_cases(where)
    labels = task_labels(task) if task else _names_without_task(files)
    with exclusive(out):
        cases, findings = measure_and_judge(files, labels, workers=workers, progress=True)
        findings += find_preprocessing_faults(task, cases, findings) if task else []
        findings = sorted([*findings, *find_files_left_out(where)], key=lambda one: one.severity != "error")
        stored = labels.keeps_stored_axes
        result = CheckResult(cases=cases, findings=findings, names=labels.names, keeps_stored_axes=stored)
        print(summary_table(result))
        page = write_check(out, result, sources=list(where), task=task)
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{len(cases)} cases, {errors} errors, {len(findings) - errors} warnings; {page}")
    return findings


def measure_and_judge(
    files: Sequence[ListedCase], labels: TaskLabels | None = None, *, workers: int | None = 1, progress: bool = False
) -> tuple[list[MeasuredCase], list[Finding]]:
    """Measure cases, and check each alone and against the others; ``labels`` are those of the datalists if None."""
    labels = labels or _names_without_task(files)
    cases = measure_cases(files, labels, workers=workers, progress=progress)
    return cases, judge_cases(cases, labels)


def measure_cases(
    files: Sequence[ListedCase],
    labels: TaskLabels,
    *,
    workers: int | None = 1,
    progress: bool = False,
    check: Callable[[Sequence[MeasuredCase]], None] | None = None,
) -> list[MeasuredCase]:
    """Measure and draw each case, in as many processes as are worth starting if ``workers`` is None.

    ``check`` is called with the cases so far after each; what it raises ends the work.
    """
    class_of = {value: number for number, value in enumerate(labels.names, start=1)}
    measure = partial(measure_case, class_of=class_of, keeps_stored_axes=labels.keeps_stored_axes)
    cases: list[MeasuredCase] = []
    with closing(_mapped(measure, files, workers)) as mapped:  # or workers would go on after an error
        for case in tqdm(mapped, total=len(files), unit="case", disable=not progress):
            cases.append(case)
            if check is not None:
                check(cases)
    return cases


def judge_cases(cases: Sequence[MeasuredCase], labels: TaskLabels) -> list[Finding]:
    """Check measured cases alone and in comparison with the others; errors come first."""
    alone = {id(case): judge_case(case, labels.names, labels.known, labels.scaled_within) for case in cases}
    findings = [finding for case in cases for finding in alone[id(case)]]
    upright = [case for case in cases if all(f.kind != "label mirrored against its image" for f in alone[id(case)])]
    axes = STORED_AXES if labels.keeps_stored_axes else AXES
    misplaced = find_misplaced_structures(upright, labels.names, axes)
    known = {(f.domain, name) for f in misplaced if f.severity == "error" for name in f.cases}
    known |= {tuple(f.domain.split(", ")) for f in misplaced if not f.cases}  # type: ignore[misc]
    stretched = find_wrong_spacing(cases)
    compared = [*misplaced, *find_mirrored_images(cases, known, axes), *find_shifted_labels(upright), *stretched]
    counts = Counter(case.domain for case in cases if case.shape)
    findings += [_by_evidence(finding, counts) for finding in compared]
    explained = {(finding.domain, name) for finding in stretched for name in finding.cases}
    sized = [case for case in cases if (case.domain, case.name) not in explained]
    findings += [*find_wrong_sizes(sized, labels.names), *find_copies(cases)]
    findings += find_unlabelled_structures(cases, labels.names, labels.source_domain)
    findings += find_wrong_slice_axis(cases, labels.orientation, labels.slice_axis)
    findings += find_turned_volumes(cases, labels.orientation)
    findings += [] if labels.keeps_stored_axes else find_wrong_sides(cases, labels.names)
    return sorted(findings, key=lambda finding: finding.severity != "error")


def _by_evidence(finding: Finding, counts: Mapping[str, int]) -> Finding:
    """A finding from a comparison between cases, reduced to a warning if few cases were compared."""
    fewest = min(counts[domain] for domain in finding.domain.split(", "))
    if finding.severity == "warning" or fewest >= LIMITS.cases_for_errors:
        return finding
    return replace(finding, severity="warning", found=f"{finding.found}; a comparison of only {fewest} cases")


def task_labels(path: str) -> TaskLabels:
    """Names and values of the structures in a task file; one without them is refused."""
    content = task_files.read_task(Path(path))
    if "label_names" not in content or "label_values" not in content:
        remedy = "name one such as those in configs/tasks"
        raise InputError(file=path, found="no structures", expected="label_names and label_values", remedy=remedy)
    paired = dict(zip(map(float, content["label_values"]), content["label_names"], strict=True))
    background = tuple(map(float, content.get("background_values", ())))
    return TaskLabels(
        names=paired,
        background=background,
        scaled_within=_scaled_within(content),
        source_domain=content.get("source_domain"),
        orientation=content.get("orientation", "RAS"),
        slice_axis=content.get("slice_axis"),
    )


def _scaled_within(task: Mapping[str, Any]) -> tuple[float, float] | None:
    """The intensity range that the task requires of both domains, if it has a ``RequireRanged`` for both."""
    steps = [task.get(f"{side}_intensity") for side in ("source", "target")]
    limits = [step["within"] for step in steps if isinstance(step, Mapping) and "within" in step]
    return (float(limits[0][0]), float(limits[0][1])) if len(limits) == 2 else None


def _names_without_task(files: Sequence[ListedCase]) -> TaskLabels:
    """The names in the datalists, if they agree."""
    names = {case.label_names for case in files if case.label}
    return TaskLabels(names=dict(names.pop()) if len(names) == 1 else {})


def _mapped(
    measure: partial[MeasuredCase], files: Sequence[ListedCase], workers: int | None
) -> Generator[MeasuredCase]:
    most = min(available_cores(), len(files) // CASES_PER_WORKER) if workers is None else workers
    if most < 2:
        yield from map(measure, files)
        return
    try:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(most, mp_context=context, initializer=start_worker)
    except OSError as error:  # processes share semaphores, which need a writable /dev/shm
        logger.warning("Cases are measured one at a time, because no process pool could be started (%s).", error)
        yield from map(measure, files)
        return
    with pool:
        yield from pool.map(measure, files)
