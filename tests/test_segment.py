"""``python -m scripts segment``: a trained run's settings reach inference without being repeated."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONFIGS, SMALL, TASK, config_files, refused, run_command, write_weights
from monai.bundle import ConfigParser
from scripts.lab.segment import settings_for_inference


def trained_run(folder: Path, *overlays: Path, **settings: Any) -> Path:
    """A run folder with the record of its settings, as a training writes it."""
    parser = ConfigParser(ConfigParser.load_config_files(config_files("segmentation", "train", *overlays)))
    parser.update(settings)
    folder.mkdir(exist_ok=True)
    ConfigParser.export_config_file(parser.get(), str(folder / "config.yaml"), fmt="yaml", sort_keys=False)
    return folder


def test_inference_gets_task_network_and_recommended_smoothing(tmp_path: Path) -> None:
    network = CONFIGS / "networks" / "unet.yaml"
    methods = [CONFIGS / "methods" / "recommended_start.yaml", CONFIGS / "segmentation" / "self_train.yaml"]
    settings = settings_for_inference(trained_run(tmp_path / "run", network, *methods, slice_size=[64, 64]))
    assert settings["network_def"]["_target_"].endswith("MaskedUNet")
    assert (settings["mask_mode"], settings["smoothing_mm"], settings["slice_size"]) == ("off", 20.0, [64, 64])
    base = yaml.safe_load((CONFIGS / "segmentation" / "inference.yaml").read_text())
    assert settings.keys() <= base.keys()


def test_a_folder_without_a_segmentation_training(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    error = refused(settings_for_inference, tmp_path)
    assert error.found == "other settings"
    assert "--bundle_root of a segmentation training" in refused(settings_for_inference, tmp_path / "no").remedy


@pytest.mark.slow
def test_one_line_segments_a_volume(data: Path, tmp_path: Path) -> None:
    """A network of another size than the base config's: the size is not named again."""
    run = trained_run(tmp_path / "run", **SMALL["segmentation"])
    write_weights(TASK, run / "models")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "scripts", "segment", str(run), str(data / "ct_0_image.nii.gz"), "--out", str(out)]
    done = run_command([*command, "--set", "largest_component=true", "--set", "device=cpu"], timeout_s=900)
    assert done.code == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (out / "ct_0_image_seg.nii.gz").is_file()
    assert yaml.safe_load((out / "settings.yaml").read_text())["largest_component"] is True
