"""Trainings and inference on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, config_files, run_base, small_settings

UNET = CONFIGS / "networks" / "unet.yaml"
START = CONFIGS / "methods" / "recommended_start.yaml"
SELF_TRAINING = CONFIGS / "segmentation" / "self_train.yaml"
TINY = {"network_def#channels": 4, "network_def#levels": 4}
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


def run(run_id: str, config: str, *overlays: Path, **settings: Any) -> None:
    """Run a segmentation config with a tiny U-Net."""
    small = small_settings("segmentation", config, **settings)
    unet = {key: value for key, value in small.items() if not key.startswith("network_def")}
    monai.bundle.run(run_id=run_id, config_file=config_files("segmentation", config, UNET, *overlays), **unet, **TINY)


def voxels(folder: Path) -> np.ndarray:
    """Of the only label map in a folder."""
    (file,) = folder.glob("*.nii.gz")
    return np.asarray(nib.load(file).dataobj)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_the_recommended_recipe_runs_and_its_weights_give_the_same_label_map_on_the_cpu(
    device: str, data: Path, tmp_path: Path
) -> None:
    settings = {"dataset_dir": data, "labelled_datalist": data / "mr.json", "device": device}
    short = {"max_epochs": 2, "iterations_per_epoch": 10, "batch_size": 2}
    run("training", "train", START, bundle_root=tmp_path / "first", **settings, **short)
    weights = tmp_path / "first" / "models" / "model.pt"
    second = {"bundle_root": tmp_path / "second", "initial_weights": weights, "pseudo_label_rounds": 1}
    run("training", "train", START, SELF_TRAINING, **settings, **short, **second)
    for place in {device, "cpu"}:
        segmented = {
            "bundle_root": tmp_path / "second",
            "output_dir": tmp_path / place,
            "dataset_dir": data / "ct_2_image.nii.gz",
        }
        run("inference", "inference", device=place, mask_mode="off", smoothing_mm=20.0, **segmented)
    # float32 on both; sums in another order may decide a voxel whose two best classes are level.
    assert (voxels(tmp_path / device) != voxels(tmp_path / "cpu")).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_both_stages_of_the_paper_run(device: str, data: Path, tmp_path: Path) -> None:
    settings = {"dataset_dir": data, "device": device}
    run_base("synthesis/train", bundle_root=tmp_path / "synthesis", **settings)
    run_base("synthesis/inference", bundle_root=tmp_path / "synthesis", **settings)
    run_base("segmentation/train", bundle_root=tmp_path / "segmentation", **settings)
    run_base("segmentation/evaluate", bundle_root=tmp_path / "segmentation", **settings)
    for stage in ("synthesis", "segmentation"):
        assert (tmp_path / stage / "models" / "model.pt").exists()
