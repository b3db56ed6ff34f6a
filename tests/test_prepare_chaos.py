"""CHAOS: DICOM and PNG masks read together, masks at their slices, grey values to organs, known problems."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from releases import CHAOS_GREY, assert_is_truth, chaos_geometry, sections, write_chaos_ct, write_chaos_mr
from scripts.core.errors import InputError
from scripts.data.case_names import natural_order
from scripts.lab.prepare.outputs import print_report
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions
from skimage.io import imread, imsave


def chaos(source: Path, out: Path, **find: object) -> dict:
    return prepare(Preparation("chaos", source, out, find=SearchOptions(**find), workers=1))


def test_chaos_ct_has_its_masks_at_the_right_slices(tmp_path: Path) -> None:
    source = write_chaos_ct(write_chaos_ct(tmp_path / "in", 5), 27)
    chaos(source, tmp_path / "out")
    image = assert_is_truth(tmp_path / "out", "ct_liver", "ct_liver_05", 5, [1])
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == pytest.approx((1.5, 2.0, 40 / 11))  # not 3.2
    assert sections(tmp_path / "out", "ct_liver") == {"training": ["ct_liver_05"], "validation": ["ct_liver_27"]}


def test_chaos_mr_has_three_domains_that_do_not_mix(tmp_path: Path) -> None:
    source = write_chaos_mr(write_chaos_mr(write_chaos_mr(tmp_path / "in", 1), 2), 36)
    chaos(source, tmp_path / "out")
    for domain, extra in (("mr", 1000), ("mr_t1_in", 1000), ("mr_t1_out", 1050)):
        assert_is_truth(tmp_path / "out", domain, f"{domain}_02", 2, [1, 2, 3, 4], shift=extra)
        assert sections(tmp_path / "out", domain) == {
            "training": [f"{domain}_02"],
            "validation": [f"{domain}_36"],
            "test": [f"{domain}_01"],
        }


def test_series_that_are_missing_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Case 2 without its out-of-phase series; case 3 with both phases in one folder, as some copies have them."""
    source = write_chaos_mr(write_chaos_mr(write_chaos_mr(tmp_path / "in", 1), 2), 3)
    shutil.rmtree(source / "Train_Sets/MR/2/T1DUAL/DICOM_anon/OutPhase")
    dual = source / "Train_Sets/MR/3/T1DUAL/DICOM_anon"
    for path in sorted(dual.glob("*/*.dcm")):
        path.rename(dual / path.name)
    report = chaos(source, tmp_path / "out")
    assert report["missing_series"] == {"mr_t1_in": [3], "mr_t1_out": [2, 3]}
    print_report(tmp_path / "out", report)
    assert "mr_t1_out: no volume of 2, 3, although other series of these patients exist" in capsys.readouterr().out
    assert chaos(source, tmp_path / "other", domain="mr")["missing_series"] == {}
    whole = chaos(write_chaos_mr(tmp_path / "whole", 1), tmp_path / "third")
    assert whole["missing_series"] == {}


def test_chaos_test_cases_have_no_masks_and_are_left_out(tmp_path: Path) -> None:
    source = write_chaos_mr(tmp_path / "in", 2)
    (source / "Train_Sets").rename(source / "Test_Sets")
    with pytest.raises(InputError, match="Expected CHAOS: folders such as MR/1/T2SPIR/DICOM_anon"):
        chaos(source, tmp_path / "out")


GREY_RANGES = {"liver": (55, 70), "right kidney": (110, 135), "left kidney": (175, 200), "spleen": (240, 255)}


def paint(source: Path, organ: str, grey: int) -> None:
    """Give an organ another grey value in all masks of case 2."""
    usual = CHAOS_GREY[list(GREY_RANGES).index(organ)]
    for file in (source / "Train_Sets/MR/2/T2SPIR/Ground").iterdir():
        picture = imread(file)
        imsave(file, np.where(picture == usual, grey, picture).astype(np.uint8), check_contrast=False)


