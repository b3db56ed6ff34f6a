"""Atomic writing of files: a file is complete or does not exist."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import nibabel as nib
import numpy as np
import torch
from monai.config import DtypeLike, KeysCollection
from monai.data import MetaTensor
from monai.data.folder_layout import FolderLayout
from monai.transforms import SaveImaged
from scripts.core.errors import InputError
from scripts.core.schema import check_depth

__all__ = [
    "PART",
    "AtomicSaveImaged",
    "append_text",
    "atomic_path",
    "check_file_name",
    "load_tensors",
    "make_folder",
    "on_input_grid",
    "remove_parts",
    "save_tensors",
    "tensor_bytes",
    "write_json",
]

# In the name of a file that is not complete yet.
PART = ".part-"

# Differences between the affines of a volume and of its file up to this are rounding in the header.
GRID_TOLERANCE_MM = 1e-2


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it otherwise.

    The temporary name keeps every suffix (``.nii.gz``), because writers choose the format by the suffix.

    Raises:
        InputError: the folder cannot be written, or the device is full.
    """
    path = Path(path)
    make_folder(path.parent)
    suffix = "".join(path.suffixes[-2:])
    temporary = path.with_name(f".{path.name.removesuffix(suffix)[:30]}{PART}{token_hex(4)}{suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut may leave the new name with no content
        os.replace(temporary, path)
    except OSError as error:
        raise _not_written(path, error, "no partial file was left") from error
    finally:
        temporary.unlink(missing_ok=True)


def append_text(path: str | os.PathLike[str], text: str) -> None:
    """Append lines to a log, whose readers skip an incomplete last line."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _not_written(path, error, "earlier lines are kept") from error


def check_file_name(name: str, source: object) -> str:
    """Return a name from a file or setting ``source`` if it is safe as part of a file name; refuse it otherwise."""
    if not name or name != name.strip(" .") or re.search(r"[/\\:]", name) or not name.isprintable():
        expected = "a plain file name, without separators, and without dots or spaces at its ends"
        raise InputError(file=source, found=f"the name {name!r}", expected=expected, remedy="give it another name")
    return name


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Create a folder, and refuse one that cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, ValueError) as error:  # or a name with a zero byte
        found = f"a folder that cannot be written ({getattr(error, 'strerror', None) or error})"
        remedy = "choose another place, for instance with --bundle_root or --out, or change its permissions"
        raise InputError(file=folder, found=found, expected="a writable folder", remedy=remedy) from error


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def remove_parts(folder: Path, depth: int = 2, stem: str = "*") -> None:
    """Remove incomplete files that a killed run left in its folder and below, but not in folders of other runs."""
    for file in folder.glob(f".{stem}{PART}*"):
        file.unlink(missing_ok=True)
    for inner in folder.iterdir() if depth else ():
        if inner.is_dir() and not inner.is_symlink() and not (inner / ".run.lock").exists():
            remove_parts(inner, depth - 1)


def tensor_bytes(content: Any) -> memoryview:
    """What ``torch.save`` writes; in memory, because torch's file writer reports a full disk as RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def save_tensors(path: str | os.PathLike[str], content: Any) -> None:
    """``torch.save``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(tensor_bytes(content))


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """``torch.load`` of tensors alone onto the host, after verifying the file's checksums, which torch does not."""
    if is_zipfile(path):
        with ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise BadZipFile(f"wrong checksum of {damaged}")
    return check_depth(torch.load(path, map_location="cpu", weights_only=True))


class AtomicSaveImaged(SaveImaged):
    """Write volumes (C, H, W, D) as ``<case>_<output_postfix>.nii.gz`` on the grid of their input, atomically.

    Servers that save predictions themselves recognise and skip a ``SaveImaged``; MONAI's own takes a full disk for a
    missing package. Voxels are of ``output_dtype``, or int32 if it cannot represent all values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        output_postfix: str,
        output_dtype: DtypeLike = np.float32,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, output_dir=output_dir, print_log=False, allow_missing_keys=allow_missing_keys)
        check_file_name(output_postfix, "setting 'output_postfix'")
        self.layout = FolderLayout(output_dir, postfix=output_postfix, extension=".nii.gz", makedirs=False)
        self.output_dtype = output_dtype

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write each key, channels as the last axis of the file; ``saved_to`` in the metadata lists the files."""
        for key in self.key_iterator(data):
            input_volume = data[self.input_of(key)]
            source = input_volume.meta["filename_or_obj"]
            # MONAI's layout recognises only lower-case suffixes.
            path = self.layout.filename(re.sub(r"\.nii(\.gz)?$", lambda match: match[0].lower(), source, flags=re.I))
            with atomic_path(path) as temporary:
                self.write(data[key], input_volume, temporary)
            input_volume.meta["saved_to"] = [*input_volume.meta.get("saved_to", ()), str(path)]
        return dict(data)

    def dtype_for(self, values: np.ndarray) -> np.dtype[Any]:
        """``output_dtype``, or int32 if it is a whole-number type that cannot represent all values."""
        dtype = np.dtype(self.output_dtype)
        if dtype.kind in "iu" and (values.min() < np.iinfo(dtype).min or values.max() > np.iinfo(dtype).max):
            return np.dtype(np.int32)
        return dtype

    def input_of(self, key: Hashable) -> Hashable:
        """The key of the volume with the metadata of the input file: the output's own."""
        return key

    def write(self, volume: MetaTensor, input_volume: MetaTensor, path: Path) -> None:
        """Write one volume to a file."""
        values = volume.detach().cpu().numpy()  # (C, H, W, D)
        voxels = values.astype(self.dtype_for(values), copy=False)
        voxels = voxels[0] if len(voxels) == 1 else np.moveaxis(voxels, 0, -1)
        nib.save(on_input_grid(voxels, volume.affine, volume.meta), path)


def on_input_grid(voxels: np.ndarray, affine: Any, meta: Mapping[str, Any]) -> nib.Nifti1Image:
    """Voxels (H, W, D) or (H, W, D, C) with their input's position fields, from ``meta``, or with an sform in mm.

    Raises:
        RuntimeError: the header would place the voxels elsewhere than ``affine``.
    """
    affine = np.asarray(affine.detach().cpu(), np.float64)
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    if "position_header" in meta:
        header = nib.Nifti1Header(np.asarray(meta["position_header"], np.uint8).tobytes())
    header.set_data_dtype(voxels.dtype)
    if voxels.dtype.kind in "iu":
        header.set_intent("label")
    image = nib.Nifti1Image(voxels, None, header)
    position = image.header.get_best_affine()
    position[:3] *= float(meta.get("mm_per_unit", 1.0))
    if not np.allclose(position, affine, rtol=0, atol=GRID_TOLERANCE_MM):
        raise RuntimeError(f"{meta['filename_or_obj']}: the output would not lie on the input's grid")
    return image


def _not_written(path: str | os.PathLike[str], error: OSError, state: str) -> InputError:
    found = f"could not be written ({error.strerror or error})"
    expected, remedy = "a folder with room for the file", "free some space or choose another output folder"
    if error.errno == errno.ENAMETOOLONG:
        expected, remedy = "a shorter name", "rename the input"
    return InputError(file=path, found=found, expected=expected, remedy=f"{remedy}; {state}")
