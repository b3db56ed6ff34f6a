"""Which label belongs to which image: by the names of their files and folders."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from scripts.core.errors import InputError
from scripts.data.case_names import LABEL_WORDS, WHOLE_WORD, Item, case_name, is_label, is_nifti, natural_order, some_of

__all__ = ["lone_labels", "match_labels", "pair_volumes", "pairing_name"]

IMAGE_WORDS = "images?|imgs?|scans?|volumes?|vols?"
ROLE = re.compile(WHOLE_WORD % f"{LABEL_WORDS}|{IMAGE_WORDS}")
ROLE_OF_FOLDER = re.compile(f"^({LABEL_WORDS}|{IMAGE_WORDS})")

# Parts of an image's name that may be missing from its label's name: nnU-Net's channel, and modalities.
CHANNELS = {"0000", "ct", "cta", "mr", "mri", "pet", "t1", "t1w", "t2", "t2w", "flair", "dwi", "adc", "lge", "bssfp"}


def pairing_name(path: Path) -> str:
    """The name of a case without ``image``, ``label`` and the like, by which images and labels are paired.

    Accents are composed: macOS stores them apart from their letters.
    """
    name = unicodedata.normalize("NFC", case_name(str(path))).lower()
    return "_".join(filter(None, re.split(r"[\W_]+", ROLE.sub(" ", name))))


def match_labels(images: Sequence[Path], labels: Sequence[Path] | None) -> dict[Path, Path]:
    """Pair images with labels by case name; the label's name may lack the modality or nnU-Net's channel.

    It may also lack what the names of all images share (``cine`` in ``patient 01 cine``).

    Raises:
        InputError: two images or two labels for one case, or an image without a label.
    """
    for kind, files in (("images", images), ("labels", labels or ())):
        _check_distinct(files, kind)
    if labels is None:
        return {}
    keys = [pairing_name, _name_without_channel, _name_without_shared_words(images, labels)]
    pairs = _pair_uniquely(images, labels, keys)
    missing = [image.name for image in images if image not in pairs]
    if missing:
        spare = [label.name for label in labels if label not in set(pairs.values())]
        beside = f"; labels of no image: {some_of(spare)}" if spare else ""
        found, expected = f"no label for {some_of(missing)}{beside}", "one label per image, with the same case name"
        remedy = "rename or add the labels, or remove these images; only an unlabelled domain needs no labels"
        folder = os.path.commonpath([image.parent for image in images])
        raise InputError(file=folder, found=found, expected=expected, remedy=remedy)
    return pairs


def pair_volumes(files: Iterable[Path]) -> list[Item]:
    """The images among NIfTI files in natural order, each with the label map of its case if there is one.

    Label maps are recognised by their own or their folder's name (``label``, ``seg``, ``mask``). A label map in the
    image's folder is preferred to one in the matching folder (``imagesTr``, ``labelsTr``), and that to one elsewhere.
    A label map is used once.
    """
    listed = [file.absolute() for file in files if is_nifti(file)]
    are_labels = {file: is_label(file) or bool(re.match(LABEL_WORDS, file.parent.name.lower())) for file in listed}
    images = sorted((file for file in listed if not are_labels[file]), key=natural_order)
    names = (pairing_name, _name_without_channel)
    places = (lambda folder: folder, _counterpart, lambda folder: None)
    keys = [_key(place, name) for place in places for name in names]
    pairs = _pair_uniquely(images, [file for file in listed if are_labels[file]], keys)
    return [{"image": str(image)} | ({"label": str(pairs[image])} if image in pairs else {}) for image in images]


def lone_labels(files: Iterable[Path], items: Iterable[Item]) -> list[Path]:
    """Label maps that were not paired with an image."""
    used = {path for item in items for path in item.values()}
    return sorted(file for file in files if is_nifti(file) and str(file.absolute()) not in used)


def _check_distinct(files: Sequence[Path], kind: str) -> None:
    """Refuse two files of one case."""
    seen: dict[str, Path] = {}
    for file in files:
        other = seen.setdefault(pairing_name(file), file)
        if other != file:
            found = f"two {kind} for case {pairing_name(file)!r}, {other.name} and {file.name}"
            remedy = "move one of them elsewhere, or rename it"
            raise InputError(file=file.parent, found=found, expected="one file of each kind per case", remedy=remedy)


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


def _name_without_shared_words(images: Sequence[Path], labels: Sequence[Path]) -> Callable[[Path], str]:
    """A key without the words of every image that no label has. A single image has nothing to share."""
    words, known = ([set(pairing_name(path).split("_")) for path in files] for files in (images, labels))
    shared = set.intersection(*words).difference(*known) if len(images) > 1 else set()
    return lambda path: "_".join(part for part in pairing_name(path).split("_") if part not in shared)


def _counterpart(folder: Path) -> tuple[Path, str]:
    return folder.parent, ROLE_OF_FOLDER.sub("", folder.name.lower())
