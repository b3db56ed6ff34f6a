"""The cases to check: from datalists, or from the NIfTI files of a folder by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.data.case_names import case_name, is_nifti, visible_files
from scripts.lab.case_lists import all_sections
from scripts.lab.check.cases import REPORT, Finding, ListedCase
from scripts.lab.pairing import lone_labels, pair_volumes

__all__ = ["find_cases", "find_files_left_out"]

# Files that a finding names.
FILES_NAMED = 6
OTHER_IMAGES = (".img", ".hdr", ".img.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh")


def find_cases(where: Sequence[str]) -> list[ListedCase]:
    """The cases of datalists, of ``dataset.json`` files with ``domains``, or of folders.

    In a folder the datalists are used or, without any, the NIfTI files below it. Then each subfolder is a domain,
    unless its name starts with ``images`` or ``labels``, and folders named ``...Ts``, test or validation are sections.
    """
    datalists: dict[str, dict[str, Any]] = {}
    for path in where:
        for name, datalist in (_of_folder(Path(path)) if Path(path).is_dir() else all_sections(path)).items():
            datalists[name if name not in datalists else f"{name} of {path}"] = datalist
    cases = [
        _case_files(domain, section, entry, datalist)
        for domain, datalist in datalists.items()
        for section, entries in datalist.items()
        if isinstance(entries, list)
        for entry in entries
    ]
    return _with_distinct_names(cases)


def _of_folder(folder: Path) -> dict[str, dict[str, Any]]:
    found = _listed(folder)
    sets = [datalists for datalists in found if len(datalists) > 1]
    if sets or found:
        return {name: datalist for datalists in sets[:1] or found for name, datalist in datalists.items()}
    datalists = _of_files(folder)
    if not datalists:
        raise InputError(
            file=folder,
            found="neither a datalist nor a NIfTI image in it",
            expected="a folder with datalists, or with .nii or .nii.gz files in or below it",
            remedy="name the folder that contains the volumes",
        )
    return datalists


def find_files_left_out(where: Sequence[str]) -> list[Finding]:
    """Warnings for folders without datalists: label maps without an image, and images of other formats."""
    findings = []
    for folder in (Path(path) for path in where if Path(path).is_dir()):
        if _listed(folder):
            continue
        for domain, files in _groups_of_files(folder).items():
            lone = lone_labels(files, pair_volumes(files))
            found = "label map(s) without an image of the same name, which were not checked"
            expected = "names such as case7_image.nii.gz and case7_label.nii.gz"
            remedy = "rename them, or give a datalist with the pairs"
            findings += _left_out("label without image", domain, folder, lone, found, expected, remedy)
        others = [file for file in visible_files(folder) if file.name.lower().endswith(OTHER_IMAGES)]
        found, expected = "image(s) of another format, which were not checked", ".nii or .nii.gz files"
        findings += _left_out("not NIfTI", folder.absolute().name, folder, others, found, expected, "convert them")
    return findings


def _left_out(
    kind: str, domain: str, folder: Path, files: Sequence[Path], found: str, expected: str, remedy: str
) -> list[Finding]:
    if not files:
        return []
    names = [file.relative_to(folder).as_posix() for file in files]
    shown = ", ".join(names[:FILES_NAMED]) + f" and {len(names) - FILES_NAMED} more" * (len(names) > FILES_NAMED)
    found = f"{len(names)} {found}: {shown}"
    return [Finding("warning", kind, domain, (), found, expected, remedy)]


def _listed(folder: Path) -> list[dict[str, dict[str, Any]]]:
    files = sorted(file for file in folder.glob("*.json") if file.name != REPORT)
    return [datalists for file in files if (datalists := _datalists_in(file))]


def _datalists_in(file: Path) -> dict[str, dict[str, Any]]:
    try:
        return all_sections(str(file))
    except InputError:  # a folder may hold other JSON files
        return {}


def _groups_of_files(folder: Path) -> dict[str, list[Path]]:
    """The NIfTI files below a folder by domain."""
    groups: dict[str, list[Path]] = {}
    for file in filter(is_nifti, visible_files(folder)):
        first = file.relative_to(folder).parts[0]
        is_domain = len(file.relative_to(folder).parts) > 1 and not re.match("image|img|label|seg|mask", first.lower())
        groups.setdefault(first if is_domain else folder.absolute().name, []).append(file)
    return dict(sorted(groups.items()))


def _of_files(folder: Path) -> dict[str, dict[str, Any]]:
    datalists: dict[str, dict[str, Any]] = {}
    for domain, files in _groups_of_files(folder).items():
        for item in pair_volumes(files):
            datalist = datalists.setdefault(domain, {"modality": domain})
            datalist.setdefault(_section(Path(item["image"]).relative_to(folder.absolute())), []).append(item)
    return datalists


def _section(path: Path) -> str:
    folders = "/".join(path.parts[:-1])
    if re.search(r"Ts(/|$)|(?<![a-z])test(?![a-z])", folders):
        return "test"
    return "validation" if re.search(r"(?<![a-z])val(id|idation)?(?![a-z])|Val(/|$)", folders) else "training"


def _case_files(domain: str, section: str, entry: dict[str, str], datalist: dict[str, Any]) -> ListedCase:
    return ListedCase(
        domain=domain,
        section=section,
        name=case_name(entry["image"]),
        image=entry["image"],
        label=entry.get("label"),
        modality=str(datalist["modality"]),
        label_names=_label_names(datalist.get("labels", {})),
        protocol=str(datalist.get("protocol", "")),
        shared_sections=tuple(str(datalist.get("shared_sections", "")).split()),
        has_spacing=datalist.get("has_spacing", True) is not False,
        has_unit=datalist.get("has_unit", True) is not False,
    )


def _label_names(labels: Any) -> tuple[tuple[float, str], ...]:
    """Value and name of each structure of a ``labels`` entry, ``{"1": "liver"}`` or ``{"liver": 1}``, without 0."""
    pairs = []
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (key, value) if re.fullmatch(r"\d+", str(key)) else (value, key)
        if not isinstance(number, int | str) or not re.fullmatch(r"\d+", str(number)):
            return ()  # nnU-Net's regions: a name for several values
        pairs.append((float(number), str(name)))
    return tuple(sorted(pair for pair in pairs if pair[0] != 0))


def _with_distinct_names(cases: list[ListedCase]) -> list[ListedCase]:
    """Prefix the names of images of one domain that share a file name with their folder."""
    images: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        images.setdefault((case.domain, case.name), set()).add(case.image)
    return [
        replace(case, name=f"{Path(case.image).parent.name}/{case.name}")
        if len(images[case.domain, case.name]) > 1
        else case
        for case in cases
    ]
