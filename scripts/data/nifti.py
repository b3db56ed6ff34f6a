"""Reads NIfTI files: voxels in the stored type, geometry in mm, and notes on the header.

A file is always read to its end, so that the checksum of a ``.nii.gz`` is verified, and straight into the array of its
voxels, so that a large volume is held once. The format is recognised by content, not by name. If a header is
inconsistent, the sform takes precedence over the qform, and that over the spacing.
"""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader
from nibabel.volumeutils import apply_read_scaling
from scripts.core.errors import InputError, innermost_message
from scripts.data.geometry import affine_gap_mm, check_affine, check_memory, check_shape, spacing_of

__all__ = ["QFORM_TOLERANCE_MM", "NiftiReader", "NiftiVolume", "compact", "qform_gap_mm", "read_nifti"]

# Differences between qform and sform up to this are rounding: for voxels of 8 mm a single-precision quaternion causes
# up to 0.0085 mm.
QFORM_TOLERANCE_MM = 1e-2

GZIP_MAGIC = b"\x1f\x8b"
CLASS_OF_HEADER_SIZE = {348: nib.Nifti1Image, 540: nib.Nifti2Image}
MM_PER_UNIT = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
HELD_COPIES = 2  # of the voxels, to read and to turn them
KEPT_TYPES = (np.int16, np.int8, np.uint8)  # others, and scaled voxels, become float32
POSITION_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z", "xyzt_units"),
)


@dataclass(frozen=True)
class NiftiVolume:
    """A 3D volume as stored in a file, with its affine from voxel indices to RAS+ coordinates in mm.

    ``voxels`` (X, Y, Z) are in the stored type, float32 if scaled or if 8-byte values do not fit int32. ``notes`` say
    how inconsistent and missing entries of the header were resolved.
    """

    voxels: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    mm_per_unit: float
    notes: tuple[str, ...]


def read_nifti(path: str | os.PathLike[str]) -> NiftiVolume:
    """Read a 3D volume from a single-file NIfTI-1 or NIfTI-2, compressed or not, of either byte order.

    Raises:
        InputError: the file is missing, damaged or not NIfTI; it is not 3D; its voxels are not real numbers; its
            affine is not finite, not invertible or of implausible size; it does not fit into memory.
    """
    with _opened(Path(path)) as stream:
        return _read(stream, Path(path))


def _read(stream: IO[bytes], path: Path) -> NiftiVolume:
    image = _parse(stream, path)
    header = image.header
    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        kind = header.get_value_label("datatype")
        remedy = "convert it to one real number per voxel: extract the channel or the magnitude that the task needs"
        raise InputError(file=path, found=f"voxels of type {kind}", expected="one real number per voxel", remedy=remedy)
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:  # some tools write axes of one time point
        shape = shape[:-1]
    check_shape(shape, path)
    unit = _unit(header, path)
    scale = MM_PER_UNIT[unit]
    affine = np.array(image.affine, np.float64)
    affine[:3] *= scale
    check_affine(affine, path)
    is_scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
    held_bytes = dtype.itemsize if dtype.type in KEPT_TYPES and not is_scaled else max(dtype.itemsize, 4)
    check_memory(HELD_COPIES * held_bytes * float(np.prod(shape, dtype=np.float64)), path)
    try:
        voxels = _narrowed(image.dataobj.get_unscaled().reshape(shape, order="F"), image.dataobj)
        left = sum(len(part) for part in iter(lambda: stream.read(2**20), b""))  # and verify the checksum at the end
    except Exception as error:  # cut short, a wrong checksum, or bytes behind the end
        raise _damaged(path, innermost_message(error)) from error
    if left >= dtype.itemsize * shape[0] * shape[1]:  # fewer are padding
        raise _damaged(path, f"{left} bytes behind the voxels, more than a slice: a wrong size or type in the header")
    return NiftiVolume(voxels, affine, header, scale, _header_notes(header, affine, scale, unit))


def qform_gap_mm(header: nib.Nifti1Header) -> float:
    """Largest difference between the entries of a header's qform and sform; 0 if one is not set, infinite if broken."""
    try:
        qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    except ValueError:  # a quaternion that is no rotation
        return math.inf
    return 0.0 if qform is None or sform is None else affine_gap_mm(qform, sform)


class NiftiReader(ImageReader):
    """MONAI's interface to :func:`read_nifti`.

    The metadata keep the position fields of the header, so that every program places outputs where it places the input.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Accept any name: the format is recognised by content."""
        return True

    def read(self, data: Any, **kwargs: Any) -> list[tuple[str, NiftiVolume]]:
        """Read one file or several."""
        paths = data if isinstance(data, Sequence) and not isinstance(data, str) else [data]
        return [(str(path), read_nifti(path)) for path in paths]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Voxels (X, Y, Z) and metadata of the one file that was read."""
        ((_, volume),) = img
        voxels = compact(volume.voxels)
        return voxels, {
            "affine": volume.affine,
            "original_affine": volume.affine.copy(),
            "spatial_shape": np.array(voxels.shape),
            "original_channel_dim": "no_channel",
            "space": "RAS",
            "mm_per_unit": volume.mm_per_unit,
            "position_header": np.frombuffer(_position_header(volume.header).binaryblock, np.uint8),
        }


def compact(voxels: np.ndarray) -> np.ndarray:
    """Voxels in a type that PyTorch computes with: as they are if they take at most 2 bytes, else float32."""
    keeps_type = voxels.dtype.type in KEPT_TYPES
    return voxels.astype(voxels.dtype.newbyteorder("=") if keeps_type else np.float32, copy=False)


def _position_header(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """A header with only the position fields of another: spacing, unit of length, qform, sform and their codes."""
    position = nib.Nifti1Header()
    for name in POSITION_FIELDS:
        position[name] = header[name]
    position["pixdim"][:4] = header["pixdim"][:4]
    return position


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, decompressed if it is compressed."""
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would wait for ever
        raise _not_nifti(path, "not a regular file")
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise InputError(path, "no such file", expected="a NIfTI volume", remedy="correct the path") from error
    except (OSError, ValueError) as error:  # or a name with a zero byte
        raise _not_nifti(path, innermost_message(error)) from error
    with file:
        is_compressed = file.peek(2).startswith(GZIP_MAGIC)
        yield gzip.GzipFile(fileobj=file) if is_compressed else file  # type: ignore[misc]


