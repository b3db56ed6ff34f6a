"""Reads task files; a packed bundle has its task's values in its configs and does not need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts.core.errors import SettingError
from scripts.core.schema import SCHEMA, check_values, read_yaml

__all__ = ["read_task"]


def read_task(path: Path) -> dict[str, Any]:
    """Read and check a task file.

    Raises:
        InputError: it cannot be read, is no YAML mapping, or has a wrong value.
    """
    values = read_yaml(path, "a task file such as those in configs/tasks", "name another, or correct it")
    check_values(values, origin=str(path))
    for name in SCHEMA.keys() & values.keys():
        if isinstance(values[name], str) and values[name].startswith(("$", "@")):
            raise SettingError(name, f"the expression {values[name]!r}", SCHEMA[name][0], f"write its value in {path}")
    return values
