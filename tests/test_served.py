"""The segmentation bundle under a server that trains and runs it by MONAI's names, as MONAI Label does."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import FILE_VALUES, TASK, config_files, refused, run_config, write_volume, write_weights
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.files import save_tensors
from scripts.data.datalists import read_datalist
from scripts.handlers.checkpoints import ServedWeightsd
from test_bad_input import replace_volume
from torch import nn

METADATA = {"dataset_name": "heart"}


def corrected(data: Path, folder: Path) -> list[dict[str, str]]:
    """Two target volumes, labelled as a viewer's user leaves them: with class ids."""
    cases = []
    for case in ("ct_0", "ct_1"):
        label = nib.load(data / f"{case}_label.nii.gz")
        voxels = np.asarray(label.dataobj)
        ids = sum(np.where(voxels == value, index, 0) for index, value in enumerate(FILE_VALUES, 1))
        path = write_volume(folder / f"{case}.nii.gz", ids.astype(np.uint8), label.affine)
        cases.append({"image": str(data / f"{case}_image.nii.gz"), "label": str(path)})
    return cases


def with_wrong_label(cases: list[dict[str, str]], place: int) -> list[dict[str, str]]:
    """One of the cases has a number that the model does not have."""
    replace_volume(Path(cases[place]["label"]), "unknown value")
    return cases


def train_as_a_server(cases: list[dict[str, str]], root: Path, **settings: Any) -> None:
    """Start from random weights, with what MONAI Label overrides."""
    run_config(
        "training",
        "segmentation",
        "train",
        bundle_root=root,
        **{"train#trainer#max_epochs": 1, "train#dataset#data": cases, "validate#dataset#data": cases[:1]}
        | {"val_interval": 1}
        | settings,
    )


def losses_of(root: Path) -> set[str]:
    with (root / "logs" / "losses.csv").open() as file:
        return set(next(csv.reader(file)))


def test_a_servers_list_is_target_volumes_with_class_ids(data: Path, tmp_path: Path) -> None:
    train_as_a_server(corrected(data, tmp_path), tmp_path / "run", dataset_dir=data)
    assert json.loads((tmp_path / "run" / "models" / "model.json").read_text())["iterations"] == 2
    assert {"d1", "d2"} <= losses_of(tmp_path / "run")


def test_a_servers_volumes_are_prepared_as_inference_prepares_them(data: Path, tmp_path: Path) -> None:
    cases = corrected(data, tmp_path)
    parser = ConfigParser(ConfigParser.load_config_files(config_files("segmentation", "train")))
    parser.update({"train#dataset#data": cases})
    transforms = parser.get_parsed_content("train#preprocessing").transforms
    assert any(transform is parser.get_parsed_content("target_intensity") for transform in transforms)
    case = parser.get_parsed_content("train#preprocessing")(cases[0])
    # Structures of 205, 420, 500 and 820 in the files, 1 to 4 here; nothing else, though 0 to 4 is in no task's list.
    assert np.unique(np.asarray(case["label"])).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("place", [0, 1])
def test_a_wrong_label_stops_a_server_before_it_trains(place: int, data: Path, tmp_path: Path) -> None:
    """In whichever part a server puts it: the held-out one is not read until ten epochs have passed."""
    cases = with_wrong_label(corrected(data, tmp_path), place)
    parts = {"train#dataset#data": cases[1:], "validate#dataset#data": cases[:1], "val_interval": 10}
    error = refused(train_as_a_server, cases, tmp_path / "run", dataset_dir=data, **parts)
    assert (error.file, error.found) == (cases[place]["label"], "label value(s) 77")
    assert not (tmp_path / "run" / "logs" / "losses.csv").exists()


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Weights that a server starts a training from."""
    return write_weights(TASK, tmp_path / "start")


def train_from(start: Path, data: Path, root: Path) -> None:
    """With the loader that MONAI Label puts before the config's own handlers."""
    loader = {"_target_": "CheckpointLoader", "load_path": str(start), "load_dict": {"model": "$@network"}}
    handlers = ConfigParser.load_config_files(config_files("segmentation", "train"))["train"]["handlers"]
    settings = {"train#handlers": [loader | {"strict": False}, *handlers], "dataset_dir": data}
    train_as_a_server(corrected(data, start.parent), root, **settings)


