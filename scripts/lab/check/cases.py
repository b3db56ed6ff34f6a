"""Records of the checked cases: measurements and small pictures, but no volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "REPORT",
    "Alignment",
    "Finding",
    "ListedCase",
    "MeasuredCase",
    "Structure",
    "by_domain",
    "medians",
    "others_of",
]

# The result of a check, which is not a datalist in a checked folder.
REPORT = "check.json"

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """A problem to inspect."""

    severity: Severity  # an error invalidates a training; a warning may be intended
    kind: str  # a heading of the how-to page
    domain: str  # name of the domain, or of two, separated by a comma
    cases: tuple[str, ...]  # empty for the whole domain
    found: str
    expected: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class ListedCase:
    """A case of a datalist: its place in the lists, and its files."""

    domain: str
    section: str  # the list it is in, such as ``training``
    name: str  # the image's file name without suffix; with its folder if two images share it
    image: str
    label: str | None
    modality: str  # from the datalist, such as ``CT``
    label_names: tuple[tuple[float, str], ...] = ()  # value and name of each structure, from the datalist
    protocol: str = ""  # that prepared the volumes
    shared_sections: tuple[str, ...] = ()  # lists that the protocol fills with the same cases
    has_spacing: bool = True  # false where the headers' spacing is meaningless
    has_unit: bool = True  # false where intensities are not in the scanner's unit


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Position and extent of a labelled structure."""

    volume_ml: float
    # Centroid from the body's centre, in RAS, or along the stored axes where the task keeps them.
    centre_mm: tuple[float, float, float]
    spread_mm: tuple[float, float, float]  # standard deviation of voxel positions along the stored axes


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """Between-class share of an image's variance near the structures: label in place, shifted, and mirrored."""

    explained: float
    best_explained: float  # at the best of the tested shifts
    shift_voxel: tuple[float, float, float]  # the best shift along the stored axes, refined by a parabola
    flipped_explained: tuple[float, float, float]  # with the label mirrored along each stored axis


@dataclass(kw_only=True, eq=False)
class MeasuredCase:
    """Measurements of one case; its volumes are no longer held."""

    files: ListedCase
    findings: list[Finding] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    oblique_degrees: float = 0.0
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

    def finding(self, severity: Severity, kind: str, found: str, expected: str, remedy: str) -> Finding:
        """A finding on this case."""
        return Finding(severity, kind, self.domain, (self.name,), found, expected, remedy)


def by_domain(cases: Sequence[MeasuredCase], keep: Callable[[MeasuredCase], Any]) -> dict[str, list[MeasuredCase]]:
    """The cases for which ``keep`` is true, by domain."""
    groups: dict[str, list[MeasuredCase]] = {}
    for case in cases:
        if keep(case):
            groups.setdefault(case.domain, []).append(case)
    return groups


def medians(mappings: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """The median of each key over the mappings that have it."""
    keys = sorted({key for mapping in mappings for key in mapping})
    return {key: float(np.median([mapping[key] for mapping in mappings if key in mapping])) for key in keys}


def others_of(group: Sequence[MeasuredCase], case: MeasuredCase) -> list[MeasuredCase]:
    """A group without one of its cases."""
    return [other for other in group if other is not case]
