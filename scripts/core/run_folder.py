"""One run, one folder: settings, provenance, and the checks that come before any work."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from scripts.core.errors import show_input_errors_as_sentences
from scripts.core.files import atomic_path, make_folder, write_json
from scripts.core.processes import join, leave, num_processes, rank
from scripts.core.settings import check_keys, config_of, evaluated_settings, running_parser

__all__ = ["RunFolder", "provenance"]

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
        self.parser = running_parser()

    def open(self) -> RunFolder:
        """Before anything else is built: check the settings, join other processes, make the folder, seed.

        Raises:
            InputError: a key that no part of the config uses, a folder that cannot be written.
        """
        show_input_errors_as_sentences()
        check_keys(self.parser, self.spare_keys)
        join()
        make_folder(self.root)
        set_determinism(self.seed)
        return self

    def record(self) -> RunFolder:
        """Write ``config.yaml`` (the merged settings) and ``provenance.json`` (versions, commit, device, processes)."""
        if rank() > 0:
            return self
        with atomic_path(self.root / "config.yaml") as temporary:
            ConfigParser.export_config_file(config_of(self.parser), str(temporary), fmt="yaml", sort_keys=False)
        write_json(self.root / "provenance.json", provenance() | {"seed": self.seed, "card": self.card})
        return self

    def note(self, **entries: Any) -> RunFolder:
        """Add to ``provenance.json`` what is known only at the end, on the first process."""
        if rank() == 0:
            path = self.root / "provenance.json"
            write_json(path, json.loads(path.read_text(encoding="utf-8")) | entries)
        return self

    def values(self) -> dict[str, Any]:
        """The settings as they were evaluated so far, those of them that can be written down."""
        return evaluated_settings(self.parser)

    def close(self) -> None:
        """After everything else: part from the other processes."""
        leave()


def provenance() -> dict[str, Any]:
    """Versions, device, commit and time: what a number needs beside it.

    The commit is None for code that git does not track, such as a packed bundle's, in whatever repository it lies.
    """
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "processes": num_processes(),
        "commit": _git("rev-parse", "HEAD") if tracked else None,
        "uncommitted_changes": tracked and bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
