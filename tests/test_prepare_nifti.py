"""MM-WHS, BTCV and MS-CMRSeg: correct volumes under the published splits, known problems."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from releases import (
    CT_AFFINE,
    assert_is_truth,
    save,
    sections,
    true_image,
    true_label,
    world_of,
    write_btcv,
    write_mmwhs,
    write_mscmr,
)
from scripts.core.errors import InputError
from scripts.data.datalists import read_datalist
from scripts.lab.prepare.nifti_pairs import read_pair
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions


def run(dataset: str, source: Path, out: Path, protocol: str | None = None, **find: object) -> dict:
    return prepare(Preparation(dataset, source, out, protocol, find=SearchOptions(**find), workers=1))


def test_mmwhs_keeps_its_seven_values_and_both_frames(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001, 1003, 1005], mr=[1001, 1007, 1012])
    run("mmwhs", source, tmp_path / "out")
    values = [205, 420, 500, 550, 600, 820, 850]
    ct = assert_is_truth(tmp_path / "out", "ct", "ct_1001", 1, values)
    mr = assert_is_truth(tmp_path / "out", "mr", "mr_1001", 1, values)
    assert nib.aff2axcodes(ct.affine) == ("A", "R", "I")
    assert nib.aff2axcodes(mr.affine) == ("L", "P", "S")
    assert ct.header.get_zooms() == (2.0, 2.25, 3.0)
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_1001"], "validation": ["ct_1005"], "test": ["ct_1003"]}
    assert sections(tmp_path / "out", "mr") == {"training": ["mr_1001"], "validation": ["mr_1012"], "test": ["mr_1007"]}


def test_the_datalist_is_one_that_training_reads(tmp_path: Path) -> None:
    run("mmwhs", write_mmwhs(tmp_path / "in", ct=[1001, 1002], mr=[]), tmp_path / "out")
    items = read_datalist(str(tmp_path / "out" / "ct.json"), "training", needs_label=True, distinct_names=True)
    assert [Path(item["label"]).name for item in items] == ["ct_1001_label.nii.gz", "ct_1002_label.nii.gz"]


def test_a_stray_421_counts_as_left_atrium_and_is_reported(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    label = source / "ct_train" / "ct_train_1001_label.nii.gz"
    voxels = np.asarray(nib.load(label).dataobj).copy()
    voxels[tuple(np.argwhere(voxels == 420)[0])] = 421
    save(label, voxels, CT_AFFINE)
    report = run("mmwhs", source, tmp_path / "out")
    assert report["domains"]["ct"]["notes"]["ct_1001"] == ["1 voxels of stray label value 421 were mapped to 420"]
    assert_is_truth(tmp_path / "out", "ct", "ct_1001", 1, [205, 420, 500, 550, 600, 820, 850])


def test_junk_of_macos_is_no_case(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    (source / "ct_train" / "._ct_train_1002_image.nii.gz").write_bytes(b"junk")
    run("mmwhs", source, tmp_path / "out")
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_1001"]}


def test_btcv_has_four_organs_left_of_thirteen(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [1, 2, 36])
    run("btcv", source, tmp_path / "out")
    # In the files 6 is the liver, 2 and 3 are the kidneys, 1 is the spleen; the last four balls are other organs.
    assert_is_truth(tmp_path / "out", "ct", "ct_0002", 2, [1, 2, 3, 4, 0, 0, 0, 0])
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_0002"], "validation": ["ct_0036"], "test": ["ct_0001"]}
    assert json.loads((tmp_path / "out" / "ct.json").read_text())["labels"] == {
        "0": "background",
        "1": "liver",
        "2": "right kidney",
        "3": "left kidney",
        "4": "spleen",
    }


def change_label(source: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = source / "RawData" / "Training" / "label" / "label0002.nii.gz"
    save(path, change(np.asarray(nib.load(path).dataobj)).astype(np.uint8), CT_AFFINE)


def test_the_other_nine_organs_of_btcv_are_background_and_a_fourteenth_is_unknown(tmp_path: Path) -> None:
    """Gallbladder to adrenal glands, 4, 5 and 7 to 13, become 0; a value that the release does not have never does."""
    source = write_btcv(tmp_path / "in", [2])
    other = {6: 5, 2: 7, 3: 9, 1: 10, 4: 12, 8: 4, 11: 8}
    change_label(source, lambda label: np.vectorize(lambda value: other.get(int(value), int(value)))(label))
    run("btcv", source, tmp_path / "out")
    assert_is_truth(tmp_path / "out", "ct", "ct_0002", 2, [0] * 8)
    change_label(source, lambda label: np.where(label == 13, 14, label))
    with pytest.raises(InputError, match=r"label0002.nii.gz: label value\(s\) 14 \(\d+ voxels\)\. Expected only 0, 1"):
        run("btcv", source, tmp_path / "out")


@pytest.mark.parametrize("number", [0, 11, 20, 61])
def test_a_btcv_that_was_numbered_anew_is_refused(number: int, tmp_path: Path) -> None:
    """SABS counts the same thirty from 0 to 29: its 1, 9 and so on are other people than the published test cases."""
    source = write_btcv(tmp_path / "in", [2, number])
    with pytest.raises(InputError, match=rf"{number:04d}.nii.gz: case {number}\. Expected ids 1 to 10 and 21 to 40"):
        run("btcv", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_btcv_test_cases_have_no_labels_and_are_left_out(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [1, 2])
    world = world_of((20, 18, 15), CT_AFFINE)
    save(source / "RawData" / "Testing" / "img" / "img0061.nii.gz", true_image(world, 61), CT_AFFINE)
    run("btcv", source, tmp_path / "out")
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_0002"], "test": ["ct_0001"]}


def test_btcv_is_paired_by_number_not_by_order(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [2, 3])
    (source / "RawData" / "Training" / "label" / "label0002.nii.gz").unlink()
    with pytest.raises(InputError, match=r"img0002\.nii\.gz: no label map of its id"):
        run("btcv", source, tmp_path / "out")


def test_mscmr_keeps_its_oblique_axes_and_sorts_by_number(tmp_path: Path) -> None:
    labelled = {"C0": [6, 10, 1, 31], "LGE": [1], "T2": [6]}
    source = write_mscmr(tmp_path / "in", labelled, {"LGE": [6, 10], "C0": [36]})
    run("mscmr", source, tmp_path / "out")
    image = assert_is_truth(tmp_path / "out", "bssfp", "bssfp_10", 10, [1, 2, 3])
    assert image.header.get_zooms() == pytest.approx((2.0, 2.0, 8.0), abs=1e-5)
    # Each sequence on its own grid.
    lge = assert_is_truth(tmp_path / "out", "lge", "lge_01", 1, [1, 2, 3])
    t2 = assert_is_truth(tmp_path / "out", "t2", "t2_06", 6, [1, 2, 3])
    assert lge.header.get_zooms() == pytest.approx((1.5, 1.5, 5.0), abs=1e-5)
    assert t2.header.get_zooms() == pytest.approx((2.5, 2.5, 9.0), abs=1e-5)
    assert sections(tmp_path / "out", "bssfp") == {
        "training": ["bssfp_06", "bssfp_10"],
        "validation": ["bssfp_01"],
        "test": ["bssfp_31"],
        "test_unlabelled": ["bssfp_36"],
    }
    # The target's training images have no labels in the release, and need none.
    assert sections(tmp_path / "out", "lge") == {"training": ["lge_06", "lge_10"], "validation": ["lge_01"]}


def test_an_mscmr_in_the_order_of_acdc_is_refused(tmp_path: Path) -> None:
    """Copies that count 1 right ventricle, 2 myocardium, 3 left ventricle would exchange all three if taken as ours."""
    source = write_mscmr(tmp_path / "in", {"C0": [6]}, {})
    path = source / "patient6_C0_manual.nii.gz"
    label = nib.load(path)
    voxels = np.asarray(label.dataobj)
    save(path, np.select([voxels == 600, voxels == 200, voxels == 500], [1, 2, 3]).astype(np.int16), label.affine)
    with pytest.raises(
        InputError, match=r"value\(s\) 1 \(.*, 2 \(.*, 3 \(.*\. Expected only 0, 200, 500, 600\. Fix: .*--map"
    ):
        run("mscmr", source, tmp_path / "out")


def test_one_domain_alone(tmp_path: Path) -> None:
    source = write_mscmr(tmp_path / "in", {"C0": [6], "LGE": [6]}, {"T2": [6]})
    run("mscmr", source, tmp_path / "out", domain="lge")
    assert [path.name for path in sorted((tmp_path / "out").glob("*.json"))] == ["lge.json", "prepare.json"]


def test_qform_and_sform_that_disagree_are_noted_and_made_equal(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    for role in ("image", "label"):
        path = source / "ct_train" / f"ct_train_1001_{role}.nii.gz"
        image = nib.load(path)
        moved = CT_AFFINE.copy()
        moved[0, 3] += 7.0
        image = nib.Nifti1Image(np.asarray(image.dataobj), None)
        image.set_sform(CT_AFFINE, code=1)
        image.set_qform(moved, code=1)
        nib.save(image, path)
    report = run("mmwhs", source, tmp_path / "out")
    notes = report["domains"]["ct"]["notes"]["ct_1001"]
    assert notes[0] == "ct_train_1001_image.nii.gz: qform and sform differ by up to 7 mm; the sform was used"
    assert_is_truth(tmp_path / "out", "ct", "ct_1001", 1, [205, 420, 500, 550, 600, 820, 850])


def test_a_label_stored_along_other_axes_is_turned(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    path = source / "ct_train" / "ct_train_1001_label.nii.gz"
    nib.save(nib.as_closest_canonical(nib.load(path)), path)
    report = run("mmwhs", source, tmp_path / "out")
    assert "reoriented, no voxel changed" in report["domains"]["ct"]["notes"]["ct_1001"][0]
    assert_is_truth(tmp_path / "out", "ct", "ct_1001", 1, [205, 420, 500, 550, 600, 820, 850])


def move_label(source: Path) -> None:
    """Shift the header of the first label map by a voxel."""
    path = source / "ct_train" / "ct_train_1001_label.nii.gz"
    moved = CT_AFFINE.copy()
    moved[1, 3] += 2.0
    save(path, np.asarray(nib.load(path).dataobj), moved)


def test_a_label_on_another_grid_is_refused_unless_the_image_is_trusted(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    move_label(source)
    with pytest.raises(InputError, match=r"differs by up to 2 mm.*ct_train_1001_image.*'--trust image'"):
        run("mmwhs", source, tmp_path / "out")
    report = run("mmwhs", source, tmp_path / "out", trust_image=True)
    assert "differed by up to 2 mm; the image's was used" in report["domains"]["ct"]["notes"]["ct_1001"][0]
    assert_is_truth(tmp_path / "out", "ct", "ct_1001", 1, [205, 420, 500, 550, 600, 820, 850])


@pytest.mark.parametrize(("gap_mm", "is_one_grid"), [(9e-4, True), (2e-3, False)])
def test_grids_agree_within_a_thousandth_of_a_millimetre_wherever_they_lie(
    gap_mm: float, is_one_grid: bool, tmp_path: Path
) -> None:
    """Half a metre from the origin, a share of the offset would be five times the tolerance."""
    affine, moved = CT_AFFINE.copy(), CT_AFFINE.copy()
    affine[:3, 3] += 500
    moved[:3, 3] = affine[:3, 3] + gap_mm
    image = save(tmp_path / "image.nii.gz", true_image(world_of((20, 18, 15), CT_AFFINE), 1), affine)
    label = save(tmp_path / "label.nii.gz", np.zeros((20, 18, 15), np.uint8), moved)
    fault = pytest.raises(InputError, match=r"label.nii.gz: an affine that differs by up to 0.00\d+ mm")
    with nullcontext() if is_one_grid else fault:
        assert read_pair(image, label).label is not None


def interpolate(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_label.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).astype(np.float32)
    save(path, (voxels + np.roll(voxels, 1, axis=0)) / 2, CT_AFFINE)


def unknown(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_label.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).copy()
    voxels[:2, 0, 0] = 421 + 3
    save(path, voxels, CT_AFFINE)


def cut(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def four_dimensional(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj)
    save(path, np.stack([voxels, voxels], axis=-1), CT_AFFINE)


def window(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj)
    save(path, np.clip(voxels, 0, 255).astype(np.uint8), CT_AFFINE)


def not_a_number(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    voxels = np.asarray(nib.load(path).dataobj).astype(np.float32)
    voxels[0, 0, 0] = np.nan
    save(path, voxels, CT_AFFINE)


def constant(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    save(path, np.full(nib.load(path).shape, -1000, np.int16), CT_AFFINE)


def other_shape(source: Path) -> None:
    path = source / "ct_train" / "ct_train_1001_label.nii.gz"
    save(path, np.asarray(nib.load(path).dataobj)[..., :-1], CT_AFFINE)


def no_label(source: Path) -> None:
    (source / "ct_train" / "ct_train_1001_label.nii.gz").unlink()


def not_gzip(source: Path) -> None:
    (source / "ct_train" / "ct_train_1001_image.nii.gz").write_text("<html>please log in</html>" * 40)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_label, r"1001_image.nii.gz: no label map of its id\. Expected names such as ct_train_1001"),
        (unknown, r"1001_label.nii.gz: label value\(s\) 424 \(2 voxels\)\. Expected only 0, 205, 420, 421, 500"),
        (interpolate, r"1001_label.nii.gz: \d+ voxels whose label is not a 32-bit integer|label value\(s\)"),
        (cut, r"1001_image.nii.gz: data that cannot be read \(EOFError"),
        (not_gzip, r"1001_image.nii.gz: no NIfTI \("),
        (four_dimensional, r"4 dimensions \(20, 18, 15, 2\)\. Expected a 3D volume"),
        (window, r"intensities from 0 to 255\. Expected Hounsfield units, from -200 or less to 100 or more"),
        (not_a_number, "NaN or infinite values"),
        (constant, r"one value everywhere \(-1000\)"),
        (other_shape, r"a label of \(20, 18, 14\) voxels\. Expected \(20, 18, 15\) as in .*1001_image"),
        (move_label, "an affine that differs by up to 2 mm"),
    ],
)
def test_a_bad_case_gets_a_sentence_and_leaves_nothing(damage, message: str, tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001, 1002], mr=[])
    damage(source)
    with pytest.raises(InputError, match=message):
        run("mmwhs", source, tmp_path / "out")
    # The other case is done; of the bad one there is nothing, and no datalist.
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "ct_1002.json",
        "ct_1002_image.nii.gz",
        "ct_1002_label.nii.gz",
    ]


def test_two_volumes_with_one_id(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    copy = source / "copy" / "ct_train_1001_image.nii"
    copy.parent.mkdir()
    copy.write_bytes(gzip.decompress((source / "ct_train" / "ct_train_1001_image.nii.gz").read_bytes()))
    with pytest.raises(InputError, match=r"a second image of ct case 1001, beside .*\. Expected one file per id"):
        run("mmwhs", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_label_without_its_image(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001, 1002], mr=[])
    (source / "ct_train" / "ct_train_1002_image.nii.gz").unlink()
    with pytest.raises(InputError, match=r"ct_train_1002_label.nii.gz: no image of its id"):
        run("mmwhs", source, tmp_path / "out")


@pytest.mark.parametrize("dataset", ["mmwhs", "mscmr", "chaos", "sifa"])
def test_a_tree_that_is_another_data_set(dataset: str, tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "in", [1])
    with pytest.raises(InputError, match=r"other files \(RawData/Training/img/img0001.nii.gz, .*\. Expected"):
        run(dataset, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        run("btcv", tmp_path / "nowhere", tmp_path / "out")


def test_a_header_with_a_scale_is_applied(tmp_path: Path) -> None:
    """A reader that ignores scl_slope and scl_inter would see 0 to 255."""
    world = world_of((20, 18, 15), CT_AFFINE)
    stored = np.clip((true_image(world, 2) + 1000) / 8, 0, 255).astype(np.uint8)
    image = nib.Nifti1Image(stored, CT_AFFINE)
    image.header.set_slope_inter(8.0, -1000.0)
    path = tmp_path / "in" / "img0002.nii.gz"
    path.parent.mkdir()
    nib.save(image, path)
    save(tmp_path / "in" / "label0002.nii.gz", true_label(world, [6]), CT_AFFINE)
    run("btcv", tmp_path / "in", tmp_path / "out")
    written = nib.load(tmp_path / "out" / "ct" / "ct_0002_image.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), stored * 8.0 - 1000.0)
    assert written.get_data_dtype() == np.float32


def test_mmwhs_test_cases_without_labels_are_left_out(tmp_path: Path) -> None:
    """The release has ``ct_test_2001_image.nii.gz`` ... without label maps, or with encrypted ones."""
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    (source / "ct_test").mkdir()
    image = source / "ct_train" / "ct_train_1001_image.nii.gz"
    (source / "ct_test" / "ct_test_2001_image.nii.gz").write_bytes(image.read_bytes())
    run("mmwhs", source, tmp_path / "out")
    assert sections(tmp_path / "out", "ct")["training"] == ["ct_1001"]
    assert not list((tmp_path / "out").rglob("*2001*"))


def test_a_labels_header_has_no_scale_of_its_image(tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[])
    path = source / "ct_train" / "ct_train_1001_image.nii.gz"
    image = nib.load(path)
    stored = (np.asarray(image.dataobj).astype(np.int16) + 1024) // 2
    scaled = nib.Nifti1Image(stored, image.affine)
    scaled.header.set_slope_inter(2, -1024)
    nib.save(scaled, path)
    run("mmwhs", source, tmp_path / "out")
    label = nib.load(tmp_path / "out" / "ct" / "ct_1001_label.nii.gz")
    assert (label.dataobj.slope, label.dataobj.inter) == (1.0, 0.0)
