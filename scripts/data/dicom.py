"""Reads a DICOM series as one volume, with geometry from the positions of the slices and rescaled values.

Spacing and order follow from ImagePositionPatient only; SliceThickness, SpacingBetweenSlices and file names are not
reliable. In public releases series UIDs are missing or differ between files, so the slices themselves decide whether
files form one series. pydicom reads the files and decodes compressed ones with GDCM.
highdicom's reader refuses slices without a SOP class UID, returns float64, and its errors do not name the file.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from scripts.core.errors import InputError
from scripts.data.case_names import natural_order, some_of
from scripts.data.dicom_slice import DicomSlice, read_slice
from scripts.data.geometry import check_affine

__all__ = ["FolderScan", "Series", "dicom_files", "read_slices", "scan_folder"]

logger = logging.getLogger(__name__)

# Differences between slice distances that count as rounding: in mm, or as a share of the spacing for thick slices.
GAP_TOLERANCE_MM = 0.05
GAP_TOLERANCE = 0.02
TILT_TOLERANCE_DEGREES = 0.5
SHIFT_TOLERANCE_MM = 0.5
COSINE_TOLERANCE = 1e-3
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

PREAMBLE, MAGIC = 128, b"DICM"
# First groups of a file without a preamble.
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
SCANNED = ("SeriesInstanceUID", "PatientID", "SOPInstanceUID", "ImagePositionPatient", "SOPClassUID", "Rows")
SECONDARY_CAPTURE = "Secondary Capture"
# Words in the names of SOP classes that are not image slices.
NO_SLICES = ("Segmentation", "RT ", "Presentation State", "Structured", " SR", "Parametric Map", "Waveform", "Report")


@dataclass(frozen=True)
class FolderScan:
    """The DICOM files of a folder, without subfolders: ``files`` are its slices, in natural order of their names.

    For each, ``elements`` has SeriesInstanceUID, PatientID, SOPInstanceUID and ImagePositionPatient, perhaps empty.
    ``left_out`` names DICOM files that are not slices, each with its SOP class.
    """

    files: tuple[Path, ...]
    elements: tuple[tuple[str, ...], ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Series:
    """A volume (X, Y, Z) from DICOM slices in ascending position along their normal, with its affine to RAS+ in mm.

    ``files`` are in natural order of their names. For each slice of ``image``, ``order`` has the index of its file, and
    ``headers`` its pydicom ``Dataset`` without pixels.
    """

    image: np.ndarray
    affine: np.ndarray
    files: tuple[Path, ...]
    order: tuple[int, ...]
    headers: tuple[Any, ...] = ()


def scan_folder(folder: Path) -> FolderScan:
    """Separate slices from other objects (RTSTRUCT, SEG, SR, presentation states, DICOMDIR) by their SOP class."""
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder of DICOM slices", "name the folder with the slices")
    names = sorted((path for path in folder.iterdir() if path.is_file()), key=natural_order)
    headers = {file: _scanned(file) for file in names if not file.name.startswith(".")}
    found = {file: header for file, header in headers.items() if header is not None}
    kinds = {file: _sop_class(header) for file, header in found.items()}
    # Some series consist of secondary captures; among other slices they are screenshots or dose reports.
    all_captured = all(kind.startswith(SECONDARY_CAPTURE) for kind in kinds.values())
    slices = [
        file
        for file, kind in kinds.items()
        if ("Rows" in found[file] or kind.endswith("Image Storage"))  # without rows a slice is damaged
        and not any(word in kind for word in NO_SLICES)
        and (all_captured or not kind.startswith(SECONDARY_CAPTURE))
    ]
    elements = tuple(tuple(str(found[file].get(name) or "") for name in SCANNED[:4]) for file in slices)
    left_out = tuple(f"{file.name} ({kinds[file] or 'no image'})" for file in found if file not in set(slices))
    return FolderScan(tuple(slices), elements, left_out)


def dicom_files(folder: Path) -> list[Path]:
    """The slices of a folder, without subfolders, in natural order of their names; other DICOM files are logged."""
    scan = scan_folder(folder)
    if scan.left_out:
        logger.warning("%s: not used, because they are not slices: %s.", folder, ", ".join(scan.left_out))
    return list(scan.files)


def read_slices(files: Sequence[Path], source: object) -> Series:
    """Read one series from its files, in natural order of their names; ``source`` names it in messages.

    Raises:
        InputError: fewer than two files, a damaged file, pixels that are not grey values or do not match the header,
            several series, a missing position, unequal slice distances, a tilted gantry.
    """
    slices = _without_copies([read_slice(file) for file in files], source)
    if len(slices) < 2:
        found, expected = f"{len(slices)} DICOM files", "the slices of one series, at least 2"
        raise InputError(file=source, found=found, expected=expected, remedy="name the folder that contains the slices")
    _check_one_series(source, slices)
    normal = np.cross(*slices[0].axes)
    order = sorted(range(len(slices)), key=lambda index: float(slices[index].position @ normal))
    ordered = [slices[index] for index in order]
    affine = _affine(ordered[0], _step_mm(source, ordered, normal))
    check_affine(affine, source)
    image = np.stack([piece.pixels for piece in ordered]).T  # (slice, row, column) to (x, y, z)
    headers = tuple(piece.header for piece in ordered)
    return Series(image, affine, tuple(piece.file for piece in slices), tuple(order), headers)


def _scanned(file: Path) -> Any:
    """A few elements of a DICOM file; None for other files and for a DICOMDIR."""
    with file.open("rb") as opened:
        start = opened.read(PREAMBLE + len(MAGIC))
    has_magic = start[PREAMBLE:] == MAGIC
    if file.name.upper() == "DICOMDIR" or not (has_magic or start.startswith(FIRST_GROUPS)):
        return None
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(SCANNED), force=not has_magic)
    except Exception:  # a damaged file counts as a slice: reading the series reports it
        header = pydicom.Dataset()
        header.Rows = 0
        return header if has_magic else None
    return header if has_magic or "SOPClassUID" in header or "Rows" in header else None


def _sop_class(header: Any) -> str:
    """The name of an object's SOP class, from the file meta information if the object has none."""
    meta = getattr(header, "file_meta", {})
    uid = header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""
    return str(getattr(uid, "name", uid))


