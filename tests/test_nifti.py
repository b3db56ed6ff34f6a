"""Headers and files as they occur: each is read right, or refused by name; outputs lie where their inputs lie."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import refused
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.core.errors import InputError
from scripts.core.files import AtomicSaveImaged
from scripts.data.geometry import check_affine, check_resampled_size
from scripts.data.nifti import read_nifti
from scripts.data.resampling import ResampleVolumed
from scripts.data.volumes import CheckedLoadImaged
from scripts.lab.prepare.nifti_pairs import personal_text

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
AFFINE = np.array([[0.0, 1.5, 0, 10], [-2.0, 0, 0, 20], [0, 0, 3.0, 30], [0, 0, 0, 1]])


def image_of(voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE, **fields: object) -> nib.Nifti1Image:
    """An image with both forms set, then some fields of its header with other values."""
    image = nib.Nifti1Image(voxels, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    for name, value in fields.items():
        image.header[name] = value
    return image


def written(path: Path, image: nib.Nifti1Image) -> Path:
    """Write the header unchanged: nibabel's ``save`` would correct it."""
    image.header["magic"], image.header["vox_offset"] = b"n+1", 352
    body = image.header.binaryblock + b"\0" * 4 + np.asarray(image.dataobj).tobytes(order="F")
    path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_other_units_of_length_become_mm_and_outputs_keep_them(unit: str, tmp_path: Path) -> None:
    """2000 microns and 0.002 metres are 2 mm; a program that reads the unit sees the output on the input's grid."""
    scale = {"meter": 0.001, "micron": 1000.0}[unit]
    image = image_of(affine=np.diag([scale, scale, scale, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit)
    path = written(tmp_path / "a.nii", image)
    volume = read_nifti(path)
    np.testing.assert_allclose(volume.affine, AFFINE, rtol=1e-6)
    assert volume.notes == (f"lengths in {unit}s were converted to mm",)
    saved = saved_copy(path, tmp_path / "out")
    assert saved.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(saved.affine, image.affine, rtol=1e-6)


def saved_copy(path: Path, out: Path) -> nib.Nifti1Image:
    """The file as loaded for inference and written as a prediction."""
    loading = Compose([CheckedLoadImaged("pred", label_key=""), EnsureChannelFirstd("pred")])
    loaded = loading({"pred": str(path)})
    AtomicSaveImaged("pred", output_dir=str(out), output_postfix="seg", output_dtype=np.int16)(loaded)
    return nib.load(out / f"{path.name.split('.')[0]}_seg.nii.gz")


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (2, 4), (3, 1)])
def test_outputs_keep_the_codes_of_their_input(codes: tuple[int, int], tmp_path: Path) -> None:
    """With both codes 0 the axes mean nothing, and only equal codes put both files at one place in every program."""
    path = written(tmp_path / "a.nii.gz", image_of(qform_code=codes[0], sform_code=codes[1]))
    source, saved = nib.load(path), saved_copy(path, tmp_path / "out")
    assert (int(saved.header["qform_code"]), int(saved.header["sform_code"])) == codes
    np.testing.assert_array_equal(saved.affine, source.affine)
    np.testing.assert_array_equal(saved.header["pixdim"][:4], source.header["pixdim"][:4])
    assert saved.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(np.asarray(saved.dataobj), VOXELS)


