"""Timings of an earlier command with the same output folder: an interruption or a refused length repeats none."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.schema import read_yaml
from scripts.lab.adapt.timed_training import Timing, parse_command
from scripts.lab.cores import available_cores

__all__ = ["KeptTimings"]


class KeptTimings:
    """``timings.json`` of a folder: each training's timing, with a digest of all that it depends on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "timings.json"
        self.content: dict[str, Any] = {}
        with suppress(InputError):
            self.content = read_yaml(self.file, "timings of trainings", "remove it")

    def of(
        self, name: str, command: Sequence[str], settings: Mapping[str, Any], measure: Callable[[], Timing]
    ) -> Timing:
        """The timing of a training: the kept one if it is of the same training on this machine, or a new one."""
        digest = self._digest(command, settings)
        with suppress(KeyError, TypeError):
            entry = self.content[name]
            if entry["of"] == _with_digest(digest, entry["timing"]):
                kept = Timing(**entry["timing"])
                print(f"{name} was timed before ({self.file}; remove it to time again).", flush=True)
                return kept
        timing = measure()
        self.content[name] = {"of": _with_digest(digest, asdict(timing)), "timing": asdict(timing)}
        write_json(self.file, self.content)
        return timing

    def _digest(self, command: Sequence[str], settings: Mapping[str, Any]) -> str:
        """Of the command, its config files, the datalists and the machine."""
        files, _ = parse_command(command)
        files += map(str, sorted((self.folder / "data").glob("*.json")))
        texts = [Path(file).read_bytes() for file in files]
        words = [*command, json.dumps(settings, sort_keys=True), platform.node(), str(available_cores())]
        return hashlib.sha256(b"\0".join([*map(str.encode, words), *texts])).hexdigest()


def _with_digest(digest: str, timing: Any) -> str:
    return hashlib.sha256(f"{digest} {json.dumps(timing)}".encode()).hexdigest()
