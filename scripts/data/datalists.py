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
from scripts.core.errors import InputError, SettingError
from scripts.core.files import check_file_name, write_json
from scripts.core.processes import rank
from scripts.data.case_names import Item, case_name, log_left_out, match_labels, nifti_files

__all__ = [
    "Datalist",
    "TranslatedDatalist",
    "all_sections",
    "datalists_of_domains",
    "find_volumes",
    "folder_datalist",
    "images_of",
    "is_from_server",
    "read_datalist",
    "training_share",
    "write_datalist",
]

logger = logging.getLogger(__name__)

# Keys that ``prepare`` adds to a datalist for data checks; see :mod:`scripts.lab.prepare.outputs`.
PREPARED = ("protocol", "has_spacing", "has_unit", "shared_sections")


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

    Raises:
        InputError: the file or a volume is missing or hidden, the section is missing or empty, an entry is invalid, a
            label is missing, or, with ``distinct_names``, two images share a name or an image has two labels.
    """
    if path is None:
        return Datalist()
    listed = Path(path)
    if may_be_missing and not listed.exists():
        logger.warning("%s: no such datalist; training continues without its volumes", listed)
        return Datalist()
    remedy = "write it with 'python -m scripts datalist', or name another one"
    content = _read_json(listed, expected="a decathlon datalist (JSON)", remedy=remedy)
    sections = sorted(key for key, value in content.items() if isinstance(value, list))
    if not content.get(section) and may_be_empty:
        return Datalist()
    if not content.get(section):
        raise InputError(
            file=listed,
            found=f"no case under {section!r} (there are: {', '.join(sections) or 'no lists'})",
            expected="at least one",
            remedy="add cases to that list, or choose another list",
        )
    _check_entries(content[section], listed, section)
    entries = load_decathlon_datalist(str(listed), is_segmentation=True, data_list_key=section)
    items = [_existing_item(entry, listed, needs_label) for entry in entries]
    return Datalist(_distinctly_named(items, listed) if distinct_names else items)


def find_volumes(where: str) -> list[Item]:
    """Images to segment: a NIfTI file, a folder of them, or all sections of a datalist.

    An image listed in two sections counts once. Label maps in a folder, recognised by name, are skipped.

    Raises:
        InputError: the path does not exist, contains no NIfTI file, or two images share a name.
    """
    path = Path(where)
    if path.suffix == ".json":
        remedy = "name a volume, a folder of volumes or a datalist"
        content = _read_json(path, expected="a datalist (JSON)", remedy=remedy)
        sections = [key for key, value in content.items() if isinstance(value, list) and value]
        items = [item for section in sections or ["training"] for item in read_datalist(where, section)]
        return _distinctly_named(items, path)
    if path.is_file():
        return [{"image": str(path.absolute())}]
    files = nifti_files(path, images_only=True)
    log_left_out(path, files)
    return _distinctly_named([{"image": str(file)} for file in files], path)


def all_sections(path: str) -> dict[str, dict[str, Any]]:
    """All sections and labels of a datalist, or of each domain of a ``dataset.json``, for data checks only.

    Paths become absolute. Volumes may be missing, labels are optional, and a plain string is an image.

    Raises:
        InputError: the file is missing or lists no volume.
    """
    file, expected = Path(path), "a datalist, or a dataset.json with 'domains'"
    remedy = "write one with 'python -m scripts datalist', or name the folder of the volumes"
    content = _read_json(file, expected=expected, remedy=remedy)
    several = content.get("domains")
    domains = several if isinstance(several, dict) else {str(content.get("name", file.stem)): content}
    datalists = {}
    for name, domain in domains.items():
        lists = {key: _entries(value, file.parent) for key, value in domain.items() if isinstance(value, list)}
        head = {"name": name, "modality": _modality(domain, name), "labels": content.get("labels", {})}
        head |= {key: domain[key] for key in PREPARED if key in domain}
        datalists[name] = head | {key: entries for key, entries in lists.items() if entries}
    if not any(isinstance(value, list) for datalist in datalists.values() for value in datalist.values()):
        raise InputError(file=file, found="no volume listed in it", expected=expected, remedy=remedy)
    return datalists


def folder_datalist(
    images: str, labels: str | None, *, name: str, modality: str, validation_fraction: float
) -> dict[str, Any]:
    """Build a datalist from a folder of images and a folder of labels, which may be the same folder.

    Images and labels are paired by case name (:func:`scripts.data.case_names.match_labels`). The last cases in natural
    order are held out for validation. Files that are not used are logged.

    Raises:
        InputError: an empty folder, two files of one case, or an image without its label.
    """
    files = images_of(Path(images))
    label_files = nifti_files(Path(labels), labels_only=images == labels) if labels else None
    pairs = match_labels(files, label_files)
    log_left_out(Path(images), [*files, *(label_files or ())])
    entries = [{"image": str(image)} | ({"label": str(pairs[image])} if image in pairs else {}) for image in files]
    kept = training_share(len(entries), validation_fraction)
    return {"name": name, "modality": modality, "training": entries[:kept], "validation": entries[kept:]}


def images_of(folder: Path) -> list[Path]:
    """The images of a folder; all of its volumes if every one has the name of a label map.

    Raises:
        InputError: no NIfTI file.
    """
    try:
        return nifti_files(folder, images_only=True)
    except InputError:
        return nifti_files(folder)


def training_share(cases: int, validation_fraction: float) -> int:
    """Number of training cases after the validation cases are held out.

    Raises:
        InputError: no training case remains.
    """
    kept = cases - round(cases * validation_fraction)
    if kept < 1:
        raise SettingError(
            setting="setting --validation",
            found=f"{validation_fraction:g}, which leaves none of {cases} case(s) for training",
            expected="at least one training case",
            remedy="lower it, or give more cases",
        )
    return kept


def datalists_of_domains(dataset: str) -> dict[str, dict[str, Any]]:
    """The datalists under ``domains.<name>`` of a ``dataset.json``, by domain name, with absolute paths.

    Raises:
        InputError: the file is missing or has another format.
    """
    path, expected = Path(dataset), "a dataset.json with 'domains: {name: {modality, training, validation}}'"
    remedy = "name such a file, or give --images and --labels of a plain folder"
    content = _read_json(path, expected=expected, remedy=remedy)
    if not isinstance(content.get("domains"), dict):
        raise InputError(file=path, found="no 'domains' in it", expected=expected, remedy=remedy)
    datalists = {}
    for name, domain in content["domains"].items():
        lists = {
            key: [_absolute(entry, path.parent) for entry in value]
            for key, value in domain.items()
            if isinstance(value, list)
        }
        datalists[check_file_name(name, path)] = {
            "name": name,
            "modality": _modality(domain, name),
            "labels": content.get("labels", {}),
        } | lists
    return datalists


def write_datalist(path: str | os.PathLike[str], datalist: Mapping[str, Any]) -> None:
    """Write a datalist atomically. Paths below its folder become relative, so that the folder can be moved.

    Raises:
        InputError: no training case.
    """
    if not datalist.get("training"):
        raise InputError(
            file=path,
            found="no training case",
            expected="at least one",
            remedy="add cases or lower the validation share",
        )
    folder = Path(path).absolute().parent
    lists = {
        section: [{key: _relative(file, folder) for key, file in entry.items()} for entry in value]
        for section, value in datalist.items()
        if isinstance(value, list)
    }
    write_json(path, {**datalist, **lists})


class TranslatedDatalist:
    """The datalist of the translated source volumes, with the labels of the original volumes.

    Args:
        datalist: the source's datalist.
        folder: folder of the translated ``<case>_<postfix>.nii.gz``, to which ``datalist.json`` is written.
        postfix: suffix of the translated files.
    """

    def __init__(self, *, datalist: str, folder: str, postfix: str) -> None:
        self.datalist, self.folder, self.postfix = Path(datalist), Path(folder), postfix

    def write(self) -> Path:
        """Write it on rank 0, with the sections of the source's datalist; entries without a label are skipped."""
        content = json.loads(self.datalist.read_text(encoding="utf-8"))
        translated: dict[str, Any] = {key: value for key, value in content.items() if not isinstance(value, list)}
        for section in (key for key, value in content.items() if isinstance(value, list) and value):
            entries = load_decathlon_datalist(str(self.datalist), is_segmentation=True, data_list_key=section)
            labelled = [
                _existing_item(entry, self.datalist, needs_label=True) for entry in entries if entry.get("label")
            ]
            translated[section] = [self._translated(item) for item in labelled]
        path = self.folder / "datalist.json"
        if rank() == 0:
            write_datalist(path, translated)
        return path

    def _translated(self, item: Item) -> Item:
        image = self.folder / f"{case_name(item['image'])}_{self.postfix}.nii.gz"
        return {"image": str(image.resolve()), "label": item["label"]}


