"""Processes of a comparison: each leaves a log, its exit code and its last line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from filelock import FileLock
from scripts.core.run_folder import RunFolder
from scripts.lab.experiments.compare import LOCK
from scripts.lab.experiments.run_record import run_process


@pytest.mark.parametrize(
    ("code", "end", "last_line"),
    [
        ("print('10%\\r20%'); raise SystemExit('error: no labels.')", 1, "error: no labels."),
        # tqdm's line for 300 of 2400 is the last one of a process that prints nothing at its end
        ("print('starts'); print('segmentation:  12%|#2 | 300/2400 [06:17<44:01]\\r', end=''); exit(3)", 3, "starts"),
        ("print('17it [00:03,  5.2it/s]\\n10%'); exit(3)", 3, ""),
        (f"import os; print('starts', flush=True); os.kill(os.getpid(), {int(signal.SIGTERM)})", -15, "starts"),
    ],
)
def test_a_process_leaves_a_log_and_its_last_line(code: str, end: int, last_line: str, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "one.log"
    assert run_process(["-c", code], log, shown="nothing") == (end, last_line)
    assert last_line in log.read_text()


def test_of_a_run_only_the_progress_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar without its line end is followed by a logger's line."""
    half, whole = "volumes: 50%|# | 1/2 [00:01<00:01]", "volumes: 100%|##| 2/2 [00:02<00:00]"
    code = f"print('a warning'); print('{half}', end='\\r'); print('{whole}2026-11-30 - INFO - over'); print('done')"
    assert run_process(["-c", code], tmp_path / "one.log", shown="progress") == (0, "done")
    assert capsys.readouterr().out.strip().split("\r")[-1] == whole
    assert "a warning" in (tmp_path / "one.log").read_text()


def test_the_steps_of_a_run_may_lock_its_folder(tmp_path: Path) -> None:
    """A training locks its own folder while the comparison that started it holds the run."""
    with FileLock(tmp_path / LOCK):
        run = RunFolder(root=str(tmp_path)).open()
        assert run.locks[0].is_locked
        run.close()
    assert not run.locks[0].is_locked


ORPHAN = """
import multiprocessing, os, signal, sys, time
from scripts.lab.cores import start_worker

def work(file):
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    start_worker()
    open(file, "w").close()

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=(sys.argv[1],)).start()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_worker_ends_if_its_command_was_killed_before_it_was_ready(tmp_path: Path) -> None:
    """``communicate`` waits for the worker, which has the command's standard output."""
    (tmp_path / "orphan.py").write_text(ORPHAN)
    command = [sys.executable, str(tmp_path / "orphan.py"), str(tmp_path / "survived")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False, timeout=600
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "survived").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone can end a process with its parent")
def test_a_step_ends_with_the_command_that_is_killed(tmp_path: Path) -> None:
    """Else it would hold the lock of its folder when the command is repeated."""
    code = """import sys
from pathlib import Path
from scripts.lab.experiments.run_record import run_process
run_process(["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"], Path(sys.argv[1]))"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        *_, number = (command.stdout.readline() for _ in range(2))  # the command that starts, and what it prints
        command.kill()
    is_running, end = True, time.monotonic() + 10
    while is_running and time.monotonic() < end:
        status = Path(f"/proc/{int(number)}/status")
        is_running = status.exists() and "(zombie)" not in status.read_text()
    assert not is_running
