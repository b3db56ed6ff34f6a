"""A value of the task file with the reason for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

__all__ = ["Choice", "as_yaml"]


@dataclass(frozen=True)
class Choice:
    """A key of the task file, its value, and the reason for it, which becomes a comment in the file."""

    key: str
    value: Any
    reason: str = ""


def as_yaml(choices: Iterable[Choice]) -> str:
    """One line for each choice, its reason as a comment."""
    lines = []
    for choice in choices:
        value = yaml.safe_dump([choice.value], default_flow_style=True, width=10_000, sort_keys=False).strip()[1:-1]
        lines.append(f"{choice.key}: {value}" + (f" # {choice.reason}" if choice.reason else ""))
    return "\n".join(lines) + "\n"
