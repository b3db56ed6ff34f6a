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
    """The content of a case's files, before any protocol is applied.

    Attributes:
        image: (X, Y, Z), in the unit of the release.
        affine: (4, 4), from voxel index to RAS+ position in mm.
        label: (X, Y, Z) on the image's grid, with the values of the release; None for a case without a label.
        label_file: file or folder for errors about label values.
        notes: corrections and irregularities for the report.
        image_file: a file equal to the output, which can be copied.
    """

    image: np.ndarray
    affine: np.ndarray
    label: np.ndarray | None = None
    label_file: Path | None = None
    notes: tuple[str, ...] = ()
    image_file: Path | None = None


@dataclass(frozen=True)
class SourceCase:
    """One volume of one domain.

    Attributes:
        domain: name of the domain, such as ``ct``.
        name: its name, distinct within the domain; output files are named after it.
        number: the id that published splits use; None if there is none.
        sources: every file that is read.
        read: reads them; raises ``InputError`` for unusable files.
        section: the datalist's section, if the release prescribes it.
    """

    domain: str
    name: str
    number: int | None
    sources: tuple[Path, ...]
    read: Callable[[], Reading]
    section: str | None = None

    def fingerprint(self) -> str:
        """A digest of the names, sizes and modification times of the sources."""
        digest = hashlib.sha256()
        for path in self.sources:
            state = path.stat()
            digest.update(f"{path.name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class SearchOptions:
    """Options of the command line for finding cases.

    Attributes:
        domain: find only this domain; for plain folders, the domain's name.
        labels: folder of label maps, for plain folders.
        validation: share of the cases held out, for plain folders.
        trust_image: use the image's affine if only a label's affine differs.
        among: domains of the protocol; None for any.
    """

    domain: str | None = None
    labels: Path | None = None
    validation: float = 0.2
    trust_image: bool = False
    among: tuple[str, ...] | None = None

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
