"""What a comparison's folder holds, read from its files alone, whichever of its runs are there."""

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

from scripts.lab.experiments.record import read_record, status_in

__all__ = [
    "LOWER",
    "REFERENCE",
    "UPPER",
    "Comparison",
    "MethodResult",
    "RunResult",
    "TranslatorResult",
    "read_comparison",
]

LOWER, UPPER, REFERENCE = "none", "supervised", "glua"
"""The two yardsticks, and the method that each other one is tested against."""

Status = Literal["done", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One method with one seed.

    Attributes:
        method: a file of ``configs/methods``.
        seed: of the training.
        folder: where the run lives.
        status: ``done`` if its evaluation can be read and it did not fail.
        error: why it is not done, or None.
        selection: how the weights of a done run were chosen, else None.
        translator: whose images it trained on, or ``none``.
        commands: what was run, in order.
        commits: of the code that its steps ran on, the training's first.
        uncommitted_changes: whether that code had changes beside its commit.
        seconds: of each of its steps.
        summary: ``eval/summary.json`` of a done run, else empty.
        dice_of_case: mean Dice in % over the structures, by held-out case.
    """

    method: str
    seed: int
    folder: Path
    status: Status
    error: str | None = None
    selection: str | None = None
    translator: str = "none"
    commands: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    uncommitted_changes: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    dice_of_case: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """A method with all of its seeds.

    Attributes:
        name: a file of ``configs/methods``.
        runs: in the order of their seeds.
    """

    name: str
    runs: tuple[RunResult, ...]

    @property
    def done(self) -> tuple[RunResult, ...]:
        """The runs that have results."""
        return tuple(run for run in self.runs if run.status == "done")

    def run_of(self, seed: int | None) -> RunResult | None:
        """The done run of a seed, or that of the first seed there is; None if there is none."""
        return next((run for run in self.done if run.seed == seed), next(iter(self.done), None))


@dataclass(frozen=True, kw_only=True)
class TranslatorResult:
    """One training of a style transfer.

    Attributes:
        name: a file of ``configs/translators``.
        seed: of the training.
        folder: where it lives; its images are in ``translated/``.
        commands: what was run, in order.
    """

    name: str
    seed: int
    folder: Path
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison's folder.

    Attributes:
        folder: where it is.
        content: ``comparison.json``.
        methods: in the order asked for.
        translators: in the order of ``comparison.json``.
        settings: the merged settings of one of its runs, of which the task's are the same in all; empty without any.
    """

    folder: Path
    content: Mapping[str, Any]
    methods: tuple[MethodResult, ...]
    translators: tuple[TranslatorResult, ...]
    settings: Mapping[str, Any]

    @property
    def label_names(self) -> list[str]:
        """Names of the structures 1..K."""
        return list(self.content["label_names"])

    @property
    def direction(self) -> str:
        """Such as ``mr -> ct``."""
        return f"{self.content['source_domain']} -> {self.content['target_domain']}"

    @property
    def shown_seed(self) -> int | None:
        """The seed of the pictures: the first that the reference has, or else any method."""
        reference = self.method(REFERENCE)
        runs = [*(reference.done if reference else ()), *(run for method in self.methods for run in method.done)]
        return runs[0].seed if runs else None

    def method(self, name: str) -> MethodResult | None:
        """The method of that name, or None."""
        return next((method for method in self.methods if method.name == name), None)

    def datalist(self, domain: Literal["source", "target"]) -> Path:
        """The datalist of a domain, in the data set's folder as it was named or in the comparison's own ``data``."""
        name = f"{self.content[f'{domain}_domain']}.json"
        where = Path(str(self.content.get("dataset_dir") or "data"))
        places = [self.folder / where, where, self.folder / "data"]
        return next((place / name for place in places if (place / name).is_file()), where / name)


def read_comparison(folder: Path) -> Comparison:
    """Read ``comparison.json`` and every run's evaluation.

    A run counts as failed if its folder says so, or ``comparison.json`` does and there is no evaluation; as done if its
    evaluation can be read, and else as missing.

    Raises:
        InputError: the folder is none of a comparison.
    """
    content = read_record(folder)
    runs = [_read_run(folder, entry, content) for entry in content["runs"]]
    names = dict.fromkeys([*content["methods"], *(run.method for run in runs)])
    translators = [
        TranslatorResult(
            name=entry["translator"],
            seed=entry["seed"],
            folder=folder / entry["folder"],
            commands=tuple(entry.get("commands") or ()),
        )
        for entry in content.get("translators", [])
    ]
    folders = [*(run.folder for run in runs), *(translator.folder for translator in translators)]
    return Comparison(
        folder=folder,
        content=content,
        methods=tuple(
            MethodResult(name=name, runs=tuple(sorted((r for r in runs if r.method == name), key=lambda run: run.seed)))
            for name in names
        ),
        translators=tuple(translators),
        settings=_first_settings(folders),
    )


def _read_run(folder: Path, entry: Mapping[str, Any], content: Mapping[str, Any]) -> RunResult:
    where = folder / entry["folder"]
    run: dict[str, Any] = {
        "method": entry["method"],
        "seed": entry["seed"],
        "folder": where,
        "translator": entry.get("translator") or "none",
        "commands": tuple(entry.get("commands") or ()),
        "seconds": entry.get("seconds") or {},
        "commits": tuple(entry["commits"]),
        "uncommitted_changes": bool(entry.get("uncommitted_changes")),
    }
    evaluated = where / "eval" / "summary.json"
    # The folder knows best: comparison.json may have been written before its end.
    if status_in(where) == "failed" or (entry.get("status") == "failed" and not evaluated.is_file()):
        return RunResult(**run, status="failed", error=entry.get("error") or "no word was left")
    try:
        summary = json.loads(evaluated.read_text(encoding="utf-8"))
        lacking = [name for name in content["label_names"] if name not in summary["structures"]]
        if lacking:
            return RunResult(**run, status="missing", error=f"eval/summary.json: no structure '{lacking[0]}' in it")
        # What did choose, as the evaluation says; else what was asked for.
        rule = (summary.get("selection") or {}).get("rule") or str(_settings_of(where).get("selection", "last"))
        dice_of_case = _dice_of_case(where / "eval" / "metrics.csv")
        return RunResult(**run, status="done", selection=rule, summary=summary, dice_of_case=dice_of_case)
    except FileNotFoundError as error:
        return RunResult(
            **run, status="missing", error=entry.get("error") or f"no {Path(error.filename).name} in eval/"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunResult(
            **run, status="missing", error=f"its evaluation cannot be read ({type(error).__name__}: {error})"
        )


def _dice_of_case(path: Path) -> dict[str, float]:
    """Mean Dice in % over the structures of each case; structures that both maps lack are not counted."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            values[row["case"]].append(float(row["dice_percent"]))
    counted = {case: [value for value in dice if not math.isnan(value)] for case, dice in values.items()}
    return {case: sum(dice) / len(dice) for case, dice in counted.items() if dice}


def _first_settings(folders: Iterable[Path]) -> dict[str, Any]:
    return next((settings for settings in map(_settings_of, folders) if settings), {})


def _settings_of(folder: Path) -> dict[str, Any]:
    """The settings a run was started with; empty where it left none."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}
