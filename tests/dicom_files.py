"""A minimal DICOM writer for tests: it writes just the elements it is given.

A library's writer fills in UIDs and refuses what the standard does not allow, so it cannot make what public releases
hold: empty UIDs, missing positions, thickness that is not the distance.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
LONG = {"OB", "OW", "SQ", "UN", "UT"}
"""Value representations whose length takes 32 bits in explicit files."""

TAGS = {
    "SOPClassUID": (0x0008, 0x0016, "UI"),
    "SOPInstanceUID": (0x0008, 0x0018, "UI"),
    "Modality": (0x0008, 0x0060, "CS"),
    "PatientID": (0x0010, 0x0020, "LO"),
    "SliceThickness": (0x0018, 0x0050, "DS"),
    "EchoTime": (0x0018, 0x0081, "DS"),
    "SpacingBetweenSlices": (0x0018, 0x0088, "DS"),
    "SeriesInstanceUID": (0x0020, 0x000E, "UI"),
    "InstanceNumber": (0x0020, 0x0013, "IS"),
    "ImagePositionPatient": (0x0020, 0x0032, "DS"),
    "ImageOrientationPatient": (0x0020, 0x0037, "DS"),
    "SamplesPerPixel": (0x0028, 0x0002, "US"),
    "PhotometricInterpretation": (0x0028, 0x0004, "CS"),
    "NumberOfFrames": (0x0028, 0x0008, "IS"),
    "Rows": (0x0028, 0x0010, "US"),
    "Columns": (0x0028, 0x0011, "US"),
    "PixelSpacing": (0x0028, 0x0030, "DS"),
    "BitsAllocated": (0x0028, 0x0100, "US"),
    "BitsStored": (0x0028, 0x0101, "US"),
    "HighBit": (0x0028, 0x0102, "US"),
    "PixelRepresentation": (0x0028, 0x0103, "US"),
    "RescaleIntercept": (0x0028, 0x1052, "DS"),
    "RescaleSlope": (0x0028, 0x1053, "DS"),
}


def write_slice(
    path: Path,
    pixels: np.ndarray,
    *,
    position: tuple[float, ...] | None,
    orientation: tuple[float, ...] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (1.0, 1.0),
    syntax: str = EXPLICIT,
    **tags: object,
) -> Path:
    """Write one slice.

    Args:
        path: where.
        pixels: (rows, columns) uint16 as stored, before the rescale; (frames, rows, columns) for a multi-frame file.
        position: centre of the first pixel, LPS in mm; None to leave it out.
        orientation: directions of a row and of a column.
        spacing: between rows and between columns, in mm: the order in which DICOM writes it.
        syntax: transfer syntax.
        tags: further elements by keyword; None leaves an element out.
    """
    elements: dict[str, object] = {
        "SOPClassUID": CT_STORAGE,
        "SOPInstanceUID": "1.2.3.4",
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3",
        "ImagePositionPatient": position,
        "ImageOrientationPatient": orientation,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[-2],
        "Columns": pixels.shape[-1],
        "PixelSpacing": spacing,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        **tags,
    }
    if pixels.ndim == 3:
        elements["NumberOfFrames"] = len(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(
        _element(*TAGS[name], _text(value, TAGS[name][2]), syntax)
        for name, value in sorted(elements.items(), key=lambda item: TAGS[item[0]])
        if value is not None
    )
    data += _element(0x7FE0, 0x0010, "OW", pixels.astype("<u2").tobytes(), syntax)
    path.write_bytes(b"\0" * 128 + b"DICM" + _meta(syntax) + data)
    return path


def _meta(syntax: str) -> bytes:
    content = _element(0x0002, 0x0001, "OB", b"\0\1", EXPLICIT)
    for number, value in ((0x0002, CT_STORAGE), (0x0003, "1.2.3.4"), (0x0010, syntax), (0x0012, "1.2.3.5")):
        content += _element(0x0002, number, "UI", _text(value, "UI"), EXPLICIT)
    return _element(0x0002, 0x0000, "UL", struct.pack("<I", len(content)), EXPLICIT) + content


def _element(group: int, number: int, kind: str, value: bytes, syntax: str) -> bytes:
    head = struct.pack("<HH", group, number)
    if syntax == IMPLICIT:
        return head + struct.pack("<I", len(value)) + value
    if kind in LONG:
        return head + kind.encode() + b"\0\0" + struct.pack("<I", len(value)) + value
    return head + kind.encode() + struct.pack("<H", len(value)) + value


def _text(value: object, kind: str) -> bytes:
    if kind == "US":
        return struct.pack("<H", value)
    if isinstance(value, tuple | list | np.ndarray):
        value = "\\".join(f"{float(part):.10g}" for part in value)
    text = str(value).encode()
    return text + (b"\0" if kind == "UI" else b" ") * (len(text) % 2)


def stack(
    folder: Path,
    volume: np.ndarray,
    *,
    origin: np.ndarray,
    axes: np.ndarray,
    spacing: tuple[float, float, float],
    names: list[str],
    intercept: int = 0,
    **tags: object,
) -> Mapping[str, np.ndarray]:
    """Write a volume slice by slice.

    Args:
        folder: where.
        volume: (columns, rows, slices) in the modality's unit; slice k goes into ``names[k]``.
        origin: position of the first voxel, LPS in mm.
        axes: (3, 3), the directions of the three axes as rows, LPS.
        spacing: along columns, rows and slices of ``volume``, in mm.
        names: file names.
        intercept: of the rescale.
        tags: further elements of every slice.
    """
    places = {}
    for index, name in enumerate(names):
        places[name] = origin + index * spacing[2] * axes[2]
        pixels = (volume[..., index].T - intercept).astype(np.uint16)
        given = {"position": tuple(places[name]), "orientation": tuple(axes[:2].ravel()), "spacing": spacing[1::-1]}
        write_slice(folder / name, pixels, **{**given, "RescaleIntercept": intercept, **tags})
    return places


def compress_dicom(file: Path, syntax: str) -> None:
    """Encode the pixels of a DICOM file anew in a transfer syntax, by its name in GDCM."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()