@pytest.mark.parametrize("organ", list(GREY_RANGES))
def test_chaos_grey_values_are_ranges_that_end_where_the_organisers_say(organ: str, tmp_path: Path) -> None:
    """The lower end is exclusive, the upper inclusive; values outside are refused and do not become background."""
    source, (above, up_to) = write_chaos_mr(tmp_path / "in", 2), GREY_RANGES[organ]
    for grey in (above + 1, up_to):
        paint(source, organ, grey)
        chaos(source, tmp_path / "out", domain="mr")
        assert_is_truth(tmp_path / "out", "mr", "mr_02", 2, [1, 2, 3, 4], shift=1000)
        source = write_chaos_mr(tmp_path / "in", 2)
    for grey in (above, *([up_to + 1] if up_to < 255 else [])):
        paint(source, organ, grey)
        with pytest.raises(InputError, match=rf"label value\(s\) {grey} \(\d+ voxels\)\. Expected only 0, above"):
            chaos(source, tmp_path / "out", domain="mr")
        source = write_chaos_mr(tmp_path / "in", 2)


def test_masks_follow_the_files_upwards_too(tmp_path: Path) -> None:
    """Whether masks must be reversed is read off the positions of each series, as some run upwards by their names."""
    source = write_chaos_ct(tmp_path / "in", 5)
    for folder in ("DICOM_anon", "Ground"):
        files = sorted((source / "Train_Sets/CT/5" / folder).iterdir(), key=natural_order)
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, reversed(contents), strict=True):
            file.write_bytes(content)
    chaos(source, tmp_path / "out")
    assert_is_truth(tmp_path / "out", "ct_liver", "ct_liver_05", 5, [1])


def test_masks_of_one_bit_may_be_0_and_255(tmp_path: Path) -> None:
    """Some readers and copies give liver as true, some as 255: one class either way."""
    source = write_chaos_ct(tmp_path / "in", 5)
    for file in (source / "Train_Sets/CT/5/Ground").iterdir():
        imsave(file, (imread(file) > 0).astype(np.uint8) * 255, check_contrast=False)
    chaos(source, tmp_path / "out")
    assert_is_truth(tmp_path / "out", "ct_liver", "ct_liver_05", 5, [1])


def change_mask(source: Path, change) -> None:
    file = source / "Train_Sets/MR/2/T2SPIR/Ground/IMG-0004-00004.png"
    imsave(file, change(imread(file)).astype(np.uint8), check_contrast=False)


def grey_55(source: Path) -> None:
    change_mask(source, lambda picture: np.where(picture > 0, 55, picture))


def smaller(source: Path) -> None:
    change_mask(source, lambda picture: picture[:, :-4])


def coloured(source: Path) -> None:
    change_mask(source, lambda picture: np.stack([picture] * 3, axis=-1))


def one_fewer(source: Path) -> None:
    (source / "Train_Sets/MR/2/T2SPIR/Ground/IMG-0004-00004.png").unlink()


def none(source: Path) -> None:
    for file in (source / "Train_Sets/MR/2/T2SPIR/Ground").iterdir():
        file.unlink()
    (source / "Train_Sets/MR/2/T2SPIR/Ground").rmdir()


def no_picture(source: Path) -> None:
    (source / "Train_Sets/MR/2/T2SPIR/Ground/IMG-0004-00004.png").write_bytes(b"\x89PNG cut")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (grey_55, r"label value\(s\) 55 \(\d+ voxels\)\. Expected only 0, above 55 up to 70, above 110 up to 135"),
        (smaller, r"00004.png: a mask of shape \(24, 26\)\. Expected \(24, 30\) \(rows, columns\)"),
        (coloured, r"00004.png: a mask of shape \(24, 30, 3\)"),
        (one_fewer, "10 PNG masks. Expected 11, one per DICOM file"),
        (none, r"Ground: no such folder\. Expected 11"),
        (no_picture, r"00004.png: a picture that cannot be read"),
    ],
)
def test_bad_masks_are_refused(damage, message: str, tmp_path: Path) -> None:
    source = write_chaos_mr(tmp_path / "in", 2)
    damage(source)
    with pytest.raises(InputError, match=message):
        chaos(source, tmp_path / "out", domain="mr")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_two_chaos_folders_of_one_id(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_chaos_ct(source / "a", 5)
    write_chaos_ct(source / "b", 5)
    with pytest.raises(InputError, match="a second series of ct_liver case 5"):
        chaos(source, tmp_path / "out")


def test_the_generator_runs_downwards() -> None:
    """The trap is real: in file order, CHAOS's CT runs from head to feet."""
    assert chaos_geometry(12)["axes"][2].tolist() == [0, 0, -1]
