"""Datalists in MONAI's Decathlon format: the files of a domain.

A datalist is a JSON file ``{"name", "modality", "labels", "training": [{"image", "label"}], "validation": [...]}``,
one per domain. Paths are absolute or relative to the datalist's folder. Entries of the target domain need no label.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist
from scripts.core.errors import InputError
from scripts.core.schema import read_yaml
from scripts.data.case_names import Item, case_name, in_utf8, log_left_out, nifti_files

__all__ = ["TRANSLATED_TO", "Datalist", "existing_item", "find_volumes", "is_from_server", "read_datalist"]

# Key of a datalist for the domain that its images were translated to.
TRANSLATED_TO = "translated_to"

# Bytes of a case name: file systems accept 255, and ``_probabilities.nii.gz`` is added.
LONGEST_NAME = 230

logger = logging.getLogger(__name__)


class Datalist(list[Item]):
    """Cases that a datalist file lists."""


def is_from_server(cases: Sequence[Item]) -> bool:
    """Whether a server replaced the config's datalist by its own list, whose labels are class ids."""
    return not isinstance(cases, Datalist)


def read_datalist(
    path: str | None,
    section: str,
    needs_label: bool = False,
    distinct_names: bool = False,
    may_be_empty: bool = False,
    may_be_missing: bool = False,
    translated_to: str | None = None,
) -> Datalist:
    """Read one section (``training``, ``validation`` ...) of a datalist; paths become absolute and must exist.

    Args:
        path: JSON file; None returns no cases.
        section: key of the list.
        needs_label: require a label for each entry. Otherwise labels are dropped, so that no later step can read them.
        distinct_names: require distinct image file names, after which reports and outputs are named; repeated entries
            count once.
        may_be_empty: return no cases if the section is missing or empty.
        may_be_missing: return no cases, with a warning, if the file does not exist.
        translated_to: require a list of images that were translated to this domain; None for any list.
    """
    if path is None:
        return Datalist()
    listed = Path(path)
    if may_be_missing and not listed.exists():
        logger.warning("%s: no such datalist; training continues without its volumes", listed)
        return Datalist()
    remedy = "write it with 'python -m scripts datalist', or name another one"
    content = read_yaml(listed, expected="a decathlon datalist (JSON)", remedy=remedy)
    sections = sorted(key for key, value in content.items() if isinstance(value, list))
    if not content.get(section) and may_be_empty:
        return Datalist()
    if not content.get(section):
        found = f"no case under {section!r} (there are: {', '.join(sections) or 'no lists'})"
        raise InputError(listed, found, expected="at least one", remedy="add cases to that list, or choose another")
    if translated_to is not None and content.get(TRANSLATED_TO) != translated_to:
        found = f"images translated to {content[TRANSLATED_TO]}" if TRANSLATED_TO in content else "no translated images"
        expected = f"the datalist.json that synthesis inference writes beside images translated to {translated_to}"
        remedy = "name it (translate again with --resume True if it is older), or learn from images as they are: "
        remedy += "--translator none --labelled_intensity @source_intensity"
        raise InputError(file=listed, found=found, expected=expected, remedy=remedy)
    _check_entries(content[section], listed, section)
    entries = load_decathlon_datalist(str(listed.absolute()), is_segmentation=True, data_list_key=section)
    items = [existing_item(entry, listed, needs_label) for entry in entries]
    return Datalist(_distinctly_named(items, listed) if distinct_names else items)


def find_volumes(where: str) -> list[Item]:
    """Images to segment: a NIfTI file, those of a folder without label maps, or all sections of a datalist."""
    path = Path(where)
    if path.suffix == ".json":
        remedy = "name a volume, a folder of volumes or a datalist"
        content = read_yaml(path, expected="a datalist (JSON)", remedy=remedy)
        sections = [key for key, value in content.items() if isinstance(value, list) and value]
        items = [item for section in sections or ["training"] for item in read_datalist(where, section)]
        return _distinctly_named(items, path)
    if path.is_file():
        return _distinctly_named([{"image": str(in_utf8(path.absolute()))}], path)
    files = nifti_files(path, images_only=True)
    log_left_out(path, files)
    return _distinctly_named([{"image": str(file)} for file in files], path)


def _check_entries(entries: list[Any], listed: Path, section: str) -> None:
    """Refuse entries that MONAI cannot read: plain strings are allowed in ``test`` only, as in the Decathlon."""
    if section == "test" and all(isinstance(entry, str) for entry in entries):
        return
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
            found = f"an entry under {section!r} that names no image: {json.dumps(entry)[:80]}"
            expected = 'entries such as {"image": "a_image.nii.gz", "label": "a_label.nii.gz"}'
            raise InputError(file=listed, found=found, expected=expected, remedy="correct that list")


def existing_item(entry: Mapping[str, Any], listed: Path, needs_label: bool) -> Item:
    """The image and, if needed, the label of an entry of the datalist ``listed``; both must exist."""
    item = {"image": str(entry["image"])}
    if needs_label:
        if entry.get("label") is None:
            found, remedy = f"no label for {item['image']}", "add it to the datalist"
            raise InputError(file=listed, found=found, expected="a label per case", remedy=remedy)
        item["label"] = str(entry["label"])
    for path in item.values():
        if Path(path).name.startswith("."):
            remedy = "remove it from the list: macOS creates such a file beside each volume"
            raise InputError(listed, f"a name that starts with a dot, {Path(path).name}", "volumes", remedy)
        if not os.path.isfile(path):
            remedy = "correct the path in the datalist, or put the file there"
            raise InputError(file=path, found="no such file", expected=f"the volume that {listed} lists", remedy=remedy)
    return item


def _distinctly_named(items: list[Item], where: Path) -> list[Item]:
    """Remove repeated cases; refuse too long names, two images with one name, and two labels for one image."""
    item_of: dict[str, Item] = {}
    for item in items:
        other = item_of.setdefault(name := case_name(item["image"]), item)
        if len(name.encode()) > LONGEST_NAME:
            found, expected = f"a case name of {len(name.encode())} bytes, {name[:20]}...", f"at most {LONGEST_NAME}"
            raise InputError(where, found, expected=expected, remedy="rename the file: its results are named after it")
        if other["image"] != item["image"]:
            found = f"one case name for two images, {other['image']} and {item['image']}"
            expected = "distinct file names, because results are named after them"
            raise InputError(where, found, expected, "rename one of them, or use a link with another name")
        if other != item:
            found = f"two labels for {item['image']}, {other.get('label')} and {item.get('label')}"
            raise InputError(where, found, expected="one label for each image", remedy="remove one of the two entries")
    return list(item_of.values())
