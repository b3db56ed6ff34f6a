"""Memory: what a volume needs is compared with what is free before the work starts, and a step holds slabs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CONFIGS, refused
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.core.errors import find_input_error
from scripts.data import geometry, volumes
from scripts.data.geometry import check_memory, free_memory_bytes
from scripts.data.resampling import FIXED_BYTES, ResampleVolumed
from scripts.data.slices import SliceSet
from scripts.data.volumes import CheckedLoadImaged, LabelsToClassesd
from scripts.inference.edge_aware import EdgeAwareSmoothing
from scripts.inference.inferers import SliceWiseInferer


def leave_free(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(geometry, "free_memory_bytes", lambda: count)


def test_memory_that_is_not_there_is_stated() -> None:
    check_memory(1.0, "a.nii.gz")
    assert "needs 1024.0 GiB of memory" in refused(check_memory, 2.0**40, "a.nii.gz").found


def test_more_than_four_gib_are_stated_before_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """17 bytes for each of 512 x 512 x 1,500 voxels are 6.2 GiB."""
    leave_free(monkeypatch, 2.0**40)
    check_memory(4 * 2.0**30, "a.nii.gz")
    assert not caplog.records
    check_memory(17.0 * 512 * 512 * 1500, "a.nii.gz")
    assert [record.message for record in caplog.records] == ["a.nii.gz: a volume that needs 6.2 GiB of memory"]


def test_a_container_limits_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 MB less the 1 MB that its processes hold; the page cache, which counts as current, can be dropped."""
    monkeypatch.setattr(geometry, "CONTAINER", str(tmp_path))
    unlimited = free_memory_bytes()
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 500000\n")
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_memory_bytes() == 2_000_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes() > 2_000_000


def test_an_output_that_memory_cannot_hold_is_refused_before_the_network_runs() -> None:
    """A volume of 2 x 2 x 2 voxels, for each of which 2^50 bytes would be needed later: 8 PiB."""
    volume = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4), meta={"filename_or_obj": "a.nii.gz"})
    error = refused(ResampleVolumed("image", (-1.0,) * 3, later_bytes=(2**50, 0)), {"image": volume})
    assert (error.file, error.found.split(".")[0]) == ("a.nii.gz", f"a volume that needs {2**23}")
    assert "without probabilities" in error.remedy
    ResampleVolumed("image", (-1.0,) * 3)({"image": volume})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0, 1]),
        ({"write_probabilities": True}, [24, 1]),  # background, four structures and the mask, 4 bytes each
        ({"write_mask": True, "largest_component": True}, [24, 6]),
        ({"loaded_keys": ["image", "label"]}, [0, 7]),  # two maps, and four arrays of a byte where surfaces are found
    ],
)
def test_what_inference_will_hold(settings: dict[str, bool], expected: list[int]) -> None:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "segmentation" / "inference.yaml"))
    parser.update(settings)
    assert parser.get_parsed_content("preprocessing#transforms#5#later_bytes") == expected


