"""Commands as processes that have imported the libraries already, which takes most of the time of a short job."""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from threading import Thread

LIBRARIES = [
    *("monai.bundle", "monai.engines", "monai.handlers", "monai.inferers", "monai.transforms", "ignite.engine"),
    *("torch._dynamo", "torch.utils.tensorboard", "matplotlib.figure", "scipy.ndimage", "skimage.measure"),
]

# Time in which the processes that a job started end after it, on a busy machine.
OUTLIVES_S = 120.0

# One process imports the libraries; each job is a copy of it.
_COPIES = multiprocessing.get_context("forkserver")
_COPIES.set_forkserver_preload(LIBRARIES)


class JobProcess:
    """A running ``python -m <words>``.

    Args:
        words: the module, and its arguments.
        largest_file: a write beyond so many bytes fails as on a full disk.
    """

    def __init__(self, words: Sequence[str], largest_file: int | None = None) -> None:
        self.reader, writer = _COPIES.Pipe(duplex=False)
        self.process = _COPIES.Process(target=_run, args=(list(words), writer, largest_file))
        self.process.start()
        writer.close()  # the job's own copy remains
        self.errors = b""
        self.listener = Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        with open(self.reader.fileno(), "rb", closefd=False) as stream:
            self.errors = stream.read()

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()

    def wait(self, longest_s: float) -> tuple[int | None, str]:
        """Its exit code, None if it runs for longer, and what it and its workers wrote to standard error.

        Raises:
            RuntimeError: a process that it started outlives it.
        """
        self.process.join(longest_s)
        self.listener.join(OUTLIVES_S)
        if self.listener.is_alive() and self.process.exitcode is not None:
            raise RuntimeError("a process that it started outlives it")
        return self.process.exitcode, self.errors.decode(errors="replace")


def _run(words: list[str], errors: Connection, largest_file: int | None) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(errors.fileno(), 2)
    errors.close()
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except Exception as error:  # a process of multiprocessing does not call the hook
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from error