def test_a_server_trains_on_from_its_weights(start: Path, data: Path, tmp_path: Path) -> None:
    train_from(start, data, tmp_path / "run")
    before, after = (torch.load(file, weights_only=True) for file in (start, tmp_path / "run" / "models" / "model.pt"))
    assert before.keys() == after.keys()
    name = "feature_extractor.backbone.conv1.weight"
    assert 0 < (before[name] - after[name]).abs().max() < 0.1 * before[name].abs().max()


@pytest.mark.parametrize("kind", ["another task", "another task, its metadata left behind", "another network"])
def test_a_server_does_not_train_on_weights_that_do_not_fit(kind: str, start: Path, data: Path, tmp_path: Path) -> None:
    if kind == "another task":
        found = "weights made with dataset_name: abdomen"
        metadata = json.loads(start.with_suffix(".json").read_text())
        start.with_suffix(".json").write_text(json.dumps(metadata | {"dataset_name": "abdomen"}))
    elif kind == "another task, its metadata left behind":
        found = "weights other than those that model.json describes"
        shutil.copy(write_weights("abdomen_ct2mr", tmp_path / "abdomen", seed=1), start)
    else:
        found = "other parameters"
        save_tensors(start, {"weight": torch.zeros(1)})
        start.with_suffix(".json").unlink()
    error = refused(train_from, start, data, tmp_path / "run")
    assert (error.file, found in error.found) == (str(start), True), error
    assert not (tmp_path / "run" / "models" / "model.pt").exists()


def test_without_target_volumes_a_server_trains_on_labels_alone(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    off = {"mask_mode": "off"}  # no weights to start from here: a mask would stay random
    with caplog.at_level(logging.WARNING):
        train_as_a_server(corrected(data, tmp_path), tmp_path / "run", dataset_dir=tmp_path, **off)
    assert not {"d1", "d2"} & losses_of(tmp_path / "run")
    assert f"{tmp_path / 'ct.json'}: no such datalist; training continues without its volumes" in caplog.text


def test_anyone_else_is_told_that_the_target_list_is_missing(data: Path, tmp_path: Path) -> None:
    settings = {"labelled_datalist": data / "mr.json", "target_datalist": tmp_path / "ct.json"}
    error = refused(run_config, "training", "segmentation", "train", bundle_root=tmp_path / "run", **settings)
    assert (error.file, error.found) == (str(tmp_path / "ct.json"), "no such file")


def test_a_list_that_is_there_and_wrong_is_never_taken_for_missing(tmp_path: Path) -> None:
    (tmp_path / "ct.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        read_datalist(str(tmp_path / "ct.json"), "training", may_be_missing=True)
    assert read_datalist(str(tmp_path / "mr.json"), "training", may_be_missing=True) == []


def test_a_model_folder_that_cannot_be_written_is_found_before_training(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "models").write_text("in the way")
    settings = {"dataset_dir": data, "labelled_datalist": data / "mr.json", "bundle_root": tmp_path / "run"}
    error = refused(run_config, "training", "segmentation", "train", **settings)
    assert "a folder that cannot be written" in error.found
    assert not (tmp_path / "run" / "logs" / "losses.csv").exists()


@pytest.fixture
def served(tmp_path: Path) -> ServedWeightsd:
    save_tensors(tmp_path / "model.pt", nn.Linear(2, 1).state_dict())
    (tmp_path / "model.json").write_text(json.dumps(METADATA))
    return ServedWeightsd(folder=str(tmp_path), network=nn.Linear(2, 1), metadata=METADATA)


@pytest.mark.parametrize("named", [{}, {"model_filename": []}, {"model_filename": "model.pt"}])
def test_data_pass_where_the_weights_fit_or_none_are_named(served: ServedWeightsd, named: dict[str, Any]) -> None:
    assert served({"image": "a.nii.gz", **named}) == {"image": "a.nii.gz", **named}


@pytest.mark.parametrize("named", ["other.pt", ["other.pt", "model.pt"]])
def test_weights_that_a_server_would_miss_silently(served: ServedWeightsd, named: str | list[str]) -> None:
    with pytest.raises(InputError, match=r"other\.pt: no such file"):
        served({"model_filename": named})


def test_weights_that_a_server_would_load_leniently(served: ServedWeightsd) -> None:
    save_tensors(served.folder / "half.pt", {"weight": torch.zeros(1, 2)})
    with pytest.raises(InputError, match=r"half\.pt: other parameters"):
        served({"model_filename": "half.pt"})
    served.metadata = {"dataset_name": "abdomen"}
    with pytest.raises(InputError, match=r"weights made with dataset_name: heart\. Expected dataset_name: abdomen"):
        served({"model_filename": "model.pt"})
