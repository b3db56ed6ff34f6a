"""The request of a run, its progress, and the paths of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.schema import read_yaml

__all__ = ["AdaptRequest", "Progress"]


@dataclass(frozen=True, kw_only=True)
class AdaptRequest:
    """The command line of ``python -m scripts adapt``; ``time_s`` is the budget in seconds."""

    source_images: Path
    source_labels: Path
    target_images: Path
    out: Path
    target_labels: Path | None = None
    label_names: str | None = None
    segment: Sequence[Path] = ()
    time_s: float | None = None
    schedule: str | None = None
    task: Path | None = None
    plan_only: bool = False
    despite_errors: bool = False
    seed: int = 0

    @property
    def data(self) -> Path:
        """Folder of the datalists."""
        return self.out / "data"

    @property
    def task_file(self) -> Path:
        """The task file that is used."""
        return self.out / "task.yaml"

    @property
    def label_maps(self) -> Path:
        """Folder of the results."""
        return self.out / "label_maps"

    def inputs(self) -> dict[str, Any]:
        """What all commands with one output folder must have in common."""
        names = ("source_images", "source_labels", "target_images", "target_labels")
        folders = {name: getattr(self, name) for name in names}
        return {name: None if path is None else os.path.abspath(path) for name, path in folders.items()}


@dataclass
class Progress:
    """``adapt.json``: inputs and decisions, with their digest, so that the same command continues the run."""

    file: Path
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, request: AdaptRequest) -> Progress:
        """The progress of an earlier command with this output folder, or none; other inputs, or damage, are refused."""
        progress = cls(request.out / "adapt.json")
        if progress.file.is_file():
            expected = "the decisions of an earlier command"
            remedy = (
                "copy it from a backup; without it, which repeats the check and the timing, only the same --schedule "
            )
            remedy += "continues trainings; or choose another --out"
            progress.content = read_yaml(progress.file, expected, remedy)
            if progress.content.pop("sha256", None) != _digest(progress.content):
                raise InputError(progress.file, "content other than what was written", expected, remedy)
        earlier, now = progress.content.get("inputs"), request.inputs()
        if earlier is not None and earlier != now:
            key = next(name for name in now if now[name] != earlier.get(name))
            raise InputError(
                file=request.out,
                found=f"a run with --{key} {earlier.get(key)}",
                expected=f"--{key} {now[key]}",
                remedy="choose another --out, or the folders of that run",
            )
        progress.content["inputs"] = now
        return progress

    def note(self, **entries: Any) -> None:
        """Add entries and write the file."""
        self.content |= entries
        write_json(self.file, self.content | {"sha256": _digest(self.content)})


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
