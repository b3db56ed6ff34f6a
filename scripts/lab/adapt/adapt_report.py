"""The report of a run: one page with the volumes of structures, pictures of every label map, and the training."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.lab.adapt.label_maps import Segmentations
from scripts.lab.adapt.request import AdaptRequest
from scripts.lab.check.check_report import CheckResult, as_ml, case_card, sentence
from scripts.lab.check.run_check import TaskLabels
from scripts.lab.experiments.plan import PlannedRun
from scripts.lab.experiments.run_record import RunRecord
from scripts.lab.page import Figure, Section, Table, write_page

__all__ = ["logged_warnings", "write_adapt_report"]

# A line of this project's modules, also behind a progress bar; libraries write warnings that say nothing to a user.
LINE = re.compile(r" - (scripts[\w.]*) - (?:WARNING|ERROR) - (.*)$")

# Implausible volumes are findings of the report already.
IN_REPORT = "scripts.evaluation.segmentation_summary"

CAUTION = (
    "No label of the target was used. A network without target labels can be wrong everywhere in the same way: look at "
    "the pictures, and compare some cases with labels of your own, before you use a label map. For research only."
)


def write_adapt_report(
    request: AdaptRequest,
    result: Segmentations,
    labels: TaskLabels,
    runs: Sequence[PlannedRun],
    schedule: Mapping[str, Any],
    warnings: Sequence[str] = (),
) -> Path:
    """Write the page ``report.html``, with the warnings that trainings and inference wrote to their logs."""
    shown = CheckResult(
        cases=result.cases, findings=result.findings, names=labels.names, keeps_stored_axes=labels.keeps_stored_axes
    )
    flagged = [case for case in result.cases if shown.findings_on(case)]
    heading = f"{len(result.cases)} volumes segmented, {len(flagged)} with warnings"
    ranked = sorted(result.cases, key=lambda case: not shown.findings_on(case))
    sections = [
        Section(text=[_training_text(schedule), CAUTION]),
        _evaluation(request.out / "evaluation"),
        Section(heading="Warnings", items=[*map(sentence, result.findings), *warnings]),
        Section(heading="Volumes", tables=[_volumes(result, labels.names)]),
        Section(
            heading="Label maps",
            text=["Slices through most of the structures. Cases with warnings come first."],
            cards=[case_card(case, shown) for case in ranked],
        ),
        Section(heading="What the network learned from", figures=_panels(runs)),
        Section(heading="Commands", code=_commands(runs), is_folded=True),
    ]
    footer = f"task file: {request.task_file}; check of the volumes: {request.out / 'check' / 'check.html'}"
    return write_page(request.out / "report.html", sections, heading=heading, title=f"adapt: {heading}", footer=footer)


def logged_warnings(logs: Iterable[Path]) -> list[str]:
    """The warnings of this project's modules in log files, each once; a missing file has none."""
    found = []
    for log in logs:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        matches = (LINE.search(line) for line in re.split(r"[\r\n]+", text))
        found += [match[2] for match in matches if match and match[1] != IN_REPORT]
    return list(dict.fromkeys(found))


def _training_text(schedule: Mapping[str, Any]) -> str:
    text = f"Method {schedule['method']}, schedule {schedule['name']}, length {schedule['length']:g}."
    if schedule["settings"]:
        text += " This schedule only tests the sequence: its label maps mean nothing."
    return text


def _volumes(result: Segmentations, names: Mapping[float, str]) -> Table:
    ranges = [f"{as_ml(low)} to {as_ml(high)}" for low, high in map(result.ranges.__getitem__, names)]
    rows = [["labelled cases", *ranges]]
    for case in result.cases:
        rows.append([case.name, *(as_ml(case.volumes_ml[v]) if v in case.volumes_ml else "-" for v in names)])
    return Table(heads=["ml", *names.values()], rows=rows, note="summary.csv holds these numbers.")


def _evaluation(folder: Path) -> Section:
    file = folder / "summary.json"
    if not file.is_file():
        return Section()
    summary = json.loads(file.read_text(encoding="utf-8"))
    rows = [
        [name, f"{values['dice_percent']['mean']:.1f}", f"{values['asd_mm']['mean']:.1f}"]
        for name, values in summary["structures"].items()
    ]
    mean = summary["mean_over_structures"]
    table = Table(
        heads=["structure", "Dice %", "surface distance mm"],
        rows=[*rows, ["mean", f"{mean['dice_percent']:.1f}", f"{mean['asd_mm']:.1f}"]],
    )
    names = {"worst_case.png": "The worst case.", "median_case.png": "The median case."}
    figures = [Figure(path=folder / name, caption=text) for name, text in names.items() if (folder / name).is_file()]
    text = "Held-out volumes of the target, whose images were not trained on, against their labels."
    return Section(heading="Evaluation", text=[text], tables=[table], figures=figures)


def _panels(runs: Sequence[PlannedRun]) -> list[Figure]:
    """The last picture of each kind of each training."""
    figures = []
    for run in runs:
        pictures = sorted((run.folder / "pictures").glob("*.png"))
        last = {path.stem.rsplit("_", 1)[0]: path for path in pictures}
        figures += [Figure(path=path, caption=f"{run.name}: {kind}") for kind, path in last.items()]
    return figures


def _commands(runs: Sequence[PlannedRun]) -> list[tuple[str, str]]:
    records = [(run, RunRecord(run.folder)) for run in runs]
    return [
        (f"{run.name}: {name}", step["command"])
        for run, record in records
        for name, step in record.content["steps"].items()
    ]
