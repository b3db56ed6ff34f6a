"""Times and memory of a training from a few of its iterations on a few cases, in a process of its own."""

from __future__ import annotations

import ast
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from scripts.core.errors import InputError, find_input_error, innermost_message
from scripts.core.files import make_folder
from scripts.lab.cores import start_worker

__all__ = ["Timing", "parse_command", "time_training"]

# Iterations before the times count: memory is allocated and kernels are chosen.
WARM_UP = 2

BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one training costs."""

    iteration_s: float  # median
    preparation_s: float  # to read and preprocess a case that is not in the cache
    start_s: float  # of a case before the first iteration: a round of pseudo-labels, if there is one
    slices: float  # of a case, on average
    loaded_bytes: int  # largest memory of the process until all slices are loaded
    peak_bytes: int  # the same until the end
    case_bytes: Sequence[float]  # of the slices of a case of each domain, on average


def parse_command(command: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and settings of a ``monai.bundle run`` command."""
    words = list(command[command.index("--config_file") :])
    options = {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    files = ast.literal_eval(options.pop("config_file"))
    options.pop("logging_file", None)
    return files, {key: DefaultParseValue(value) for key, value in options.items()}


def time_training(command: Sequence[str], log: Path, **settings: Any) -> Timing:
    """Run a short training in a new process and measure it.

    Raises:
        InputError: the training ends with an error, which the real one would do, too.
    """
    files, given = parse_command(command)
    make_folder(log.parent)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker) as pool:
        return pool.submit(_measure, files, given | settings, str(log)).result()


def _measure(files: list[str], settings: Mapping[str, Any], log: str) -> Timing:
    with open(log, "w", encoding="utf-8") as stream:
        for descriptor in (1, 2):  # of this process alone; libraries write to both past Python's streams
            os.dup2(stream.fileno(), descriptor)
        try:
            return _run(files, settings)
        except Exception as error:
            raise find_input_error(error) or InputError(
                file=log,
                found=f"a training that failed in its first iterations ({innermost_message(error)})",
                expected="a training that continues",
                remedy="read this log for the cause",
            ) from None


def _run(files: list[str], settings: Mapping[str, Any]) -> Timing:
    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow(files, workflow_type="train", run_id="training", **settings)
    workflow.initialize()
    begin = time.perf_counter()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    loaded, loaded_bytes = time.perf_counter(), _largest_memory()
    sets = [workflow.parser.get_parsed_content(f"train#{name}") for name in ("dataset", "target_dataset")]
    sets = [one for one in sets if hasattr(one, "images")]
    clock = _Clock()
    clock.attach(trainer)
    workflow.run()
    cases = sum(len(one.data) for one in sets)
    sizes = [sum(part.nbytes for part in (one.images, one.labels) if part is not None) for one in sets]
    return Timing(
        iteration_s=clock.iteration_s,
        preparation_s=(loaded - begin) / cases,
        start_s=clock.start_s / len(sets[-1].data),
        slices=sum(map(len, sets)) / cases,
        loaded_bytes=loaded_bytes,
        peak_bytes=_largest_memory(),
        case_bytes=[size / len(one.data) for size, one in zip(sizes, sets, strict=True)],
    )


def _largest_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_MAXRSS


class _Clock:
    """Times of a trainer's events."""

    def __init__(self) -> None:
        self.started, self.first_batch = 0.0, 0.0
        self.completed: list[float] = []

    def attach(self, trainer: Any) -> None:
        from ignite.engine import Events

        trainer.add_event_handler(Events.STARTED, lambda _: setattr(self, "started", time.perf_counter()))
        trainer.add_event_handler(
            Events.GET_BATCH_STARTED(once=1), lambda _: setattr(self, "first_batch", time.perf_counter())
        )
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.completed.append(time.perf_counter()))

    @property
    def iteration_s(self) -> float:
        gaps = [after - before for before, after in zip(self.completed, self.completed[1:], strict=False)]
        return statistics.median(gaps[WARM_UP:] or gaps)

    @property
    def start_s(self) -> float:
        return max(self.first_batch - self.started, 0.0)
