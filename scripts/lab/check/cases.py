"""Which cases are looked at, and what is kept of each: numbers and small pictures, never a volume."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scripts.core.errors import InputError
from scripts.data.case_names import case_name, lone_labels, pair_volumes
from scripts.data.datalists import all_sections

__all__ = [
    "REPORT",
    "Alignment",
    "Case",
    "CaseFiles",
    "Finding",
    "Structure",
    "by_domain",
    "find_cases",
    "find_lone_labels",
    "others_of",
]

REPORT = "check.json"
"""The check's own result; in a folder that is looked at, it is no datalist."""
LONE_SHOWN = 6
"""Label maps without an image that a finding names."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        severity: an error would spoil a training; a warning may be intended.
        kind: its name, a heading of the how-to page.
        domain: name of the domain.
        cases: names of the cases; none means the whole domain.
        found: what stands there.
        expected: what should stand there.
        remedy: what to do.
    """

    severity: Severity
    kind: str
    domain: str
    cases: tuple[str, ...] = ()
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """Where a case stands in the lists, and its files.

    Attributes:
        domain: name of the domain.
        section: the list it is in, such as ``training``.
        name: the image's file name without its suffix; with its folder where two images would share it.
        image: path.
        label: path, or None.
        modality: what the datalist says, such as ``CT``.
        label_names: value and name of each structure, as the datalist says; may be empty.
        protocol: what prepared the volumes, as the datalist says; may be empty.
        shared_sections: lists that hold the same cases because the protocol says so.
        has_spacing: whether its headers' spacing means anything; a datalist may say ``"has_spacing": false``.
        has_unit: whether its intensities are in the scanner's unit; a datalist may say ``"has_unit": false``.
    """

    domain: str
    section: str
    name: str
    image: str
    label: str | None
    modality: str
    label_names: tuple[tuple[float, str], ...] = ()
    protocol: str = ""
    shared_sections: tuple[str, ...] = ()
    has_spacing: bool = True
    has_unit: bool = True


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Where a labelled structure lies and how far it reaches.

    Attributes:
        volume_ml: its volume.
        centre_mm: its centroid (3,) from the body's centre, in RAS mm (in the stored axes where the task keeps them).
        spread_mm: standard deviation of its voxels' positions along the three stored axes.
    """

    volume_ml: float
    centre_mm: tuple[float, float, float]
    spread_mm: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """How well a label explains its image where it lies, and where it would explain it best.

    Attributes:
        explained: share of the image's variance near the structures that lies between the classes.
        best_explained: the same at the best of the shifts tried.
        shift_voxel: that best shift along the stored axes, between voxels by a parabola.
        flipped_explained: the same with the label mirrored along each stored axis.
    """

    explained: float
    best_explained: float
    shift_voxel: tuple[float, float, float]
    flipped_explained: tuple[float, float, float]


@dataclass(kw_only=True, eq=False)
class Case:
    """What is known of one case after its volumes were read once and let go."""

    files: CaseFiles
    findings: list[Finding] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    percentiles: dict[str, float] = field(default_factory=dict)
    volumes_ml: dict[float, float] = field(default_factory=dict)
    class_of: dict[float, int] = field(default_factory=dict)
    label_shape: tuple[int, ...] = ()
    affine_gap_mm: float | None = None
    header_notes: tuple[str, ...] = ()
    stack_axis: int = 2
    structures: dict[float, Structure] = field(default_factory=dict)
    rims: dict[float, float] = field(default_factory=dict)
    alignment: Alignment | None = None
    grain: float = math.nan
    spectrum: NDArray[np.complex64] | None = None
    detail: NDArray[np.int8] | None = None
    image_digest: str = ""
    label_digest: str = ""
    pictures: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The case's name."""
        return self.files.name

    @property
    def domain(self) -> str:
        """Its domain's name."""
        return self.files.domain


def by_domain(cases: Sequence[Case], keep: Callable[[Case], Any]) -> dict[str, list[Case]]:
    """The cases that ``keep`` says something true of, by domain."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if keep(case):
            groups.setdefault(case.domain, []).append(case)
    return groups


def others_of(group: Sequence[Case], case: Case) -> list[Case]:
    """A group without one of its cases."""
    return [other for other in group if other is not case]


def find_cases(where: Sequence[str]) -> list[CaseFiles]:
    """All cases that paths name: datalists, ``dataset.json`` files with ``domains``, or folders.

    A folder stands for the datalists in it; if it has none, for the NIfTI files below it. Then each folder of the first
    level is a domain, unless it is called ``images...`` or ``labels...``, and a folder whose name ends with ``Ts`` or
    speaks of test or validation is a section of its own.

    Raises:
        InputError: a path leads nowhere, or no volume is there.
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
    return _with_names_of_their_own(cases)


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
            remedy="name the folder that holds the volumes",
        )
    return datalists


def find_lone_labels(where: Sequence[str]) -> list[Finding]:
    """A warning for each domain of the folders without datalists whose label maps belong to no image there."""
    findings = []
    for folder in (Path(path) for path in where if Path(path).is_dir()):
        if _listed(folder):
            continue
        for domain, files in _groups_of_files(folder).items():
            lone = [file.relative_to(folder).as_posix() for file in lone_labels(files, pair_volumes(files))]
            if lone:
                shown = ", ".join(lone[:LONE_SHOWN]) + (
                    f" and {len(lone) - LONE_SHOWN} more" * (len(lone) > LONE_SHOWN)
                )
                finding = Finding(
                    severity="warning",
                    kind="label without image",
                    domain=domain,
                    found=f"{len(lone)} label map(s) that no image is named after and that were not looked at: {shown}",
                    expected="names such as case7_image.nii.gz and case7_label.nii.gz",
                    remedy="rename them, or give a datalist that says what belongs together",
                )
                findings.append(finding)
    return findings


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
    for file in folder.rglob("*.nii*"):
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


def _case_files(domain: str, section: str, entry: dict[str, str], datalist: dict[str, Any]) -> CaseFiles:
    return CaseFiles(
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
    """Value and name of each structure of a ``labels`` entry, ``{"1": "liver"}`` or ``{"liver": 1}``; 0 left out."""
    pairs = []
    for key, value in labels.items() if isinstance(labels, dict) else ():
        number, name = (key, value) if re.fullmatch(r"\d+", str(key)) else (value, key)
        if not isinstance(number, int | str) or not re.fullmatch(r"\d+", str(number)):
            return ()  # nnU-Net's regions: a name for several values
        pairs.append((float(number), str(name)))
    return tuple(sorted(pair for pair in pairs if pair[0] != 0))


def _with_names_of_their_own(cases: list[CaseFiles]) -> list[CaseFiles]:
    """The same cases; images of one domain that share a file name get their folder's name in front."""
    images: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        images.setdefault((case.domain, case.name), set()).add(case.image)
    return [
        replace(case, name=f"{Path(case.image).parent.name}/{case.name}")
        if len(images[case.domain, case.name]) > 1
        else case
        for case in cases
    ]
