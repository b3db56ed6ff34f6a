"""Warnings that trainings and inference wrote to their log files, for the screen and the report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["logged_warnings"]

# A line of this project's modules, also behind a progress bar; libraries write warnings that say nothing to a user.
LINE = re.compile(r" - (scripts[\w.]*) - (?:WARNING|ERROR) - (.*)$")

# Implausible volumes are findings of the report already.
IN_REPORT = "scripts.evaluation.segmentation_summary"


def logged_warnings(logs: Iterable[Path]) -> list[str]:
    """The warnings of this project's modules in log files, each once; a missing file has none."""
    found = []
    for log in logs:
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        matches = (LINE.search(line) for line in re.split(r"[\r\n]+", text))
        found += [match[2] for match in matches if match and match[1] != IN_REPORT]
    return list(dict.fromkeys(found))
