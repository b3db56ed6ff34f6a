"""Timings of an earlier command with the same output folder: an interruption or a refused length repeats none."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.core.files import write_json
from scripts.lab.adapt.timed_training import Timing, parse_command
from scripts.lab.cores import available_cores

__all__ = ["KeptTimings"]


class KeptTimings:
    """``timings.json``: the timing of each training, with a digest of all that it depends on.

    Args:
        folder: of the short trainings; their datalists are in its ``data``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "timings.json"
        self.content = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}

    def of(
        self, name: str, command: Sequence[str], settings: Mapping[str, Any], measure: Callable[[], Timing]
    ) -> Timing:
        """The timing of a training: the kept one if it is of the same training on this machine, or a new one."""
        digest, entry = self._digest(command, settings), self.content.get(name, {})
        if entry.get("of") == digest:
            print(f"{name} was timed before ({self.file}; remove it to time again).", flush=True)
            return Timing(**entry["timing"])
        timing = measure()
        self.content[name] = {"of": digest, "timing": asdict(timing)}
        write_json(self.file, self.content)
        return timing

    def _digest(self, command: Sequence[str], settings: Mapping[str, Any]) -> str:
        """Of the command, its config files, the datalists and the machine."""
        files, _ = parse_command(command)
        files += map(str, sorted((self.folder / "data").glob("*.json")))
        texts = [Path(file).read_bytes() for file in files]
        words = [*command, json.dumps(settings, sort_keys=True), platform.node(), str(available_cores())]
        return hashlib.sha256(b"\0".join([*map(str.encode, words), *texts])).hexdigest()
