"""Reads pairs of NIfTI files on one grid, and writes prepared volumes."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scripts.core.errors import InputError
from scripts.core.files import atomic_path
from scripts.data.geometry import AFFINE_TOLERANCE_MM, affine_gap_mm, check_same_grid
from scripts.data.nifti import GZIP_MAGIC, QFORM_TOLERANCE_MM, NiftiVolume, read_nifti
from scripts.data.volumes import check_values
from scripts.lab.prepare.source_case import Reading

__all__ = ["add_label", "personal_text", "read_pair", "write_nifti"]

# Free text of a header, which tools fill with anything, patients' names included.
TEXT_FIELDS = ("data_type", "descrip", "aux_file", "intent_name", "db_name")

# Length of a gzip header, and the flag of a file name after it.
GZIP_HEADER, GZIP_HAS_NAME = 10, 8

_Grid = tuple[tuple[int, ...], np.ndarray]


def read_pair(image: Path, label: Path | None, *, trust_image: bool = False) -> Reading:
    """An image and its label map, if there is one, on one grid."""
    volume = read_nifti(image)
    check_values(volume.voxels, str(image), is_label=False)
    notes = _notes(volume, image)
    copied = None if notes else _file_to_copy(volume, image)
    reading = Reading(volume.voxels, volume.affine, notes=notes, image_file=copied)
    return reading if label is None else add_label(reading, image, label, trust_image=trust_image)


def add_label(reading: Reading, image: Path, label: Path, *, trust_image: bool = False) -> Reading:
    """Add the label map of a NIfTI file; ``trust_image`` uses the image's affine if only the label's differs."""
    volume = read_nifti(label)
    voxels, affine, notes = volume.voxels, volume.affine, [*_notes(volume, label)]
    check_values(voxels, str(label), is_label=True)
    turned, turned_affine = _along_axes_of(reading.affine, voxels, affine)
    gap_mm = affine_gap_mm(affine, reading.affine)
    if gap_mm > AFFINE_TOLERANCE_MM and affine_gap_mm(turned_affine, reading.affine) <= AFFINE_TOLERANCE_MM:
        voxels, affine = turned, turned_affine
        notes.append(f"{label.name}: stored along other axes than its image; reoriented, no voxel changed")
    elif trust_image and voxels.shape == reading.image.shape and gap_mm > AFFINE_TOLERANCE_MM:
        affine = reading.affine
        notes.append(f"{label.name}: its affine differed by up to {gap_mm:.3g} mm; the image's was used, as requested")
    _check_grids(image, label, (reading.image.shape, reading.affine), (voxels.shape, affine))
    return replace(reading, label=voxels, label_file=label, notes=(*reading.notes, *notes))


def write_nifti(
    path: Path, voxels: np.ndarray, affine: np.ndarray, *, is_label: bool = False, same_as: Path | None = None
) -> int:
    """Write a ``.nii.gz`` with equal sform and qform atomically, or copy ``same_as``; return its size in bytes."""
    if same_as is not None:
        with atomic_path(path) as temporary:
            return temporary.write_bytes(_without_name(same_as.read_bytes()))
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if affine_gap_mm(image.get_qform(), affine) > QFORM_TOLERANCE_MM:
        image.set_qform(None, code=0)  # a quaternion cannot represent a shear
    image.header.set_xyzt_units("mm")
    if is_label:
        image.header.set_intent("label")
    packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def _along_axes_of(target: np.ndarray, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes flipped and permuted to match another affine."""
    orientations = nib.orientations.io_orientation(affine), nib.orientations.io_orientation(target)
    turn = nib.orientations.ornt_transform(*orientations)
    turned = nib.orientations.apply_orientation(voxels, turn)
    return turned, affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape)


def _check_grids(image: Path, label: Path, image_grid: _Grid, label_grid: _Grid) -> None:
    try:
        check_same_grid(*image_grid, *label_grid, str(image), str(label))
    except InputError as error:
        if image_grid[0] != label_grid[0]:
            raise
        remedy = f"{error.remedy}; '--trust image' takes the image's header for both"
        raise InputError(file=error.file, found=error.found, expected=error.expected, remedy=remedy) from None


def _notes(volume: NiftiVolume, path: Path) -> tuple[str, ...]:
    """Notes on a file for the report. Free text, which may hold names, is reported by its field names only."""
    texts = personal_text(volume.header)
    left_out = [f"{', '.join(texts)} of the header removed, because free text can contain names"] * bool(texts)
    return tuple(f"{path.name}: {note}" for note in (*volume.notes, *left_out))


def _file_to_copy(volume: NiftiVolume, path: Path) -> Path | None:
    """The file itself if it has the format of :func:`write_nifti`: 3D, compressed, in mm, sform and qform set.

    Bytes before the voxels or after them, which could hold text, are not of that format.
    """
    header = volume.header
    is_plain = header.sizeof_hdr == nib.Nifti1Header.sizeof_hdr and header.endianness == "<" and header["dim"][0] == 3
    is_placed = int(header["qform_code"]) > 0 and int(header["sform_code"]) > 0 and header.get_xyzt_units()[0] == "mm"
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-4, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")  # of what the last member of a gzip file unpacks to
    is_packed = start.startswith(GZIP_MAGIC) and start[3] in (0, GZIP_HAS_NAME)  # no comment or other field
    expected = nib.Nifti1Header.single_vox_offset + int(np.prod(volume.voxels.shape)) * int(header["bitpix"]) // 8
    return path if is_plain and is_placed and is_packed and length == expected % 2**32 else None


def _without_name(packed: bytes) -> bytes:
    """The same gzip file without the name and time of the original file, which may identify a patient."""
    start = packed.index(b"\0", GZIP_HEADER) + 1 if packed[3] else GZIP_HEADER
    return packed[:3] + bytes(5) + packed[8:GZIP_HEADER] + packed[start:]


def personal_text(header: nib.Nifti1Header) -> list[str]:
    """Fields of a header that hold free text, and its extensions, by name; never their content."""
    found = [name for name in TEXT_FIELDS if name in header and bytes(header[name]).strip(b"\0 ")]
    return found + [f"{len(header.extensions)} extension(s)"] * bool(header.extensions)
