"""``python -m scripts adapt``: from two folders of volumes to label maps, resumable at every point."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scripts.core.errors import InputError
from scripts.data.case_names import case_name, visible_files
from scripts.lab.adapt.adapt_report import logged_warnings, write_adapt_report
from scripts.lab.adapt.cost import check_memory, decide, load_sentence, measure_cost
from scripts.lab.adapt.folders import DomainFolder, check_not_exchanged, domain_names, write_domain
from scripts.lab.adapt.grid import choose_grid, read_headers
from scripts.lab.adapt.label_maps import SegmentedSet, measure_label_maps, write_summary
from scripts.lab.adapt.request import AdaptRequest, Progress
from scripts.lab.adapt.steps import evaluate, plan_trainings, segment
from scripts.lab.adapt.task_file import check_intensities, check_label_names, choose_labels, choose_task
from scripts.lab.adapt.training_lengths import Schedule, duration_text, read_adapt_rules
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.cases import MeasuredCase
from scripts.lab.check.check_report import CheckResult, sentence, write_check
from scripts.lab.check.preprocessed import find_preprocessing_faults
from scripts.lab.check.run_check import TaskLabels, judge_cases, measure_cases, task_labels
from scripts.lab.cores import exclusive
from scripts.lab.experiments.compare import execute_runs
from scripts.lab.experiments.plan import PlannedRun, has_labels, task_settings
from scripts.lab.page import write_text

__all__ = ["run_adapt"]

# Share of the target's volumes that is kept for evaluation, where they have labels.
HELD_OUT = 0.2

# Training volumes of the smaller domain in the published results on real volumes.
FEWEST_MEASURED = 13


def run_adapt(request: AdaptRequest) -> Path | None:
    """Plan, check, estimate the cost, train, segment, evaluate and report; finished steps are skipped."""
    with exclusive(request.out):
        return _adapt(request)


def _adapt(request: AdaptRequest) -> Path | None:
    progress = Progress.read(request)
    if "schedule" not in progress.content:
        if progress.content.get("checked") == _state(request):
            print(
                f"These volumes were measured and checked before: {request.out / 'check' / 'check.html'}.", flush=True
            )
        else:
            _plan_and_check(request, progress)
            progress.note(checked=_state(request))
    if request.plan_only:
        print(_plan_text(request))
        return None
    if "schedule" not in progress.content:
        _decide(request, progress)
    schedule = Schedule(**progress.content["schedule"])
    _check_schedule(request, progress, schedule)
    runs = plan_trainings(request, schedule, request.out)
    if not execute_runs(runs, shown="progress"):
        raise SystemExit(1)
    for text in logged_warnings(_training_logs(runs)):
        print(f"warning: {text}")
    print(f"Training: done. Weights: {runs[-1].folder / 'models' / 'model.pt'}. Next: segmentation.", flush=True)
    return _use(request, progress, runs)


def _plan_text(request: AdaptRequest) -> str:
    """Where the plan is, and what comes next."""
    names = task_labels(str(request.task_file)).names
    text = f"Plan: {request.task_file}. Check: {request.out / 'check' / 'check.html'}. Nothing was trained."
    if request.label_names is None:
        shown = ",".join(f"{value:g}={name}" for value, name in names.items())
        text += f' Structures: --label_names "{shown}" with your own names; values left out become background.'
    return f"{text} Next: read the task file, look at the check, and repeat the command without --plan_only."


def _plan_and_check(request: AdaptRequest, progress: Progress) -> None:
    rules = read_adapt_rules()
    file = request.task_file
    is_edited = file.is_file() and _digest(file) != progress.content.get("task_written")
    own_task = request.task or (file if is_edited else None)
    given = task_settings(own_task) if own_task else {}
    check_not_exchanged(request.source_images, request.source_labels, request.target_images)
    names = domain_names(request.source_images, request.target_images)
    source, target = (
        str(given.get(f"{side}_domain", name)) for side, name in zip(("source", "target"), names, strict=True)
    )
    held_out = HELD_OUT if request.target_labels else 0.0
    lists = [
        write_domain(DomainFolder(source, request.source_images, request.source_labels), request.data),
        write_domain(DomainFolder(target, request.target_images, request.target_labels, held_out), request.data),
    ]
    progress.note(domains=[source, target])
    files = find_cases([str(path) for path in lists])
    headers = {
        domain: read_headers([case.image for case in files if case.domain == domain]) for domain in (source, target)
    }
    grid = choose_grid(headers, rules.schedule(request.schedule).pixels)
    print(f"Measuring {len(files)} volumes of {source} and {target}.", flush=True)
    frame = TaskLabels(names={}, orientation=grid.orientation)
    labelled, others = ([case for case in files if (case.domain == source) is first] for first in (True, False))
    check_names = partial(check_label_names, given=request.label_names)
    cases = measure_cases(labelled, frame, workers=None, progress=True, check=check_names)
    labels = choose_labels(cases, request.label_names)
    cases += measure_cases(others, frame, workers=None, progress=True)
    warnings: Sequence[str] = ()
    if labels[0].value and own_task is None:
        plan = choose_task(request.out.resolve().name, (source, target), cases, headers, grid, labels)
        warnings = plan.warnings
        write_text(request.task_file, plan.text)
        progress.note(task_written=_digest(request.task_file))
    elif own_task is not None:
        check_intensities(own_task, given, cases)
        write_text(request.task_file, own_task.read_text(encoding="utf-8"))
    _check(request, cases, bool(labels[0].value), warnings, [str(path) for path in lists])


def _check(
    request: AdaptRequest, cases: Sequence[MeasuredCase], has_task: bool, warnings: Sequence[str], lists: Sequence[str]
) -> None:
    """Judge the measured cases and write the check's page; errors end the command, unless told otherwise."""
    labels = task_labels(str(request.task_file)) if has_task else TaskLabels(names={})
    findings = judge_cases(cases, labels)
    findings += find_preprocessing_faults(str(request.task_file), cases, findings) if has_task else []
    task = str(request.task_file) if has_task else None
    result = CheckResult(cases=cases, findings=findings, names=labels.names, keeps_stored_axes=labels.keeps_stored_axes)
    page = write_check(request.out / "check", result, sources=lists, task=task)
    for line in [*map(sentence, findings), *(f"warning: {text}" for text in warnings)]:
        print(line)
    errors = [finding for finding in findings if finding.severity == "error"]
    if (errors or not has_task) and not (request.despite_errors and has_task):
        raise InputError(
            file=page,
            found=f"{len(errors)} error(s) in the volumes" if errors else "no labelled voxel in the label maps",
            expected="volumes without errors",
            remedy="correct what is named above and repeat the command; --despite_errors trains regardless",
        )
    print(_training_volumes_text(cases))
    print(f"{result.headline}. Task file: {request.task_file}. Pictures of all volumes: {page}.", flush=True)


