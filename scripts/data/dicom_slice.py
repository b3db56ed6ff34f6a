"""Reads and checks one DICOM slice: values in the modality's unit, position and orientation."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from scripts.core.errors import InputError, innermost_message
from scripts.data.geometry import VOXEL_EDGE_MM

__all__ = ["DicomSlice", "read_slice"]

# Rounding of direction cosines that are stored with few digits.
ORTHONORMAL_TOLERANCE = 0.01

# Markers of JPEG and JPEG-LS before the size of a frame.
FRAME_MARKERS = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}


@dataclass(frozen=True)
class DicomSlice:
    """A slice of a series.

    ``header`` is its pydicom ``Dataset`` without pixels. ``pixels`` (rows, columns) are in the modality's unit, int16
    if the values are whole and fit, else float32. ``position`` is the centre of the first pixel, LPS in mm; ``axes``
    (2, 3) are the directions of a row and of a column; ``spacing`` is between rows and between columns. ``size``,
    ``kind`` (photometric interpretation), ``echo_time`` and ``uid`` (of the series) are text, perhaps empty.
    """

    file: Path
    header: Any
    pixels: np.ndarray
    size: str
    kind: str
    bits: int
    modality: str
    echo_time: str
    uid: str
    position: np.ndarray
    axes: np.ndarray
    spacing: tuple[float, ...]

    @property
    def orientation(self) -> list[float]:
        """Its axes, rounded for messages."""
        return self.axes.round(3).ravel().tolist()

    def equals(self, other: DicomSlice) -> bool:
        """Whether both show the same pixels at the same place, of the same echo."""
        compared = ("pixels", "position", "axes", "spacing", "echo_time")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in compared)


def read_slice(file: Path) -> DicomSlice:
    """Read a file that holds one slice.

    Raises:
        InputError: the file is damaged or has several frames; pixels are not grey values or do not match the header;
            position or rescale are missing or invalid.
    """
    try:
        header = pydicom.dcmread(file, force=True)
        frames, size = int(header.get("NumberOfFrames") or 1), f"{header.Rows} x {header.Columns}"
    except Exception as error:
        raise _broken(file, innermost_message(error)) from error
    if frames > 1:
        remedy = "convert it to NIfTI (dcm2niix does) and prepare the NIfTI files as 'folder'"
        raise InputError(file, f"a multi-frame file of {frames} frames", expected="one file per slice", remedy=remedy)
    pixels = _rescaled(file, header, _stored_pixels(file, header))
    del header.PixelData
    return DicomSlice(
        file=file,
        header=header,
        pixels=pixels,
        size=size,
        kind=str(header.get("PhotometricInterpretation") or ""),
        bits=int(header.BitsAllocated),
        modality=str(header.get("Modality") or ""),
        echo_time=str(header.get("EchoTime") or ""),
        uid=str(header.get("SeriesInstanceUID") or ""),
        position=np.array(_numbers(file, header, "ImagePositionPatient", 3)),
        axes=_axes(file, header),
        spacing=_numbers(file, header, "PixelSpacing", 2, within=VOXEL_EDGE_MM),
    )


def _stored_pixels(file: Path, header: Any) -> np.ndarray:
    """Pixels (rows, columns) as stored, checked to be grey values and as many as the header says."""
    kind = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    # MONOCHROME1 asks viewers to show high values dark. CT numbers mean the same either way; other values are inverted.
    if kind != "MONOCHROME2" and (kind, header.get("Modality")) != ("MONOCHROME1", "CT"):
        remedy = "export the original slices, not screenshots or processed copies"
        raise InputError(file=file, found=f"pixels of kind {kind}", expected="MONOCHROME2", remedy=remedy)
    try:
        bits, high, stored = (int(header[name].value) for name in ("BitsAllocated", "HighBit", "BitsStored"))
        if not 0 < stored <= high + 1 <= bits:
            raise _broken(file, f"{stored} bits stored of {bits}, the highest at {high}")
        pixels = _decoded(file, header, bits)
    except InputError:
        raise
    except Exception as error:  # whatever a decoder stumbles over
        raise _broken(file, innermost_message(error)) from error
    if pixels.ndim != 2:
        raise _broken(file, f"pixels of shape {pixels.shape}")
    if pixels.dtype.kind not in "iu" or 8 * pixels.dtype.itemsize != bits:
        return pixels
    # Bits that hold no pixel value may hold old overlays; the second shift repeats the sign.
    return (pixels << (bits - 1 - high)) >> (bits - stored)


def _decoded(file: Path, header: Any, bits: int) -> np.ndarray:
    """The pixels, if they are as many as the header says: a decoder cuts off the rest, or ends the whole process."""
    syntax, length = _transfer_syntax(header), len(header.PixelData)
    expected = -(-header.Rows * header.Columns * bits // 8)
    if not syntax.is_compressed and not expected <= length <= expected + expected % 2:
        raise _broken(file, f"{length} bytes of pixels, {expected} in the header's size")
    frame = get_frame(header.PixelData, 0, number_of_frames=1) if syntax.is_compressed else b""
    if (coded := _coded_size(frame)) not in (None, (header.Rows, header.Columns)):
        raise _broken(file, f"pixels of {coded}, {header.Rows} x {header.Columns} in the header")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The decoded RLE segment contains")  # more than the header's size
        return np.asarray(header.pixel_array)


def _coded_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns in the code stream of JPEG, JPEG-LS or JPEG 2000; None in others."""
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: columns, rows, and the offsets of both
        columns, rows, left, top = struct.unpack(">4I", frame[8:24])
        return rows - top, columns - left
    place = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while place + 9 <= len(frame):
        marker, length = struct.unpack(">HH", frame[place : place + 4])
        if marker in FRAME_MARKERS:
            rows, columns = struct.unpack(">HH", frame[place + 5 : place + 9])
            return rows, columns
        place += 2 + length
    return None


