"""NIfTI in and out at the speed of decompression: a file is read, unpacked and parsed in one go each.

MONAI's loader turns everything into float32 and goes through small reads; a preparation reads each volume once and
keeps its type.
"""

from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.core.errors import InputError
from scripts.core.files import atomic_path
from scripts.data.volumes import (
    AFFINE_TOLERANCE_MM,
    QFORM_TOLERANCE_MM,
    affine_gap_mm,
    check_same_grid,
    check_values,
    header_gap_mm,
    innermost_message,
)
from scripts.lab.prepare.case import Reading

__all__ = ["add_label", "read_nifti", "read_pair", "write_nifti"]

GZIP_MAGIC = b"\x1f\x8b"
_Grid = tuple[tuple[int, ...], np.ndarray]
NIFTI2_HEADER_SIZE = (540).to_bytes(4, "little")


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A 3D volume, its affine and notes on its header.

    Args:
        path: ``.nii`` or ``.nii.gz``.

    Returns:
        Voxels (X, Y, Z) in the file's own type (float32 where the header scales them), affine (4, 4) in mm, and notes.

    Raises:
        InputError: the file is missing, cut short, no NIfTI or not 3D.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data
        kind = nib.Nifti2Image if data.startswith(NIFTI2_HEADER_SIZE) else nib.Nifti1Image
        image = kind.from_bytes(data)
        voxels = np.asanyarray(image.dataobj)
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        raise InputError(
            file=path,
            found="no such file" if missing else f"data that cannot be read ({innermost_message(error)})",
            expected="a complete NIfTI file",
            remedy="download or copy the file again; it may be cut short",
        ) from error
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise InputError(
            file=path,
            found=f"{voxels.ndim} dimensions {voxels.shape}",
            expected="a 3D volume, at least 2 voxels each way",
            remedy="split a 4D file into its volumes, stack 2D files into one",
        )
    if voxels.dtype == np.float64:
        voxels = voxels.astype(np.float32)
    return voxels, image.affine, _header_notes(image, path)


def read_pair(image: Path, label: Path | None, *, trust_image: bool = False) -> Reading:
    """An image and its label map, on one grid.

    Args:
        image: file of the image.
        label: file of the label map, or None.
        trust_image: as for :func:`add_label`.

    Raises:
        InputError: a file cannot be read, holds NaN, infinite or constant values, or the two lie on different grids.
    """
    voxels, affine, notes = read_nifti(image)
    check_values(voxels, str(image), is_label=False)
    reading = Reading(voxels, affine, notes=tuple(notes), image_file=None if notes else _file_to_copy(image))
    return reading if label is None else add_label(reading, image, label, trust_image=trust_image)


def add_label(reading: Reading, image: Path, label: Path, *, trust_image: bool = False) -> Reading:
    """A reading with the label map of a NIfTI file, brought onto the image's axes if it is stored along others.

    Args:
        reading: the image.
        image: its file or folder, for the error.
        label: file of the label map.
        trust_image: take the image's grid where the label's header differs and the shapes agree.

    Raises:
        InputError: the label map cannot be read or lies on another grid.
    """
    voxels, affine, notes = read_nifti(label)
    check_values(voxels, str(label), is_label=True)
    turned, turned_affine = _along_axes_of(reading.affine, voxels, affine)
    gap_mm = affine_gap_mm(affine, reading.affine)
    if gap_mm > AFFINE_TOLERANCE_MM and affine_gap_mm(turned_affine, reading.affine) <= AFFINE_TOLERANCE_MM:
        voxels, affine = turned, turned_affine
        notes.append(f"{label.name}: stored along other axes than its image; turned to the image's, no voxel changed")
    elif trust_image and voxels.shape == reading.image.shape and gap_mm > AFFINE_TOLERANCE_MM:
        affine = reading.affine
        notes.append(f"{label.name}: its affine differed by up to {gap_mm:.3g} mm; the image's was taken, as asked")
    _check_grids(image, label, (reading.image.shape, reading.affine), (voxels.shape, affine))
    return replace(reading, label=voxels, label_file=label, notes=(*reading.notes, *notes))


def write_nifti(path: Path, voxels: np.ndarray, affine: np.ndarray, same_as: Path | None = None) -> int:
    """Write a volume as ``.nii.gz`` with equal sform and qform, whole or not at all.

    Args:
        path: where.
        voxels: (X, Y, Z) of a type that NIfTI knows.
        affine: (4, 4) in mm.
        same_as: a file that holds just this, to copy: packing takes twice as long as unpacking.

    Returns:
        The file's size in bytes.

    Raises:
        InputError: it cannot be written.
    """
    if same_as is not None:
        with atomic_path(path) as temporary:
            shutil.copyfile(same_as, temporary)
            return temporary.stat().st_size
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    if affine_gap_mm(image.get_qform(), affine) > QFORM_TOLERANCE_MM:
        image.set_qform(None, code=0)  # a quaternion cannot hold a shear
    image.header.set_xyzt_units("mm")
    packed = gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def _along_axes_of(target: np.ndarray, voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes flipped and permuted to run as those of another affine do."""
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


def _file_to_copy(path: Path) -> Path | None:
    """The file itself if it is written as :func:`write_nifti` writes: 3D, packed, in mm, both forms set and equal."""
    header = nib.load(path).header
    forms = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    both = all(form is not None for form in forms) and header_gap_mm(header) <= QFORM_TOLERANCE_MM
    fits = path.name.endswith(".nii.gz") and header["dim"][0] == 3 and header.get_xyzt_units()[0] == "mm"
    return path if both and fits else None


def _header_notes(image: nib.Nifti1Image, path: Path) -> list[str]:
    qform, sform = image.get_qform(coded=True)[0], image.get_sform(coded=True)[0]
    if qform is None and sform is None:
        return [f"{path.name}: no qform and no sform; spacing alone is known, not orientation"]
    gap_mm = header_gap_mm(image.header)
    return [f"{path.name}: qform and sform differ by up to {gap_mm:.3g} mm; the sform was taken"] * (
        gap_mm > QFORM_TOLERANCE_MM
    )
