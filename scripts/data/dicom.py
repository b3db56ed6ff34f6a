"""A folder of DICOM slices as one volume, its geometry taken from the slices' positions.

ITK (GDCM) decodes the files, compressed transfer syntaxes included. Spacing and order come from ImagePositionPatient
alone: SliceThickness, SpacingBetweenSlices and file names do not tell them. Series UIDs are missing or differ from
file to file in public releases, so a folder is one series if its slices fit together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from scripts.core.errors import InputError, innermost_message
from scripts.data.case_names import natural_order

__all__ = ["Series", "dicom_files", "read_series", "read_slices"]

PREAMBLE, MAGIC = 128, b"DICM"
GAP_TOLERANCE_MM = 0.05
"""Rounding of positions that are written with few digits ..."""
GAP_TOLERANCE = 0.02
"""... or, for thick slices, this share of the spacing."""
TILT_TOLERANCE_DEGREES = 0.5
SHIFT_TOLERANCE_MM = 0.5
COSINE_TOLERANCE = 1e-3
INT16_KINDS, REAL_KINDS = {"short", "char", "unsigned_char"}, {"float", "double"}
"""ITK's names of the types of rescaled pixels that always fit int16, and of those that may have fractions."""
FILES_AT_ONCE = 32
LOADING = Lock()
"""ITK loads its modules when they are first used, which threads may not do at once."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

ROWS, COLUMNS = "0028|0010", "0028|0011"
PIXEL_FORMAT = ("0028|0100", "0028|0101", "0028|0102", "0028|0103", "0028|1052", "0028|1053")
"""Bits allocated and stored, the highest bit, the sign, the intercept and the slope."""
POSITION, ORIENTATION, PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
SERIES_UID, MODALITY, ECHO_TIME = "0020|000e", "0008|0060", "0018|0081"


@dataclass(frozen=True)
class Series:
    """A volume from DICOM slices.

    Attributes:
        image: (X, Y, Z), rescaled to the modality's unit, slices in ascending position along their normal.
        affine: (4, 4), from voxel index to RAS+ position in mm.
        files: the slices' files in natural order of their names.
        order: for each slice of ``image``, the index of its file in ``files``.
    """

    image: np.ndarray
    affine: np.ndarray
    files: tuple[Path, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class _Slice:
    file: Path
    size: str  # rows x columns
    pixel_format: tuple[str, ...]  # what the type of the rescaled pixels follows from
    position: np.ndarray  # (3,), LPS, mm, centre of the first pixel
    axes: np.ndarray  # (2, 3): direction of a row, direction of a column
    spacing_mm: tuple[float, float]  # between rows, between columns
    uid: str
    modality: str
    echo_time: str

    @property
    def orientation(self) -> list[float]:
        return self.axes.round(3).ravel().tolist()


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files that lie directly in a folder, in natural order of their names, which need no suffix.

    Raises:
        InputError: no such folder.
    """
    if not folder.is_dir():
        remedy = "name the folder that holds the slices themselves"
        raise InputError(file=folder, found="no such folder", expected="a folder of DICOM slices", remedy=remedy)
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=natural_order)
    return [file for file in files if not file.name.startswith(".") and file.name != "DICOMDIR" and _is_dicom(file)]


def read_series(folder: Path) -> Series:
    """Read the one series in a folder.

    Args:
        folder: holds the slices of one series and no others.

    Raises:
        InputError: no or unreadable files, several series, a missing position, unequal gaps, a tilted gantry.
    """
    return read_slices(dicom_files(folder), folder)


def read_slices(files: Sequence[Path], source: object) -> Series:
    """Read one series whose files are known.

    Args:
        files: the slices of one series and no others, in natural order of their names.
        source: what a message calls the series: its folder.

    Raises:
        InputError: as :func:`read_series`.
    """
    if len(files) < 2:
        raise InputError(
            file=source,
            found=f"{len(files)} DICOM files",
            expected="the slices of one series, at least 2",
            remedy="name the folder that holds the slices themselves",
        )
    try:
        slices, volume = _read(files)
    except RuntimeError as error:
        # One by one names the file that is broken; if none is, they do not fit together.
        _stack(source, [piece for file in files for piece in _read([file])[0]])
        raise _broken(source, error) from error
    order, affine = _stack(source, slices)
    # (slice, row, column) is (z, y, x).
    return Series(_in_order(volume, order).T, affine, tuple(files), tuple(order))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        if opened.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC:
            return True
    with LOADING:
        import itk

        return bool(itk.GDCMImageIO.New().CanReadFile(str(file)))


