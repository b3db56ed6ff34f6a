"""The seed determines the initial weights, independently of random numbers used before."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import assert_same_weights, run_config


def test_weights_depend_on_the_seed_and_on_nothing_drawn_before(data: Path, tmp_path: Path) -> None:
    settings = {"dataset_dir": data, "labelled_datalist": data / "mr.json", "panel_interval": 0, "learning_rate": 1e-30}
    for name in ("first", "second"):
        torch.rand(7)
        run_config("training", "segmentation", "train", bundle_root=tmp_path / name, **settings)
    assert_same_weights(*(tmp_path / name / "models" / "model.pt" for name in ("first", "second")))