def _read_json(path: Path, expected: str, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"an unreadable file ({error.strerror})"
        raise InputError(file=path, found=found, expected=expected, remedy=remedy) from error
    except ValueError as error:
        raise InputError(file=path, found=f"no JSON ({error})", expected=expected, remedy=remedy) from error
    if not isinstance(content, dict):
        found = f"no JSON object but a {type(content).__name__}"
        raise InputError(file=path, found=found, expected=expected, remedy=remedy)
    return content


def _check_entries(entries: list[Any], listed: Path, section: str) -> None:
    """Refuse entries that MONAI cannot read: plain strings are allowed in ``test`` only, as in the Decathlon."""
    if section == "test" and all(isinstance(entry, str) for entry in entries):
        return
    for entry in entries:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
            raise InputError(
                file=listed,
                found=f"an entry under {section!r} that names no image: {json.dumps(entry)[:80]}",
                expected='entries such as {"image": "a_image.nii.gz", "label": "a_label.nii.gz"}',
                remedy="correct that list",
            )


def _existing_item(entry: Mapping[str, Any], listed: Path, needs_label: bool) -> Item:
    item = {"image": str(entry["image"])}
    if needs_label:
        if entry.get("label") is None:
            raise InputError(
                file=listed,
                found=f"no label for {item['image']}",
                expected="a label per case",
                remedy="add it to the datalist",
            )
        item["label"] = str(entry["label"])
    for path in item.values():
        if Path(path).name.startswith("."):
            remedy = "remove it from the list: macOS creates such a file beside each volume"
            found = f"a name that starts with a dot, {Path(path).name}"
            raise InputError(file=listed, found=found, expected="volumes", remedy=remedy)
        if not os.path.isfile(path):
            remedy = "correct the path in the datalist, or put the file there"
            raise InputError(file=path, found="no such file", expected=f"the volume that {listed} lists", remedy=remedy)
    return item


def _distinctly_named(items: list[Item], where: Path) -> list[Item]:
    """Remove repeated cases; refuse two images with one case name, and two labels for one image."""
    item_of: dict[str, Item] = {}
    for item in items:
        other = item_of.setdefault(case_name(item["image"]), item)
        if other["image"] != item["image"]:
            raise InputError(
                file=where,
                found=f"one case name for two images, {other['image']} and {item['image']}",
                expected="distinct file names, because results are named after them",
                remedy="rename one of them, or use a link with another name",
            )
        if other != item:
            raise InputError(
                file=where,
                found=f"two labels for {item['image']}, {other.get('label')} and {item.get('label')}",
                expected="one label for each image",
                remedy="remove one of the two entries",
            )
    return list(item_of.values())


def _relative(file: str, folder: Path) -> str:
    path = Path(file).absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _entries(listed: list[Any], folder: Path) -> list[Item]:
    """Image and label of each entry as absolute paths, links not resolved; other entries are skipped."""
    entries = [{"image": entry} if isinstance(entry, str) else entry for entry in listed]
    return [
        {key: str((folder / entry[key]).absolute()) for key in ("image", "label") if isinstance(entry.get(key), str)}
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get("image"), str)
    ]


def _absolute(entry: Mapping[str, str] | str, folder: Path) -> Item:
    entry = {"image": entry} if isinstance(entry, str) else entry
    return {key: str((folder / value).resolve()) for key, value in entry.items()}


def _modality(domain: Mapping[str, Any], name: str) -> Any:
    """The modality of a datalist: a word, or the channel names of the Decathlon or nnU-Net joined in one line."""
    modality = domain.get("modality", domain.get("channel_names", name))
    return " ".join(map(str, modality.values())) if isinstance(modality, Mapping) else modality
