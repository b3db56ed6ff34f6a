"""A case of a release: its files, their content, and a fingerprint to detect changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError
from scripts.data.case_names import visible_files

__all__ = ["Reading", "SearchOptions", "SourceCase", "not_this_data_set"]


@dataclass(frozen=True)
class Reading:
    """The content of a case's files, before any protocol is applied."""

    image: np.ndarray  # (X, Y, Z), in the unit of the release
    affine: np.ndarray  # (4, 4), from voxel index to RAS+ position in mm
    label: np.ndarray | None = None  # (X, Y, Z), with the values of the release
    label_file: Path | None = None  # file or folder for errors about label values
    notes: tuple[str, ...] = ()  # corrections and irregularities for the report
    image_file: Path | None = None  # a file equal to the output, which can be copied


@dataclass(frozen=True)
class SourceCase:
    """One volume of one domain."""

    domain: str
    name: str  # distinct within the domain; output files are named after it
    number: int | None  # the id that published splits use
    sources: tuple[Path, ...]  # every file that is read
    read: Callable[[], Reading]  # raises ``InputError`` for unusable files
    section: str | None = None  # of the datalist, if the release prescribes it

    def fingerprint(self) -> str:
        """A digest of the names, sizes and modification times of the sources."""
        digest = hashlib.sha256()
        for path in self.sources:
            state = path.stat()
            digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SearchOptions:
    """Options of the command line for finding cases; ``labels`` and ``validation`` are for plain folders."""

    domain: str | None = None  # find only this one; the name of a plain folder's domain
    labels: Path | None = None
    validation: float = 0.2
    trust_image: bool = False  # use the image's affine if only a label's affine differs
    among: tuple[str, ...] | None = None  # domains of the protocol; None for any

    def wants(self, domain: str) -> bool:
        """Whether cases of a domain are to be found."""
        return self.domain in (None, domain) and (self.among is None or domain in self.among)


def not_this_data_set(source: Path, expected: str, dataset: str) -> InputError:
    """The error for a folder without files of the data set; it lists some of the files."""
    names = [path.relative_to(source).as_posix() for path in visible_files(source)[:3]] if source.is_dir() else []
    shown = f"other files ({', '.join(names)} ...)" if names else "no file"
    found = shown if source.is_dir() else "no such folder"
    remedy = "name the folder of the unpacked download, or another data set"
    return InputError(file=source, found=found, expected=f"{dataset}: {expected}", remedy=remedy)
