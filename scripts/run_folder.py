"""One run, one folder: settings, provenance, and the checks that come before any work."""

from __future__ import annotations

import difflib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.data.writers import atomic_path, make_folder, write_json
from scripts.errors import InputError, show_input_errors_as_sentences

__all__ = ["RunFolder", "check_keys", "provenance", "unused_keys"]

RESERVED_KEYS = {
    "imports",
    "bundle_root",
    "dataset_dir",
    "initialize",
    "finalize",
    "run",
    "training",
    "inference",
    "evaluating",
}
TRACKING_KEYS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}
PACKAGES = ("monai", "torch", "pytorch-ignite", "numpy", "nibabel", "scipy")


class RunFolder:
    """The folder a config's run lives in (``--bundle_root``).

    Args:
        root: the folder.
        card: what weights made here are good for: stage, data set, domains, label names. Stored beside the weights.
        seed: seed of the run; also given to every library's global generator.
        spare_keys: keys of the task file that this config has no use for.
    """

    def __init__(self, *, root: str, card: Mapping[str, Any], seed: int = 0, spare_keys: Iterable[str] = ()) -> None:
        self.root, self.card, self.seed = Path(root), dict(card), seed
        self.spare_keys = set(spare_keys)
        self.config = _running_config()

    def open(self) -> RunFolder:
        """Before anything else is built: check the settings, make the folder, seed every generator.

        Raises:
            InputError: a key that no part of the config uses, a folder that cannot be written.
        """
        show_input_errors_as_sentences()
        check_keys(self.config, self.spare_keys)
        make_folder(self.root)
        set_determinism(self.seed)
        return self

    def record(self) -> RunFolder:
        """Write ``config.yaml`` (the merged settings) and ``provenance.json`` (versions, commit, device)."""
        with atomic_path(self.root / "config.yaml") as temporary:
            ConfigParser.export_config_file(self.config, str(temporary), fmt="yaml", sort_keys=False)
        write_json(self.root / "provenance.json", provenance() | {"seed": self.seed, "card": self.card})
        return self


def check_keys(config: Mapping[str, Any], spare: Iterable[str] = ()) -> None:
    """Refuse a config with a top-level key that nothing in it refers to: MONAI would ignore it silently.

    Raises:
        InputError: naming the key and the nearest one in use.
    """
    for key in unused_keys(config, spare):
        near = difflib.get_close_matches(key, [k for k in config if k != key], n=1)
        raise InputError(
            file=f"key '{key}'",
            found="that no part of this config uses it",
            expected=f"'{near[0]}', perhaps" if near else "a key that the base config defines",
            remedy="correct its name in the task file, the method file or the command line",
        )


def unused_keys(config: Mapping[str, Any], spare: Iterable[str] = ()) -> list[str]:
    """Top-level keys that are neither reserved nor referred to (``@key``, ``%key``) anywhere in the config."""
    used = RESERVED_KEYS | TRACKING_KEYS | set(spare)
    for text in _strings(config):
        used |= set(re.findall(r"[@%](\w+)", text))
    return [key for key in config if key not in used and not key.startswith("_")]


def provenance() -> dict[str, Any]:
    """Versions, device, commit and time: what a number needs beside it."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _strings(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        return [text for value in item.values() for text in _strings(value)]
    return [text for value in item for text in _strings(value)] if isinstance(item, Sequence) else []


def _running_config() -> dict[str, Any]:
    """The raw config that is being resolved: the parser that builds this object is one of its callers.

    MONAI gives components no handle to the config they stand in, and both the check of its keys and the record of
    the run need it.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return {key: value for key, value in parser.get().items() if key != "_meta_"}
        frame = frame.f_back
    return {}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
