"""A run that is to start anew: its folder is set aside, and nothing in it is lost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from scripts.core.errors import InputError
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun

__all__ = ["restart_option", "set_aside"]


def restart_option(request: ComparisonRequest, run: PlannedRun) -> str:
    """What to type to start a run anew."""
    return f"--restart {run.folder.relative_to(request.out)}"


def set_aside(request: ComparisonRequest, content: Mapping[str, Any], names: Sequence[str]) -> list[Path]:
    """Rename the folders of runs to ``<folder>.old-1`` or the next number that is free.

    With a translator go the methods that were trained on its images.

    Args:
        request: whose comparison.
        content: its ``comparison.json``.
        names: folders within the comparison's, as ``comparison.json`` names them.

    Returns:
        The new folders.

    Raises:
        InputError: the comparison has no such run, or another process is at it.
    """
    translators = {entry["folder"]: entry for entry in content["translators"]}
    runs = {entry["folder"]: entry for entry in content["runs"]}
    for name in names:
        if name not in translators | runs:
            raise InputError(
                file="--restart",
                found=name,
                expected=f"a run's folder in {request.out}, one of {', '.join([*translators, *runs])}",
                remedy="name one of them",
            )
    restarted = {(entry["translator"], entry["seed"]) for name, entry in translators.items() if name in names}
    taught = [name for name, entry in runs.items() if (entry["translator"], entry["seed"]) in restarted]
    moved = [_renamed(request.out / name) for name in dict.fromkeys([*names, *taught]) if (request.out / name).is_dir()]
    for folder in moved:
        print(f"== {folder} is what was set aside", flush=True)
    return moved


def _renamed(folder: Path) -> Path:
    try:
        with FileLock(folder / ".lock", blocking=False):
            numbered = (folder.with_name(f"{folder.name}.old-{number}") for number in itertools.count(1))
            return folder.rename(next(path for path in numbered if not path.exists()))
    except Timeout as error:
        raise InputError(
            file=folder,
            found="a run that another process is at",
            expected="one that nobody runs",
            remedy="wait for its end, or end that process first",
        ) from error
