"""Warns of finished runs whose settings differ from the current files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.core.errors import InputError
from scripts.core.schema import read_yaml
from scripts.core.settings import deciding_settings
from scripts.lab.experiments.plan import PlannedRun

__all__ = ["changed_settings"]

_MOST_NAMED = 4
# Longer values are not shown.
_LONGEST = 80


def changed_settings(run: PlannedRun) -> str:
    """A sentence on the differences between a finished run's ``config.yaml`` and the current files; empty without any.

    Keys missing on either side are ignored, because they come and go with the code.
    """
    try:
        written = read_yaml(run.folder / "config.yaml", "the settings of a run", "restore it")
        then, now = deciding_settings(written), deciding_settings(run.settings)
    except (InputError, AttributeError):
        return ""
    keys = [key for key in then.keys() & now.keys() if _same_separators(then[key]) != _same_separators(now[key])]
    if not keys:
        return ""
    keys.sort(key=lambda key: ("#" in key, key))  # top-level keys first: task, size and method files set them
    changes = {key: f"{key}: {then[key]}, now {now[key]}" for key in keys[:_MOST_NAMED]}
    named = [text if len(text) <= _LONGEST else key for key, text in changes.items()]
    named += [f"{len(keys) - len(named)} more"] if len(keys) > len(named) else []
    return (
        f"{run.title}: trained with settings that differ from today's files ({'; '.join(named)}). "
        f"It is kept; to train it again, delete {run.folder}."
    )


def _same_separators(value: Any) -> Any:
    """A setting with one separator of ids: MONAI writes ``a::b`` for ``a#b``."""
    if isinstance(value, str):
        return value.replace("#", "::")
    if isinstance(value, Mapping):
        return {key: _same_separators(item) for key, item in value.items()}
    return [_same_separators(item) for item in value] if isinstance(value, Sequence) else value
