"""The task file, chosen from measured volumes: every value with its reason as a comment."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scripts.core.errors import InputError, SettingError
from scripts.data.case_names import case_name, some_of
from scripts.data.volumes import CT_FAT_HU
from scripts.lab.adapt.choices import Choice, as_yaml
from scripts.lab.adapt.folders import modality_of, with_article
from scripts.lab.adapt.grid import Header, TaskGrid
from scripts.lab.check.cases import MeasuredCase
from scripts.lab.check.limits import LIMITS

__all__ = ["TaskPlan", "check_intensities", "check_label_names", "choose_labels", "choose_task"]

# Window of a CT in HU: the lower end leaves fat and drops air, the upper end lies within these limits.
CT_LOWER, CT_UPPER = -150.0, (200.0, 500.0)
# A body starts this far above the lower end of the window.
BODY_ABOVE = 15.0

# Ratio of the lengths of the body in two domains from which a section is chosen, and from which a person is warned.
LONGER, MUCH_LONGER = 1.3, 1.5
# Ratio of a volume's length to the median of its domain from which a person is warned.
ODD_LENGTH = 2.0
ABDOMINAL = re.compile("liver|spleen|kidney|pancreas|stomach|gall ?bladder", re.IGNORECASE)

HEADER = """# Written by `python -m scripts adapt` from {volumes}; each value has its reason.
# You may edit it and repeat the command: the file is kept, the volumes are checked again.
"""


@dataclass(frozen=True)
class TaskPlan:
    """The text of a task file, and warnings about it as sentences."""

    text: str
    warnings: tuple[str, ...]


def choose_task(
    name: str,
    domains: tuple[str, str],
    cases: Sequence[MeasuredCase],
    headers: Mapping[str, Sequence[Header]],
    grid: TaskGrid,
    labels: Sequence[Choice],
) -> TaskPlan:
    """Choose every value of a task file."""
    measured = {domain: [case for case in cases if case.domain == domain and case.shape] for domain in domains}
    modalities = {domain: _one_modality(domain, group) for domain, group in measured.items()}
    lengths = {
        domain: median(header.along(grid.slice_axis, grid.orientation)[1] for header in group)
        for domain, group in headers.items()
    }
    windows = {domain: _window(measured[domain]) for domain in domains if modalities[domain] == "CT"}
    sections = {domain: _section(domain, windows, lengths, grid, labels) for domain in domains}
    sides = tuple(zip(("source", "target"), domains, strict=True))
    choices = [
        Choice("task", f"{name}_{domains[0]}2{domains[1]}"),
        Choice("dataset_name", name, "the name of the output folder"),
        *(Choice(f"{side}_domain", domain) for side, domain in sides),
        *labels,
        *grid.choices,
        *(_intensity(f"{side}_intensity", windows.get(domain)) for side, domain in sides),
        *(Choice(f"{side}_section", sections[domain].value, sections[domain].reason) for side, domain in sides),
    ]
    volumes = " and ".join(f"{len(measured[domain])} volumes of {domain}" for domain in domains)
    warnings = [*_length_warnings(lengths, sections), *_odd_volumes(lengths, headers, grid)]
    return TaskPlan(HEADER.format(volumes=volumes) + as_yaml(choices), tuple(warnings))


def choose_labels(cases: Sequence[MeasuredCase], given: str | None) -> list[Choice]:
    """Names, values and background values of the structures; names are empty if no label map can be used.

    ``given`` are names in the order of the values, ``liver,spleen``, or with them, ``1=liver,4=spleen``; values without
    a name then become background. Without it a structure is named ``label_<value>``.

    Raises:
        InputError: names that do not fit the values.
    """
    volumes = _volumes_by_value(cases)
    names = _names(volumes, given)
    shown = {value: f"{value:g}: {median(ml):.0f} ml in {len(ml)} cases" for value, ml in volumes.items()}
    left = [value for value in volumes if value not in names]
    reason = "from --label_names" if given else "give --label_names to name them"
    return [
        Choice("label_names", list(names.values()), reason),
        Choice("label_values", [int(value) for value in names], ", ".join(shown[value] for value in names)),
        Choice("background_values", [int(value) for value in left], "values without a name" if left else ""),
    ]


def check_label_names(cases: Sequence[MeasuredCase], given: str | None) -> None:
    """Refuse fewer names than the labelled volumes measured so far have values."""
    volumes = _volumes_by_value(cases)
    if given is not None and "=" not in given and len(volumes) > given.count(",") + 1:
        _names(volumes, given, " or more")


def check_intensities(file: Path, task: Mapping[str, Any], cases: Sequence[MeasuredCase]) -> None:
    """Refuse a window in Hounsfield units for volumes that have none: source and target are exchanged."""
    for side in ("source", "target"):
        domain, window = task[f"{side}_domain"], re.search(r"'a_min': (-\d+)", str(task[f"{side}_intensity"]))
        group = [case for case in cases if case.domain == domain and case.shape]
        if window and group and float(window[1]) < CT_FAT_HU and _one_modality(domain, group) != "CT":
            low, high = (median(case.percentiles[name] for case in group) for name in ("0.5", "99.5"))
            raise InputError(
                file=file,
                found=f"{side}_intensity with a window in HU, while values of {domain} reach {low:.4g} to {high:.4g}",
                expected="for each domain the transform of its own modality",
                remedy="exchange source and target in the task file or in the command, whichever is wrong",
            )


def _volumes_by_value(cases: Sequence[MeasuredCase]) -> dict[float, list[float]]:
    volumes: dict[float, list[float]] = {}
    for case in cases:
        if len(case.volumes_ml) <= LIMITS.most_values and all(value > 0 for value in case.volumes_ml):
            for value, ml in case.volumes_ml.items():
                if value == round(value):
                    volumes.setdefault(value, []).append(ml)
    return dict(sorted(volumes.items()))


def _names(volumes: Mapping[float, Sequence[float]], given: str | None, more: str = "") -> dict[float, str]:
    if given is None or not volumes:
        return {value: f"label_{value:g}" for value in volumes}
    words = [word.strip() for word in given.split(",")]
    pairs = [word.partition("=") for word in words]
    if all(sign for _, sign, _ in pairs):
        names = {
            float(value) if re.fullmatch(r"\s*\d+\s*", value) else math.nan: name.strip() for value, _, name in pairs
        }
    else:
        names = dict(zip(volumes, words, strict=False)) if len(words) == len(volumes) else {}
    if len(set(names.values())) != len(words) or not all(names.values()) or not names.keys() <= volumes.keys():
        listed = ", ".join(f"{value:g} ({median(ml):.0f} ml)" for value, ml in volumes.items())
        raise SettingError(
            setting="--label_names",
            found=repr(given),
            expected=f"{len(volumes)}{more} different names, for the values {listed} in this order",
            remedy="name all of them, or some as VALUE=NAME, such as 1=liver,4=spleen; the others become background",
        )
    return dict(sorted(names.items()))


def _one_modality(domain: str, cases: Sequence[MeasuredCase]) -> str:
    """The modality of a domain by the intensities of its volumes; no volume, or two modalities, are refused."""
    found = {case.name: modality_of(case.percentiles["0.5"]) for case in cases}
    kinds = sorted(set(found.values()), key=list(found.values()).count)
    if not kinds:
        raise InputError(
            file=domain, found="no volume that can be read", expected="images", remedy="look at the check's page"
        )
    if len(kinds) > 1:
        odd = [name for name, kind in found.items() if kind == kinds[0]]
        one, other = map(with_article, kinds)
        raise InputError(
            file=f"the images of {domain}",
            found=f"intensities of {one} in {len(odd)} of {len(found)} volumes ({', '.join(odd[:4])}), else {other}",
            expected="one modality in a folder",
            remedy="move the others to a folder of their own; a CT must be in Hounsfield units",
        )
    return kinds[0]


@dataclass(frozen=True)
class _Window:
    """Intensities of a CT domain in HU: the range that is kept, and the percentiles 0.5 and 99.5 of the volumes."""

    lower: float
    upper: float
    shown: tuple[float, float]

    @property
    def tissue(self) -> float:
        return self.lower + BODY_ABOVE


def _window(cases: Sequence[MeasuredCase]) -> _Window:
    low, high = (median(case.percentiles[name] for case in cases) for name in ("0.5", "99.5"))
    upper = min(max(high, CT_UPPER[0]), CT_UPPER[1])
    return _Window(float(round(max(low, CT_LOWER))), float(round(upper)), (low, high))


def _intensity(key: str, window: _Window | None) -> Choice:
    to_range = {"b_min": -1.0, "b_max": 1.0, "clip": True}
    if window is None:
        kind = "ScaleIntensityRangePercentilesd"
        scale = {"_target_": kind, "keys": "image", "lower": 0.5, "upper": 99.5, **to_range}
        return Choice(key, scale, "percentiles of each volume: it has no absolute unit")
    transforms = [
        {"_target_": "scripts.data.volumes.KeepBodyd", "keys": "image", "threshold": window.tissue},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": window.lower, "a_max": window.upper, **to_range},
    ]
    low, high = window.shown
    reason = f"HU, as values reach {low:.0f} to {high:.0f} (percentiles 0.5 and 99.5); without table and clothing"
    return Choice(key, {"_target_": "Compose", "transforms": transforms}, reason)


def _section(
    domain: str, windows: Mapping[str, _Window], lengths: Mapping[str, float], grid: TaskGrid, labels: Sequence[Choice]
) -> Choice:
    (other,) = (length for name, length in lengths.items() if name != domain)
    names = " ".join(labels[0].value)
    is_abdominal = bool(ABDOMINAL.search(names)) and (grid.orientation, grid.slice_axis) == ("RAS", 2)
    if domain in windows and is_abdominal and lengths[domain] > LONGER * other:
        value = {"_target_": "scripts.data.sections.BelowLungs", "threshold": windows[domain].tissue}
        return Choice("", value, f"{lengths[domain]:.0f} mm long, the other domain {other:.0f} mm: the abdomen alone")
    value = {"_target_": "scripts.data.sections.NotBlank", "slice_axis": "@slice_axis"}
    return Choice("", value, "all slices that show something")


def _length_warnings(lengths: Mapping[str, float], sections: Mapping[str, Choice]) -> list[str]:
    longest, shortest = max(lengths, key=lambda name: lengths[name]), min(lengths, key=lambda name: lengths[name])
    is_cut = "BelowLungs" in sections[longest].value["_target_"]
    if lengths[longest] <= MUCH_LONGER * lengths[shortest] or is_cut:
        return []
    return [
        f"The volumes of {longest} show {lengths[longest]:.0f} mm of the body, those of {shortest} "
        f"{lengths[shortest]:.0f} mm. Both domains should show the same part: set {longest}'s section in the task file "
        "(docs/how-to/own-data.md) or crop the volumes."
    ]


def _odd_volumes(lengths: Mapping[str, float], headers: Mapping[str, Sequence[Header]], grid: TaskGrid) -> list[str]:
    """Volumes that show far less or far more of the body than the others of their domain."""
    warnings = []
    for domain, group in headers.items():
        measured = {header.path: header.along(grid.slice_axis, grid.orientation)[1] for header in group}
        usual = lengths[domain]
        odd = [
            f"{case_name(str(path))} ({length:.0f} mm)"
            for path, length in measured.items()
            if not usual / ODD_LENGTH < length < usual * ODD_LENGTH
        ]
        if odd:
            warnings.append(
                f"{domain}: {some_of(odd)}: much shorter or longer across the slices than the others of {domain} "
                f"(median {usual:.0f} mm). Do they show another part of the body? Leave them out, or crop them."
            )
    return warnings
