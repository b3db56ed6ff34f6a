"""Processor cores and worker processes, for commands that start several."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.core.files import make_folder
from scripts.core.processes import end_with_parent
from scripts.core.run_folder import lock_folder, unlock_folder

__all__ = ["available_cores", "exclusive", "start_worker"]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Leave Ctrl-C to the command, and end with it if it is killed: the initialiser of its worker processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid != os.getppid():  # killed while this worker imported its libraries
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Write to an output folder alone, after removing what a killed command left; a second command is refused."""
    lock = lock_folder(make_folder(folder))
    try:
        yield
    finally:
        unlock_folder(lock)