def _read(files: Sequence[Path], *, as_short: bool | None = None) -> tuple[list[_Slice], np.ndarray]:
    """All slices and their rescaled pixels (file, row, column): int16 if whole and of that range, else float32.

    Some files are decoded at a time: few calls, and ITK's memory is used again.

    Args:
        files: the slices of one series.
        as_short: ITK hands the pixels over as int16, else as float32; by default as the first file's type needs.

    Raises:
        RuntimeError: ITK cannot read several files, or not together.
        InputError: it cannot read a single one, or that is not one slice, or lacks its place.
    """
    first = _kind(files[0])
    as_short = first in INT16_KINDS if as_short is None else as_short
    decode = _decoder(as_short=as_short)
    slices: list[_Slice] = []
    kinds: dict[tuple[str, ...], str] = {}
    volume = np.empty(0, np.int16)
    for start in range(0, len(files), FILES_AT_ONCE):
        part = files[start : start + FILES_AT_ONCE]
        planes, dictionaries = decode(part)
        if start == 0:
            volume = np.empty((len(files), *planes.shape[1:]), np.int16)
        if planes.shape != (len(part), *volume.shape[1:]):
            _raise_other_size(files, len(planes))
        slices += map(_slice, part, dictionaries)
        for piece in slices[start:]:
            if piece.pixel_format not in kinds:
                kinds[piece.pixel_format] = _kind(piece.file) if kinds else first
        found = set(kinds.values())
        if as_short and not found <= INT16_KINDS:
            return _read(files, as_short=False)
        if not as_short and volume.dtype == np.int16 and (found & REAL_KINDS or not _fits_int16(planes)):
            volume = volume.astype(np.float32)
        volume[start : start + len(part)] = planes
    return slices, volume


def _fits_int16(values: np.ndarray) -> bool:
    limits = np.iinfo(np.int16)
    return bool(values.min() >= limits.min and values.max() <= limits.max)


def _kind(file: Path) -> str:
    """ITK's name of the type of a file's rescaled pixels."""
    with LOADING:
        import itk

        decoder = itk.GDCMImageIO.New()
    decoder.SetFileName(str(file))
    try:
        decoder.ReadImageInformation()
    except RuntimeError as error:
        raise _broken(file, error) from error
    return str(decoder.GetComponentTypeAsString(decoder.GetComponentType()))


def _decoder(*, as_short: bool) -> Callable[[Sequence[Path]], tuple[np.ndarray, Iterable[Any]]]:
    """A call that decodes files of one size.

    It gives their pixels (file, row, column) and dictionaries of tags, both for use before the next call.
    """
    with LOADING:
        import itk

        image_type = itk.Image[itk.SS if as_short else itk.F, 3]
        # Its own check of the positions takes the files' order for the slices'.
        reader = itk.ImageSeriesReader[image_type].New(ImageIO=itk.GDCMImageIO.New(), SpacingWarningRelThreshold=np.inf)
        view = itk.PyBuffer[image_type].GetArrayViewFromImage

    def decode(files: Sequence[Path]) -> tuple[np.ndarray, Iterable[Any]]:
        try:
            reader.SetFileNames([str(file) for file in files])
            reader.UpdateLargestPossibleRegion()
        except RuntimeError as error:
            if len(files) == 1:
                raise _broken(files[0], error) from error
            raise
        return view(reader.GetOutput(), update=False), reader.GetMetaDataDictionaryArray()

    return decode


def _raise_other_size(files: Sequence[Path], frames: int) -> None:
    if len(files) > 1:
        raise RuntimeError("the files hold images of several sizes")
    raise InputError(
        file=files[0],
        found=f"a multi-frame file of {frames} frames",
        expected="one file per slice",
        remedy="convert it to NIfTI (dcm2niix does) and prepare the NIfTI files as 'folder'",
    )


def _slice(file: Path, tags: Any) -> _Slice:
    between_rows_mm, between_columns_mm = _numbers(file, tags, PIXEL_SPACING, "PixelSpacing", 2)
    return _Slice(
        file=file,
        size=_text(tags, ROWS) + " x " + _text(tags, COLUMNS),
        pixel_format=tuple(_text(tags, key) for key in PIXEL_FORMAT),
        position=np.array(_numbers(file, tags, POSITION, "ImagePositionPatient", 3)),
        axes=np.array(_numbers(file, tags, ORIENTATION, "ImageOrientationPatient", 6)).reshape(2, 3),
        spacing_mm=(between_rows_mm, between_columns_mm),
        uid=_text(tags, SERIES_UID),
        modality=_text(tags, MODALITY),
        echo_time=_text(tags, ECHO_TIME),
    )


def _broken(file: object, error: RuntimeError) -> InputError:
    return InputError(
        file=file,
        found=f"DICOM data that cannot be decoded ({innermost_message(error)[:120]})",
        expected="a complete slice",
        remedy="download or copy the file again",
    )


def _text(tags: Any, key: str) -> str:
    if not tags.HasKey(key):
        return ""
    import itk

    # As tags[key], which tries all types for every tag, though GDCM's are all text.
    return str(itk.MetaDataObject[str].cast(tags.Get(key)).GetMetaDataObjectValue()).strip(" \0")


