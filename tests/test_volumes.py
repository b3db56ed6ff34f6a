"""Loading of volumes with checks, label values to classes, and removal of the CT table."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import FILE_VALUES, MR_AFFINE, write_volume
from monai.data import MetaTensor
from monai.transforms import Compose
from scripts.core.errors import InputError, find_input_error
from scripts.data.geometry import AFFINE_TOLERANCE_MM
from scripts.data.nifti import QFORM_TOLERANCE_MM, qform_gap_mm
from scripts.data.volumes import CheckedLoadImaged, KeepBodyd, LabelsToClassesd, report_structures

RAMP = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)


def load(**paths: Path) -> dict[str, MetaTensor]:
    return CheckedLoadImaged(keys=list(paths))({key: str(path) for key, path in paths.items()})


def test_an_axis_of_one_time_point_is_no_fourth_dimension(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7, 1)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    path = write_volume(tmp_path / "image.nii.gz", voxels, affine)
    image = CheckedLoadImaged(keys="image")({"image": str(path)})["image"]
    assert image.shape == (5, 6, 7)
    np.testing.assert_array_equal(np.asarray(image), voxels[..., 0])
    np.testing.assert_array_equal(np.asarray(image.affine), affine)


def test_a_volume_comes_with_its_affine(tmp_path: Path) -> None:
    image = load(image=write_volume(tmp_path / "a.nii.gz", RAMP, MR_AFFINE))["image"]
    assert image.shape == (4, 5, 6)
    np.testing.assert_array_equal(np.asarray(image), RAMP)
    np.testing.assert_allclose(np.asarray(image.affine), MR_AFFINE)
    assert image.meta["filename_or_obj"] == str(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("entry", [(0, 3), (2, 2), (0, 1)], ids=["origin", "spacing", "direction"])
@pytest.mark.parametrize(("gap_mm", "is_one_grid"), [(9e-4, True), (1.1e-3, False), (8e-3, False)])
def test_grids_agree_within_a_thousandth_of_a_millimetre(
    entry: tuple[int, int], gap_mm: float, is_one_grid: bool, tmp_path: Path
) -> None:
    """Tools differ in the last digits of a header, 4.99998 for 5; a hundredth in a spacing is voxels at the far end.

    Half a metre from the origin, as a gap is no share of where the volume lies.
    """
    affine = MR_AFFINE.copy()
    affine[:3, 3] += 500
    moved = affine.copy()
    moved[entry] += gap_mm
    image = write_volume(tmp_path / "a.nii.gz", RAMP, affine)
    label = write_volume(tmp_path / "b.nii", np.zeros_like(RAMP), moved)
    if is_one_grid:
        assert load(image=image, label=label)["label"].shape == (4, 5, 6)
    else:
        with pytest.raises(InputError, match=r"b.nii: an affine that differs by up to 0.00\d+ mm\. Expected .*a.nii"):
            load(image=image, label=label)


def test_a_quaternion_that_is_rounded_is_no_second_position() -> None:
    """In single precision it turns axes that are straight but for a tenth of a degree by hundredths of one."""
    angle = np.deg2rad(0.06)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = affine[[0, 2, 1], :3][:, [0, 2, 1]] @ np.diag([-1.25, 1.25, 7.7])
    file = nib.Nifti1Image(RAMP, affine)
    file.set_sform(affine, code=1)
    file.set_qform(affine, code=1)
    read = nib.Nifti1Header.from_fileobj(BytesIO(file.header.binaryblock))
    assert AFFINE_TOLERANCE_MM < qform_gap_mm(read) < QFORM_TOLERANCE_MM


@pytest.mark.parametrize(("values", "found"), [([-1.0, 1.0], "values -1 to 1"), ([0.0, 255.0], "values 0 to 255")])
def test_a_ct_without_air_and_fat_has_another_unit(values: list[float], found: str) -> None:
    """Scaled or stored in 8 bits, it would be one grey in a window of Hounsfield units, all of it patient."""
    image = torch.full((1, 16, 16, 3), values[0])
    image[:, 4:12, 4:12] = values[1]
    volume = MetaTensor(image, affine=torch.eye(4))
    with pytest.raises(InputError, match=rf"no air and no fat: no value below -50, {found}\. Expected a CT in HU"):
        KeepBodyd("image", threshold=-110.0)({"image": volume})


def test_a_missing_key_may_be_allowed(tmp_path: Path) -> None:
    path = str(write_volume(tmp_path / "a.nii.gz", RAMP))
    assert sorted(CheckedLoadImaged(["image", "label"], allow_missing_keys=True)({"image": path})) == ["image"]
    with pytest.raises(KeyError):
        CheckedLoadImaged(["image", "label"])({"image": path})


def write_damaged(path: Path, kind: str) -> Path:
    """A file that is wrong in the way named."""
    with_nan, with_infinity = RAMP.astype(np.float32), RAMP.astype(np.float32)
    with_nan[1, 2, 3], with_infinity[3, 2, 1] = np.nan, np.inf
    voxels = {
        "NaN": with_nan,
        "infinite": with_infinity,
        "constant": np.full((4, 5, 6), 7, np.int16),
        "4D": np.stack([RAMP, RAMP], -1),
        "2D": RAMP[..., 0],
        "one slice": RAMP[..., :1],
    }
    if kind in voxels:
        return write_volume(path, voxels[kind])
    if kind == "text":
        path.write_text("not an image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        whole = write_volume(path, np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16))
        path.write_bytes(whole.read_bytes()[:-4000])
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "no such file. Expected a NIfTI volume. Fix: correct the path"),
        ("text", "no NIfTI .*Expected a NIfTI volume. Fix: convert the volume"),
        ("empty", "no NIfTI"),
        ("folder", "no"),
        ("truncated", "data that cannot be read .*Expected complete NIfTI files. Fix: copy or export"),
        ("4D", r"4 dimensions \(4, 5, 6, 2\)\. Expected a 3D volume.*\. Fix: split a 4D file"),
        ("2D", r"2 dimensions \(4, 5\)\. Expected a 3D volume.*stack 2D files"),
        ("one slice", r"3 dimensions \(4, 5, 1\)\. Expected .*at least 2 voxels each way"),
        ("NaN", "NaN or infinite values. Expected finite ones. Fix: export"),
        ("infinite", "NaN or infinite values. Expected finite ones. Fix: export"),
        ("constant", r"one value everywhere \(7\)\. Expected an image\. Fix: leave this case out"),
    ],
)
def test_what_cannot_be_segmented_gets_a_sentence(tmp_path: Path, kind: str, match: str, suffix: str) -> None:
    path = write_damaged(tmp_path / f"bad{suffix}", kind)
    with pytest.raises(InputError, match=match) as caught:
        load(image=path)
    assert str(path) in caught.value.file


def test_an_empty_label_map_is_no_constant_image(tmp_path: Path) -> None:
    image = write_volume(tmp_path / "a.nii", RAMP)
    label = write_volume(tmp_path / "b.nii", np.zeros_like(RAMP))
    assert not load(image=image, label=label)["label"].any()


@pytest.mark.parametrize(
    ("shape", "shift_mm", "match"),
    [
        ((4, 5, 7), 0.0, r"a label of \(4, 5, 7\) voxels\. Expected \(4, 5, 6\) as in .*image.nii\. Fix: resample"),
        ((4, 5, 6), 3.0, r"an affine that differs by up to 3 mm\. Expected the affine of .*image.nii\. Fix: resample"),
    ],
)
def test_a_label_on_another_grid_gets_a_sentence(
    tmp_path: Path, shape: tuple[int, ...], shift_mm: float, match: str
) -> None:
    affine = MR_AFFINE.copy()
    affine[0, 3] += shift_mm
    image = write_volume(tmp_path / "image.nii", RAMP, MR_AFFINE)
    label = write_volume(tmp_path / "label.nii", np.zeros(shape, np.int16), affine)
    with pytest.raises(InputError, match=match) as caught:
        load(image=image, label=label)
    assert caught.value.file == str(label)


def test_the_error_survives_the_composition(tmp_path: Path) -> None:
    path = write_damaged(tmp_path / "bad.nii", "NaN")
    with pytest.raises(RuntimeError, match="applying transform") as caught:
        Compose([CheckedLoadImaged("image")])({"image": str(path)})
    assert str(find_input_error(caught.value)).startswith(f"{path}: NaN")


def test_values_of_the_file_become_classes() -> None:
    label = torch.tensor([0, 205, 420, 500, 820, 600, 550, 205]).view(1, 2, 2, 2)
    mapped = LabelsToClassesd("label", label_values=FILE_VALUES, background_values=[550, 600])({"label": label})
    assert mapped["label"].flatten().tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
    assert mapped["label"].dtype == torch.uint8
    assert label.max() == 820  # the input is untouched


def test_values_that_are_classes_of_another_number_do_not_chain() -> None:
    # 1 becomes 2 and 2 becomes 1: no value may pass through two mappings.
    label = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
    mapped = LabelsToClassesd("label", label_values=[2, 1], background_values=[0, 3])({"label": label})
    assert mapped["label"].flatten().tolist() == [0, 2, 1, 0]


def test_an_unknown_value_gets_a_sentence_with_file_value_and_list(tmp_path: Path) -> None:
    voxels = np.zeros((4, 5, 6), np.int16)
    voxels[0, 0, :3] = [205, 421, 1]
    path = write_volume(tmp_path / "label.nii.gz", voxels)
    transform = LabelsToClassesd("label", label_values=FILE_VALUES, background_values=[600])
    with pytest.raises(InputError, match=r"label value\(s\) 1, 421\. Expected only 0, 205, 420, 500") as caught:
        transform(load(label=path))
    assert caught.value.file == str(path)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.float64])
def test_label_values_that_single_precision_rounds_are_refused(dtype: type, tmp_path: Path) -> None:
    """2^24 + 1 would be loaded as 2^24, another value; 2^24 - 1 is exact."""
    voxels = np.zeros((4, 5, 6), dtype)
    voxels[0, 0, 0] = 2**24 - 1
    assert load(label=write_volume(tmp_path / "good.nii.gz", voxels))["label"].max() == 2**24 - 1
    voxels[0, 0, 0] = 2**24 + 1
    with pytest.raises(InputError, match=r"label values from 0 to 16777216\. Expected values within 16777215 of 0"):
        load(label=write_volume(tmp_path / "large.nii.gz", voxels))


def test_a_missing_label_may_be_allowed() -> None:
    transform = LabelsToClassesd("label", label_values=[1], allow_missing_keys=True)
    assert transform({"image": 0}) == {"image": 0}


def test_table_and_air_become_the_images_minimum() -> None:
    image = torch.full((1, 32, 32, 3), -1000.0)
    image[:, 6:26, 4:22] = 30.0
    image[:, 14:17, 10:13] = -950.0  # air within: kept
    image[:, 2:30, 28:31] = 300.0  # the table
    volume = MetaTensor(image, affine=torch.eye(4))
    kept = KeepBodyd("image", threshold=-300.0)({"image": volume})["image"]
    assert isinstance(kept, MetaTensor)
    assert (kept[:, :, 26:] == -1000.0).all()
    assert kept[0, 15, 11, 1] == -950.0
    assert kept[0, 10, 10, 1] == 30.0
    assert image[0, 10, 29, 0] == 300.0  # the input is untouched


def test_a_volume_without_a_patient_is_refused() -> None:
    """Noise around 0 has no piece that stays after an opening; an MR of small values given as CT looks like it."""
    noise = MetaTensor(torch.randn(1, 32, 32, 3), affine=torch.eye(4))
    with pytest.raises(
        InputError, match=r"'image': no patient: no piece of tissue above 100, values -.* Expected a CT"
    ):
        KeepBodyd("image", threshold=100.0)({"image": noise})


def test_big_endian_and_scaled_files_are_read(tmp_path: Path) -> None:
    # Values on disk times 2 minus 1024, big-endian: what a scanner's export may look like.
    file = nib.Nifti1Image(RAMP.astype(">i2"), np.eye(4), nib.Nifti1Header(endianness=">"))
    file.header.set_slope_inter(2, -1024)
    nib.save(file, tmp_path / "a.nii")
    image = load(image=tmp_path / "a.nii")["image"]
    np.testing.assert_allclose(np.asarray(image), nib.load(tmp_path / "a.nii").get_fdata())


def slices_of(dark: float, bright: float) -> Any:
    """A slice of 4 x 4 pixels at -0.5: liver in the 2nd row at ``dark``, spleen in the 3rd at ``bright``."""
    images, labels = torch.full((2, 1, 4, 4), -0.5), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    images[:, :, 1], images[:, :, 2] = dark, bright
    labels[0, :, 1], labels[:, :, 2] = 1, 2
    return SimpleNamespace(images=images, labels=labels, data=[{"image": "data/a.nii.gz"}])


def test_what_the_network_sees_of_each_structure(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        report_structures(slices_of(-0.2, 0.3), ["liver", "spleen"])
    assert [record.getMessage() for record in caplog.records] == [
        "1 labelled volume(s): liver: 1 slices, 0 % of it clipped, intensities -0.20 to -0.20",
        "1 labelled volume(s): spleen: 2 slices, 0 % of it clipped, intensities 0.30 to 0.30",
    ]


@pytest.mark.parametrize(
    ("dark", "bright", "finding"),
    [
        (-0.2, 1.0, "100 % of spleen is clipped"),
        (-0.2, -0.15, "all structures lie within 0.05 of the intensity range"),
        (-0.2, 1.5, "intensities from -0.50 to 1.50"),
    ],
    ids=["narrow window", "wide window", "outside"],
)
def test_intensities_that_hide_structures_are_reported(
    dark: float, bright: float, finding: str, caplog: pytest.LogCaptureFixture
) -> None:
    report_structures(slices_of(dark, bright), ["liver", "spleen"])
    assert f"1 labelled volume(s): {finding}" in caplog.text
    assert "Fix: correct the window" in caplog.text


def test_an_output_range_from_0_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """With ``b_min: 0`` only the padding, at -1, lies below 0."""
    slices = slices_of(0.2, 0.8)
    slices.images = slices.images.clamp_min(0)
    slices.images[:, :, 3] = -1
    report_structures(slices, ["liver", "spleen"])
    assert "no intensity between -1, the lowest, and 0" in caplog.text


def test_a_loader_does_not_repeat_what_monais_readers_lack(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        CheckedLoadImaged("image")
    assert not recwarn.list
    assert caplog.text == ""
