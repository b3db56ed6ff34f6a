"""The folder of a run: checked settings, provenance, seed."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from scripts.core.errors import InputError, show_input_errors_as_sentences
from scripts.core.files import atomic_path, make_folder, remove_parts, write_json
from scripts.core.processes import check_ranks_agree, join, leave, num_processes, rank
from scripts.core.settings import common_settings, current_settings, deciding_settings, is_bundle_command

__all__ = ["RunFolder", "lock_folder", "provenance", "unlock_folder"]

PACKAGES = ("monai", "torch", "pytorch-ignite", "numpy", "nibabel", "scipy")

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run (``--bundle_root``): its settings, its provenance, and the checks before any work.

    Args:
        root: the folder.
        seed: seed of the run; also given to every library's global generator.
        writes: further folders that the run alone writes to.
        shares: folders that several runs may write to, such as a cache; perhaps None.
        may_change: settings that do not decide the result, by key or by section; a resumed run may change them.
        ignored_keys: keys of overlays for other jobs, which this config accepts and does not use.
    """

    def __init__(
        self,
        *,
        root: str,
        seed: int = 0,
        writes: Sequence[str] = (),
        shares: Sequence[str | None] = (),
        may_change: Sequence[str] = (),
        ignored_keys: Sequence[str] = (),
    ) -> None:
        self.root, self.seed = Path(root), seed
        self.writes, self.shares = list(map(Path, writes)), [Path(folder) for folder in shares if folder]
        self.settings = current_settings()
        self.locks: list[FileLock] = []

    def open(self) -> RunFolder:
        """Before anything else is built: check the settings, join other processes, make and lock the folder, seed."""
        if is_bundle_command():
            show_input_errors_as_sentences()
        if self.settings is None:
            logger.info("Started by another program: its settings are neither checked nor recorded")
        else:
            self.settings.check()
        join()
        check_ranks_agree("settings", {} if self.settings is None else common_settings(self.settings.merged))
        for folder in (self.root, *self.writes, *self.shares):
            make_folder(folder)
        if rank() == 0:
            outside = [folder for folder in self.writes if not folder.resolve().is_relative_to(self.root.resolve())]
            self.locks = [lock_folder(folder) for folder in (self.root, *outside)]
        set_determinism(self.seed)
        return self

    def record(self, metadata: Mapping[str, Any]) -> RunFolder:
        """Write ``config.yaml`` (the merged settings) and ``provenance.json`` (versions, commit, device, processes).

        Metadata of the weights describe the network, which must not be built before :meth:`open` has set the seed.
        """
        if rank() > 0:
            return self
        if self.settings is not None:
            with atomic_path(self.root / "config.yaml") as temporary:
                ConfigParser.export_config_file(self.settings.merged, str(temporary), fmt="yaml", sort_keys=False)
        write_json(
            self.root / "provenance.json", provenance() | {"seed": self.seed, "weights_metadata": dict(metadata)}
        )
        return self

    def note(self, **entries: Any) -> RunFolder:
        """Add entries that are known only at the end to ``provenance.json``, on rank 0."""
        if rank() == 0:
            path = self.root / "provenance.json"
            write_json(path, json.loads(path.read_text(encoding="utf-8")) | entries)
        return self

    def evaluated_settings(self) -> dict[str, Any]:
        """Values of the plain settings; empty if the settings are not known."""
        return {} if self.settings is None else self.settings.evaluated()

    def deciding_settings(self) -> dict[str, Any] | None:
        """Settings that decide the result, by path; None if the settings are not known."""
        return None if self.settings is None else deciding_settings(self.settings.merged)

    def close(self) -> None:
        """After everything else: unlock the folder and leave the process group."""
        for lock in self.locks:
            unlock_folder(lock)
        leave()


def lock_folder(folder: Path) -> FileLock:
    """Keep other processes out of a folder until :func:`unlock_folder`; remove what a killed one left in it."""
    lock = FileLock(folder.absolute() / ".run.lock", timeout=0, is_singleton=True, thread_local=False)
    owner = folder / ".running"
    try:
        lock.acquire()
    except Timeout as error:
        who = "another process"
        with suppress(FileNotFoundError):  # it has just ended
            who = owner.read_text(encoding="utf-8")
        remedy = "wait until it has finished, end it, or choose another folder"
        raise InputError(file=folder, found=f"in use by {who}", expected="one run at a time", remedy=remedy) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s: cannot be locked (%s); do not start a second run there", folder, error)
    remove_parts(folder)
    with atomic_path(owner) as temporary:
        temporary.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Release a lock of :func:`lock_folder`, and remove its files."""
    file = Path(lock.lock_file)
    for left in (file.with_name(".running"), file):
        left.unlink(missing_ok=True)
    lock.release()


def provenance() -> dict[str, Any]:
    """Versions, device, commit and time, to be kept with every number.

    The commit is None for code that git does not track, such as a packed bundle's.
    """
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "processes": num_processes(),
        "commit": _git("rev-parse", "HEAD") if tracked else None,
        "uncommitted_changes": tracked and bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
