"""``ladder.json``: what a ladder was asked for and what became of each run, read from the runs' own folders."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.data.writers import write_json
from scripts.errors import InputError
from scripts.ladder.plan import Order, Run, named_file, task_settings
from scripts.run_folder import provenance

__all__ = ["FAILURE", "read_record", "status_of", "write_ladder"]

FAILURE = "failure.json"
SAME = ("task", "size", "dataset_dir", "options")


def status_of(run: Run) -> str:
    """``done``, ``failed`` or ``missing``, by the files in the run's folder."""
    if set(_seconds(run.folder)) >= {step.name for step in run.steps}:
        return "done"
    return "failed" if (run.folder / FAILURE).is_file() else "missing"


def write_ladder(order: Order, runs: Sequence[Run]) -> dict[str, Any]:
    """Write ``ladder.json`` and return it. Runs of an earlier order on the same data stay listed.

    Raises:
        InputError: the folder holds a ladder of another task, size or data.
    """
    path = order.out / "ladder.json"
    earlier = read_record(order.out) if path.is_file() else {"runs": [], "translators": [], "methods": [], "seeds": []}
    content = _head(order)
    for key in SAME:
        if key in earlier and earlier[key] != content[key]:
            raise InputError(
                file=path,
                found=f"a ladder with {key} {earlier[key]}",
                expected=f"{key} {content[key]}",
                remedy="choose another --out, or ask for what this folder was begun with",
            )
    content["methods"] = [*dict.fromkeys([*earlier["methods"], *order.methods])]
    content["seeds"] = sorted({*earlier["seeds"], *order.seeds})
    for key, kind in (("runs", "method"), ("translators", "translator")):
        entries = {entry["folder"]: entry for entry in earlier[key]}
        entries |= {entry["folder"]: entry for entry in (_entry(order.out, run) for run in runs if run.kind == kind)}
        content[key] = list(entries.values())
    write_json(path, content | {"provenance": provenance()})
    return content


def read_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``ladder.json``.

    Raises:
        InputError: there is none, or it is no ladder's.
    """
    path = folder / "ladder.json"
    expected = "the folder that 'python -m scripts ladder' wrote, with its ladder.json"
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
    return content


def _head(order: Order) -> dict[str, Any]:
    task_file = named_file("tasks", order.task)
    task = task_settings(task_file)
    return {
        "task": task["task"],
        "task_file": str(task_file),
        "size": order.size,
        # A generated phantom goes where its ladder goes.
        "dataset_dir": "data" if order.dataset_dir is None else os.path.abspath(order.dataset_dir),
        "options": list(order.options),
        **{key: task[key] for key in ("source_domain", "target_domain", "label_names")},
        "selection": "last",
    }


def _entry(out: Path, run: Run) -> dict[str, Any]:
    status, card = status_of(run), run.folder / "models" / "model.json"
    failure = json.loads((run.folder / FAILURE).read_text()) if status == "failed" else {}
    entry = {
        run.kind: run.name,
        "seed": run.seed,
        "translator": run.translator,
        "folder": str(run.folder.relative_to(out)),
        "status": status,
        "error": failure.get("error"),
        "commands": [shlex.join(["python", *step.command]) for step in run.steps],
        "seconds": _seconds(run.folder),
    }
    return entry | ({"iterations": json.loads(card.read_text())["iterations"]} if card.is_file() else {})


def _seconds(folder: Path) -> dict[str, float]:
    file = folder / "steps.json"
    steps = json.loads(file.read_text()) if file.is_file() else {}
    return {name: seconds for name, seconds in steps.items() if seconds is not None}