def test_outputs_of_files_in_capitals_are_named_after_the_case(tmp_path: Path) -> None:
    path = written(tmp_path / "A.nii", image_of()).rename(tmp_path / "A.NII")
    saved_copy(path, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["A_seg.nii.gz"]


@pytest.mark.parametrize(("highest", "dtype"), [(32767, np.int16), (40000, np.int32), (70000, np.int32)])
def test_values_that_do_not_fit_get_a_wider_type(highest: int, dtype: type, tmp_path: Path) -> None:
    """In 16 bits 40000 would be written as -25536."""
    voxels = np.zeros((4, 5, 6), np.int32)
    voxels[0, 0, 0] = highest
    saved = saved_copy(written(tmp_path / "a.nii", image_of(voxels)), tmp_path / "out")
    assert saved.get_data_dtype() == dtype
    assert np.asarray(saved.dataobj).max() == highest


def test_an_output_that_is_not_on_its_inputs_grid_is_never_written(tmp_path: Path) -> None:
    loaded = CheckedLoadImaged("pred", label_key="")({"pred": str(written(tmp_path / "a.nii", image_of()))})
    loaded["pred"].affine[0, 3] += 1.0
    with pytest.raises(RuntimeError, match=r"a.nii: the output would not lie on the input"):
        AtomicSaveImaged("pred", output_dir=str(tmp_path / "out"), output_postfix="seg")(loaded)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("change", ["swapped axes", "5.05 for 5", "sheared"])
def test_an_sform_counts_where_the_spacing_disagrees(change: str, tmp_path: Path) -> None:
    affine, pixdim = np.diag([1.0, 1.0, 5.0, 1]), [1, 1, 1, 5]
    if change == "swapped axes":
        pixdim = [1, 5, 1, 1]
    elif change == "5.05 for 5":
        pixdim = [1, 1, 1, 5.05]
    else:
        affine[1, 2] = 1.5  # gantry tilt: the edge along the stack is longer than the distance of the slices
    image = image_of(affine=affine, qform_code=0)
    image.header["pixdim"][:4] = pixdim
    path = written(tmp_path / "a.nii", image)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.affine, affine)
    assert len(volume.notes) == 1
    assert volume.notes[0].startswith("pixdim is")
    np.testing.assert_array_equal(np.asarray(CheckedLoadImaged("image")({"image": str(path)})["image"].affine), affine)
    np.testing.assert_array_equal(saved_copy(path, tmp_path / "out").affine, affine)


@pytest.mark.parametrize(
    ("affine", "match"),
    [
        (np.diag([1.0, 1, 0, 1]), "voxels of 1 x 1 x 0 mm"),
        (np.diag([1.0, np.nan, 1, 1]), "NaN or infinite"),
        (np.diag([1.0, 1, 1e30, 1]), r"voxels of 1 x 1 x 1e\+30 mm"),
        (np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "cannot be inverted"),
        (np.array([[1.0, 0, 0, 1e12], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), r"origin 1e\+12 mm away"),
    ],
)
def test_an_affine_that_places_nothing_is_refused(affine: np.ndarray, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f".*{match}.*Fix: copy the geometry"):
        check_affine(affine, "the array")
    image = image_of()
    for axis, name in enumerate(("srow_x", "srow_y", "srow_z")):
        image.header[name] = affine[axis]
    path = written(tmp_path / "a.nii.gz", image)
    with pytest.raises(InputError, match=f"a.nii.gz: .*{match}"):
        CheckedLoadImaged("image")({"image": str(path)})


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"vox_offset": 0}, "no NIfTI (voxels that begin inside the header)"),
        ({"sform_code": 99}, "no NIfTI (an unknown qform_code or sform_code)"),
        ({"scl_slope": np.inf}, "no NIfTI (an infinite scl_slope)"),
        ({"sform_code": 0, "pixdim": [1, 2, 1.5, 0, 1, 1, 1, 1]}, "no NIfTI (a spacing of 0)"),
        # 40 bytes are a slice of 4 x 5 voxels of two bytes.
        ({"dim": [3, 4, 5, 5, 1, 1, 1, 1]}, "data that cannot be read (40 bytes behind the voxels"),
        ({"datatype": 2, "bitpix": 8}, "data that cannot be read (120 bytes behind the voxels"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_nibabel_would_guess_is_refused(name: str, fields: dict[str, object], found: str, tmp_path: Path) -> None:
    path = written(tmp_path / name, image_of())
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    changed = header.binaryblock + content[348:]
    path.write_bytes(gzip.compress(changed) if path.suffix == ".gz" else changed)
    error = refused(read_nifti, path)
    assert error.found.startswith(found)


def test_an_unusable_qform_beside_a_right_sform_is_noted(tmp_path: Path) -> None:
    volume = read_nifti(written(tmp_path / "a.nii", image_of(quatern_b=np.nan)))
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.notes == ("qform and sform differ by up to nan mm; the sform was used",)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_content_tells_the_format(byte_order: str, kind: type, name: str, is_packed: bool, tmp_path: Path) -> None:
    """A packed ``.nii``, a ``.nii.gz`` that is not packed, NIfTI-2, big-endian, and axes of one time point."""
    header = kind.header_class(endianness=byte_order)
    data = kind(VOXELS.astype(f"{byte_order}i2")[..., None, None], AFFINE, header).to_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if is_packed else data)
    volume = read_nifti(path)
    np.testing.assert_array_equal(volume.voxels, VOXELS)
    np.testing.assert_allclose(volume.affine, AFFINE)
    np.testing.assert_array_equal(np.asarray(CheckedLoadImaged("image")({"image": str(path)})["image"]), VOXELS)