def _without_copies(slices: Sequence[DicomSlice], source: object) -> list[DicomSlice]:
    """The slices without repetitions of a SOPInstanceUID with the same content, which are logged."""
    originals: dict[Any, DicomSlice] = {}
    kept, copies = list[DicomSlice](), list[DicomSlice]()
    for piece in slices:
        instance = piece.header.get("SOPInstanceUID") or piece.file
        original = originals.setdefault((instance, str(piece.header.get("PatientID") or ""), *piece.position), piece)
        (copies if piece is not original and piece.equals(original) else kept).append(piece)
    if copies:
        names = some_of([piece.file.name for piece in copies])
        logger.warning("%s: %d slices are there twice; read once, without %s.", source, len(copies), names)
    return kept


def _check_one_series(source: object, slices: Sequence[DicomSlice]) -> None:
    first = slices[0]
    patients = {str(piece.header.get("PatientID") or ""): piece.file.name for piece in reversed(slices)}
    if len(patients) > 1:  # the message names no ID, as it may be kept in a log
        raise _mixed(source, f"different PatientIDs in {' and '.join(sorted(patients.values())[:2])}")
    fitting = {
        "size": [piece.size == first.size for piece in slices],
        "kind": [piece.kind == first.kind for piece in slices],
        "bits": [piece.bits == first.bits for piece in slices],
        "modality": [piece.modality == first.modality for piece in slices],
        "echo_time": [piece.echo_time == first.echo_time for piece in slices],
        "spacing": [bool(np.allclose(piece.spacing, first.spacing)) for piece in slices],
        "orientation": [bool((np.abs(piece.axes - first.axes) <= COSINE_TOLERANCE).all()) for piece in slices],
    }
    for what, fits in fitting.items():
        if not all(fits):
            other = slices[fits.index(False)]
            ours, theirs = (getattr(piece, what) for piece in (first, other))
            found = f"{what.replace('_', ' ')} {ours} in {first.file.name} and {theirs} in {other.file.name}"
            raise _mixed(source, found)
    series = [uid for uid, count in Counter(piece.uid for piece in slices).most_common() if count > 1]
    # UIDs that differ in every file carry no information; two UIDs that several files share are two series.
    if len(series) > 1:
        raise _mixed(source, f"{len(series)} series UIDs, {series[0]} and {series[1]}")