def _parse(stream: IO[bytes], path: Path) -> Any:
    try:
        start = stream.read(4)
    except Exception as error:
        raise _damaged(path, innermost_message(error)) from error
    sizes = {int.from_bytes(start, order) for order in ("little", "big")} & CLASS_OF_HEADER_SIZE.keys()
    if not sizes:
        raise _not_nifti(path, "its first bytes are no header's")
    try:
        kind = CLASS_OF_HEADER_SIZE[size := sizes.pop()]
        stored = kind.header_class(start + stream.read(size - 4), check=False)
        image = kind.from_file_map(kind.make_file_map({"image": stream}), mmap=False)
        image.affine  # noqa: B018  a header may hold a broken quaternion
    except Exception as error:  # whatever nibabel stumbles over
        raise _not_nifti(path, innermost_message(error)) from error
    if found := _guessed(stored, image.header):
        raise _not_nifti(path, found)
    return image


def _guessed(stored: nib.Nifti1Header, header: nib.Nifti1Header) -> str:
    """What in a header as stored nibabel replaces by a guess that may be wrong; empty if nothing is."""
    guesses = {
        "voxels that begin inside the header": stored["vox_offset"] < len(stored.binaryblock),
        "an unknown qform_code or sform_code": any(stored[key] != header[key] for key in ("qform_code", "sform_code")),
        "a spacing of 0": not header["sform_code"] and 0 in stored["pixdim"][1:4],
        "an infinite scl_slope": bool(np.isinf(stored["scl_slope"])),
    }
    return next((guess for guess, is_made in guesses.items() if is_made), "")


def _unit(header: nib.Nifti1Header, path: object) -> str:
    try:
        unit = str(header.get_xyzt_units()[0])
    except KeyError:
        unit = f"code {int(header['xyzt_units'])}"
    if unit not in MM_PER_UNIT:
        raise InputError(path, f"a unit of length {unit!r}", "mm, m or micron", "set the header's unit: 2 is mm")
    return unit


def _narrowed(voxels: np.ndarray, scaling: Any) -> np.ndarray:
    """Scaled voxels in at most 4 bytes: other programs read no wider integers, and double precision is not needed."""
    if (scaling.slope, scaling.inter) == (1, 0):
        if voxels.dtype.itemsize <= 4:
            return voxels
        if voxels.dtype.kind in "iu":
            limits = np.iinfo(np.int32)
            if voxels.min() >= limits.min and voxels.max() <= limits.max:
                return voxels.astype(np.int32)
    narrowed = np.empty(voxels.shape, np.float32, order="F")
    for index in range(voxels.shape[-1]):  # without a second copy in double precision
        narrowed[..., index] = apply_read_scaling(voxels[..., index], scaling.slope, scaling.inter)
    return narrowed


def _header_notes(header: nib.Nifti1Header, affine: np.ndarray, scale: float, unit: str) -> tuple[str, ...]:
    has_qform, has_sform = (int(header[key]) > 0 for key in ("qform_code", "sform_code"))
    notes = []
    if unit in ("meter", "micron"):
        notes.append(f"lengths in {unit}s were converted to mm")
    if not has_qform and not has_sform:
        notes.append("no qform and no sform; only the spacing is known, not the orientation")
    if not (gap_mm := qform_gap_mm(header) * scale) <= QFORM_TOLERANCE_MM:  # NaN is noted, too
        notes.append(f"qform and sform differ by up to {gap_mm:.3g} mm; the sform was used")
    spacing = np.abs(np.asarray(header["pixdim"][1:4], np.float64)) * scale
    if has_sform and not np.allclose(spacing, spacing_of(affine), rtol=1e-3, atol=QFORM_TOLERANCE_MM):
        stored, used = (" x ".join(f"{edge:.4g}" for edge in edges) for edges in (spacing, spacing_of(affine)))
        notes.append(f"pixdim is {stored} mm and the sform {used} mm; the sform was used")
    return tuple(notes)


def _not_nifti(path: object, reason: str) -> InputError:
    remedy = "convert the volume to .nii or .nii.gz, or copy it again if it is damaged"
    return InputError(path, f"no NIfTI ({reason})", expected="a NIfTI volume", remedy=remedy)


def _damaged(path: object, reason: str) -> InputError:
    found, remedy = f"data that cannot be read ({reason})", "copy or export the file again; it may be truncated"
    return InputError(file=path, found=found, expected="complete NIfTI files", remedy=remedy)
