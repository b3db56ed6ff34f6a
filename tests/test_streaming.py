"""Large volumes: what is done slab by slab equals what is done at once, and memory grows by a few bytes a voxel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, KeepLargestConnectedComponent, KeepLargestConnectedComponentd, Orientationd
from scipy.spatial.transform import Rotation
from scripts.core.errors import InputError
from scripts.core.files import AtomicSaveImaged
from scripts.data import resampling, sections
from scripts.data.nifti import read_nifti
from scripts.data.resampling import ResampleVolumed, RestoreAndSaveImaged, RestoreGridd
from scripts.data.sections import KeepLargestd, largest_component
from scripts.inference.inferers import SliceWiseInferer
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
OBLIQUE = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix()
SAGITTAL = np.array([[0.0, 0, -1], [1, 0, 0], [0, 1, 0]])
DIRECTIONS = {"RAS": np.eye(3), "LPS": np.diag([-1.0, -1, 1]), "sagittal": SAGITTAL, "oblique": OBLIQUE}


def case_of(directions: np.ndarray, slice_axis: int = 2) -> dict[str, Any]:
    """A preprocessed int16 volume of 30 x 26 x 22 voxels."""
    affine = np.eye(4)
    affine[:3, :3] = directions * (1.0, 1.2, 1.7)
    affine[:3, 3] = (-20.0, 30.0, 5.0)
    voxels = np.random.default_rng(0).integers(-1000, 1000, (1, 30, 26, 22), np.int16)
    grid = torch.from_numpy(affine)
    image = MetaTensor(
        torch.from_numpy(voxels), affine=grid, meta={"original_affine": grid, "filename_or_obj": "a.nii"}
    )
    spacing_mm = [2.3, 1.9, 2.1]
    spacing_mm[slice_axis] = -1.0
    steps = [Orientationd("image", axcodes="RAS", labels=None), ResampleVolumed("image", spacing_mm)]
    return dict(Compose(steps)({"image": image}))


class Waves(nn.Module):
    """A stand-in for a network: three channels that lead in turn as the intensity rises."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.sin(image / 150 + phase) for phase in (0, 2, 4)], 1)


@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_deciding_slice_by_slice_gives_the_label_map_of_the_whole(directions: np.ndarray, slice_axis: int) -> None:
    """With test-time averaging, in batches of 4 slices that do not divide their number."""
    case = case_of(directions, slice_axis)
    options: dict[str, Any] = {"window_size": (16, 16), "slice_axis": slice_axis, "slice_batch_size": 4}
    options |= {"softmax": True, "flip_axes": (0, 1), "scales": (0.9, 1.0), "precision": "float32"}
    restore = RestoreGridd("pred", argmax=True)
    found, expected = (
        restore(case | {"pred": SliceWiseInferer(**options, decide=decide)(case["image"][None], Waves())[0]})["pred"]
        for decide in (True, False)
    )
    assert found.shape == (1, 30, 26, 22)
    assert found.dtype == torch.uint8
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.equal(found.affine, expected.affine)
    assert found.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("directions", DIRECTIONS.values(), ids=DIRECTIONS)
def test_probabilities_are_written_channel_by_channel_as_at_once(
    directions: np.ndarray, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(directions)
    case["pred"] = torch.rand(channels, *case["image"].shape[1:], generator=torch.Generator().manual_seed(0))
    whole = RestoreGridd("pred")(case)
    AtomicSaveImaged("pred", output_dir=str(tmp_path), output_postfix="whole")(whole)
    monkeypatch.setattr(resampling, "SLAB_VALUES", 30 * 26 * 5)  # five slices at a time, then two
    RestoreAndSaveImaged("pred", output_dir=str(tmp_path), output_postfix="slabs")(case)
    found, expected = (nib.load(tmp_path / f"a_{name}.nii.gz") for name in ("slabs", "whole"))
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), np.asanyarray(expected.dataobj))
    assert found.header.binaryblock == expected.header.binaryblock
    assert case["image"].meta["saved_to"] == [str(tmp_path / "a_slabs.nii.gz")]


def test_resampling_converts_stored_voxels_slab_by_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    affine = torch.diag(torch.tensor([1.0, 1.5, 2.0, 1.0]))
    voxels = np.random.default_rng(0).integers(-1000, 1000, (1, 20, 18, 16), np.int16)
    stored = MetaTensor(torch.from_numpy(voxels), affine=affine)
    for mode in ("bilinear", "nearest"):
        resample = ResampleVolumed("image", (1.7, 1.1, -1.0), mode)
        whole = resample({"image": stored.float()})["image"]
        monkeypatch.setattr(resampling, "SLAB_VALUES", 1)
        slabs = resample({"image": stored})["image"]
        assert slabs.dtype == torch.float32
        assert torch.equal(slabs.as_tensor(), whole.as_tensor())
        monkeypatch.undo()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.floats(0.05, 0.5), size=st.tuples(*[st.integers(1, 9)] * 3))
