"""Datalists of folders, and of a ``dataset.json`` with several domains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, SettingError
from scripts.core.files import check_file_name
from scripts.core.schema import read_yaml
from scripts.data.case_names import Item, log_left_out, nifti_files
from scripts.lab.pairing import match_labels

__all__ = ["all_sections", "datalists_of_domains", "folder_datalist", "images_of", "training_share"]

# Keys that ``prepare`` adds to a datalist for data checks; see :mod:`scripts.lab.prepare.outputs`.
PREPARED = ("protocol", "has_spacing", "has_unit", "shared_sections")


def all_sections(path: str) -> dict[str, dict[str, Any]]:
    """All sections and labels of a datalist, or of each domain of a ``dataset.json``, for data checks only.

    Paths become absolute. Volumes may be missing, labels are optional, and a plain string is an image.
    """
    file, expected = Path(path), "a datalist, or a dataset.json with 'domains'"
    remedy = "write one with 'python -m scripts datalist', or name the folder of the volumes"
    content = read_yaml(file, expected=expected, remedy=remedy)
    several = content.get("domains")
    domains = several if isinstance(several, dict) else {str(content.get("name", file.stem)): content}
    datalists = {}
    for name, domain in _checked(domains, file).items():
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

    Images and labels are paired by case name (:func:`scripts.lab.pairing.match_labels`). The last cases in natural
    order are held out for validation. Files that are not used are logged.
    """
    files = images_of(Path(images))
    label_files = nifti_files(Path(labels), labels_only=images == labels) if labels else None
    pairs = match_labels(files, label_files)
    for folder in filter(None, dict.fromkeys((images, labels))):
        log_left_out(Path(folder), [*files, *pairs.values()])
    entries = [{"image": str(image)} | ({"label": str(pairs[image])} if image in pairs else {}) for image in files]
    kept = training_share(len(entries), validation_fraction)
    return {"name": name, "modality": modality, "training": entries[:kept], "validation": entries[kept:]}


def training_share(cases: int, validation_fraction: float) -> int:
    """Number of training cases, at least one, after the validation cases are held out."""
    kept = cases - round(cases * validation_fraction)
    if kept < 1:
        found = f"{validation_fraction:g}, which leaves none of {cases} case(s) for training"
        expected, remedy = "at least one training case", "lower it, or give more cases"
        raise SettingError(setting="setting --validation", found=found, expected=expected, remedy=remedy)
    return kept


def datalists_of_domains(dataset: str) -> dict[str, dict[str, Any]]:
    """The datalists under ``domains.<name>`` of a ``dataset.json``, by domain name, with absolute paths."""
    path, expected = Path(dataset), "a dataset.json with 'domains: {name: {modality, training, validation}}'"
    remedy = "name such a file, or give --images and --labels of a plain folder"
    content = read_yaml(path, expected=expected, remedy=remedy)
    if not content.get("domains") or not isinstance(content["domains"], dict):
        raise InputError(file=path, found="no 'domains' in it", expected=expected, remedy=remedy)
    datalists = {}
    for name, domain in _checked(content["domains"], path).items():
        lists = {key: _entries(value, path.parent) for key, value in domain.items() if isinstance(value, list)}
        for key, entries in lists.items():
            if len(entries) < len(domain[key]):
                found = f"an entry under {name!r}, {key!r} that names no image"
                raise InputError(path, found, expected='{"image": "a.nii.gz"}', remedy="correct that list")
        datalists[check_file_name(name, path)] = {
            "name": name,
            "modality": _modality(domain, name),
            "labels": content.get("labels", {}),
        } | lists
    return datalists


def images_of(folder: Path) -> list[Path]:
    """The images of a folder; all of its volumes if every one has the name of a label map."""
    try:
        return nifti_files(folder, images_only=True)
    except InputError:
        return nifti_files(folder)


def _entries(listed: list[Any], folder: Path) -> list[Item]:
    """Image and label of each entry as absolute paths, links not resolved; other entries are skipped."""
    entries = [{"image": entry} if isinstance(entry, str) else entry for entry in listed]
    return [
        {key: str((folder / entry[key]).absolute()) for key in ("image", "label") if isinstance(entry.get(key), str)}
        for entry in entries
        if isinstance(entry, Mapping) and isinstance(entry.get("image"), str)
    ]


def _checked(domains: Mapping[str, Any], file: Path) -> Mapping[str, Mapping[str, Any]]:
    for name, domain in domains.items():
        if not isinstance(domain, Mapping):
            found, expected = f"a domain {name!r} that is no mapping", "its modality and lists of cases"
            raise InputError(file=file, found=found, expected=expected, remedy="correct that domain")
    return domains


def _modality(domain: Mapping[str, Any], name: str) -> Any:
    """The modality of a datalist: a word, or the channel names of the Decathlon or nnU-Net joined in one line."""
    modality = domain.get("modality", domain.get("channel_names", name))
    return " ".join(map(str, modality.values())) if isinstance(modality, Mapping) else modality
