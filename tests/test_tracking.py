"""``--tracking mlflow`` shows losses, metrics, pictures and settings of either stage in a local store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONFIGS, TASK, run_config
from monai.utils import path_to_sqlite_uri

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow

LOSSES = {
    "synthesis": {"loss", "reconstruction", "cycle", "content", "adversarial", "discriminator", "content_std"},
    "segmentation": {"loss", "cross_entropy", "dice", "alignment_d1", "alignment_d2", "d1", "d2", "mask_mean"},
}

LABEL_NAMES = yaml.safe_load((CONFIGS / "tasks" / f"{TASK}.yaml").read_text())["label_names"]


class Tracked:
    """The one run in the store of a folder."""

    def __init__(self, folder: Path) -> None:
        self.client = mlflow.MlflowClient(path_to_sqlite_uri(str(folder / "mlruns.db")))
        (experiment,) = [found for found in self.client.search_experiments() if found.name == "monai_experiment"]
        (self.run,) = self.client.search_runs(experiment.experiment_id)

    def steps(self, metric: str) -> list[int]:
        return [point.step for point in self.client.get_metric_history(self.run.info.run_id, metric)]

    def files(self, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(self.run.info.run_id, folder)}


def settings(stage: str, data: Path, root: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"bundle_root": root, "dataset_dir": data, "tracking": "mlflow", "batch_size": 3}
    settings["panel_interval"] = 1
    if stage == "segmentation":
        settings |= {"labelled_datalist": data / "mr.json", "labelled_intensity": "@source_intensity"}
        settings |= {"val_interval": 1}
    return settings


@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
def test_mlflow_shows_a_training(stage: str, data: Path, tmp_path: Path) -> None:
    """Losses, metrics, pictures and settings; stage 1 measures nothing on held-out cases but its losses."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "of_an_earlier_run.png").touch()
    run_config("training", stage, "train", **settings(stage, data, tmp_path))
    tracked = Tracked(tmp_path / "eval")
    assert tracked.run.info.status == "FINISHED"
    assert tracked.steps("train_loss") == [1, 2]
    for name in LOSSES[stage]:
        assert tracked.steps(name) == [2], name
    panel = {"synthesis": "translation", "segmentation": "segmentation"}[stage]
    assert tracked.files("pictures") == {f"pictures/{panel}_000002.png", "pictures/losses.png"}
    (config,) = [file for file in tracked.files() if file == "config.yaml"]
    stored = Path(tracked.client.download_artifacts(tracked.run.info.run_id, config, str(tmp_path)))
    settings_shown = yaml.safe_load(stored.read_text())  # the base config, the task file and the command line in one
    assert (settings_shown["batch_size"], settings_shown["task"]) == (3, TASK)
    assert settings_shown["label_names"] == LABEL_NAMES
    assert set(yaml.safe_load((CONFIGS / stage / "train.yaml").read_text())) <= set(settings_shown)
    if stage == "segmentation":
        assert tracked.steps("val_mean_dice") == [1]
    # What expressions came to: ckpt_dir is written as "$@bundle_root + '/models'".
    expected = {"batch_size": 3, "source_domain": "mr", "ckpt_dir": f"{tmp_path}/models", "label_names": LABEL_NAMES}
    shown = tracked.client.download_artifacts(tracked.run.info.run_id, "settings.yaml", str(tmp_path))
    values = yaml.safe_load(Path(shown).read_text())
    assert values.items() >= expected.items()
    assert tracked.run.data.params.items() >= {name: str(value) for name, value in expected.items()}.items()
    assert not [value for value in tracked.run.data.params.values() if value.startswith(("$", "@", "%"))]


def test_mlflow_shows_an_evaluation(data: Path, trained: Path, tmp_path: Path) -> None:
    checkpoint = trained / "segmentation" / "models" / "model.pt"
    where = {"bundle_root": tmp_path, "dataset_dir": data, "checkpoint": checkpoint, "tracking": "mlflow"}
    run_config("evaluating", "segmentation", "evaluate", **where)
    tracked = Tracked(tmp_path / "eval")
    assert tracked.steps("dice_percent") == [1]
    assert tracked.run.data.params["checkpoint"] == str(checkpoint)
    assert tracked.files("pictures") == {"pictures/worst_case.png", "pictures/median_case.png"}
    assert {"summary.json", "metrics.csv"} < tracked.files()
