"""Grids by hand, MONAI's Spacing and Invertd as independent forms, and no influence of a header's rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, Spacingd
from scipy.spatial.transform import Rotation
from scripts.data import resampling
from scripts.data.resampling import ResampleVolumed, RestoreGridd, resampled_grid, restore_grid

OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()


def affine_of(spacing_mm: tuple[float, ...], directions: np.ndarray | None = None) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else directions) * spacing_mm
    affine[:3, 3] = (-120.0, 80.0, 300.0)
    return affine


def volume(affine: np.ndarray, *shape: int) -> MetaTensor:
    grid = torch.from_numpy(affine)
    voxels = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    return MetaTensor(voxels, affine=grid, meta={"original_affine": grid, "filename_or_obj": "case.nii.gz"})


def test_a_grid_by_hand() -> None:
    """Centres 0, 1, ... 255 mm at 2 mm: 0, 2, ... 254 are 128; the last voxel lies half a voxel beyond."""
    affine, size = resampled_grid(affine_of((1.0, 1.0, 5.0)), (256, 257, 20), (2.0, 2.0, -1.0))
    assert size == (128, 129, 20)
    np.testing.assert_allclose(affine, affine_of((2.0, 2.0, 5.0)))
    # 10 centres of 5 mm span 45 mm: at 4 mm 0 ... 44, twelve.
    assert resampled_grid(affine_of((5.0, 1.0, 1.0)), (10, 1, 2), (4.0, 9.0, 9.0))[1] == (12, 1, 1)


@pytest.mark.parametrize("spacing_mm", [(1.3, 1.1, -1.0), (2.5, 0.7, 3.0), (1.9, 2.1, 4.0)])
def test_along_the_named_axes_it_is_monais_spacing(spacing_mm: tuple[float, ...]) -> None:
    image = volume(affine_of((1.9, 2.1, 4.0)), 23, 20, 9)
    ours = ResampleVolumed("image", spacing_mm)({"image": image})["image"]
    theirs = Spacingd("image", pixdim=spacing_mm, dtype=torch.float32)({"image": image})["image"]
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor())
    torch.testing.assert_close(ours.affine, theirs.affine)


REAL_SPACINGS = st.sampled_from([0.68359375, 0.703125, 0.78, 0.9765625, 1.0, 1.25, 1.5234375, 1.62])
NEW_SPACINGS = st.sampled_from([1.0, 1.25, 1.5, 2.0, 2.5])
ROTATIONS = st.tuples(*[st.floats(-0.7, 0.7)] * 3)


@settings(max_examples=200, deadline=None)
@given(
    rotation=ROTATIONS,
    spacing_mm=st.tuples(REAL_SPACINGS, REAL_SPACINGS, st.floats(2.0, 9.0)),
    new_mm=st.tuples(NEW_SPACINGS, NEW_SPACINGS, st.just(-1.0)),
    size=st.tuples(st.integers(160, 512), st.sampled_from([256, 320, 512]), st.integers(10, 60)),
    seed=st.integers(0, 2**31),
)
def test_rounding_of_a_header_does_not_move_the_grid(
    rotation: tuple[float, ...],
    spacing_mm: tuple[float, ...],
    new_mm: tuple[float, ...],
    size: tuple[int, ...],
    seed: int,
) -> None:
    """Headers in single precision, or a spacing written with five digits, differ by up to 4e-5 mm."""
    exact = affine_of(spacing_mm, Rotation.from_rotvec(rotation).as_matrix())
    rounded = exact.copy()
    rounded[:3] += np.random.default_rng(seed).uniform(-4e-5, 4e-5, (3, 4))
    (first, first_size), (second, second_size) = (resampled_grid(grid, size, new_mm) for grid in (exact, rounded))
    corners = np.stack([*np.meshgrid(*[(0, side - 1) for side in first_size], indexing="ij"), np.ones((2, 2, 2))])
    moved = np.einsum("ij,j...->i...", first - second, corners)
    # 512 voxels of 4e-5 mm, along each of three axes.
    assert np.linalg.norm(moved[:3], axis=0).max() < 512 * 4e-5 * 3
    # A row more or less at the far end, where the last voxel lies half a voxel beyond; the others stay in place.
    assert np.abs(np.subtract(first_size, second_size)).max() <= 1


@pytest.mark.parametrize("size", [254, 255, 256, 257, 258])
@pytest.mark.parametrize("ratio", [0.5, 0.64, 0.8, 1.0, 2.0])
def test_sizes_at_common_ratios_do_not_depend_on_rounding(size: int, ratio: float) -> None:
    """Half the resolution puts the end of every even size on the half voxel, where rounding would decide."""
    sizes = {
        resampled_grid(affine_of((spacing, 1.0, 1.0), OBLIQUE), (size, 4, 4), (1.25 / ratio, -1.0, -1.0))[1]
        for spacing in (1.25, 1.25 + 4e-5, 1.25 - 4e-5)
    }
    assert len(sizes) == 1


def test_two_headers_of_one_oblique_volume_give_one_image() -> None:
    image = volume(affine_of((1.0, 1.0, 4.0), OBLIQUE), 40, 36, 9)
    other = volume(affine_of((1.0, 1.0, 4.0), OBLIQUE) + 4e-5, 40, 36, 9)
    resample = ResampleVolumed("image", (2.0, 1.5, -1.0))
    first, second = resample({"image": image})["image"], resample({"image": other})["image"]
    torch.testing.assert_close(first.as_tensor(), second.as_tensor(), atol=5e-3, rtol=0)  # 40 voxels of 4e-5 mm, twice


def test_a_label_is_put_on_its_images_grid() -> None:
    """Each alone would have 129 and 128 rows."""
    image = volume(affine_of((1.0008, 1.0, 1.0)), 256, 4, 4)
    label = volume(affine_of((1.0, 1.0, 1.0)), 256, 4, 4).round()
    found = ResampleVolumed(["image", "label"], (2.0, -1.0, -1.0), ["bilinear", "nearest"])(
        {"image": image, "label": label, "image_path": "a string"}
    )
    assert found["image"].shape == found["label"].shape == (1, 129, 4, 4)
    assert set(found["label"].unique().tolist()) == {0.0, 1.0}
    assert found["image_path"] == "a string"


LPS = np.diag([-1.0, -1.0, 1.0])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])


@pytest.mark.parametrize("directions", [LPS, CORONAL], ids=["LPS", "coronal"])
def test_the_way_back_is_monais_inversion(directions: np.ndarray) -> None:
    image = volume(affine_of((1.0, 1.2, 2.0), directions), 21, 18, 16)
    turn, spacing_mm = Orientationd("image", axcodes="RAS", labels=None), (1.3, 1.7, -1.0)
    there = Compose([turn, Spacingd("image", pixdim=spacing_mm, dtype=torch.float32)])
    case = there({"image": image})
    back = Invertd("pred", there, "image", nearest_interp=False)
    expected = back({**case, "pred": case["image"].clone()})["pred"]
    case = Compose([turn, ResampleVolumed("image", spacing_mm)])({"image": image})
    restored = restore_grid(case["image"], case["image"])
    assert restored.shape == (1, 21, 18, 16)
    torch.testing.assert_close(restored.as_tensor(), expected.as_tensor(), atol=1e-5, rtol=0)
    torch.testing.assert_close(restored.affine, image.affine)
    assert restored.meta["filename_or_obj"] == "case.nii.gz"


def cropped(first: int, last: int) -> dict[str, MetaTensor]:
    """Six slices, of which ``first`` to ``last`` are kept."""
    image = volume(affine_of((1.0, 1.0, 1.0)), 3, 4, 6)
    keep = torch.zeros(1, 3, 4, 6)
    keep[..., first : last + 1] = 1
    steps = [
        Orientationd("image", axcodes="RAS", labels=None),
        CropForegroundd("image", source_key="image", select_fn=lambda _: keep, allow_smaller=True),
    ]
    return Compose(steps)({"image": image})


def test_outside_the_section_there_is_background_and_inside_every_value_is_exact() -> None:
    case = cropped(2, 3)
    pred = torch.stack([torch.full((3, 4, 2), value) for value in (0.1, 0.2, 0.7)])
    found = RestoreGridd("pred", argmax=True)({**case, "pred": pred})["pred"]
    assert found.dtype == torch.uint8
    assert found[0, 0, 0].tolist() == [0, 0, 2, 2, 0, 0]
    values = RestoreGridd("pred")({**case, "pred": pred})["pred"]
    assert torch.equal(values[:, 1, 1], torch.tensor([[0, 0, v, v, 0, 0] for v in (0.1, 0.2, 0.7)]))


def test_the_decision_is_made_between_interpolated_values() -> None:
    """Three voxels of 2 mm back to 1 mm: midway between (0.9, 0.1) and (0.4, 0.6) the first class still leads."""
    image = volume(affine_of((1.0, 1.0, 1.0)), 5, 2, 2)
    case = {"image": ResampleVolumed("image", (2.0, -1.0, -1.0))({"image": image})["image"]}
    second = torch.tensor([0.1, 0.6, 0.7]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    found = restore_grid(torch.cat([1 - second, second]), case["image"], argmax=True)
    # The second class: 0.1, 0.35, 0.6, 0.65, 0.7.
    assert found[0, :, 0, 1].tolist() == [0, 0, 1, 1, 1]


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = volume(affine_of((1.0, 1.0, 1.0), OBLIQUE), 12, 10, 23)
    case = ResampleVolumed("image", (1.7, 1.3, 2.9))({"image": image})["image"]
    pred = torch.rand(4, *case.shape[1:], generator=torch.Generator().manual_seed(1))
    whole = restore_grid(pred, case), restore_grid(pred, case, argmax=True)
    monkeypatch.setattr(resampling, "SLAB_VALUES", 1)  # one slice at a time
    assert torch.equal(restore_grid(pred, case), whole[0])
    assert torch.equal(restore_grid(pred, case, argmax=True), whole[1])


def test_a_section_that_misses_the_volume_gives_background() -> None:
    case = cropped(2, 3)
    case["image"].affine[2, 3] += 100.0
    assert not restore_grid(torch.ones(2, 3, 4, 2), case["image"], argmax=True).any()
