"""Logging of losses, checks for non-finite values, and the progress bar."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from scripts.core.errors import InputError
from scripts.core.files import append_text, atomic_path
from scripts.core.processes import rank, run_and_wait_ns
from scripts.core.weights import not_finite
from tqdm import tqdm

__all__ = [
    "LossLog",
    "NotFiniteError",
    "TrainingProgress",
    "check_finite_losses",
    "check_finite_weights",
    "scalar_outputs",
]

logger = logging.getLogger(__name__)

# Iterations after which the share of waiting for a core is judged, and the share that is reported.
JUDGED, BUSY_SHARE = 20, 0.25

IDLE = "Expected idle cores. Fix: end other programs, or start with fewer threads: OMP_NUM_THREADS=1."


class LossLog:
    """Write every iteration's losses to a CSV file and stop the run at the first loss that is not finite.

    Losses stay on the device for ``interval`` iterations (or until an epoch ends), so that no step synchronises. Attach
    it before any handler that saves a checkpoint. ``keys`` are outputs to log; by default all that are single numbers.
    """

    def __init__(self, *, path: str, interval: int = 20, keys: Sequence[str] = ()) -> None:
        self.path, self.interval, self.keys = Path(path), interval, list(keys)
        self.pending: list[tuple[int, torch.Tensor]] = []

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.gather)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, self.flush)

    def start(self, engine: Engine) -> None:
        """Keep the rows up to the iteration a run resumes from; a new run starts an empty file."""
        self.pending = []
        if rank() > 0:
            return
        now = engine.state.iteration
        rows = self.path.read_text().splitlines(keepends=True) if self.path.exists() and now else []
        kept = rows[:1] + [row for row in rows[1:] if row.endswith("\n") and int(row.split(",")[0]) <= now]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(kept))

    def gather(self, engine: Engine) -> None:
        """Keep this iteration's losses on the device."""
        output = engine.state.output[0]
        if not self.keys:
            self.keys = [key for key, value in output.items() if value.ndim == 0]
        losses = torch.stack([output[key].float() for key in self.keys])
        self.pending.append((engine.state.iteration, losses))
        if len(self.pending) >= self.interval:
            self.flush(engine)

    def flush(self, engine: Engine) -> None:
        """Check and write the pending losses."""
        if not self.pending:
            return
        iterations, losses = zip(*self.pending, strict=True)
        self.pending = []
        rows = [(iteration, row) for iteration, row in zip(iterations, torch.stack(losses).tolist(), strict=True)]
        for iteration, row in rows:
            check_finite_losses(dict(zip(self.keys, row, strict=True)), iteration)
        if rank() == 0:
            header = "" if os.path.getsize(self.path) else ",".join(["iteration", *self.keys]) + "\n"
            lines = [",".join([str(iteration), *(f"{value:.6g}" for value in row)]) + "\n" for iteration, row in rows]
            append_text(self.path, header + "".join(lines))


class NotFiniteError(InputError, FloatingPointError):
    """A loss or a weight became NaN or infinite."""


def _not_finite(name: str, iteration: int, value: float) -> NotFiniteError:
    remedy = "start a new run with a lower learning rate or in float32; the last good checkpoint is kept"
    return NotFiniteError(f"{name} at iteration {iteration}", str(value), "a finite number", remedy)


def check_finite_losses(losses: Mapping[str, float], iteration: int) -> None:
    """Refuse a loss of an iteration that is NaN or infinite."""
    for key, value in losses.items():
        if not math.isfinite(value):
            raise _not_finite(f"loss {key!r}", iteration, value)


def check_finite_weights(state: Mapping[str, Any], iteration: int) -> None:
    """Refuse a state, nested ones included, with a value that is NaN or infinite."""
    for name, value in not_finite(state):
        raise _not_finite(f"weights {name!r}", iteration, value)


def scalar_outputs(output: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """The scalars among an iteration's outputs, as TensorBoard takes them."""
    return {key: float(value) for key, value in output[0].items() if value.ndim == 0}


class TrainingProgress:
    """A progress bar over the whole run with the time left and the latest loss, on rank 0.

    The loss is read every ``interval`` iterations, as it makes a GPU wait. After ``JUDGED`` iterations it reports cores
    that other programs use.
    """

    def __init__(self, *, description: str, interval: int = 20) -> None:
        self.description, self.interval = description, interval
        self.bar = tqdm(disable=True)
        self.first, self.before = 0, (0, 0)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.advance)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self.close)

    def open(self, engine: Engine) -> None:
        """Start the bar at the run's first iteration."""
        self.first, self.before = engine.state.iteration, run_and_wait_ns()
        total = (engine.state.max_epochs or 1) * (engine.state.epoch_length or 0)
        self.bar = tqdm(
            total=total, initial=engine.state.iteration, desc=self.description, disable=rank() > 0, dynamic_ncols=True
        )

    def advance(self, engine: Engine) -> None:
        """Move by one."""
        if engine.state.iteration % self.interval == 0 and "loss" in engine.state.output[0]:
            self.bar.set_postfix_str(f"loss {float(engine.state.output[0]['loss']):.3f}", refresh=False)
        self.bar.update()
        if engine.state.iteration - self.first == JUDGED:
            run, wait = (now - then for now, then in zip(run_and_wait_ns(), self.before, strict=True))
            if (share := wait / max(run + wait, 1)) > BUSY_SHARE:
                logger.warning("%s: waits %.0f %% of its time for a core. %s", self.description, 100 * share, IDLE)

    def close(self, engine: Engine, error: BaseException | None = None) -> None:
        """Close the bar and re-raise an exception that ended the run."""
        self.bar.close()
        if error is not None:
            raise error