def _mixed(source: object, found: str) -> InputError:
    remedy = "put each series into a separate folder"
    return InputError(file=source, found=f"several series: {found}", expected="the slices of one series", remedy=remedy)


def _step_mm(source: object, ordered: Sequence[DicomSlice], normal: np.ndarray) -> np.ndarray:
    """The vector from one slice to the next in mm, after checking that it is constant and along the normal."""
    positions = np.array([piece.position for piece in ordered])
    along = (positions @ normal).tolist()
    spacing = (along[-1] - along[0]) / (len(along) - 1)
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if gaps.min() < GAP_TOLERANCE_MM:
        index = int(gaps.argmin())
        names = f"{ordered[index].file.name} and {ordered[index + 1].file.name}"
        raise _mixed(source, f"{names} at the same position ({along[index]:.2f} mm)")
    if np.abs(gaps - usual).max() > max(GAP_TOLERANCE_MM, GAP_TOLERANCE * spacing):
        index = int(np.abs(gaps - usual).argmax())
        names = f"{ordered[index].file.name} and {ordered[index + 1].file.name}"
        found = f"slices {gaps[index]:.2f} mm apart between {names}, {usual:.2f} mm elsewhere"
        remedy = "add the missing slices, or resample the series to equal spacing and convert it to NIfTI"
        raise InputError(file=source, found=found, expected="one slice spacing", remedy=remedy)
    _check_stacked(source, positions, normal, spacing)
    return spacing * normal


def _check_stacked(source: object, positions: np.ndarray, normal: np.ndarray, spacing: float) -> None:
    """Refuse slices that are shifted in plane: progressively (a tilted gantry) or individually."""
    offsets = positions - positions[0]
    in_plane = offsets - np.outer(offsets @ normal, normal)
    sideways = float(np.linalg.norm(in_plane[-1])) / (len(positions) - 1)
    tilt = float(np.degrees(np.arctan2(sideways, spacing)))
    if tilt > TILT_TOLERANCE_DEGREES:
        found = f"a gantry tilt of {tilt:.1f} degrees: the slices are shifted against each other"
        remedy = "convert the series with a tool that corrects the tilt (dcm2niix does) and prepare it as 'folder'"
        raise InputError(file=source, found=found, expected="slices stacked along their normal", remedy=remedy)
    shift_mm = float(np.linalg.norm(in_plane, axis=1).max())
    if shift_mm > SHIFT_TOLERANCE_MM + sideways * len(positions):
        found = f"a slice shifted in plane by {shift_mm:.2f} mm from the first"
        remedy = "check whether the folder contains slices of another series"
        raise InputError(file=source, found=found, expected="slices stacked along their normal", remedy=remedy)


def _affine(first: DicomSlice, step_mm: np.ndarray) -> np.ndarray:
    between_rows_mm, between_columns_mm = first.spacing
    row_mm, column_mm = first.axes[0] * between_columns_mm, first.axes[1] * between_rows_mm
    columns = np.column_stack([row_mm, column_mm, step_mm, first.position])
    return LPS_TO_RAS @ np.vstack([columns, [0.0, 0.0, 0.0, 1.0]])
