"""Finds volumes and label maps, and pairs them by case, from their file names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.core.errors import NOT_UTF8, InputError

__all__ = [
    "LABEL_WORDS",
    "WHOLE_WORD",
    "Item",
    "case_name",
    "in_utf8",
    "is_label",
    "is_nifti",
    "log_left_out",
    "natural_order",
    "nifti_files",
    "some_of",
    "visible_files",
]

logger = logging.getLogger(__name__)

# A case of a datalist: ``image`` and optionally ``label``, as paths.
Item = dict[str, str]

NIFTI_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
LABEL_WORDS = (
    "labels?|labelmaps?|d?segs?|segmentations?|masks?|manual|gt|(?:ground_?)?truth|annotations?|contours?|"
    "delineations?|rois?|preds?|predictions?"
)
WHOLE_WORD = r"(?<![^\W\d_])(%s)(?![^\W\d_])"
LABEL = re.compile(WHOLE_WORD % LABEL_WORDS)
# Number of names listed in a message.
LISTED = 8


def case_name(path: str) -> str:
    """The name of a case in reports and outputs: the file's name without its suffix."""
    return NIFTI_SUFFIX.sub("", Path(path).name)


def natural_order(path: Path) -> list[int | str]:
    """Sorting key that compares numbers in file names by value: ``case2`` before ``case10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def is_nifti(path: Path) -> bool:
    """Whether a file has a NIfTI suffix, in upper or lower case; hidden files (macOS metadata) do not count."""
    return bool(NIFTI_SUFFIX.search(path.name)) and not path.name.startswith(".")


def visible_files(folder: Path, *, nested: bool = True) -> list[Path]:
    """All files of a folder and, if nested, its subfolders, by path; links are followed, hidden files skipped.

    A file name that is not UTF-8, which cannot be written to a datalist, is refused.
    """
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if nested and not name.startswith(".")]
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        files += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(map(in_utf8, files))


def in_utf8(path: Path) -> Path:
    """Return a path; refuse one that is not UTF-8, which no datalist and no table can name."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        found, expected = "a file name that is not UTF-8", "names that can be written to a datalist"
        raise InputError(file=ascii(str(path)), found=found, expected=expected, remedy=NOT_UTF8)
    return path


def nifti_files(folder: Path, images_only: bool = False, labels_only: bool = False) -> list[Path]:
    """NIfTI files of a folder, else of its subfolders, in natural order; label maps are known by name."""
    # Absolute, not resolved: results are named after the link, not after its target.
    searches = (visible_files(folder.absolute(), nested=nested) for nested in (False, True))
    files = next(filter(None, (list(filter(is_nifti, found)) for found in searches)), [])
    if images_only or labels_only:
        files = [file for file in files if is_label(file) == labels_only]
    if not files:
        found = "no NIfTI file in it" if folder.is_dir() else "no such folder"
        expected, remedy = "a folder with .nii or .nii.gz files", "name the folder that holds the volumes"
        raise InputError(file=folder, found=found, expected=expected, remedy=remedy)
    return sorted(files, key=lambda file: [natural_order(part) for part in (file, *file.parents)])


def log_left_out(folder: Path, taken: Iterable[Path]) -> None:
    """Log the files that a command did not use; those of subfolders only if it used some of them."""
    kept = {file.absolute() for file in taken}
    is_flat = all(file.parent == folder.absolute() for file in kept)
    found = visible_files(folder, nested=not is_flat)
    names = [file.relative_to(folder).as_posix() for file in found if file.absolute() not in kept]
    if names:
        logger.warning("%s: not used: %s. Volumes are .nii or .nii.gz files.", folder, some_of(names))


def is_label(path: Path) -> bool:
    """Whether a file's name is that of a label map."""
    return bool(LABEL.search(case_name(str(path)).lower()))


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many follow, for a message."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
