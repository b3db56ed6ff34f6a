"""Damage in the cache of transformed volumes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import refused, run_base, write_volume
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad
from scripts.data.slices import SliceSet
from scripts.data.volumes import CheckedLoadImaged, LabelsToClassesd


def test_a_damaged_cache_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One file is cut short; in the other one bit of a voxel is flipped, which torch alone would load."""
    volumes = np.random.default_rng(0).random((2, 6, 5, 4), np.float32)
    items = [{"image": str(write_volume(tmp_path / f"{n}.nii", volume))} for n, volume in enumerate(volumes)]
    cache = tmp_path / "cache"
    loading = Compose([CheckedLoadImaged("image"), EnsureChannelFirstd("image")])
    first = SliceSet(items, loading, cache_dir=str(cache))
    cut, flipped = sorted(cache.glob("*.pt"))
    cut.write_bytes(cut.read_bytes()[:-100])
    whole = bytearray(flipped.read_bytes())
    (place,) = [at for at in (whole.find(volume.tobytes()[:16]) for volume in volumes) if at >= 0]
    whole[place] ^= 1
    flipped.write_bytes(whole)
    second = SliceSet(items, loading, cache_dir=str(cache))
    assert torch.equal(first.images, second.images)
    assert caplog.text.count("damaged cache file (") == 2
    assert caplog.text.count("its volume is preprocessed again") == 2


@pytest.mark.parametrize("content", [{}, [1], None, {"image": torch.zeros(1, 6, 5, 4)}])
def test_a_cache_file_of_other_content_is_made_anew(content: object, tmp_path: Path) -> None:
    """A whole file, with right checksums, that holds no transformed volumes."""
    item = {"image": str(write_volume(tmp_path / "a.nii", np.random.default_rng(0).random((6, 5, 4), np.float32)))}
    loading = Compose([CheckedLoadImaged("image"), EnsureChannelFirstd("image")])
    first = SliceSet([item], loading, cache_dir=str(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").glob("*.pt")
    torch.save(content, file)
    assert torch.equal(SliceSet([item], loading, cache_dir=str(tmp_path / "cache")).images, first.images)
    assert torch.load(file, weights_only=True).keys() == {"image", "voxel_ml", "voxels"}


def test_a_transform_that_cannot_be_pickled_needs_no_cache(tmp_path: Path) -> None:
    """A function in a task file, of which the logarithm makes values NaN or infinite."""
    item = {"image": str(write_volume(tmp_path / "a.nii", np.ones((6, 5, 4), np.int16) * np.arange(4, dtype=np.int16)))}
    steps = [
        CheckedLoadImaged("image"),
        EnsureChannelFirstd("image"),
        Lambdad("image", lambda image: (image - 1).log()),
    ]
    error = refused(SliceSet, [item], Compose(steps))
    assert (error.file, error.found) == (item["image"], "NaN or infinite values in slice 0 after preprocessing")


def test_a_function_in_a_task_file_is_not_cached(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its code does not say what it refers to; the base config sets ``cache_dir``."""
    task = tmp_path / "task.yaml"
    task.write_text('source_intensity: {_target_: Lambdad, keys: image, func: "$lambda image: image / 1000"}\n')
    run_base("synthesis/train", task, dataset_dir=data, bundle_root=tmp_path / "run")
    assert (
        "no cache_dir, which needs transforms without functions (PicklingError: Can't pickle <function" in caplog.text
    )
    items = json.loads((data / "ct.json").read_text())["training"]
    assert len(list((tmp_path / "run" / "cache").glob("*.pt"))) == len(items)  # the target's


def test_labelled_volumes_are_read_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = np.random.default_rng(0).random((6, 5, 4), np.float32)
    item = {"image": str(write_volume(tmp_path / "image.nii", image))}
    item["label"] = str(write_volume(tmp_path / "label.nii", (image > 0.5).astype(np.uint8)))
    keys, cache = ["image", "label"], tmp_path / "cache"
    steps = [CheckedLoadImaged(keys), EnsureChannelFirstd(keys), LabelsToClassesd("label", [1], [])]
    first = SliceSet([item], Compose(steps), cache_dir=str(cache), structures=["structure"])
    (file,) = cache.glob("*.pt")
    written = file.stat().st_mtime_ns
    second = SliceSet([item], Compose(steps), cache_dir=str(cache), structures=["structure"])
    assert first.content == second.content
    assert file.stat().st_mtime_ns == written
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
