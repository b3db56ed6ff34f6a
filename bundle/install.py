"""Installs a packed bundle without changing files that packing did not write.

Users train in a packed folder and keep files in it. The record ``.packed.json`` lists every packed file with its
digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from scripts.core.errors import InputError
from scripts.core.files import remove_parts, write_json

__all__ = ["RECORD", "build_folder", "install", "packed_files"]

RECORD = ".packed.json"


@contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` to build in, and remove it afterwards; one process at a time.

    Raises:
        InputError: another process writes the same target, or the disk is full.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    building = target.with_name(f".{target.name}.building")
    try:
        with lock:
            shutil.rmtree(building, ignore_errors=True)  # left by a killed process
            building.mkdir()
            try:
                yield building
            finally:
                shutil.rmtree(building, ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout as error:
        remedy = "wait until it has finished, or choose another --out"
        raise InputError(
            file=target, found="another process is writing it", expected="one process at a time", remedy=remedy
        ) from error
    except OSError as error:
        raise InputError(
            file=target,
            found=f"could not be written ({error.strerror or error})",
            expected="a folder with room for it",
            remedy="free some space or choose another --out, then start again; no other file was changed",
        ) from error


def install(building: Path, target: Path) -> None:
    """Move every built file into ``target``, each atomically, and remove outdated packed files.

    Files that packing did not write, and packed files that were changed since, are kept.

    Raises:
        InputError: a new file would replace one that packing did not write or that was changed since, or ``target`` is
            not a packed bundle.
    """
    remove_parts(target, depth=0, stem=Path(RECORD).stem)
    new = {file: _digest(building / file) for file in _files(building)}
    before = _read_record(target)
    _refuse_conflicts(target, new, before)
    known = {file: [*before.get(file, ()), digest] for file, digest in new.items()}
    target.mkdir(parents=True, exist_ok=True)
    write_json(target / RECORD, {"files": {**before, **known}})  # valid at any point of an interruption
    for file in sorted(new):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(building / file, target / file)
    for file in before.keys() - new.keys():
        if (target / file).is_file() and _digest(target / file) in before[file]:
            (target / file).unlink()
    _remove_empty_folders(target, before)
    (target / "models").mkdir(exist_ok=True)
    write_json(target / RECORD, {"files": {file: [digest] for file, digest in sorted(new.items())}})


def packed_files(target: Path) -> list[Path]:
    """Files of a bundle that packing wrote, sorted."""
    return sorted(target / file for file in _read_record(target))


def _read_record(target: Path) -> dict[str, list[str]]:
    """Digests of the packed files by path, from the record; empty if nothing was packed."""
    if not target.exists() and not target.is_symlink():
        return {}
    try:
        files = json.loads((target / RECORD).read_text(encoding="utf-8"))["files"]
        if outside := [file for file in files if Path(file).is_absolute() or ".." in Path(file).parts]:
            raise ValueError(f"a file outside the folder, {outside[0]}")
        return {str(file): [str(digest) for digest in digests] for file, digests in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
            return {}
        expected = f"no such file or folder, or an earlier pack with its record {RECORD}"
        remedy = "move it away or choose another --out"
        raise InputError(file=target, found="not a packed bundle", expected=expected, remedy=remedy) from error


def _refuse_conflicts(target: Path, new: Mapping[str, str], before: Mapping[str, list[str]]) -> None:
    """Refuse to replace files that packing did not write, unless they are equal."""
    changed = []
    for file, digest in new.items():
        place = target / file
        if place.is_symlink() or place.exists():
            written = [digest, *before.get(file, ())]
            if place.is_symlink() or not place.is_file() or _digest(place) not in written:
                changed.append(file)
    if changed:
        named = ", ".join(changed[:5])
        found = f"{len(changed)} file(s) that packing did not write or that were changed since: {named}"
        expected = "only unchanged packed files in their place"
        raise InputError(file=target, found=found, expected=expected, remedy="move them away, or choose another --out")


def _remove_empty_folders(target: Path, files: Mapping[str, list[str]]) -> None:
    folders = {folder for file in files for folder in Path(file).parents if folder.parts}
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        if (target / folder).is_dir() and not any((target / folder).iterdir()):
            (target / folder).rmdir()


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()
