"""Rivals with a U-Net: a run that was interrupted and resumed has the result of one that was left alone."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, assert_same_weights, config_files, small_settings
from scripts.core.settings import run_bundle
from scripts.data.slices import UnpairedSliceBatches

pytestmark = pytest.mark.slow

LOSSES = {"fda": [], "histogram": [], "dacs": ["class_mix"], "slaug": ["saliency_fusion"], "fpl": ["filtered_labels"]}
"""The rivals that draw random numbers of their own or keep what they learned, with the loss terms that they add."""


def run(method: str, data: Path, root: Path, **more: Any) -> None:
    """Six iterations of a tiny U-Net, with a checkpoint after three."""
    overlays = (CONFIGS / "networks" / "unet.yaml", CONFIGS / "methods" / f"{method}.yaml")
    settings = small_settings("segmentation", "train", bundle_root=root, dataset_dir=data, **more)
    settings = {key: value for key, value in settings.items() if not key.startswith("network_def")}
    settings |= {"network_def#channels": 4, "network_def#levels": 4}
    settings |= {"max_epochs": 2, "iterations_per_epoch": 3, "checkpoint_interval": 1}
    if method == "fpl":  # images that a translator wrote, by default
        settings["labelled_datalist"] = str(data / "mr.json")
    run_bundle("training", config_files("segmentation", "train", *overlays), **settings)


@pytest.mark.parametrize("method", LOSSES)
def test_a_resumed_rival_has_the_same_result(method: str, data: Path, tmp_path: Path) -> None:
    original = UnpairedSliceBatches.batch

    def batch(self: UnpairedSliceBatches, index: int) -> dict[str, torch.Tensor]:
        if index == 4:
            raise KeyboardInterrupt
        return original(self, index)

    whole, part = tmp_path / "whole", tmp_path / "part"
    run(method, data, whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            run(method, data, part)
    assert torch.load(part / "models" / "resume" / "checkpoint.pt", weights_only=True)["trainer"]["iteration"] == 3
    run(method, data, part, resume=True)
    assert_same_weights(whole / "models" / "model.pt", part / "models" / "model.pt")
    tables = [(root / "logs" / "losses.csv").read_text() for root in (whole, part)]
    assert tables[0] == tables[1]
    last = list(csv.DictReader(tables[0].splitlines()))[-1]
    assert all(float(last[name]) > 0 for name in LOSSES[method])
