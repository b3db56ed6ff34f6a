"""A case of a data set: where its files are, how they are read, and whether they have changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.core.errors import InputError

__all__ = ["Case", "FindOptions", "Reading", "not_this_data_set", "visible_files"]


@dataclass(frozen=True)
class Reading:
    """What stands in a case's files, before any protocol.

    Attributes:
        image: (X, Y, Z), in the release's own unit.
        affine: (4, 4), from voxel index to RAS+ position in mm.
        label: (X, Y, Z) on the image's grid, the release's own values; None if the case has no label.
        label_file: file or folder that errors about label values name.
        notes: what was done or met that a reader of the report should know.
        image_file: a file that holds this very image as it would be written, to copy rather than pack it anew.
    """

    image: np.ndarray
    affine: np.ndarray
    label: np.ndarray | None = None
    label_file: Path | None = None
    notes: tuple[str, ...] = ()
    image_file: Path | None = None


@dataclass(frozen=True)
class Case:
    """One volume of one domain.

    Attributes:
        domain: name of the domain, such as ``ct``.
        name: its name, distinct within the domain; output files are named after it.
        number: the id that published splits use; None if there is none.
        sources: every file that is read.
        read: reads them; raises ``InputError`` if they are not as they should be.
        section: the datalist's section, where the release itself says it.
    """

    domain: str
    name: str
    number: int | None
    sources: tuple[Path, ...]
    read: Callable[[], Reading]
    section: str | None = None

    def fingerprint(self) -> str:
        """A digest of names, sizes and times of modification of the sources: it changes when one of them does."""
        digest = hashlib.sha256()
        for path in self.sources:
            state = path.stat()
            digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class FindOptions:
    """What the command line may add to a layout.

    Attributes:
        domain: look for this domain alone; for plain folders, the domain's name.
        labels: folder of label maps, for plain folders.
        validation: share of the cases held out, for plain folders.
        trust_image: take the image's grid where a label's header differs and the shapes agree.
        among: domains that the protocol names; None for any.
    """

    domain: str | None = None
    labels: Path | None = None
    validation: float = 0.2
    trust_image: bool = False
    among: tuple[str, ...] | None = None

    def wants(self, domain: str) -> bool:
        """Whether a domain is looked for."""
        return self.domain in (None, domain) and (self.among is None or domain in self.among)


def visible_files(folder: Path, suffixes: tuple[str, ...] = ("",)) -> list[Path]:
    """Files below a folder with one of the suffixes, by path, links followed.

    Hidden files and folders are left out: macOS writes ``._*`` beside every file.
    """
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        kept = (name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
        files += [Path(place) / name for name in kept]
    return sorted(files)


def not_this_data_set(source: Path, expected: str, dataset: str) -> InputError:
    """The error for a tree in which nothing of the data set was found; it names some files that are there."""
    names = [path.relative_to(source).as_posix() for path in visible_files(source)[:3]] if source.is_dir() else []
    shown = f"other files ({', '.join(names)} ...)" if names else "no file"
    return InputError(
        file=source,
        found=shown if source.is_dir() else "no such folder",
        expected=f"{dataset}: {expected}",
        remedy="name the folder into which the download was unpacked, or the data set that it is",
    )
