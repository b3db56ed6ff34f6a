"""Datalists: which files belong to a domain, in MONAI's decathlon form.

A datalist is a JSON file ``{"name", "modality", "labels", "training": [{"image", "label"}], "validation": [...]}``,
one per domain. Paths in it are relative to its own folder or absolute. Entries without a label are legal in the
target domain.
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
    """Whether a server replaced a config's datalist by a list of its own: volumes labelled with class ids."""
    return not isinstance(cases, Datalist)


def read_datalist(
    path: str | None,
    section: str,
    needs_label: bool = False,
    distinct_names: bool = False,
    may_be_empty: bool = False,
    may_be_missing: bool = False,
) -> Datalist:
    """The entries of one section (``training``, ``validation`` ...) of a datalist, as absolute, existing paths.

    Args:
        path: the datalist's JSON file; None for no cases at all.
        section: the key of the list to read.
        needs_label: whether each entry must have a label; otherwise labels are dropped, so that no later step can
            read them.
        distinct_names: whether each image's file name must be its own, as reports and outputs are named after it; an
            entry that is listed again then counts once.
        may_be_empty: whether a section that is missing or empty is no case rather than an error.
        may_be_missing: whether a file that is not there is no case, and said in the log, rather than an error.

    Raises:
        InputError: the file or a volume is missing or has a name that starts with a dot, the section is missing or
            empty, an entry is none, a label is missing, or, with ``distinct_names``, a name stands for two images or
            an image has two labels.
    """
    if path is None:
        return Datalist()
    listed = Path(path)
    if may_be_missing and not listed.exists():
        logger.warning("%s: no such datalist; the training goes on without its volumes", listed)
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
    """The images to segment that a person named: a NIfTI file, a folder of them, or a datalist (all of its sections).

    An image that stands in two sections counts once. Of a folder, label maps are left out; their names
    tell them (``label``, ``seg``, ``mask``).

    Raises:
        InputError: nothing is there, no NIfTI file is in it, or two images have one name: their results would too.
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
    """The datalists in a JSON file by domain name, with every section and every label: to look at data, not to train.

    The file is a datalist (one domain) or a ``dataset.json`` with ``domains``. Paths become absolute; the volumes need
    not exist, an entry needs no label, and a plain string stands for an image.

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
    """A datalist of a folder of images and a folder of labels (which may be the same folder).

    Image and label are paired by the case's name, see :func:`scripts.data.case_names.match_labels`. The last cases in
    natural order become the validation list. Files that were left out are listed in the log.

    Raises:
        InputError: an empty folder, two files of one case, or an image without its label.
    """
    files = _images_of(Path(images))
    label_files = nifti_files(Path(labels), labels_only=images == labels) if labels else None
    pairs = match_labels(files, label_files)
    log_left_out(Path(images), [*files, *(label_files or ())])
    entries = [{"image": str(image)} | ({"label": str(pairs[image])} if image in pairs else {}) for image in files]
    kept = training_share(len(entries), validation_fraction)
    return {"name": name, "modality": modality, "training": entries[:kept], "validation": entries[kept:]}


def _images_of(folder: Path) -> list[Path]:
    """The images of a folder; all of its volumes where each is called a label map."""
    try:
        return nifti_files(folder, images_only=True)
    except InputError:
        return nifti_files(folder)


def training_share(cases: int, validation_fraction: float) -> int:
    """How many of a folder's cases are for training.

    Raises:
        InputError: none is left.
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
        InputError: not such a file.
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
    """Write a datalist, atomically, after checking that it lists at least one training case.

    Paths of files below its folder are written relative to it, so that the folder can be moved as a whole.

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
    """The datalist of the translated source set: each translated image beside the source's own label.

    Args:
        datalist: the source's datalist.
        folder: where synthesis wrote ``<case>_<postfix>.nii.gz``; the new ``datalist.json`` goes there too.
        postfix: what synthesis put behind a case's name.
    """

    def __init__(self, *, datalist: str, folder: str, postfix: str) -> None:
        self.datalist, self.folder, self.postfix = Path(datalist), Path(folder), postfix

    def write(self) -> Path:
        """Write it on the first process, with the source's own sections; entries without a label are left out."""
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
    """Refuse what MONAI's reader would stumble over; it takes plain strings under ``test`` alone, as the Decathlon."""
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
            remedy = "take it out of the list: macOS leaves such a file beside each real one"
            found = f"a name that starts with a dot, {Path(path).name}"
            raise InputError(file=listed, found=found, expected="volumes", remedy=remedy)
        if not os.path.isfile(path):
            remedy = "correct the path in the datalist, or put the file there"
            raise InputError(file=path, found="no such file", expected=f"the volume that {listed} lists", remedy=remedy)
    return item


def _distinctly_named(items: list[Item], where: Path) -> list[Item]:
    """Each case once, if no two *different* images share a case name, nor two labels an image."""
    item_of: dict[str, Item] = {}
    for item in items:
        other = item_of.setdefault(case_name(item["image"]), item)
        if other["image"] != item["image"]:
            raise InputError(
                file=where,
                found=f"one case name for two images, {other['image']} and {item['image']}",
                expected="a file name of its own for each image, as results are named after it",
                remedy="rename one of them (a link with another name will do)",
            )
        if other != item:
            raise InputError(
                file=where,
                found=f"two labels for {item['image']}, {other.get('label')} and {item.get('label')}",
                expected="one label for each image",
                remedy="take one of the two entries out",
            )
    return list(item_of.values())


def _relative(file: str, folder: Path) -> str:
    path = Path(file).absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _entries(listed: list[Any], folder: Path) -> list[Item]:
    """Image and label of each entry as absolute paths (links keep their names); what else is listed is no case."""
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
    """What a list says of its modality: a word, or the Decathlon's and nnU-Net's names of channels, in one line."""
    said = domain.get("modality", domain.get("channel_names", name))
    return " ".join(map(str, said.values())) if isinstance(said, Mapping) else said
