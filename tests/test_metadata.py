"""Metadata follow the schema, and every task can be packed into both bundles."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from bundle.pack import BUNDLES, ROOT, pack_bundle, packed_name

TASKS = sorted(path.stem for path in (ROOT / "configs" / "tasks").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft201909Validator:
    return jsonschema.Draft201909Validator(json.loads((ROOT / "tests" / "meta_schema.json").read_text()))


@pytest.mark.parametrize("name", BUNDLES)
def test_metadata_follows_the_schema(validator: jsonschema.Draft201909Validator, name: str) -> None:
    metadata = json.loads((ROOT / "configs" / name / "metadata.json").read_text())
    assert list(validator.iter_errors(metadata)) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda meta: meta.pop("required_packages_version"),
        lambda meta: meta["network_data_format"].pop("outputs"),
        lambda meta: meta["network_data_format"]["inputs"]["image"].pop("value_range"),
        lambda meta: meta["network_data_format"]["outputs"]["pred"].update(spatial_shape=["x*n"]),
        lambda meta: meta.update(feature_data_format={"inputs": {}}),
        lambda meta: meta.update(supported_apps=["an app"]),
    ],
)
def test_the_schema_refuses(validator: jsonschema.Draft201909Validator, spoil: object) -> None:
    metadata = json.loads((ROOT / "configs" / "segmentation" / "metadata.json").read_text())
    spoil(metadata)  # type: ignore[operator]
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(metadata)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BUNDLES)
def test_every_task_packs(validator: jsonschema.Draft201909Validator, tmp_path: Path, name: str, task: str) -> None:
    folder = pack_bundle(name, task=task, out=tmp_path).folder
    assert folder.name == packed_name(task, name)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    validator.validate(metadata)
    values = yaml.safe_load((ROOT / "configs" / "tasks" / f"{task}.yaml").read_text())
    assert values["task"] == task
    for role in ["train", "inference"]:
        base = yaml.safe_load((ROOT / "configs" / name / f"{role}.yaml").read_text())
        assert json.loads((folder / "configs" / f"{role}.json").read_text()) == {**base, **values}, role


def test_metadata_of_the_repository_have_the_labels_of_the_base_config() -> None:
    base = ROOT / "configs" / "segmentation" / "inference.yaml"
    if not base.is_file():
        pytest.skip("no base config")
    config = yaml.safe_load(base.read_text())
    ports = json.loads((base.with_name("metadata.json")).read_text())["network_data_format"]
    named = {str(index): name for index, name in enumerate(["background", *config["label_names"]])}
    assert ports["outputs"]["pred"]["channel_def"] == named
    assert ports["outputs"]["pred"]["num_channels"] == len(named)
    assert ports["inputs"]["image"]["spatial_shape"] == config["slice_size"]
