"""Which files are volumes, which of them are label maps, and what case they belong to: all by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from scripts.core.errors import InputError

__all__ = [
    "NIFTI_SUFFIXES",
    "Item",
    "case_name",
    "labels_by_case",
    "lone_labels",
    "names_of_its_label",
    "natural_order",
    "nifti_files",
    "pair_volumes",
    "pairing_name",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")

Item = dict[str, str]
"""A case of a datalist: ``image`` and perhaps ``label``, as paths."""


def case_name(path: str) -> str:
    """The name of a case in reports and outputs: the file's name without its suffix."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def natural_order(path: Path) -> list[int | str]:
    """Sorting key of a file by its name, numbers by their value: ``case2`` before ``case10``."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def nifti_files(folder: Path, images_only: bool = False, labels_only: bool = False) -> list[Path]:
    """The NIfTI files of a folder in natural order, as absolute paths; hidden ones are left out.

    Args:
        folder: where they lie, not deeper.
        images_only: leave label maps out; their names tell them (``label``, ``seg``, ``mask``, ``manual``).
        labels_only: leave everything else out.

    Raises:
        InputError: there is none.
    """
    files = sorted(folder.iterdir(), key=natural_order) if folder.is_dir() else []
    # Absolute, not resolved: a link keeps its own name, after which results are named.
    files = [f.absolute() for f in files if _is_visible_nifti(f)]
    if images_only or labels_only:
        files = [f for f in files if _is_label(f) == labels_only]
    if not files:
        raise InputError(
            file=folder,
            found="no NIfTI file in it" if folder.is_dir() else "no such folder",
            expected="a folder with .nii or .nii.gz files",
            remedy="name the folder that holds the volumes",
        )
    return files


def pairing_name(path: Path) -> str:
    """The case's name that an image and its label share: the file's, without ``image``, ``label`` and the like."""
    return re.sub(r"[^a-z0-9]*(image|img|label|labels|seg|mask|manual)(?![a-z])[^a-z0-9]*", "", _stem(path))


def names_of_its_label(image: Path) -> list[str]:
    """Case names that the label of an image may have: the image's own, and the same without nnU-Net's channel."""
    name = pairing_name(image)
    return [name, name.removesuffix("_0000")]


def labels_by_case(folder: Path, labels_only: bool) -> dict[str, Path]:
    """The label maps of a folder by the name of their case.

    Args:
        folder: where they lie.
        labels_only: whether images lie there too.

    Raises:
        InputError: no file, or two of one case.
    """
    label_of: dict[str, Path] = {}
    for file in nifti_files(folder, labels_only=labels_only):
        other = label_of.setdefault(pairing_name(file), file)
        if other != file:
            raise InputError(
                file=folder,
                found=f"two labels for case '{pairing_name(file)}', {other.name} and {file.name}",
                expected="one label per image",
                remedy="move one of them elsewhere",
            )
    return label_of


def pair_volumes(files: Iterable[Path]) -> list[Item]:
    """The images among NIfTI files, each with the label map of the same case where there is one, in natural order.

    A label map is told by its name or its folder's (``label``, ``seg``, ``mask``).
    """
    listed = [file.absolute() for file in files if _is_visible_nifti(file)]
    is_label = {file: _is_label(file) or bool(re.match("label|seg|mask", file.parent.name.lower())) for file in listed}
    beside = {(file.parent, pairing_name(file)): file for file in listed if is_label[file]}
    label_of = {name: file for (_, name), file in beside.items()}
    items = []
    for image in sorted((file for file in listed if not is_label[file]), key=natural_order):
        near = [beside[image.parent, name] for name in names_of_its_label(image) if (image.parent, name) in beside]
        far = [label_of[name] for name in names_of_its_label(image) if name in label_of]
        label = next(iter(near + far), None)
        items.append({"image": str(image)} | ({"label": str(label)} if label else {}))
    return items


def lone_labels(files: Iterable[Path], items: Iterable[Item]) -> list[Path]:
    """The label maps among NIfTI files that no item has.

    Args:
        files: as given to :func:`pair_volumes`.
        items: what it gave.
    """
    used = {path for item in items for path in item.values()}
    return sorted(file for file in files if _is_visible_nifti(file) and str(file.absolute()) not in used)


def _is_visible_nifti(path: Path) -> bool:
    return path.name.endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii").lower()


def _is_label(path: Path) -> bool:
    return bool(re.search(r"(^|[^a-z])(label|labels|seg|mask|manual)([^a-z]|$)", _stem(path)))
