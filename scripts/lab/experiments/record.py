"""``comparison.json``: what a comparison was asked for and what became of each run, read from the runs' own folders."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.run_folder import provenance
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun, Step, named_file, task_settings

__all__ = ["FAILURE", "RECORD", "note_failure", "note_start", "read_record", "status_in", "status_of", "write_record"]

RECORD = "comparison.json"
"""The record's name in the folder of a comparison."""

FAILURE = "failure.json"
"""Of a run that broke: the step, the reason, and the signal if one ended it."""

STARTED = "commands.json"
"""Of a run, by step: the command that was started, and the commits of the code that it ran on."""

SAME = ("task", "size", "dataset_dir", "settings")


def status_of(run: PlannedRun) -> str:
    """``done``, ``failed`` or ``missing``, by the files in the run's folder; ``missing`` too if a signal ended it."""
    return status_in(run.folder, is_done=set(_seconds(run.folder)) >= {step.name for step in run.steps})


def status_in(folder: Path, *, is_done: bool = False) -> str:
    """The same of a folder whose steps are known to be done or not."""
    if is_done:
        return "done"
    failure = _json(folder / FAILURE)
    return "failed" if failure and failure.get("signal") is None else "missing"


def note_start(run: PlannedRun, step: Step, *, resumed: bool) -> None:
    """Keep in the run's folder the command of a step and the code's commit, before it starts.

    Args:
        run: the run.
        step: its step.
        resumed: it goes on where an earlier attempt stopped, whose commit stays listed.
    """
    started = _json(run.folder / STARTED)
    before, now = started.get(step.name, {}) if resumed else {}, provenance()
    started[step.name] = {
        "command": _line(step),
        "commits": [*dict.fromkeys([*before.get("commits", ()), *filter(None, [now["commit"]])])],
        "uncommitted_changes": before.get("uncommitted_changes", False) or now["uncommitted_changes"],
    }
    write_json(run.folder / STARTED, started)


def note_failure(run: PlannedRun, step: str, error: str, *, signal: int | None = None) -> None:
    """Keep in the run's folder why it broke.

    Args:
        run: the run.
        step: the step's name.
        error: one line.
        signal: what ended the step's process from outside: such a run is no failure, but is missing.
    """
    write_json(run.folder / FAILURE, {"step": step, "error": error, "signal": signal})