def test_resampling_holds_the_volume_a_slab_and_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 voxels: 32 bytes as read, 12 x 8 of the slab, 4 x 8 of the result, together 160; intensities take 17 x 8."""
    volume = MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4), meta={"filename_or_obj": "a.nii.gz"})
    leave_free(monkeypatch, FIXED_BYTES + 159)
    assert "needs 0.1 GiB" in refused(ResampleVolumed("image", (-1.0,) * 3), {"image": volume}).found
    leave_free(monkeypatch, FIXED_BYTES + 160)
    ResampleVolumed("image", (-1.0,) * 3)({"image": volume})


@pytest.mark.parametrize(
    ("slices", "step_mm", "held"),
    [
        (1500, 2.5, 64 + 2 * 32),  # overlap 4 x 20 / 2.5 = 32, middle 2^26 / 2^20 = 64
        (100, 2.5, 100),
        (1500, 0.5, 3 * 160),  # overlap 4 x 20 / 0.5 = 160, and a middle as long
    ],
)
def test_smoothing_holds_a_slab_twice(slices: int, step_mm: float, held: int) -> None:
    """Four classes of 512 x 512 pixels are 2^20 probabilities in a slice, 4 MiB: 1, 0.8 and 3.75 GiB."""
    needed = EdgeAwareSmoothing(length_mm=20, contrast=0.07).held_bytes(2**20, slices, step_mm)
    assert needed == 2 * held * 4 * 2**20


@pytest.mark.parametrize(("decide", "needed"), [(True, 512), (False, 768)])
def test_smoothing_that_does_not_fit_is_refused_after_the_first_slices(
    decide: bool, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two classes in two slices of 4 x 4 pixels: 64 values, in float32 and twice; all once more, if they are kept."""
    smoothing = EdgeAwareSmoothing(length_mm=20, contrast=0.07)
    infer = SliceWiseInferer(window_size=None, precision="float32", softmax=True, decide=decide, smoothing=smoothing)
    image = MetaTensor(torch.ones(1, 4, 4, 2), affine=torch.eye(4), meta={"filename_or_obj": "a.nii.gz"})
    image.meta["original_affine"] = torch.eye(4)
    volume = ResampleVolumed("image", (-1.0,) * 3)({"image": image})["image"][None]
    leave_free(monkeypatch, needed - 1)
    error = refused(infer, volume, lambda slices: torch.cat([slices, -slices], 1))
    assert error.file == "a.nii.gz"
    assert "smoothing_mm 0" in error.remedy
    leave_free(monkeypatch, needed)
    assert infer(volume, lambda slices: torch.cat([slices, -slices], 1)).shape[2:] == (4, 4, 2)


def test_labels_become_class_ids_slab_by_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.random.default_rng(0).choice([0.0, 205.0, 820.0], (1, 5, 4, 3)).astype(np.float32)
    label = MetaTensor(torch.from_numpy(voxels), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    to_classes = LabelsToClassesd("label", [205, 820])
    monkeypatch.setattr(volumes, "COUNTED_VOXELS", 24)  # two rows at a time
    found = to_classes({"label": label})["label"]
    assert torch.equal(found.as_tensor(), torch.from_numpy(np.searchsorted([0, 205, 820], voxels)).to(torch.uint8))
    assert torch.equal(found.affine, label.affine)
    label[0, 4, 3, 2] = 3
    assert refused(to_classes, {"label": label}).found == "label value(s) 3"


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryError("Unable to allocate 9 GiB"), RuntimeError("std::bad_alloc")]
)
def test_memory_that_is_not_given_is_a_sentence(error: Exception) -> None:
    found = find_input_error(error)
    assert found is not None
    assert found.file == "memory"


def test_slices_that_memory_cannot_hold_are_refused_before_they_are_joined(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six slices are not constant; each of 4096 x 4096 pixels takes 10 bytes a pixel, 160 MiB."""
    leave_free(monkeypatch, 2.0**28)
    item = {"image": str(data / "mr_0_image.nii.gz")}
    loading = Compose([CheckedLoadImaged("image"), EnsureChannelFirstd("image")])
    error = refused(SliceSet, [item], loading, window_size=[4096, 4096])
    assert error.file == "setting 'slice_size'"
    assert error.found == "a frame of [4096, 4096] pixels that needs 0.9 GiB of memory"
    SliceSet([item], loading, window_size=[32, 32])


def test_the_stated_memory_is_that_of_a_measured_ct(monkeypatch: pytest.MonkeyPatch) -> None:
    """257 x 257 x 94 scaled voxels of 1.466 mm at 1.25 mm: 190 MiB were taken, a small network included.

    204 MiB are 24 as read, 83 of the slab, 33 of the result, and 64.
    """
    affine = torch.diag(torch.tensor([1.4663086, 1.4663086, 3.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.zeros(1, 257, 257, 94), affine=affine, meta={"filename_or_obj": "a.nii.gz"})
    leave_free(monkeypatch, 190 * 2.0**20)
    refused(ResampleVolumed("image", (1.25, 1.25, -1.0)), {"image": volume})
    leave_free(monkeypatch, 205 * 2.0**20)
    assert ResampleVolumed("image", (1.25, 1.25, -1.0))({"image": volume})["image"].shape == (1, 301, 301, 94)
