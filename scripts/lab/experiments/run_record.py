"""``run.json`` in the folder of each run: its commands, commits, times and failure, and the execution of its steps."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from scripts.core.errors import InputError, innermost_message
from scripts.core.files import make_folder, write_json
from scripts.core.processes import end_with_parent
from scripts.core.run_folder import provenance
from scripts.core.schema import read_yaml
from scripts.lab.experiments.plan import PlannedRun, Step

__all__ = ["RunRecord", "Shown", "Status", "run_process"]

Status = Literal["done", "failed", "missing"]
Shown = Literal["all", "progress", "nothing"]
"""What of a process's output goes to the screen; its log file has everything."""

# A bar of tqdm, without what a logger writes behind it.
BAR = re.compile(r"\S.*?\d+%\|[^\]]*\]")

# Matches the lines of progress bars: a percentage, or a count and a time.
PROGRESS = re.compile(r"\d+%\||it \[\d\d:\d\d|^\d+%$")


class RunRecord:
    """The record of one run, kept in its folder.

    ``steps`` maps the name of each step to its ``command``, the ``commits`` of the code that executed it,
    ``uncommitted_changes``, and its ``seconds``: null while it is not done, else those of the last attempt.
    """

    FILE = "run.json"

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / self.FILE
        self.content: dict[str, Any] = {"steps": {}, "failure": None}
        if self.file.is_file():
            expected, remedy = "the record of a run", "copy it from a backup, or remove it, which repeats the run"
            self.content = read_yaml(self.file, expected, remedy)
            try:
                _ = self.status, [step["commits"] for step in self.content["steps"].values()]
            except (KeyError, TypeError, AttributeError) as error:
                raise InputError(self.file, f"no steps ({innermost_message(error)})", expected, remedy) from error

    @property
    def status(self) -> Status:
        """``failed`` after an error; ``missing`` if it was not started or was interrupted by a signal."""
        steps, failure = self.content["steps"].values(), self.content["failure"]
        if steps and all(step["seconds"] is not None for step in steps):
            return "done"
        return "failed" if failure and failure["signal"] is None else "missing"

    @property
    def error(self) -> str | None:
        """Why it failed or was interrupted."""
        return self.content["failure"]["error"] if self.content["failure"] else None

    def register(self, run: PlannedRun) -> None:
        """Store what the run is and its planned steps; steps that were started keep their commands."""
        planned: dict[str, Any] = {
            step.name: {"command": _line(step.command), "commits": [], "seconds": None} for step in run.steps
        }
        started = {name: step for name, step in self.content["steps"].items() if step["commits"]}
        head = {"kind": run.kind, "name": run.name, "seed": run.seed, "translator": run.translator}
        self._write(head | {"steps": {name: started.get(name, step) for name, step in planned.items()}})

    def execute(self, run: PlannedRun, *, environment: Mapping[str, str], shown: Shown, progress: str) -> None:
        """Execute the steps that are not done, until one fails."""
        self._write({"failure": None})
        for step in run.steps:
            entry = self.content["steps"][step.name]
            if entry["seconds"] is not None:
                continue
            print(f"== {time.strftime('%H:%M')} {progress}: {run.kind} {run.title}, {step.name}", flush=True)
            command = [*step.command, *(step.resumed if entry["commits"] else ())]
            self._start(step)
            start = time.perf_counter()
            log = self.folder / "logs" / f"{step.name.replace(' ', '_')}.log"
            code, last_line = run_process(command, log, environment=environment, shown=shown)
            if code:
                signal = -code if code < 0 else code - 128 if code > 128 else None  # as Popen and as shells say it
                exit_code = f"{last_line} (exit code {code})" if last_line else f"exit code {code}"
                error = f"interrupted by signal {signal}" if signal else exit_code
                return self.fail(run, step.name, error, signal=signal)
            entry = self.content["steps"][step.name] | {"seconds": round(time.perf_counter() - start, 1)}
            self._write({"steps": self.content["steps"] | {step.name: entry}})

    def fail(self, run: PlannedRun, step: str, error: str, *, signal: int | None = None) -> None:
        """Record why the run stopped; interruption by a signal does not count as a failure."""
        print(f"== {run.title}: {step}: {error}", file=sys.stderr, flush=True)
        self._write({"failure": {"step": step, "error": error, "signal": signal}})

    def _start(self, step: Step) -> None:
        before, now = self.content["steps"][step.name], provenance()
        entry = {
            "command": _line(step.command),
            "commits": [*dict.fromkeys([*before["commits"], now["commit"] or "unknown"])],
            "uncommitted_changes": before.get("uncommitted_changes", False) or now["uncommitted_changes"],
            "seconds": None,
        }
        self._write({"steps": self.content["steps"] | {step.name: entry}})

    def _write(self, change: Mapping[str, Any]) -> None:
        self.content |= change
        write_json(self.file, self.content)


def run_process(
    command: Sequence[str], log: Path, *, environment: Mapping[str, str] | None = None, shown: Shown = "all"
) -> tuple[int, str]:
    """Run Python in a process, and copy its output to a log file and to the screen.

    Returns the exit code (minus the number of the signal that ended the process) and the last line of output that is
    not a progress bar, which is the message of an input error.
    """
    make_folder(log.parent)
    if shown == "all":
        print(f"   {_line(command)}", flush=True)
    screen = _Screen(shown)
    with log.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,  # or the next start would find its folder in use
        )
        assert child.stdout is not None
        while chunk := os.read(child.stdout.fileno(), 4096):
            stream.write(chunk)
            stream.flush()
            screen.show(chunk)
    screen.close()
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    sentences = (line.strip() for line in reversed(lines) if line.strip() and not PROGRESS.search(line.strip()))
    return child.wait(), next(sentences, "")


class _Screen:
    """Copies output to the screen: all of it, its progress bars, or nothing."""

    def __init__(self, shown: Shown) -> None:
        self.shown, self.rest, self.width = shown, b"", 0

    def show(self, chunk: bytes) -> None:
        if self.shown == "all":
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        elif self.shown == "progress":
            *lines, self.rest = re.split(rb"[\r\n]", self.rest + chunk)
            bars = [bar[0] for line in lines if (bar := BAR.search(line.decode(errors="replace")))]
            if bars:
                print(f"\r{bars[-1]:<{self.width}}", end="", flush=True)
                self.width = len(bars[-1])

    def close(self) -> None:
        if self.width:
            print(flush=True)


def _line(command: Sequence[str]) -> str:
    """A command for the shell; words with single quotes, such as lists of files, are put in double quotes."""

    def quoted(word: str) -> str:
        return '"' + re.sub(r'([\\"$`])', r"\\\1", word) + '"' if "'" in word and "!" not in word else shlex.quote(word)

    return " ".join(["python", *map(quoted, command)])