def _numbers(file: Path, tags: Any, key: str, name: str, count: int) -> list[float]:
    text = _text(tags, key)
    try:
        numbers = [float(part) for part in text.split("\\")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise InputError(
            file=file,
            found=f"{name} '{text}'" if text else f"no {name}",
            expected=f"{count} numbers: without them the slice's place is unknown",
            remedy="export the series again with its geometry, or give the volume as NIfTI",
        )
    return numbers


def _check_one_series(source: object, slices: Sequence[_Slice]) -> None:
    first = slices[0]
    axes = np.array([piece.axes for piece in slices])
    spacing = np.array([piece.spacing_mm for piece in slices])
    fitting = {
        "size": [piece.size == first.size for piece in slices],
        "modality": [piece.modality == first.modality for piece in slices],
        "echo_time": [piece.echo_time == first.echo_time for piece in slices],
        "spacing_mm": np.isclose(spacing, spacing[0]).all(1).tolist(),
        "orientation": (np.abs(axes - axes[0]) <= COSINE_TOLERANCE).all((1, 2)).tolist(),
    }
    for what, fits in fitting.items():
        if not all(fits):
            other = slices[fits.index(False)]
            ours, theirs = (getattr(piece, what) for piece in (first, other))
            name = what.removesuffix("_mm").replace("_", " ")
            _raise_mixed(source, f"{name} {ours} in {first.file.name} and {theirs} in {other.file.name}")
    series = [uid for uid, count in Counter(piece.uid for piece in slices).most_common() if count > 1]
    # A UID of its own in each file says nothing; two that are shared by several files are two series.
    if len(series) > 1:
        _raise_mixed(source, f"{len(series)} series UIDs, {series[0]} and {series[1]}")


def _raise_mixed(source: object, found: str) -> None:
    raise InputError(
        file=source,
        found=f"several series: {found}",
        expected="the slices of one series",
        remedy="put each series into a folder of its own",
    )


def _stack(source: object, slices: Sequence[_Slice]) -> tuple[list[int], np.ndarray]:
    """The slices' order along their normal and the volume's affine; refused unless they are one even stack."""
    _check_one_series(source, slices)
    normal = np.cross(*slices[0].axes)
    order = sorted(range(len(slices)), key=lambda index: float(slices[index].position @ normal))
    ordered = [slices[index] for index in order]
    return order, _affine(ordered[0], _step_mm(source, ordered, normal))


def _step_mm(source: object, ordered: Sequence[_Slice], normal: np.ndarray) -> np.ndarray:
    """The vector from one slice to the next, in mm, checked to be the same everywhere and along the normal."""
    positions = np.array([piece.position for piece in ordered])
    along = (positions @ normal).tolist()
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    spacing = (along[-1] - along[0]) / (len(along) - 1)
    gaps = np.diff(along)
    tolerance = max(GAP_TOLERANCE_MM, GAP_TOLERANCE * spacing)
    if gaps.min() < GAP_TOLERANCE_MM:
        index = int(gaps.argmin())
        names = f"{ordered[index].file.name} and {ordered[index + 1].file.name}"
        _raise_mixed(source, f"{names} lie at the same position ({along[index]:.2f} mm)")
    if np.abs(gaps - np.median(gaps)).max() > tolerance:
        index = int(np.abs(gaps - np.median(gaps)).argmax())
        raise InputError(
            file=source,
            found=f"slices {gaps[index]:.2f} mm apart between {ordered[index].file.name} and "
            f"{ordered[index + 1].file.name}, {np.median(gaps):.2f} mm elsewhere",
            expected="one slice spacing",
            remedy="look for missing slices, or resample the series to equal spacing and give it as NIfTI",
        )
    _check_stacked(source, positions, normal, step, spacing)
    return spacing * normal


def _check_stacked(source: object, positions: np.ndarray, normal: np.ndarray, step: np.ndarray, spacing: float) -> None:
    """Refuse slices that are shifted against each other in plane: steadily (a tilted gantry) or singly."""
    sideways = step - (step @ normal) * normal
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(sideways), spacing)))
    if tilt > TILT_TOLERANCE_DEGREES:
        raise InputError(
            file=source,
            found=f"a gantry tilt of {tilt:.1f} degrees: the slices are shifted against each other",
            expected="slices stacked along their normal",
            remedy="convert the series with a tool that corrects the tilt (dcm2niix does) and prepare it as 'folder'",
        )
    offsets = positions - positions[0]
    shift_mm = float(np.linalg.norm(offsets - np.outer(offsets @ normal, normal), axis=1).max())
    if shift_mm > SHIFT_TOLERANCE_MM + np.linalg.norm(sideways) * len(positions):
        raise InputError(
            file=source,
            found=f"a slice that is shifted in plane by {shift_mm:.2f} mm against the first",
            expected="slices stacked along their normal",
            remedy="look whether the folder holds slices of another series",
        )


def _in_order(volume: np.ndarray, order: list[int]) -> np.ndarray:
    """The slices of (slice, row, column) in another order: a view if it is theirs or its reverse, as most are."""
    forwards = list(range(len(order)))
    if order == forwards:
        return volume
    return volume[::-1] if order == forwards[::-1] else volume[order]


def _affine(first: _Slice, step_mm: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    between_rows_mm, between_columns_mm = first.spacing_mm
    affine[:3, 0] = first.axes[0] * between_columns_mm
    affine[:3, 1] = first.axes[1] * between_rows_mm
    affine[:3, 2] = step_mm
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