def _transfer_syntax(header: Any) -> Any:
    """The transfer syntax; a file without meta information has the standard's default or what its reader found."""
    meta = header.file_meta
    if "TransferSyntaxUID" not in meta:
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if header.original_encoding[0] else ExplicitVRLittleEndian
    return meta.TransferSyntaxUID


def _rescaled(file: Path, header: Any, pixels: np.ndarray) -> np.ndarray:
    """Values in the modality's unit: int16 if they are whole and fit, else float32."""
    [slope] = _numbers(file, header, "RescaleSlope", 1, (-1e9, 1e9)) if "RescaleSlope" in header else (1.0,)
    [intercept] = _numbers(file, header, "RescaleIntercept", 1, (-1e9, 1e9)) if "RescaleIntercept" in header else (0.0,)
    if abs(slope) < 1e-25:
        found, remedy = f"RescaleSlope {f'{slope:g}'!r}", "export the series again: a slope of 0 makes all values equal"
        raise InputError(file=file, found=found, expected="a number other than 0", remedy=remedy)
    if pixels.dtype.kind in "iu" and slope.is_integer() and intercept.is_integer():
        limits = np.iinfo(np.int16)
        first, last = sorted(slope * int(end) + intercept for end in (pixels.min(), pixels.max()))
        if limits.min <= first and last <= limits.max:
            return (pixels.astype(np.int32) * int(slope) + int(intercept)).astype(np.int16)
    return (pixels.astype(np.float64) * slope + intercept).astype(np.float32)


def _axes(file: Path, header: Any) -> np.ndarray:
    """Directions of a row and of a column (2, 3), checked to be perpendicular and of length 1."""
    axes = np.array(_numbers(file, header, "ImageOrientationPatient", 6)).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > ORTHONORMAL_TOLERANCE:
        found = "\\".join(f"{number:g}" for number in axes.ravel())
        remedy = "export the series again with its geometry, or give the volume as NIfTI"
        raise InputError(file, f"ImageOrientationPatient {found}", "two perpendicular directions of length 1", remedy)
    return axes


def _broken(file: object, reason: str) -> InputError:
    found = f"DICOM data that cannot be decoded ({reason[:160]})"
    return InputError(file=file, found=found, expected="a complete slice", remedy="download or copy the file again")


def _numbers(
    file: Path, header: Any, name: str, count: int, within: tuple[float, float] | None = None
) -> tuple[float, ...]:
    """The finite numbers of an element."""
    value = header.get(name)
    try:
        numbers = tuple(float(part) for part in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        numbers = ()
    is_right = len(numbers) == count and bool(np.isfinite(numbers).all())
    if not is_right or (within and not all(within[0] <= number <= within[1] for number in numbers)):
        said = "\\".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value
        limits = f" of {within[0]:g} to {within[1]:g}" if within else ""
        expected = f"{count} number{'s' * (count > 1)}{limits}: without them, position or intensities are unknown"
        found = f"{name} {said!r}" if value not in (None, "") else f"no {name}"
        remedy = "export the series again with its geometry, or give the volume as NIfTI"
        raise InputError(file=file, found=found, expected=expected, remedy=remedy)
    return numbers
