"""``--tracking mlflow`` logs a training's loss in a local store."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from conftest import bundle_command, run_command


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
def test_mlflow_gets_the_loss_of_every_iteration(stage: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    settings = {"bundle_root": tmp_path, "dataset_dir": data, "cache_dir": tmp_path / "cache", "tracking": "mlflow"}
    if stage == "segmentation":
        settings |= {"labelled_datalist": data / "mr.json", "labelled_intensity": "@source_intensity"}
    done = run_command(bundle_command("training", stage, "train", **settings))
    assert done.code == 0, done.stderr[-2000:]
    with sqlite3.connect(next(tmp_path.rglob("mlruns.db"))) as store:
        steps = [row[0] for row in store.execute("select step from metrics where key like '%loss' order by step")]
    assert len(steps) == 2