@pytest.mark.parametrize(
    ("dtype", "name"), [([("R", "u1"), ("G", "u1"), ("B", "u1")], "RGB"), (np.complex64, "complex64")]
)
def test_voxels_that_are_no_real_numbers_are_refused_by_name(dtype: object, name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), dtype), AFFINE), path)
    with pytest.raises(InputError, match=rf"a.nii.gz: voxels of type {name}\. Expected one real number"):
        read_nifti(path)


@pytest.mark.parametrize(("dtype", "becomes"), [(np.int64, np.int32), (np.float64, np.float32), (np.uint8, np.uint8)])
def test_values_take_four_bytes_at_most(dtype: type, becomes: type, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(VOXELS.astype(dtype), AFFINE, dtype=dtype), path)
    assert read_nifti(path).voxels.dtype == becomes
    np.testing.assert_array_equal(read_nifti(path).voxels, VOXELS)


def test_one_flipped_bit_in_a_packed_file_is_found(tmp_path: Path) -> None:
    """Deflate decodes nearly anything; only the checksum at the end of the file detects the damage."""
    path = written(tmp_path / "a.nii.gz", image_of(np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype("i2")))
    whole = path.read_bytes()
    for place in np.linspace(20, len(whole) - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a.nii.gz: data that cannot be read"):
            read_nifti(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_under_a_volumes_name_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.nii.gz")
    assert "not a regular file" in refused(read_nifti, tmp_path / "a.nii.gz").found


def test_the_size_after_resampling_is_bounded_before_anything_is_allocated() -> None:
    """512 x 512 x 1500 voxels of 1 mm pass; the same header in wrong units would ask for terabytes."""
    check_resampled_size(np.eye(4), (512, 512, 1500), "a")
    volume = MetaTensor(torch.zeros(1, 96, 96, 20), affine=torch.diag(torch.tensor([900.0, 900, 900, 1])))
    with pytest.raises(
        InputError, match=r"'image': .* has 85501 x 85501 x 17101 voxels when resampled to 1 x 1 x 1 mm"
    ):
        ResampleVolumed("image", spacing_mm=(1.0, 1.0, 1.0))({"image": volume})
    kept = ResampleVolumed("image", spacing_mm=(-1.0, -1.0, -1.0))({"image": volume})["image"]
    assert kept.shape == volume.shape


def test_a_volume_without_extent_is_refused() -> None:
    """2 mm voxels whose header says microns: 24 of them are 0.048 mm, one voxel of 1 mm."""
    with pytest.raises(InputError, match=r"which has 1 x 1 x 12 voxels when resampled to 1 x 1 x 0.004 mm") as caught:
        check_resampled_size(np.diag([1.0, 1.0, 0.004, 1.0]), (1, 1, 12), "a.nii.gz")
    assert "unit of length" in caught.value.remedy


def test_rounding_errors_of_a_scaled_label_map_are_no_other_values(tmp_path: Path) -> None:
    """1.0000001, which a scale in the header leaves of a 1, is class 1 and not a value that no task names."""
    image = nib.Nifti1Image((VOXELS % 4).astype(np.float64) * (1 + 1e-7), AFFINE)
    nib.save(image, tmp_path / "label.nii")
    assert not np.array_equal(read_nifti(tmp_path / "label.nii").voxels, VOXELS % 4)
    label = CheckedLoadImaged("label")({"label": str(tmp_path / "label.nii")})["label"]
    np.testing.assert_array_equal(np.asarray(label), VOXELS % 4)


def test_free_text_is_told_by_its_field_alone(tmp_path: Path) -> None:
    image = image_of(descrip=b"Doe^Jane 1950")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Doe^Jane"))
    nib.save(image, tmp_path / "a.nii")
    assert personal_text(read_nifti(tmp_path / "a.nii").header) == ["descrip", "1 extension(s)"]
