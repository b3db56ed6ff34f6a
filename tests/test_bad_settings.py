"""Invalid settings: unknown keys and values, and weights and checkpoints made with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import BASES, CONFIGS, refused, run_base


@pytest.mark.parametrize(
    ("base", "weights", "settings", "found"),
    [
        ("segmentation/inference", "synthesis", {}, "stage: synthesis"),
        ("synthesis/inference", "segmentation", {}, "stage: segmentation"),
        ("segmentation/inference", "segmentation", {"dataset_name": "cardiac"}, "dataset_name: phantom"),
        ("segmentation/evaluate", "segmentation", {"label_names": ["a", "b", "c", "d"]}, "label_names: ["),
        ("segmentation/inference", "segmentation", {"network_def#width": 6}, "width: 4"),
        ("segmentation/inference", "segmentation", {"mask_mode": "off"}, "mask_mode: abs"),
        ("synthesis/inference", "synthesis", {"generator_channels": 6}, "generator_channels: 4"),
    ],
)
def test_weights_of_another_task_or_size(
    base: str, weights: str, settings: dict[str, Any], found: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    folder = trained / weights / "models"
    places = {"dataset_dir": data, "bundle_root": tmp_path / "run", "ckpt_dir": folder}
    error = refused(run_base, base, **places | settings)
    assert error.file == str(folder / "model.pt")
    assert found in error.found
    assert "'python -m scripts segment RUN VOLUMES --out FOLDER' reads those of a segmentation training" in error.remedy
    assert not list((tmp_path / "run").rglob("*.nii.gz"))


@pytest.mark.parametrize("base", ["synthesis/inference", "segmentation/inference", "segmentation/evaluate"])
def test_the_wrong_direction(base: str, data: Path, trained: Path, tmp_path: Path) -> None:
    folder = trained / base.split("/")[0] / "models"
    back = CONFIGS / "tasks" / "phantom_ct2mr.yaml"
    error = refused(run_base, base, back, dataset_dir=data, bundle_root=tmp_path / "run", ckpt_dir=folder)
    assert error.found == "weights made with domains: ['mr', 'ct']"
    assert error.expected == "domains: ['ct', 'mr']"


@pytest.mark.parametrize("base", BASES)
def test_a_key_that_no_config_knows(base: str, data: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "task.yaml"
    overlay.write_text("slice_sise: [32, 32]\n")
    error = refused(run_base, base, overlay, dataset_dir=data, bundle_root=tmp_path / "run")
    assert (error.file, error.expected) == ("key 'slice_sise'", "'slice_size', perhaps")
    assert not (tmp_path / "run").exists()


def test_a_key_like_no_other_on_the_command_line(data: Path, tmp_path: Path) -> None:
    error = refused(run_base, "synthesis/train", dataset_dir=data, bundle_root=tmp_path / "run", zzz=3)
    assert (error.file, error.expected) == ("key 'zzz'", "a key of the base config")


@pytest.mark.parametrize(
    ("base", "key", "file", "expected"),
    [
        ("synthesis/train", "train#datasett", "key 'train#datasett'", "'dataset', perhaps"),
        ("segmentation/train", "validate#evaluater", "key 'validate#evaluater'", "'evaluator', perhaps"),
        ("synthesis/train", "train#batches#batch_sise", "key 'train#batches#batch_sise'", "'batch_size', perhaps"),
        ("segmentation/inference", "inferer#softmaks", "key 'inferer#softmaks'", "'softmax', perhaps"),
    ],
)
def test_a_nested_key_that_no_config_knows(
    base: str, key: str, file: str, expected: str, data: Path, tmp_path: Path
) -> None:
    error = refused(run_base, base, dataset_dir=data, bundle_root=tmp_path / "run", **{key: 3})
    assert (error.file, error.expected) == (file, expected)
    assert not (tmp_path / "run").exists()


MASK_MODES = "one of abs, target_confidence, uncertainty, source_distance, off"


@pytest.mark.parametrize(
    ("base", "setting", "value", "expected"),
    [
        ("synthesis/train", "precision", "fp16", "one of auto, bf16, float32"),
        ("segmentation/inference", "precision", "half", "one of auto, bf16, float32"),
        ("synthesis/train", "adversarial_kind", "wgan", "one of bce, lsgan, hinge"),
        ("segmentation/train", "d2_kind", "wgan", "one of bce, lsgan, hinge"),
        ("segmentation/train", "mask_mode", "on", MASK_MODES),
        ("segmentation/evaluate", "mask_mode", False, MASK_MODES),
        ("segmentation/train", "network_def#output_stride", 32, "one of 4, 8, 16"),
    ],
)
def test_a_word_that_a_setting_does_not_know(
    base: str, setting: str, value: object, expected: str, data: Path, tmp_path: Path
) -> None:
    error = refused(run_base, base, dataset_dir=data, bundle_root=tmp_path / "run", **{setting: value})
    name = setting.split("#")[-1]
    assert (error.file, error.found, error.expected) == (f"setting '{name}'", repr(value), expected)
    # YAML takes a bare off for a boolean.
    assert ("in quotes" in error.remedy) == (value is False)


@pytest.mark.parametrize("base", ["synthesis/inference", "segmentation/inference", "segmentation/evaluate"])
@pytest.mark.parametrize(
    "change",
    [
        {"slice_size": [64, 64]},
        {"spacing_mm": [2.5, 2.5, -1.0]},
        {"slice_axis": 1},
        {"target_intensity": {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_weights_of_another_grid_or_intensity(
    base: str, change: dict[str, Any], data: Path, trained: Path, tmp_path: Path
) -> None:
    folder = trained / base.split("/")[0] / "models"
    places = {"dataset_dir": data, "bundle_root": tmp_path / "run", "ckpt_dir": folder}
    error = refused(run_base, base, **places | change)
    (key,) = change
    assert error.found.startswith("weights made with " + ("_target_" if key == "target_intensity" else key))
    assert not list((tmp_path / "run").rglob("*.nii.gz"))


@pytest.mark.parametrize("change", [{"max_epochs": 3}, {"iterations_per_epoch": 4}])
def test_a_run_resumed_with_another_length(change: dict[str, int], data: Path, tmp_path: Path) -> None:
    # The schedules of learning rates belong to one length: continued under another, they would end in the middle.
    settings: dict[str, Any] = {"dataset_dir": data, "bundle_root": tmp_path, "checkpoint_interval": 1}
    run_base("synthesis/train", **settings)
    error = refused(run_base, "synthesis/train", **settings | change, resume=True)
    assert error.found in ("a run with max_epochs: 1", "a run with iterations_per_epoch: 2")
    assert "without --resume" in error.remedy
    # By MONAI's own name of the trainer's length too.
    error = refused(run_base, "synthesis/train", **settings, resume=True, **{"train#trainer#max_epochs": 3})
    assert error.found == "a run with train#trainer#max_epochs: @max_epochs"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"learning_rate": 1e-3}, "a run with learning_rate: 0.0002"),
        ({"cycle_weight": 1.0}, "a run with cycle_weight: 20.0"),
        ({"seed": 1}, "a run with seed: 0"),
        ({"generator_optimizer#weight_decay": 0.1}, "a run with generator_optimizer#weight_decay: 0.0001"),
        ({"precision": "bf16"}, "a run with precision: float32"),
    ],
)
def test_a_run_resumed_with_other_settings(
    change: dict[str, Any], found: str, data: Path, trained: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"dataset_dir": data, "bundle_root": tmp_path, "checkpoint_interval": 1}
    run_base("synthesis/train", **settings)
    error = refused(run_base, "synthesis/train", **settings | change, resume=True)
    assert error.found == found
    # How often something is shown or saved may change.
    run_base("synthesis/train", **settings | {"panel_interval": 3, "checkpoint_interval": 2}, resume=True)
