"""How long to train: the schedules of ``configs/adapt.yaml``, and budgets of time on the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingError, check_choice
from scripts.core.schema import read_yaml

__all__ = ["AdaptRules", "Schedule", "duration_text", "parse_duration", "read_adapt_rules"]

FILE = Path("configs") / "adapt.yaml"
SECONDS = {"m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How adapt trains."""

    name: str
    method: str  # a file of ``configs/methods``
    size: str  # a section of ``configs/comparison.yaml``
    pixels: int  # largest side of a window
    length: float = 1.0  # multiple of the iterations of the method's files
    settings: Mapping[str, Any] = field(default_factory=dict)  # of every training


@dataclass(frozen=True, kw_only=True)
class AdaptRules:
    """The content of ``configs/adapt.yaml``."""

    default: str
    schedules: Mapping[str, Any]
    time_lengths: tuple[float, float]
    ask_above_hours: float
    timed_iterations: int
    timed_cases: int

    def schedule(self, name: str | None) -> Schedule:
        """A schedule by its name; the default one without."""
        name = name or self.default
        check_choice("--schedule", name, list(self.schedules))
        return Schedule(name=name, **self.schedules[name])


def read_adapt_rules() -> AdaptRules:
    """The project's rules."""
    return AdaptRules(**read_yaml(FILE, "the schedules of adapt", "restore it"))


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``30m``, ``1h``, ``2h30m`` or ``1d``."""
    if not re.fullmatch(r"(\d+(\.\d+)?[mhd])+", text):
        raise SettingError("--time", repr(text), "a duration such as 30m, 1h, 2h30m or 1d", "give one")
    return sum(float(number) * SECONDS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([mhd])", text))


def duration_text(seconds: float) -> str:
    """A duration with two significant digits: ``40 s``, ``25 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
