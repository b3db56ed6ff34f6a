"""Reads, measures and draws the volumes of one case."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import obliquity
from numpy.typing import NDArray
from scripts.core.errors import InputError, innermost_message
from scripts.data.geometry import affine_gap_mm
from scripts.data.nifti import read_nifti
from scripts.data.volumes import check_values, whole_values
from scripts.lab.check.cases import ListedCase, MeasuredCase
from scripts.lab.check.coarse import COARSE_MM, body_of, grain, resample
from scripts.lab.check.fingerprints import detail_of, spectrum_of
from scripts.lab.check.label_fit import measure_alignment
from scripts.lab.check.labels import RankedLabels, find_structures, ranked, rim_shares
from scripts.lab.check.limits import LIMITS
from scripts.lab.check.views import draw_views

__all__ = ["measure_case"]

_Array = NDArray[Any]

PERCENTILES = (0.5, 25.0, 50.0, 75.0, 99.5)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A volume (H, W, D) as stored, and the frame of reference of its comparisons."""

    voxels: _Array
    header_affine: _Array
    affine: _Array  # the frame's: the header's, unless the stored axes are the common frame

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        edges = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(edges[0]), float(edges[1]), float(edges[2])

    @property
    def turn(self) -> _Array:
        """The orientation of the stored axes, as nibabel describes it; it brings them to RAS order."""
        return nib.orientations.io_orientation(self.affine)

    def coarse(self) -> NDArray[np.float32]:
        """The volume in RAS order at :data:`COARSE_MM`."""
        edges = np.array(self.spacing_mm)[np.argsort(self.turn[:, 0])]
        return resample(nib.orientations.apply_orientation(self.voxels, self.turn), edges.tolist(), (COARSE_MM,) * 3)

    def voxel_of(self, coarse_voxel: _Array, coarse_shape: tuple[int, ...]) -> NDArray[np.float64]:
        """The stored voxel coordinates of a voxel of the coarse volume."""
        offset_mm = (coarse_voxel - (np.array(coarse_shape) - 1) / 2) * COARSE_MM
        axes, signs = self.turn[:, 0].astype(int), self.turn[:, 1]
        return (np.array(self.voxels.shape) - 1) / 2 + signs * offset_mm[axes] / np.array(self.spacing_mm)


def measure_case(files: ListedCase, class_of: Mapping[float, int], keeps_stored_axes: bool = False) -> MeasuredCase:
    """Read, measure and draw the volumes of a case; an unusable file becomes a finding.

    ``class_of`` maps the values of structures to class ids 1..K, for colours; empty: every value is a structure.
    ``keeps_stored_axes``: the stored axes are the common frame (``orientation: null`` of a task file).
    """
    case = MeasuredCase(files=files)
    try:
        _measure(case, class_of, keeps_stored_axes)
    except Exception as error:  # a failure of one case must not stop the others
        case.findings.append(
            case.finding("error", "unusable file", innermost_message(error), "a readable case", "look at its files")
        )
    return case


def _measure(case: MeasuredCase, class_of: Mapping[float, int], keeps_stored_axes: bool) -> None:
    files = case.files
    image = _load(case, "image", files.image)
    label = _load(case, "label", files.label) if files.label else None
    if image is None:
        return
    voxels, header_affine = image
    case.shape, case.orientation = voxels.shape, "".join(nib.aff2axcodes(header_affine))
    spacing_mm = np.linalg.norm(header_affine[:3, :3], axis=0)
    case.oblique_degrees = math.degrees(float(obliquity(header_affine).max()))
    affine = np.diag([*spacing_mm, 1.0]) if keeps_stored_axes else header_affine
    opened = _Opened(voxels=voxels, header_affine=header_affine, affine=affine)
    case.spacing_mm, case.stack_axis = opened.spacing_mm, _stack_axis(opened)
    case.percentiles = dict(zip(map(str, PERCENTILES), np.percentile(voxels, PERCENTILES).tolist(), strict=True))
    case.image_digest = hashlib.sha256(voxels.tobytes()).hexdigest()
    coarse = opened.coarse()
    body = body_of(coarse)
    case.spectrum, case.detail = spectrum_of(coarse), detail_of(coarse, body)
    case.grain = grain(coarse, body, int(opened.turn[case.stack_axis, 0]))
    places = np.argwhere(body)
    middle = places.mean(0) if len(places) else (np.array(body.shape) - 1) / 2
    classes = None
    if label is not None:
        fits = _measure_label(case, opened, *label, centre=opened.voxel_of(middle, body.shape))
        classes = None if fits is None else _classes(case, fits, class_of)
    case.pictures = draw_views(voxels, classes, opened.turn, opened.spacing_mm)


def _load(case: MeasuredCase, key: str, path: str) -> tuple[_Array, _Array] | None:
    try:
        volume = read_nifti(path)
        voxels = np.asarray(volume.voxels, np.float32)
        check_values(voxels, path, is_label=key == "label")
    except InputError as error:
        found = f"{error.found} ({error.file})"
        case.findings.append(case.finding("error", "unusable file", found, error.expected, error.remedy))
        return None
    case.header_notes += tuple(f"{Path(path).name}: {note}" for note in volume.notes)
    return (whole_values(voxels) if key == "label" else voxels), volume.affine


def _measure_label(
    case: MeasuredCase, opened: _Opened, label: _Array, label_affine: _Array, centre: _Array
) -> RankedLabels | None:
    """Measure the label map; return it if it has the image's shape."""
    values = ranked(label)
    voxel_ml = abs(float(np.linalg.det(label_affine[:3, :3]))) / 1000
    counts = {**values.negative, **dict(zip(values.values.tolist(), values.counts.tolist(), strict=True))}
    case.volumes_ml = {value: count * voxel_ml for value, count in counts.items() if value != 0}
    case.label_shape = label.shape
    case.affine_gap_mm = affine_gap_mm(label_affine, opened.header_affine)
    if case.volumes_ml:
        case.label_digest = hashlib.sha256(label.tobytes()).hexdigest()
    if label.shape != opened.voxels.shape:
        return None
    thick = LIMITS.thick_slices * min(opened.spacing_mm)
    case.rims = rim_shares(values, [axis for axis in range(3) if opened.spacing_mm[axis] < thick], LIMITS.rim_faces)
    if len(values.values) <= LIMITS.most_values:
        case.structures = find_structures(values, opened.affine, centre)
        case.alignment = measure_alignment(opened.voxels, values.ranks)
    return values


def _classes(case: MeasuredCase, label: RankedLabels, class_of: Mapping[float, int]) -> NDArray[np.int32]:
    """Class ids, which give the colours: the task's, else the values themselves, or their ranks if they are large."""
    values = label.values.tolist()
    own = {value: int(value) if max(values) <= LIMITS.most_values else rank for rank, value in enumerate(values)}
    case.class_of = {value: number for value, number in (class_of or own).items() if number and value in values}
    return np.array([case.class_of.get(value, 0) for value in values], np.int32)[label.ranks]


def _stack_axis(opened: _Opened) -> int:
    """The axis that slices are stacked along: the one with the largest spacing, else the one along the body."""
    spacing = np.array(opened.spacing_mm)
    longest = int(spacing.argmax())
    others = np.delete(spacing, longest)
    along_body = int(np.flatnonzero(opened.turn[:, 0] == 2)[0])
    return longest if spacing[longest] > LIMITS.thickest * others.max() else along_body
