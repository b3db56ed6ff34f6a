"""Personal data: what may name a patient in a file is never copied."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from releases import CT_AFFINE, assert_is_truth, write_btcv
from scripts.lab.prepare.run import Preparation, prepare


def run(dataset: str, source: Path, out: Path) -> dict:
    return prepare(Preparation(dataset, source, out, workers=1))


def placed(path: Path, **fields: object) -> nib.Nifti1Image:
    """The image of a file with both forms set and a unit, as a preparation writes it."""
    image = nib.load(path)
    image.set_qform(CT_AFFINE, code=1)
    image.set_sform(CT_AFFINE, code=1)
    image.header.set_xyzt_units("mm")
    for name, value in fields.items():
        image.header[name] = value
    return image


def test_an_image_that_needs_no_change_is_copied_without_packing_it_anew(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [2, 3])
    path = source / "RawData" / "Training" / "img" / "img0002.nii.gz"
    content = placed(path).to_bytes()
    with gzip.GzipFile("Doe_Jane.nii", "wb", 9, path.open("wb"), mtime=7) as file:
        file.write(content)
    assert b"Doe_Jane" in path.read_bytes()
    run("btcv", source, tmp_path / "out")
    written = [tmp_path / "out" / "ct" / f"ct_000{number}_image.nii.gz" for number in (2, 3)]
    # The packed voxels are the same; the name and the time of the file that was packed are gone.
    assert written[0].read_bytes()[10:] == path.read_bytes()[10 + len(b"Doe_Jane.nii\0") :]
    assert written[0].read_bytes()[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, *path.read_bytes()[8:10]])
    assert gzip.decompress(written[0].read_bytes()) == content
    # The other has an sform alone and is written anew, with both.
    assert written[1].read_bytes()[10:] != path.with_name("img0003.nii.gz").read_bytes()[10:]
    assert_is_truth(tmp_path / "out", "ct", "ct_0002", 2, [1, 2, 3, 4, 0, 0, 0, 0])
    assert_is_truth(tmp_path / "out", "ct", "ct_0003", 3, [1, 2, 3, 4, 0, 0, 0, 0])


def test_text_that_may_name_a_patient_is_left_out_and_said(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [2])
    path = source / "RawData" / "Training" / "img" / "img0002.nii.gz"
    image = placed(path, descrip=b"Doe^Jane", db_name=b"Doe")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane 1950"))
    nib.save(image, path)
    report = run("btcv", source, tmp_path / "out")
    said = "img0002.nii.gz: descrip, db_name, 1 extension(s) of the header removed, because free text can contain names"
    assert said in report["domains"]["ct"]["notes"]["ct_0002"]
    written = gzip.decompress((tmp_path / "out" / "ct" / "ct_0002_image.nii.gz").read_bytes())
    assert b"Doe" not in written
    assert not any(b"Doe" in file.read_bytes() for file in (tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize("place", ["data type", "before the voxels", "after the voxels", "second member"])
def test_text_beside_header_and_voxels_is_left_out(place: str, tmp_path: Path) -> None:
    """An unused field, a gap of 16 bytes between header and voxels (352 to 368), and bytes after the voxels."""
    source = write_btcv(tmp_path / "in", [2])
    path = source / "RawData" / "Training" / "img" / "img0002.nii.gz"
    image = placed(path, **({"data_type": b"Doe^Jane"} if place == "data type" else {}))
    content = image.to_bytes()
    if place == "before the voxels":
        moved = content[:108] + np.float32(368).tobytes() + content[112:352]  # vox_offset
        content = moved + b"Doe^Jane".ljust(16, b"\0") + content[352:]
    elif place == "after the voxels":
        content += b"Doe^Jane"
    packed = gzip.compress(content)
    path.write_bytes(packed + gzip.compress(b"Doe^Jane") if place == "second member" else packed)
    assert b"Doe" in gzip.decompress(path.read_bytes())
    run("btcv", source, tmp_path / "out")
    assert b"Doe" not in gzip.decompress((tmp_path / "out" / "ct" / "ct_0002_image.nii.gz").read_bytes())
    assert_is_truth(tmp_path / "out", "ct", "ct_0002", 2, [1, 2, 3, 4, 0, 0, 0, 0])
