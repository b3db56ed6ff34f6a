"""Reads the results of a comparison from its files, finished or not."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from scripts.lab.experiments.comparison_record import read_comparison_record
from scripts.lab.experiments.run_record import RunRecord, Status

__all__ = [
    "LOWER",
    "RECOMMENDED",
    "RECOMMENDED_LOWER",
    "REFERENCE",
    "UPPER",
    "Comparison",
    "MethodResult",
    "RunResult",
    "read_comparison",
]

# The lower and the upper bound, the reference of the tests, and the method recommended to users.
LOWER, UPPER, REFERENCE, RECOMMENDED = "none", "supervised", "glua", "recommended"
# The lower bound of the recommended method: the same network without adaptation.
RECOMMENDED_LOWER = "none_unet"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one translator or method with one seed."""

    name: str
    seed: int
    folder: Path
    status: Status  # ``done`` if all steps are done and the evaluation, if there is one, can be read
    error: str | None = None  # why it is not done
    selection: str | None = None  # how the weights of a done run were selected
    translator: str = "none"  # of its training images, or ``none``
    steps: Mapping[str, Any] = field(default_factory=dict)  # command, commits and seconds of each step
    summary: Mapping[str, Any] = field(default_factory=dict)  # ``eval/summary.json``; empty if the target has no labels
    summary_largest: Mapping[str, Any] = field(default_factory=dict)  # of the largest component of each structure
    dice_of_case: Mapping[str, float] = field(default_factory=dict)  # mean Dice in % over the structures

    @property
    def title(self) -> str:
        """Name and seed, as printed."""
        return f"{self.name}, seed {self.seed}"

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each finished step."""
        return {name: step["seconds"] for name, step in self.steps.items() if step["seconds"] is not None}

    @property
    def commands(self) -> list[str]:
        """What was run, in order."""
        return [step["command"] for step in self.steps.values()]

    @property
    def commits(self) -> list[str]:
        """The short commits of the code that its steps ran on; with a plus where it had uncommitted changes."""
        steps = [step for step in self.steps.values() if step["commits"]]
        marks = ["+" if step["uncommitted_changes"] else "" for step in steps]
        listed = [f"{commit[:7]}{mark}" for step, mark in zip(steps, marks, strict=True) for commit in step["commits"]]
        return [*dict.fromkeys(listed)]

    def result_file(self, case: str, kind: Literal["seg", "mask"]) -> Path:
        """Label map or local mask of a held-out case; the path of an evaluation's label map if there is none."""
        name = f"{case}_{kind}.nii.gz"
        places = [self.folder / "eval" / "predictions" / name, self.folder / "inference" / name]
        return next((path for path in places if path.is_file()), places[0])


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """The results of one method, by seed."""

    name: str
    runs: tuple[RunResult, ...]

    @property
    def done(self) -> tuple[RunResult, ...]:
        """The runs that are done."""
        return tuple(run for run in self.runs if run.status == "done")

    @property
    def evaluated(self) -> tuple[RunResult, ...]:
        """The runs that have numbers."""
        return tuple(run for run in self.done if run.summary)

    def run_of(self, seed: int | None) -> RunResult | None:
        """The done run of a seed, else of the first seed that has one; None without any."""
        return next((run for run in self.done if run.seed == seed), next(iter(self.done), None))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All results of a comparison: methods in the order of the request, translators by name and seed."""

    folder: Path
    content: Mapping[str, Any]  # ``comparison.json``
    methods: tuple[MethodResult, ...]
    translators: tuple[RunResult, ...]
    settings: Mapping[str, Any]  # merged settings of one run, as the task's are the same in all; empty without a run

    @property
    def label_names(self) -> list[str]:
        """Names of the structures 1..K."""
        return list(self.content["label_names"])

    @property
    def direction(self) -> str:
        """Such as ``mr -> ct``."""
        return f"{self.content['source_domain']} -> {self.content['target_domain']}"

    @property
    def runs(self) -> list[RunResult]:
        """All runs, translators first."""
        return [*self.translators, *(run for method in self.methods for run in method.runs)]

    @property
    def shown_seed(self) -> int | None:
        """The seed of the pictures: the first one of the reference that is done, else of any method."""
        reference = self.method(REFERENCE)
        runs = [*(reference.done if reference else ()), *(run for method in self.methods for run in method.done)]
        return runs[0].seed if runs else None

    def method(self, name: str) -> MethodResult | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    def datalist(self, domain: Literal["source", "target"]) -> Path:
        """The datalist of a domain, in the data set's folder or in the comparison's own ``data``."""
        name = f"{self.content[f'{domain}_domain']}.json"
        folder = Path(str(self.content["dataset_dir"]))
        places = [self.folder / folder, folder, self.folder / "data"]
        return next((place / name for place in places if (place / name).is_file()), folder / name)


def read_comparison(folder: Path) -> Comparison:
    """Read ``comparison.json`` and the record and evaluation of each run."""
    content = read_comparison_record(folder)
    methods, translators = _runs(folder / "methods", content["label_names"]), _runs(folder / "translators", [])
    names = dict.fromkeys([*content["methods"], *(run.name for run in methods)])
    return Comparison(
        folder=folder,
        content=content,
        methods=tuple(
            MethodResult(name=name, runs=tuple(run for run in methods if run.name == name)) for name in names
        ),
        translators=tuple(translators),
        settings=next(filter(None, (_settings_of(run.folder) for run in [*methods, *translators])), {}),
    )


def _runs(folder: Path, label_names: Iterable[str]) -> list[RunResult]:
    """The runs in a folder by name and seed. A folder that was renamed is not one of them."""
    found = []
    for file in folder.glob(f"*_seed*/{RunRecord.FILE}"):
        record = RunRecord(file.parent)
        if file.parent.name == f"{record.content['name']}_seed{record.content['seed']}":
            found.append(_read_run(record, label_names))
    return sorted(found, key=lambda run: (run.name, run.seed))


def _read_run(record: RunRecord, label_names: Iterable[str]) -> RunResult:
    content, folder = record.content, record.folder
    run: dict[str, Any] = {key: content[key] for key in ("name", "seed", "translator", "steps")} | {"folder": folder}
    if record.status != "done":
        return RunResult(**run, status=record.status, error=record.error or "it was not run, or was interrupted")
    if content["kind"] == "translator":
        return RunResult(**run, status="done")
    # As requested in the settings, unless the evaluation says otherwise.
    chosen = _settings_of(folder).get("selection", {})
    selection = str(chosen.get("keep", "last") if isinstance(chosen, Mapping) else chosen)
    if not any(name.startswith("evaluation") for name in content["steps"]):
        return RunResult(**run, status="done", selection=selection)
    try:
        summary = _summary(folder / "eval", label_names)
        return RunResult(
            **run,
            status="done",
            selection=(summary.get("selection") or {}).get("rule") or selection,
            summary=summary,
            summary_largest=_summary(folder / "eval_largest_component", label_names),
            dice_of_case=_dice_of_case(folder / "eval" / "metrics.csv"),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunResult(
            **run, status="missing", error=f"its evaluation cannot be read ({type(error).__name__}: {error})"
        )


def _summary(folder: Path, label_names: Iterable[str]) -> dict[str, Any]:
    """The summary of an evaluation."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if missing := [name for name in label_names if name not in summary["structures"]]:
        raise ValueError(f"{folder.name}/summary.json has no structure '{missing[0]}'")
    return dict(summary)


def _dice_of_case(path: Path) -> dict[str, float]:
    """Mean Dice in % over the structures of each case, without structures that both label maps lack."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            values[row["case"]].append(float(row["dice_percent"]))
    counted = {case: [value for value in dice if not math.isnan(value)] for case, dice in values.items()}
    return {case: sum(dice) / len(dice) for case, dice in counted.items() if dice}


def _settings_of(folder: Path) -> dict[str, Any]:
    """The settings that a run was started with; empty without the file."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}
