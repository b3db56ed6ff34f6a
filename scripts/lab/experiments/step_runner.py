"""Commands run one after another, timed, and remembered, so that what was interrupted goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.core.files import make_folder, write_json

__all__ = ["StepFailed", "StepRunner"]

PROGRESS = re.compile(r"\d+%\||it \[\d\d:\d\d|^\d+%$")
"""What a progress bar's line has: a share, or a count and a time."""


class StepFailed(SystemExit):
    """A step ended with an exit code; uncaught, this process ends with the same.

    Attributes:
        code: the exit code; of a process that a signal ended, minus the signal's number.
        last_line: the last line that the step printed and that is no progress bar, which is an input error's sentence;
            empty if it was not kept.
    """

    def __init__(self, code: int, last_line: str) -> None:
        super().__init__(code)
        self.last_line = last_line


class StepRunner:
    """Run commands one after another, time them, and remember which are done.

    Args:
        folder: where ``steps.json`` is kept: the seconds of each step that was started, null until it is done. Of
            a step that was resumed they are the last attempt's alone.
        resume: skip the steps that are done; otherwise all are forgotten.
        logs: folder for what each step prints; None to print it only.
        quiet: print neither the commands nor what they print.
        environment: variables of the steps' processes beside this one's own.
    """

    def __init__(
        self,
        folder: Path,
        resume: bool,
        *,
        logs: Path | None = None,
        quiet: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.file = make_folder(folder) / "steps.json"
        self.logs, self.quiet, self.environment = logs, quiet, dict(environment or {})
        started = json.loads(self.file.read_text()) if resume and self.file.exists() else {}
        self.seconds: dict[str, float] = {name: seconds for name, seconds in started.items() if seconds is not None}
        self.interrupted = started.keys() - self.seconds.keys()
        write_json(self.file, started)

    def run(self, name: str, command: Sequence[str], *resumed: str) -> None:
        """Run one step in a process of its own.

        Args:
            name: what it is called.
            command: what Python is to run.
            resumed: further arguments if this step was started before and did not end.

        Raises:
            StepFailed: with the step's own exit code.
        """
        if name in self.seconds:
            self._say(f"== {name}: done before")
            return
        command = [*command, *(resumed if name in self.interrupted else ())]
        write_json(self.file, {**self.seconds, name: None})
        self._say(f"== {name}\n   {shlex.join(['python', *command])}")
        start = time.perf_counter()
        code, last_line = self._process(name, [sys.executable, *command])
        if code:
            raise StepFailed(code, last_line)
        self.seconds[name] = round(time.perf_counter() - start, 1)
        write_json(self.file, self.seconds)

    def _process(self, name: str, command: Sequence[str]) -> tuple[int, str]:
        environment = {**os.environ, **self.environment}
        if self.logs is None:
            return subprocess.run(command, check=False, env=environment).returncode, ""
        path = make_folder(self.logs) / f"{name.replace(' ', '_')}.log"
        with path.open("wb") as log:
            child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert child.stdout is not None
            for chunk in iter(lambda: os.read(child.stdout.fileno(), 4096), b""):  # type: ignore[union-attr]
                log.write(chunk)
                log.flush()
                if not self.quiet:
                    sys.stdout.buffer.write(chunk)
                    sys.stdout.flush()
        lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
        said = (line.strip() for line in reversed(lines) if line.strip() and not PROGRESS.search(line.strip()))
        return child.wait(), next(said, "")

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)
