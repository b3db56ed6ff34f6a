"""``comparison.json``: task, data, settings, methods and seeds of a comparison; each run keeps its own record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from scripts.core.errors import InputError
from scripts.core.files import remove_parts, write_json
from scripts.core.run_folder import provenance
from scripts.core.schema import read_yaml
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun, named_file, task_settings

__all__ = ["COMPARISON", "read_comparison_record", "write_comparison", "writing_alone"]

COMPARISON = "comparison.json"
# What all requests to one folder must have in common.
FIXED = ("task", "size", "dataset_dir", "settings")


def write_comparison(request: ComparisonRequest, runs: Sequence[PlannedRun]) -> None:
    """Write ``comparison.json``, with the methods and seeds of earlier requests to the same folder."""
    path = request.out / COMPARISON
    task_file = named_file("tasks", request.task)
    task = task_settings(task_file)
    content: dict[str, Any] = {
        "task": task["task"],
        "task_file": str(task_file),
        "size": request.size,
        # A generated phantom moves with its comparison.
        "dataset_dir": "data" if request.dataset_dir is None else os.path.abspath(request.dataset_dir),
        "settings": dict(request.settings),
        "overlays": [str(path) for path in request.overlays],
        **{key: task[key] for key in ("source_domain", "target_domain", "label_names")},
        "methods": [*dict.fromkeys(run.name for run in runs if run.kind == "method")],
        "seeds": list(request.seeds),
        "provenance": provenance(),
    }
    with writing_alone(request.out):
        if path.is_file():
            earlier = read_comparison_record(request.out)
            for key in FIXED:
                if earlier[key] != content[key]:
                    found = f"a comparison with {key} {earlier[key]}"
                    remedy = f"choose another --out, or the {key} of this comparison"
                    raise InputError(file=path, found=found, expected=f"{key} {content[key]}", remedy=remedy)
            content["methods"] = [*dict.fromkeys([*earlier["methods"], *content["methods"]])]
            content["seeds"] = sorted({*earlier["seeds"], *content["seeds"]})
        write_json(path, content)


@contextmanager
def writing_alone(folder: Path) -> Iterator[None]:
    """Write the record, tables and figures of a comparison: other commands wait, and leftovers of a killed one go.

    Several commands may work on the runs below at a time. Each run has its own lock and removes its own leftovers.
    """
    with FileLock(folder / ".comparison.lock"):
        for place in (folder, folder / "plots"):
            remove_parts(place, depth=0)
        yield


def read_comparison_record(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``comparison.json``."""
    path = folder / COMPARISON
    expected, remedy = f"the output folder of 'python -m scripts compare', with its {COMPARISON}", "name that folder"
    content = read_yaml(path, expected=expected, remedy=remedy)
    needed = [*FIXED, "source_domain", "target_domain", "label_names", "methods", "seeds"]
    if missing := [key for key in needed if key not in content]:
        raise InputError(file=path, found=f"no '{missing[0]}' in it", expected=expected, remedy=remedy)
    return content
