"""The whole pipeline on tiny data: both stages trained, volumes translated, segmented and evaluated."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import (
    CONFIGS,
    CT_AFFINE,
    FILE_VALUES,
    METHODS,
    MR_AFFINE,
    SMALL,
    config_files,
    listed_files,
    run_config,
    small_settings,
)
from monai.bundle import ConfigParser, ConfigWorkflow

pytestmark = pytest.mark.slow

CT_SHAPE, MR_SHAPE = (36, 40, 7), (40, 34, 6)
NAMES = ["myocardium", "left atrium", "left ventricle", "ascending aorta"]


@pytest.fixture(scope="module")
def run_folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of each stage: ``synthesis`` and ``segmentation``."""
    root = tmp_path_factory.mktemp("pipeline")
    run_config("training", "synthesis", "train", bundle_root=root / "synthesis", dataset_dir=data, panel_interval=1)
    run_config("inference", "synthesis", "inference", bundle_root=root / "synthesis", dataset_dir=data)
    run_config(
        "training",
        "segmentation",
        "train",
        bundle_root=root / "segmentation",
        dataset_dir=data,
        labelled_datalist=root / "synthesis" / "translated" / "datalist.json",
        max_epochs=2,
        val_interval=1,
        checkpoint_interval=1,
        panel_interval=1,
    )
    return root