def _training_volumes_text(cases: Sequence[MeasuredCase]) -> str:
    """How many volumes of each domain train, and what is known of so few."""
    counts = Counter(case.domain for case in cases if case.files.section == "training")
    text = f"Training volumes: {', '.join(f'{count} of {domain}' for domain, count in counts.items())}."
    if min(counts.values()) >= FEWEST_MEASURED:
        return text
    return (
        f"{text} The results on real volumes (docs/results.md) have {FEWEST_MEASURED} or more of each domain; nothing "
        "was measured with fewer: look at every label map. The check, too, finds less among few volumes."
    )


def _decide(request: AdaptRequest, progress: Progress) -> None:
    """Print the estimated cost, and record the schedule that fits."""
    rules = read_adapt_rules()
    schedule = rules.schedule(request.schedule)
    folder = request.out / "cost"
    segmented = sum(len(one.label_maps()) for one in _sets(request, progress))
    print(f"Timing at most {rules.timed_iterations} iterations of each training on this machine.", flush=True)
    runs = plan_trainings(request, dataclasses.replace(schedule, length=1.0), folder)
    source, target = progress.content["domains"]
    cost = measure_cost(runs, request.data, folder, rules, (source, target), segmented)
    print(cost.table(schedule.length).as_text())
    memory = check_memory(cost.memory_bytes)
    decided = decide(schedule, cost, rules, request.time_s, request.schedule is not None)
    expected = cost.total_s(decided.length)
    text = (
        f"Schedule {decided.name}, trainings of length {decided.length:g}: about {duration_text(expected)}, {memory}."
    )
    print(f"{text} {load_sentence()}".strip(), flush=True)
    progress.note(schedule=dataclasses.asdict(decided), time_s=request.time_s, expected_s=round(expected))
    shutil.rmtree(folder, ignore_errors=True)


