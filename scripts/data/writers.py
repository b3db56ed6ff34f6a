"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monai.data import NibabelWriter

from scripts.errors import InputError

__all__ = ["AtomicNibabelWriter", "atomic_path", "make_folder", "write_json"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    The temporary name keeps every suffix (``.nii.gz``), because writers choose the format by it.

    Raises:
        InputError: the folder cannot be written, or the device is full.
    """
    path = Path(path)
    make_folder(path.parent)
    suffix = "".join(path.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=f".{path.name.removesuffix(suffix)}-", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            file=path,
            found=f"that it could not be written ({error.strerror or error})",
            expected="a folder with room for the file",
            remedy="free some space or choose another output folder; nothing half-written was left",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make a folder and prove that it can be written.

    Raises:
        InputError: it cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            file=folder,
            found=f"a folder that cannot be written ({error.strerror or error})",
            expected="a writable folder",
            remedy="choose another place, for instance with --bundle_root or --out, or change its permissions",
        ) from error


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer, for ``SaveImaged(writer=...)``, by way of :func:`atomic_path`."""

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the image set by ``set_data_array`` and ``set_metadata`` to ``filename``."""
        with atomic_path(filename) as temporary:
            super().write(temporary, verbose=verbose, **obj_kwargs)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
