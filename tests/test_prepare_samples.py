"""Real files of the public releases, if a copy is beside the checkout; nothing is kept."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from scripts.lab.prepare.dicom_folders import read_series
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.sifa import read_record_slice
from scripts.lab.prepare.source_case import SearchOptions

FORMATS = ROOT.parent / "shared" / "data" / "formats"
pytestmark = pytest.mark.skipif(not FORMATS.is_dir(), reason="no samples of the public releases beside the checkout")


def test_chaos_ct_case_3(tmp_path: Path) -> None:
    (tmp_path / "in" / "CT").mkdir(parents=True)
    (tmp_path / "in" / "CT" / "3").symlink_to(FORMATS / "chaos_ct_dicom")
    prepare(Preparation("chaos", tmp_path / "in", tmp_path / "out"))
    image = nib.load(tmp_path / "out" / "ct_liver" / "ct_liver_03_image.nii.gz")
    label = np.asarray(nib.load(tmp_path / "out" / "ct_liver" / "ct_liver_03_label.nii.gz").dataobj)
    assert image.shape == (512, 512, 40)
    assert image.header.get_zooms() == pytest.approx((0.7265625, 0.7265625, 2.0))  # SliceThickness says 3.2
    # Only the right transposition and order of the masks gives the liver's HU: elsewhere it is 36 and less.
    liver = np.asarray(image.dataobj)[label == 1]
    assert liver.mean() == pytest.approx(141, abs=3)
    assert liver.std() == pytest.approx(34, abs=3)


def test_a_jpeg_2000_series_with_empty_uids() -> None:
    series = read_series(FORMATS / "small_ct_mr" / "example_ct_dicom")
    assert series.image.shape == (512, 512, 20)
    assert np.linalg.norm(series.affine[:3, :3], axis=0) == pytest.approx((0.9765625, 0.9765625, 2.0))
    assert series.image.min() == -1024
    assert series.order[0] == 19  # positions decrease with the file names


@pytest.mark.parametrize("name", ["training_ct", "training_mr", "validation_ct", "validation_mr"])
def test_sifas_records(name: str) -> None:
    image, label = read_record_slice(FORMATS / "sifa" / name / "image_01.tfrecords")
    assert image.shape == label.shape == (256, 256)
    assert set(np.unique(label)) <= {0, 1, 2, 3, 4, 5}
    assert -2.0 < image.min() < image.max() < 3.0


def test_sifas_archive_shows_the_record_of_the_same_slice(tmp_path: Path) -> None:
    """The sample archive is a training slice, so the flip for test volumes turns it against the record."""
    for name in ("training_mr", "validation_mr", "training_ct", "validation_ct"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(FORMATS / "sifa" / name)
    (tmp_path / "in" / "test_mr").mkdir()
    (tmp_path / "in" / "test_mr" / "mr_1.npz").symlink_to(FORMATS / "sifa" / "image_01.npz")
    report = prepare(Preparation("sifa", tmp_path / "in", tmp_path / "out"))
    record = np.asarray(nib.load(tmp_path / "out" / "mr" / "mr_training_000_image.nii.gz").dataobj)[..., 0]
    archive = np.asarray(nib.load(tmp_path / "out" / "mr" / "mr_1_image.nii.gz").dataobj)[..., 1]
    assert np.array_equal(archive[::-1, ::-1], record)
    notes = [note for notes in report["domains"]["mr"]["notes"].values() for note in notes]
    assert any("stray label value 5 were mapped to 0" in note for note in notes)


def test_small_ct_and_mr_as_folders(tmp_path: Path) -> None:
    """One CT in RAS and one MR in LPS, with the same ids: both keep their own frame and say so."""
    codes = {"ct": ("R", "A", "S"), "mr": ("L", "P", "S")}
    for domain, image, label in (("ct", "example_ct_sm", "example_seg"), ("mr", "example_mr_sm", "example_seg_mr")):
        for kind, name in (("images", image), ("labels", label)):
            (tmp_path / domain / kind).mkdir(parents=True)
            (tmp_path / domain / kind / "case.nii.gz").symlink_to(FORMATS / "small_ct_mr" / f"{name}.nii.gz")
        find = SearchOptions(domain=domain, labels=tmp_path / domain / "labels", validation=0.0)
        label_map = tmp_path / "map.yaml"
        values = np.unique(np.asarray(nib.load(tmp_path / domain / "labels" / "case.nii.gz").dataobj))
        pairs = {int(value): {5: 1, 2: 2, 3: 3, 1: 4}.get(int(value), 0) for value in values}
        label_map.write_text(str(pairs))
        prepare(
            Preparation("folder", tmp_path / domain / "images", tmp_path / "out", label_map=str(label_map), find=find)
        )
        written = nib.load(tmp_path / "out" / domain / "case_image.nii.gz")
        assert nib.aff2axcodes(written.affine) == codes[domain]
        assert written.header.get_zooms() == pytest.approx((3, 3, 3))
        organs = np.asarray(nib.load(tmp_path / "out" / domain / "case_label.nii.gz").dataobj)
        assert set(np.unique(organs)) == {0, 1, 2, 3, 4}
