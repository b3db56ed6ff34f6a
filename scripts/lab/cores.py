"""Processor cores and worker processes, for commands that start several."""

from __future__ import annotations

import os
import signal

from scripts.core.processes import end_with_parent

__all__ = ["available_cores", "start_worker"]


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_worker() -> None:
    """Leave Ctrl-C to the command, and end with it if it is killed: the initialiser of its worker processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
