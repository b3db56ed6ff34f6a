"""What today's files would train otherwise than a run was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from scripts.core.settings import settings_of
from scripts.lab.experiments.plan import PlannedRun

__all__ = ["changed_settings", "changes_sentence"]

_MOST_NAMED = 4
_LONGEST = 60


def changed_settings(run: PlannedRun) -> dict[str, tuple[Any, Any]]:
    """Settings that decide a training's result and have another value today than in the run's ``config.yaml``.

    As on resuming, settings that only one of the two has do not count: they came or went with the code.

    Args:
        run: a run with the settings that its training would have now.

    Returns:
        By setting, as ``section#key``: its value then and now. Empty if the run left no settings that can be read.
    """
    try:
        written = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    if not isinstance(written, dict):
        return {}
    then, now = settings_of(written), settings_of(run.settings)
    return {
        key: (then[key], now[key]) for key in sorted(then.keys() & now.keys()) if _plain(then[key]) != _plain(now[key])
    }


def changes_sentence(run: PlannedRun, option: str) -> str | None:
    """That a run is left with other settings than today's, and how to train it anew; None if they are the same.

    Args:
        run: a run that is done.
        option: what to type to start it anew.
    """
    changed = changed_settings(run)
    if not changed:
        return None
    keys = sorted(changed, key=lambda key: ("#" in key, key))  # first what task, size and method files set
    named = [_change(key, *changed[key]) for key in keys[:_MOST_NAMED]]
    named += [f"{len(keys) - len(named)} more"] if len(keys) > len(named) else []
    anew = f"it stays as it is, and {option} sets its folder aside and trains it anew"
    return f"{run.title}: trained with other settings than today's files give ({'; '.join(named)}); {anew}."


def _plain(value: Any) -> Any:
    """A setting with MONAI's two separators of ids made one: it writes ``a::b`` for ``a#b``."""
    if isinstance(value, str):
        return value.replace("#", "::")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, Sequence) else value


def _change(key: str, then: Any, now: Any) -> str:
    """A setting with both values where they are short, such as ``d1_weight: 0.01, now 0.05``."""
    values = f"{then}, now {now}"
    return f"{key}: {values}" if len(values) <= _LONGEST else key