def _use(request: AdaptRequest, progress: Progress, runs: Sequence[PlannedRun]) -> Path:
    """Segment, evaluate and report."""
    sets = _sets(request, progress)
    source, target = progress.content["domains"]
    for one in sets:
        if not all(path.is_file() for path in one.label_maps().values()):
            segment(runs[-1], one.where, one.folder, _segmentation_log(request, one))
        print(f"Label maps: {one.folder}.", flush=True)
    progress.note(segment=[str(place) for place in _places(request, progress)])
    if request.target_labels and has_labels(request.data / f"{target}.json"):
        evaluate(runs[-1], request.data, request.out / "evaluation", request.out / "logs" / "evaluation.log")
    labels = task_labels(str(request.task_file))
    result = measure_label_maps(sets, labels, request.out / "check", source)
    summary = write_summary(request.label_maps / "summary.csv", result, labels.names)
    logs = [*_training_logs(runs), *(_segmentation_log(request, one) for one in sets)]
    page = write_adapt_report(request, result, labels, runs, progress.content["schedule"], logged_warnings(logs))
    flagged = {case for finding in result.findings for case in finding.cases}
    print(f"\n{len(result.cases)} volumes segmented, {len(flagged)} with warnings. Volumes: {summary}.")
    print(f"Look at {page}. Repeat the command with --segment FOLDER to segment further volumes.")
    return page


def _sets(request: AdaptRequest, progress: Progress) -> list[SegmentedSet]:
    """The volumes to segment: the target's, and those of ``--segment``, of earlier commands too."""
    target = progress.content["domains"][1]
    sets = [SegmentedSet(target, request.data / f"{target}.json", request.label_maps / target)]
    for place in _places(request, progress):
        name = f"new_{case_name(str(place))}"
        where = write_domain(DomainFolder(name, place), request.data) if place.is_dir() else place
        sets.append(SegmentedSet(name, where, request.label_maps / name))
    return sets


def _places(request: AdaptRequest, progress: Progress) -> list[Path]:
    """What to segment besides the target's volumes: now, and in earlier commands as far as it still exists."""
    earlier = [place for place in map(Path, progress.content.get("segment", ())) if place.exists()]
    return list(dict.fromkeys([*earlier, *(place.absolute() for place in request.segment)]))


def _training_logs(runs: Sequence[PlannedRun]) -> list[Path]:
    return [log for run in runs for log in sorted((run.folder / "logs").glob("*.log"))]


def _segmentation_log(request: AdaptRequest, one: SegmentedSet) -> Path:
    return request.out / "logs" / f"segmentation_{one.name}.log"


def _check_schedule(request: AdaptRequest, progress: Progress, schedule: Schedule) -> None:
    """Refuse another length than the one that was decided: a training cannot continue with it."""
    if request.schedule not in (None, schedule.name) or request.time_s not in (None, progress.content.get("time_s")):
        raise InputError(
            file=request.out,
            found=f"a run with schedule {schedule.name} and trainings of length {schedule.length:g}",
            expected="the --schedule and --time that it was started with, or neither",
            remedy="leave them out to continue, or choose another --out",
        )


def _state(request: AdaptRequest) -> str:
    """A digest of what plan and check depend on: an interrupted command does not measure the same volumes again."""
    folders = (request.source_images, request.source_labels, request.target_images, request.target_labels)
    files = [file for folder in folders if folder for file in visible_files(folder)]
    files += [file for file in (request.task_file, request.task) if file]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    options = (request.label_names, request.despite_errors, read_adapt_rules().schedule(request.schedule).pixels)
    return hashlib.sha256(repr((stamps, options)).encode()).hexdigest()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