def test_the_largest_component_counted_in_slabs_is_monais(seed: int, share: float, size: tuple[int, ...]) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "COUNTED_VOXELS", 1)  # one layer at a time
        found = largest_component(mask)
    assert np.array_equal(found, largest_component(mask))
    expected = np.asarray(KeepLargestConnectedComponent(is_onehot=False)(torch.from_numpy(mask[None].astype(np.uint8))))
    assert found.sum() == expected.sum()  # of equal components either may be kept
    assert not (found & ~mask).any()


def test_the_largest_component_of_each_structure_is_kept() -> None:
    classes = np.random.default_rng(0).choice(4, (1, 12, 11, 10), p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8)
    classes[0, :4, :4, :4], classes[0, 6:10, 5:9, 5:9] = 1, 3
    keep = KeepLargestConnectedComponentd("pred", applied_labels=[1, 3], is_onehot=False, independent=True)
    expected = keep({"pred": MetaTensor(torch.from_numpy(classes.copy()))})["pred"]
    with torch.inference_mode():  # as an evaluator's output
        pred = MetaTensor(torch.from_numpy(classes), meta={"filename_or_obj": "a.nii"}) + 0
    found = KeepLargestd("pred")({"pred": pred})["pred"]
    assert found.meta["filename_or_obj"] == "a.nii"
    for structure in (1, 3):
        assert torch.equal(found == structure, expected == structure)
    assert not KeepLargestd("pred")({"pred": MetaTensor(torch.zeros(1, 2, 2, 2, dtype=torch.uint8))})["pred"].any()


def test_scaled_voxels_are_those_of_nibabel(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-3000, 3000, (5, 6, 7), np.int16)
    image = nib.Nifti1Image(voxels, np.eye(4))
    image.header.set_slope_inter(0.37, -11.0)
    nib.save(image, tmp_path / "a.nii.gz")
    found = read_nifti(tmp_path / "a.nii.gz").voxels
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, nib.load(tmp_path / "a.nii.gz").get_fdata().astype(np.float32))


def test_a_volume_that_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Twice 2 bytes of 32,767^3 voxels are 131,060 GiB."""
    header = nib.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(InputError, match=r"needs 131060\.0 GiB of memory"):
        read_nifti(tmp_path / "a.nii")


MEASURED = """
import resource, sys
import numpy as np
import nibabel as nib
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from scripts.core.files import AtomicSaveImaged
from scripts.data.resampling import ResampleVolumed, RestoreGridd
from scripts.data.volumes import CheckedLoadImaged
from scripts.inference.inferers import SliceWiseInferer
file, out = sys.argv[1:]
load = Compose([CheckedLoadImaged("image"), EnsureChannelFirstd("image", channel_dim="no_channel"),
    Orientationd("image", axcodes="RAS", labels=None), ResampleVolumed("image", (4.0, 4.0, -1.0))])
case = load({"image": file})
network = lambda image: torch.cat([image * weight for weight in range(8)], 1)
infer = SliceWiseInferer(window_size=(128, 128), decide=True, precision="float32")
case["pred"] = infer(case["image"][None], network)[0]
save = AtomicSaveImaged("pred", output_dir=out, output_postfix="seg", output_dtype=np.int16)
save(RestoreGridd("pred", argmax=True)(case))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_grows_by_less_than_six_bytes_a_voxel(tmp_path: Path) -> None:
    """The stored int16 twice while axes are turned, or the map as uint8 and int16; 8 classes in float32 would be 32."""
    peaks, depths = [], (100, 300)
    for depth in depths:
        tile = np.random.default_rng(0).integers(-1000, 1000, (512, 512, 4), np.int16)
        image = nib.Nifti1Image(np.tile(tile, (1, 1, depth // 4)), np.diag([-1.0, -1.0, 1.0, 1.0]))
        nib.save(image, tmp_path / f"{depth}.nii")
        command = [sys.executable, "-c", MEASURED, str(tmp_path / f"{depth}.nii"), str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(1024 * int(done.stdout))
    assert (peaks[1] - peaks[0]) / (512 * 512 * (depths[1] - depths[0])) < 6
