"""Errors that a user can correct, with messages of the form "file: finding. Expected ... Fix: remedy."."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any

__all__ = [
    "NOT_UTF8",
    "InputError",
    "SettingError",
    "check_choice",
    "find_input_error",
    "import_optional",
    "innermost_message",
    "show_input_errors_as_sentences",
]

TRACEBACK_VARIABLE = "GLUA_TRACEBACK"

# The remedy for a name that is not UTF-8.
NOT_UTF8 = "rename it, for instance with convmv -f latin1 -t utf8 --notest"

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
PATH_ERRORS = (errno.ENAMETOOLONG, errno.ELOOP)
NO_MEMORY = re.compile("MemoryError|bad_alloc|can't allocate memory|not enough memory")  # NumPy, torch on GPUs and CPUs


class InputError(ValueError):
    """A problem with a file or a folder that the user can correct; ``remedy`` says what to do, in the imperative."""

    def __init__(self, file: object, found: str, expected: str, remedy: str) -> None:
        self.file, self.found, self.expected, self.remedy = str(file), found, expected, remedy
        super().__init__(file, found, expected, remedy)

    def __str__(self) -> str:
        return f"{self.file}: {self.found}. Expected {self.expected}. Fix: {self.remedy}."


class SettingError(InputError):
    """A setting with a wrong name or value, named as it was given, such as ``--domain``."""

    def __init__(self, setting: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(setting if re.search(r"[ -]", setting) else f"setting {setting!r}", found, expected, remedy)


def check_choice(setting: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of a setting's choices."""
    if value not in choices:
        quotes = "; YAML reads a bare off as false: write it in quotes" if value is False and "off" in choices else ""
        expected = f"one of {', '.join(map(str, choices))}"
        remedy = f"correct it in the task file, the method file or the command line{quotes}"
        raise SettingError(setting=setting, found=repr(value), expected=expected, remedy=remedy)


def find_input_error(error: BaseException | None) -> InputError | None:
    """The :class:`InputError` in a chain of exceptions (MONAI wraps what a transform raises), or None.

    A full or read-only disk counts as one, and a path that the system refuses, whichever library met it.
    """
    while error is not None:
        if (found := error if isinstance(error, InputError) else _of_the_system(error)) is not None:
            return found
        error = error.__cause__ or error.__context__
    return None


def _of_the_system(error: BaseException) -> InputError | None:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        place = error.filename or "an output file, of TensorBoard perhaps"
        remedy = "free some space or choose another output folder; complete files were kept"
        return InputError(place, f"could not be written ({error.strerror})", "a folder with room for it", remedy)
    if isinstance(error, OSError) and error.errno in PATH_ERRORS:
        expected, remedy = "a path that the system accepts", "shorten its names, or remove links that lead in a circle"
        return InputError(ascii(error.filename), f"cannot be used ({error.strerror})", expected, remedy)
    if isinstance(error, UnicodeEncodeError) and "\ud800" <= error.object[error.start] <= "\udfff":
        place = ascii(error.object[max(error.start - 60, 0) : error.end + 60])
        return InputError(place, "a name that is not UTF-8", "names that can be written to text files", NOT_UTF8)
    if isinstance(error, RecursionError):
        expected, remedy = "a few levels of lists and mappings", "correct the file or the setting that has more"
        return InputError("input", f"nested too deeply ({error})", expected, remedy)
    if NO_MEMORY.search(f"{type(error).__name__}: {error}"):
        remedy = "give a smaller batch_size or slice_size, a file of configs/sizes, or end other programs"
        return InputError("memory", f"not enough ({innermost_message(error)})", "as much as this size needs", remedy)
    return None


def import_optional(package: str, purpose: str, requirements: str) -> Any:
    """Import a package that only some uses need, such as ``engine onnx``; without it, name the file that pins it."""
    try:
        return import_module(package)
    except ImportError as error:
        expected, remedy = f"the package, which {purpose} needs", f"pip install -r {requirements}"
        raise InputError(package, f"cannot be imported ({error})", expected=expected, remedy=remedy) from error


def innermost_message(error: BaseException) -> str:
    """Type and first line of the exception at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".strip(": ")


def show_input_errors_as_sentences() -> None:
    """Let an :class:`InputError` end this command with its sentence on standard error and exit code 1.

    Ctrl-C and SIGTERM end it with a line that tells how to go on, and exit codes 130 and 143. It replaces
    ``sys.excepthook``, so only commands may call it, never code that runs inside a host program. Other
    exceptions keep their traceback; so do input errors if ``GLUA_TRACEBACK=1`` is set.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _stop)
    if os.environ.get(TRACEBACK_VARIABLE) == "1" or getattr(sys.excepthook, "glua", False):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        input_error = find_input_error(error)
        if input_error is None:
            previous(kind, error, trace)
        else:
            print(f"error: {input_error}", file=sys.stderr)

    def thread_hook(arguments: threading.ExceptHookArgs) -> None:
        if find_input_error(arguments.exc_value) is None:  # else the main thread meets and reports it
            threading.__excepthook__(arguments)

    hook.glua = True  # type: ignore[attr-defined]
    sys.excepthook, threading.excepthook = hook, thread_hook


def _stop(number: int, _: object) -> None:
    """End the command; files that are being written are removed on the way."""
    name = signal.Signals(number).name
    print(f"\nstopped by {name}. To resume, repeat it (monai.bundle: --resume True; demo: --resume).", file=sys.stderr)
    raise SystemExit(128 + number)
