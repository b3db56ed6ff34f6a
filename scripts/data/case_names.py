"""Finds volumes and label maps, and pairs them by case, from their file names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from scripts.core.errors import InputError

__all__ = [
    "Item",
    "case_name",
    "is_nifti",
    "log_left_out",
    "lone_labels",
    "match_labels",
    "natural_order",
    "nifti_files",
    "pair_volumes",
    "pairing_name",
    "visible_files",
]

logger = logging.getLogger(__name__)

# A case of a datalist: ``image`` and optionally ``label``, as paths.
Item = dict[str, str]

NIFTI_SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
LABEL_WORDS = (
    "labels?|labelmaps?|segs?|segmentations?|masks?|manual|gt|ground_?truth|annotations?|contours?|delineations?|rois?"
)
IMAGE_WORDS = "images?|imgs?|scans?|volumes?|vols?"
NO_LETTER_BEFORE, NO_LETTER_AFTER = r"(?<![^\W\d_])", r"(?![^\W\d_])"
LABEL = re.compile(f"{NO_LETTER_BEFORE}({LABEL_WORDS}){NO_LETTER_AFTER}")
ROLE = re.compile(f"{NO_LETTER_BEFORE}({LABEL_WORDS}|{IMAGE_WORDS}){NO_LETTER_AFTER}")
ROLE_OF_FOLDER = re.compile(f"^({LABEL_WORDS}|{IMAGE_WORDS})")
# Parts of an image's name that may be missing from its label's name: nnU-Net's channel, and modalities.
CHANNELS = {"0000", "ct", "cta", "mr", "mri", "pet", "t1", "t1w", "t2", "t2w", "flair", "dwi", "adc", "lge", "bssfp"}
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
    """All files of a folder, sorted by path; links are followed, hidden files and folders are skipped.

    Args:
        folder: folder to search.
        nested: search subfolders too.

    Raises:
        InputError: a file name that is not UTF-8, which cannot be written to a datalist or report.
    """
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if nested and not name.startswith(".")]
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        files += [Path(place) / name for name in names if not name.startswith(".")]
    for file in files:
        if any("\ud800" <= letter <= "\udfff" for letter in str(file)):
            raise InputError(
                file=ascii(str(file)),
                found="a file name that is not UTF-8",
                expected="names that can be written to a datalist",
                remedy="rename it, for instance with convmv -f latin1 -t utf8 --notest",
            )
    return sorted(files)


def nifti_files(folder: Path, images_only: bool = False, labels_only: bool = False) -> list[Path]:
    """NIfTI files of a folder, or of its subfolders if it contains none, in natural order, as absolute paths.

    Args:
        folder: folder to search.
        images_only: skip label maps, which are recognised by name (``label``, ``seg``, ``mask``, ``gt`` ...).
        labels_only: return label maps only.

    Raises:
        InputError: no file found.
    """
    # Absolute, not resolved: results are named after the link, not after its target.
    searches = (visible_files(folder.absolute(), nested=nested) for nested in (False, True))
    files = next(filter(None, (list(filter(is_nifti, found)) for found in searches)), [])
    if images_only or labels_only:
        files = [file for file in files if _is_label(file) == labels_only]
    if not files:
        raise InputError(
            file=folder,
            found="no NIfTI file in it" if folder.is_dir() else "no such folder",
            expected="a folder with .nii or .nii.gz files",
            remedy="name the folder that holds the volumes",
        )
    return sorted(files, key=lambda file: (natural_order(file), str(file)))


def pairing_name(path: Path) -> str:
    """The name of a case without ``image``, ``label`` and the like, by which images and labels are paired."""
    return "_".join(filter(None, re.split(r"[\W_]+", ROLE.sub(" ", case_name(str(path)).lower()))))


def match_labels(images: Sequence[Path], labels: Sequence[Path] | None) -> dict[Path, Path]:
    """Pair images with labels by case name; the label's name may lack the modality or nnU-Net's channel.

    Args:
        images: one per case.
        labels: one per image; None for images without labels, whose names are still checked.

    Raises:
        InputError: two images or two labels for one case, or an image without a label.
    """
    for kind, files in (("images", images), ("labels", labels or ())):
        _check_distinct(files, kind)
    if labels is None:
        return {}
    pairs = _pair_uniquely(images, labels, [pairing_name, _name_without_channel])
    missing = [image.name for image in images if image not in pairs]
    if missing:
        spare = [label.name for label in labels if label not in set(pairs.values())]
        beside = f"; labels of no image: {_listed(spare)}" if spare else ""
        raise InputError(
            file=images[0].parent,
            found=f"no label for {_listed(missing)}{beside}",
            expected="one label per image, with the same case name",
            remedy="rename or add the labels, or leave --labels out for an unlabelled domain",
        )
    return pairs


def _check_distinct(files: Sequence[Path], kind: str) -> None:
    """Refuse two files of one case."""
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(pairing_name(file), file)
        if other != file:
            raise InputError(
                file=file.parent,
                found=f"two {kind} for case {pairing_name(file)!r}, {other.name} and {file.name}",
                expected="one file of each kind per case",
                remedy="move one of them elsewhere, or rename it",
            )


def pair_volumes(files: Iterable[Path]) -> list[Item]:
    """The images among NIfTI files in natural order, each with the label map of its case if there is one.

    Label maps are recognised by their own or their folder's name (``label``, ``seg``, ``mask``). A label map in the
    image's folder is preferred to one in the matching folder (``imagesTr``, ``labelsTr``), and that to one elsewhere.
    A label map is used once.
    """
    listed = [file.absolute() for file in files if is_nifti(file)]
    is_label = {file: _is_label(file) or bool(re.match(LABEL_WORDS, file.parent.name.lower())) for file in listed}
    images = sorted((file for file in listed if not is_label[file]), key=natural_order)
    names = (pairing_name, _name_without_channel)
    places = (lambda folder: folder, _counterpart, lambda folder: None)
    keys = [_key(place, name) for place in places for name in names]
    pairs = _pair_uniquely(images, [file for file in listed if is_label[file]], keys)
    return [{"image": str(image)} | ({"label": str(pairs[image])} if image in pairs else {}) for image in images]


def lone_labels(files: Iterable[Path], items: Iterable[Item]) -> list[Path]:
    """Label maps that were not paired with an image.

    Args:
        files: the argument of :func:`pair_volumes`.
        items: its result.
    """
    used = {path for item in items for path in item.values()}
    return sorted(file for file in files if is_nifti(file) and str(file.absolute()) not in used)


def log_left_out(folder: Path, taken: Iterable[Path]) -> None:
    """Log the files that a command did not use; those of subfolders only if it used some of them."""
    kept = {file.absolute() for file in taken}
    is_flat = all(file.parent == folder.absolute() for file in kept)
    found = visible_files(folder, nested=not is_flat)
    names = [file.relative_to(folder).as_posix() for file in found if file.absolute() not in kept]
    if names:
        logger.warning("%s: not used: %s. Volumes are .nii or .nii.gz files.", folder, _listed(names))


def _pair_uniquely(
    images: Iterable[Path], labels: Iterable[Path], keys: Sequence[Callable[[Path], Hashable]]
) -> dict[Path, Path]:
    """Pairs whose key is unique among images and labels; each further key is applied to the remaining files."""
    pairs: dict[Path, Path] = {}
    left, spare = list(images), list(labels)
    for key in keys:
        of_key: dict[Hashable, tuple[list[Path], list[Path]]] = {}
        for place, files in enumerate((left, spare)):
            for file in files:
                of_key.setdefault(key(file), ([], []))[place].append(file)
        pairs |= {one[0]: other[0] for one, other in of_key.values() if len(one) == len(other) == 1}
        used = set(pairs.values())
        left, spare = [file for file in left if file not in pairs], [file for file in spare if file not in used]
    return pairs


def _key(place: Callable[[Path], Hashable], name: Callable[[Path], str]) -> Callable[[Path], Hashable]:
    return lambda file: (place(file.parent), name(file))


def _name_without_channel(path: Path) -> str:
    return "_".join(part for part in pairing_name(path).split("_") if part not in CHANNELS)


def _counterpart(folder: Path) -> tuple[Path, str]:
    return folder.parent, ROLE_OF_FOLDER.sub("", folder.name.lower())


def _is_label(path: Path) -> bool:
    return bool(LABEL.search(case_name(str(path)).lower()))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