@pytest.fixture(scope="module")
def segment(run_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Segments a volume or datalist and returns the output folder."""

    def run(where: str, **settings: object) -> Path:
        output = tmp_path_factory.mktemp("predictions") / "new" / "folder"
        run_config(
            "inference",
            "segmentation",
            "inference",
            bundle_root=run_folder / "segmentation",
            dataset_dir=data / where,
            output_dir=output,
            **settings,
        )
        return output

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("stage", "pictures", "losses", "iterations"),
    [
        ("synthesis", ["losses.png", "translation_000002.png"], ["reconstruction", "cycle", "discriminator"], 2),
        ("segmentation", ["losses.png", "segmentation_000002.png", "segmentation_000004.png"], ["dice", "d1", "d2"], 4),
    ],
)
def test_a_training_leaves_weights_card_log_and_pictures(
    run_folder: Path, stage: str, pictures: list[str], losses: list[str], iterations: int
) -> None:
    folder = run_folder / stage
    state = torch.load(folder / "models" / "model.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    metadata = json.loads((folder / "models" / "model.json").read_text())
    assert (metadata["stage"], metadata["dataset_name"], metadata["domains"]) == (stage, "phantom", ["mr", "ct"])
    # Only segmenters have snapshots to select from; the default keeps the last weights.
    assert metadata.get("selection", {}).get("rule") == {"segmentation": "last"}.get(stage)
    assert metadata["iterations"] == iterations
    network = metadata["network"] | {
        f"network_def#{k}": v for k, v in metadata["network"].get("network_def", {}).items()
    }
    named = {key: value for key, value in SMALL[stage].items() if key in network}
    assert named.items() <= network.items()
    assert named
    log = rows(folder / "logs" / "losses.csv")
    assert [int(row["iteration"]) for row in log] == list(range(1, iterations + 1))
    assert {"loss", *losses} <= set(log[0])
    assert all(np.isfinite(float(value)) for row in log for value in row.values())
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == pictures
    assert list((folder / "logs").glob("events.out.tfevents.*"))


@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
def test_a_run_records_its_settings_and_where_they_came_from(run_folder: Path, stage: str) -> None:
    config = ConfigParser.load_config_file(str(run_folder / stage / "config.yaml"))
    assert config["slice_size"] == [32, 32]
    assert config["task"] == "phantom_mr2ct"
    assert config["weights_metadata"]["stage"] == stage
    record = json.loads((run_folder / stage / "provenance.json").read_text())
    assert {"time", "packages", "device", "commit", "seed", "weights_metadata"} <= set(record)


def test_every_labelled_volume_is_translated_on_its_own_grid(run_folder: Path, data: Path) -> None:
    folder = run_folder / "synthesis" / "translated"
    listed = json.loads((folder / "datalist.json").read_text())
    assert [len(listed[section]) for section in ("training", "validation")] == [2, 1]
    for index, entry in enumerate([*listed["training"], *listed["validation"]]):
        assert entry["label"] == str(data / f"mr_{index}_label.nii.gz")
        image = nib.load(folder / entry["image"])
        assert image.shape == MR_SHAPE
        np.testing.assert_allclose(image.affine, MR_AFFINE, atol=1e-4)
        assert image.get_data_dtype() == np.int16
        voxels = np.asarray(image.dataobj)
        assert 0 <= voxels.min() < voxels.max() <= 1000


def test_one_translator_serves_the_way_back(run_folder: Path, data: Path, tmp_path: Path) -> None:
    run_config(
        "inference",
        "synthesis",
        "inference",
        CONFIGS / "tasks" / "phantom_ct2mr.yaml",
        bundle_root=run_folder / "synthesis",
        dataset_dir=data,
        output_dir=tmp_path,
        trained_domains=["mr", "ct"],
    )
    image = nib.load(tmp_path / "ct_0_image_translated.nii.gz")
    assert image.shape == CT_SHAPE
    np.testing.assert_allclose(image.affine, CT_AFFINE, atol=1e-4)


@pytest.mark.parametrize(("where", "count"), [("ct_2_image.nii.gz", 1), ("ct.json", 3)])
def test_label_maps_lie_on_the_volumes_own_grid(segment: Callable[..., Path], where: str, count: int) -> None:
    folder = segment(where)
    written = sorted(folder.glob("*.nii.gz"))
    assert [path.name for path in written] == [f"ct_{index}_image_seg.nii.gz" for index in range(3)][3 - count :]
    for path in written:
        prediction = nib.load(path)
        assert prediction.shape == CT_SHAPE
        np.testing.assert_allclose(prediction.affine, CT_AFFINE, atol=1e-4)
        assert prediction.get_data_dtype() == np.int16
        assert set(np.unique(np.asarray(prediction.dataobj))) <= {0, 1, 2, 3, 4}


def test_probabilities_mask_and_file_values_can_be_written(segment: Callable[..., Path]) -> None:
    plain = np.asarray(nib.load(next(segment("ct_2_image.nii.gz").glob("*_seg.nii.gz"))).dataobj)
    folder = segment("ct_2_image.nii.gz", write_probabilities=True, write_mask=True, write_file_values=True)
    assert sorted(name for name in listed_files(folder) if name.endswith(".nii.gz")) == [
        "ct_2_image_mask.nii.gz",
        "ct_2_image_probabilities.nii.gz",
        "ct_2_image_seg.nii.gz",
    ]
    mask, probabilities, values = (
        nib.load(folder / f"ct_2_image_{name}.nii.gz") for name in ("mask", "probabilities", "seg")
    )
    for file in (mask, probabilities, values):
        np.testing.assert_allclose(file.affine, CT_AFFINE, atol=1e-4)
    assert mask.shape == values.shape == CT_SHAPE
    assert probabilities.shape == (*CT_SHAPE, 5)
    assert (mask.get_data_dtype(), probabilities.get_data_dtype()) == (np.float32, np.float32)
    assert 0 <= mask.get_fdata().min() <= mask.get_fdata().max() <= 1
    total = probabilities.get_fdata().sum(-1)
    # Inside the slices' frame they sum to 1; outside of it there is nothing.
    assert np.all(np.isclose(total, 1, atol=1e-3) | np.isclose(total, 0, atol=1e-3))
    # The decision is the most probable class, in the task's own values.
    expected = probabilities.get_fdata().argmax(-1)
    np.testing.assert_array_equal(expected, plain)
    np.testing.assert_array_equal(np.asarray(values.dataobj), np.array([0, *FILE_VALUES])[expected])


def test_test_time_averaging_and_largest_component(segment: Callable[..., Path]) -> None:
    from scipy import ndimage

    folder = segment(
        "ct_2_image.nii.gz", flip_axes=[1], scales=[0.75, 1.0, 1.25], largest_component=True, slice_batch_size=3
    )
    prediction = np.asarray(nib.load(folder / "ct_2_image_seg.nii.gz").dataobj)
    assert prediction.shape == CT_SHAPE
    for value in set(np.unique(prediction)) - {0}:
        assert ndimage.label(prediction == value, np.ones((3, 3, 3)))[1] == 1


def test_an_evaluation_leaves_tables_predictions_and_pictures(run_folder: Path, data: Path) -> None:
    places = {"bundle_root": run_folder / "segmentation", "dataset_dir": data}
    run_config("evaluating", "segmentation", "evaluate", **places, section="training")
    folder = run_folder / "segmentation" / "eval"
    table = rows(folder / "metrics.csv")
    assert [(row["case"], row["structure"]) for row in table] == [
        (f"ct_{index}_image", name) for index in range(2) for name in NAMES
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cases"] == 2
    assert sorted(summary["structures"]) == sorted(NAMES)
    assert summary["selection"] == {"rule": "last", "epoch": 2, "reads_target_labels": False}
    assert (folder / "worst_case.png").stat().st_size > 1000
    assert (folder / "median_case.png").stat().st_size > 1000
    prediction, label = (
        nib.load(path) for path in (folder / "predictions" / "ct_0_image_seg.nii.gz", data / "ct_0_label.nii.gz")
    )
    assert prediction.shape == label.shape
    np.testing.assert_allclose(prediction.affine, label.affine, atol=1e-4)
    # One Dice by hand, from the files alone.
    truth, found = np.asarray(label.dataobj) == 500, np.asarray(prediction.dataobj) == 3
    dice = 200 * (truth & found).sum() / (truth.sum() + found.sum())
    (row,) = (row for row in table if row["case"] == "ct_0_image" and row["structure"] == "left ventricle")
    (column,) = (key for key in row if key.startswith("dice"))
    assert float(row[column]) == pytest.approx(dice, abs=0.01)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Preprocessed volumes shared by all methods."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, data: Path, cache: Path, tmp_path: Path) -> None:
    overlay = CONFIGS / "methods" / f"{method}.yaml"
    merged = ConfigParser.load_config_files(config_files("segmentation", "train", overlay))
    # Source images replace translated ones: methods do not depend on how the images were made.
    translated = {} if merged["translator"] == "none" else {"labelled_datalist": data / "mr.json"}
    settings = {"bundle_root": tmp_path, "dataset_dir": data, "cache_dir": cache}
    run_config("training", "segmentation", "train", overlay, **settings, **translated)
    metadata = json.loads((tmp_path / "models" / "model.json").read_text())
    small = {key.split("#")[1]: value for key, value in SMALL["segmentation"].items() if key.startswith("network_def#")}
    assert metadata["network"]["mask_mode"] == merged["mask_mode"]
    assert small.items() <= metadata["network"]["network_def"].items()
    assert metadata["network"]["network_def"]["_target_"] == merged["network_def"]["_target_"]


@pytest.mark.parametrize("val_interval", [0, 1])
def test_a_labelled_domain_without_held_out_cases_trains(val_interval: int, data: Path, tmp_path: Path) -> None:
    training = [
        {key: str(data / file) for key, file in case.items()}
        for case in json.loads((data / "mr.json").read_text())["training"]
    ]
    labelled = tmp_path / "labelled.json"
    labelled.write_text(json.dumps({"training": training}))
    places = {"bundle_root": tmp_path / "run", "dataset_dir": data, "labelled_datalist": labelled}
    run_config("training", "segmentation", "train", **places, val_interval=val_interval)
    assert (tmp_path / "run" / "models" / "model.pt").is_file()


@pytest.mark.parametrize(
    ("stage", "config", "run_id"),
    [
        ("synthesis", "train", "training"),
        ("synthesis", "inference", "inference"),
        ("segmentation", "train", "training"),
        ("segmentation", "inference", "inference"),
        ("segmentation", "evaluate", "evaluating"),
    ],
)
def test_monai_finds_every_property_it_asks_for(
    run_folder: Path, data: Path, tmp_path: Path, stage: str, config: str, run_id: str
) -> None:
    lists = {"labelled_datalist": data / "mr.json"} if (stage, config) == ("segmentation", "train") else {}
    workflow = ConfigWorkflow(
        config_file=config_files(stage, config),
        meta_file=str(CONFIGS / stage / "metadata.json"),
        logging_file=False,
        run_id=run_id,
        workflow_type="train" if config == "train" else "infer",
        **small_settings(
            stage,
            config,
            dataset_dir=data,
            bundle_root=tmp_path,
            ckpt_dir=run_folder / stage / "models",
            log_dir=tmp_path,
            **lists,
            **({"val_interval": 1} if lists else {}),
        ),
    )
    workflow.initialize()
    assert workflow.check_properties() == []