def write_record(request: ComparisonRequest, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    """Write ``comparison.json`` and return it. Runs of an earlier request on the same data stay listed.

    What became of each listed run, whoever ran it, is read from its folder anew; a lock keeps other processes from
    writing in between. What a run was started with stays as it was.

    Raises:
        InputError: the folder holds a comparison of another task, size or data.
    """
    with FileLock(request.out / ".comparison.lock"):
        content = _merged(request, runs)
        write_json(request.out / RECORD, content | {"provenance": provenance()})
    return content


def _merged(request: ComparisonRequest, runs: Sequence[PlannedRun]) -> dict[str, Any]:
    path = request.out / RECORD
    earlier = (
        read_record(request.out) if path.is_file() else {"runs": [], "translators": [], "methods": [], "seeds": []}
    )
    content = _head(request)
    for key in SAME:
        if key in earlier and earlier[key] != content[key]:
            raise InputError(
                file=path,
                found=f"a comparison with {key} {earlier[key]}",
                expected=f"{key} {content[key]}",
                remedy="choose another --out, or ask for what this folder was begun with",
            )
    content["methods"] = [*dict.fromkeys([*earlier["methods"], *(run.name for run in runs if run.kind == "method")])]
    content["seeds"] = sorted({*earlier["seeds"], *request.seeds})
    for key, kind in (("runs", "method"), ("translators", "translator")):
        entries = {entry["folder"]: _seen_again(request.out, entry) for entry in earlier[key]}
        for run in runs:
            if run.kind == kind:
                name = str(run.folder.relative_to(request.out))
                entries[name] = _entry(name, run, entries.get(name, {}))
        content[key] = list(entries.values())
    return content


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``comparison.json``; entries without commits get those that their runs' folders name.

    Raises:
        InputError: there is none, or it is no comparison's.
    """
    path = folder / RECORD
    expected = "the folder that 'python -m scripts compare' wrote, with its comparison.json"
    remedy = "name that folder"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(file=path, found="no such file", expected=expected, remedy=remedy) from error
    except ValueError as error:
        raise InputError(file=path, found=f"no JSON ({error})", expected=expected, remedy=remedy) from error
    needed = ["task", "source_domain", "target_domain", "label_names", "methods", "runs"]
    lacking = [key for key in needed if key not in content] if isinstance(content, dict) else needed
    if lacking:
        raise InputError(file=path, found=f"no '{lacking[0]}' in it", expected=expected, remedy=remedy)
    for entry in (*content["runs"], *content.get("translators", ())):
        if "commits" not in entry:
            entry |= _code(folder / entry["folder"])
    return content


def _head(request: ComparisonRequest) -> dict[str, Any]:
    task_file = named_file("tasks", request.task)
    task = task_settings(task_file)
    return {
        "task": task["task"],
        "task_file": str(task_file),
        "size": request.size,
        # A generated phantom goes where its comparison goes.
        "dataset_dir": "data" if request.dataset_dir is None else os.path.abspath(request.dataset_dir),
        "settings": dict(request.settings),
        **{key: task[key] for key in ("source_domain", "target_domain", "label_names")},
    }


def _entry(name: str, run: PlannedRun, earlier: Mapping[str, Any]) -> dict[str, Any]:
    status = status_of(run)
    entry = {
        run.kind: run.name,
        "seed": run.seed,
        "translator": run.translator,
        "folder": name,
        **_state(run.folder, status),
        "commands": _commands(run, status, earlier.get("commands") or ()),
    }
    return entry | _code(run.folder)


def _seen_again(out: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of an earlier request: what its folder says now, with the commands that it has."""
    folder = out / entry["folder"]
    # One command is one step; which name each step had is not listed.
    is_done = 0 < len(entry.get("commands") or ()) <= len(_seconds(folder))
    return {**entry, **_state(folder, status_in(folder, is_done=is_done)), **_code(folder)}


def _state(folder: Path, status: str) -> dict[str, Any]:
    card = _json(folder / "models" / "model.json")
    state = {
        "status": status,
        "error": None if status == "done" else _json(folder / FAILURE).get("error"),
        "seconds": _seconds(folder),
    }
    return state | ({"iterations": card["iterations"]} if "iterations" in card else {})


def _commands(run: PlannedRun, status: str, earlier: Sequence[str]) -> list[str]:
    """A run's commands as they were started, and of steps that never were, as they would be."""
    started = {name: noted["command"] for name, noted in _json(run.folder / STARTED).items()}
    if status == "done" and earlier and not started:  # of a comparison that kept them in comparison.json alone
        return list(earlier)
    return list(({step.name: _line(step) for step in run.steps} | started).values())


def _code(folder: Path) -> dict[str, Any]:
    """The commits that a run's steps ran on, the training's first, as its folder names them."""
    started = _json(folder / STARTED).values()
    trained = _json(folder / "provenance.json")
    notes = started or [{"commits": list(filter(None, [trained.get("commit")])), **trained}]
    return {
        "commits": [*dict.fromkeys(commit for note in notes for commit in note["commits"])],
        "uncommitted_changes": any(note.get("uncommitted_changes") for note in notes),
    }


def _line(step: Step) -> str:
    return shlex.join(["python", *step.command])


def _seconds(folder: Path) -> dict[str, float]:
    return {name: seconds for name, seconds in _json(folder / "steps.json").items() if seconds is not None}


def _json(path: Path) -> dict[str, Any]:
    """A file's content, empty without the file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
