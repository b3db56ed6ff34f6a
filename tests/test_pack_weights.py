"""Weights that are packed: their metadata set grid and network, and weights that do not fit are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bundle.pack import pack_bundle
from scripts.core.errors import InputError
from toy_project import BASE, config_of


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"task": "toy"}', "weights made with task: toy. Expected task: other"),
        ('{"domains": ["mr", "ct"]}', r"weights made with domains: .*Expected domains: \['ct', 'mr'\]"),
    ],
)
def test_weights_of_another_task(project: Path, tmp_path: Path, weights: Path, metadata: str, message: str) -> None:
    with (project / "configs" / "synthesis" / "inference.yaml").open("a") as file:
        file.write('weights_metadata: {domains: ["@source_domain", "@target_domain"]}\n')
    weights.with_name("model.json").write_text(metadata)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="other", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []


def test_network_settings_come_from_the_weights_metadata(project: Path, tmp_path: Path, weights: Path) -> None:
    torch.save(torch.nn.Linear(5, 4).state_dict(), weights)
    weights.with_name("model.json").write_text('{"network": {"width": 5, "rate": 1e-05, "mode": "off"}}')
    for config in ["train", "inference"]:
        text = BASE.replace("in_features: 2", 'in_features: "@width"') + "width: 2\nrate: 1\nmode: x\n"
        (project / "configs" / "synthesis" / f"{config}.yaml").write_text(text)
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    for config in ["train", "inference"]:
        packed = config_of(folder, config)
        assert (packed["width"], packed["rate"], packed["mode"]) == (5, 1e-05, "off")


def test_settings_of_inference_come_from_the_weights_metadata(project: Path, tmp_path: Path, weights: Path) -> None:
    weights.with_name("model.json").write_text('{"inference": {"smoothing_mm": 20.0}}')
    with (project / "configs" / "synthesis" / "inference.yaml").open("a") as file:
        file.write("smoothing_mm: 0.0\n")
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    assert config_of(folder, "inference")["smoothing_mm"] == 20.0
    assert "smoothing_mm" not in config_of(folder, "train")


def test_a_whole_network_comes_from_the_weights_metadata(project: Path, tmp_path: Path, weights: Path) -> None:
    """Arguments that refer to other settings go on referring to them; others take the trained value."""
    torch.save(torch.nn.Linear(5, 4).state_dict(), weights)
    trained = {"_target_": "torch.nn.Linear", "in_features": 5, "out_features": 4, "bias": True}
    weights.with_name("model.json").write_text(json.dumps({"network": {"network_def": trained}}))
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    expected = {**trained, "out_features": "$len(@label_names) + 1"}
    assert config_of(folder, "train")["network_def"] == config_of(folder, "inference")["network_def"] == expected


def test_a_networks_own_optimiser_and_rates_are_packed(project: Path, tmp_path: Path, weights: Path) -> None:
    """Retraining weights of a U-Net with DeepLab's optimiser would be another training."""
    trained = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 4}
    weights.with_name("model.json").write_text(json.dumps({"network": {"network_def": trained}}))
    networks = project / "configs" / "networks"
    networks.mkdir()
    (networks / "linear.yaml").write_text("network_def: {_target_: torch.nn.Linear}\nlearning_rate: 0.002\n")
    (networks / "conv.yaml").write_text("network_def: {_target_: torch.nn.Conv2d}\nlearning_rate: 1.0\n")
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    assert config_of(folder, "train")["learning_rate"] == 0.002
    assert "learning_rate" not in config_of(folder, "inference")


def test_the_grid_comes_from_the_weights_metadata_too(project: Path, tmp_path: Path, weights: Path) -> None:
    # Trained at a smaller size than the task's: the bundle has to do the same.
    weights.with_name("model.json").write_text('{"grid": {"slice_size": [16, 24]}}')
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    assert config_of(folder, "train")["slice_size"] == config_of(folder, "inference")["slice_size"] == [16, 24]
    ports = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]
    assert ports["inputs"]["image"]["spatial_shape"] == [16, 24] == ports["outputs"]["pred"]["spatial_shape"]


@pytest.mark.parametrize("metadata", ["[1]", "[]", "{"])
def test_damaged_metadata_are_refused(project: Path, tmp_path: Path, weights: Path, metadata: str) -> None:
    weights.with_name("model.json").write_text(metadata)
    with pytest.raises(InputError, match=r"model\.json: no JSON object\. Expected metadata of weights\. Fix: copy"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)


def test_weights_of_another_size(project: Path, tmp_path: Path, weights: Path) -> None:
    torch.save(torch.nn.Linear(2, 7).state_dict(), weights)
    with pytest.raises(InputError, match=r"model\.pt: other parameters \(size mismatch for weight"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []


class Harmful:
    """An object that unpickling would have to execute."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "Expected a PyTorch state dict"),
        (b"not weights at all", "Expected a PyTorch state dict"),
        (Harmful(), r"no weights \(UnpicklingError\)"),
        ({"model": {"weight": torch.zeros(1)}, "iteration": 3}, "other parameters"),
        ({}, "other parameters"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_weights_that_are_no_state_dict(project: Path, tmp_path: Path, content: object, message: str) -> None:
    weights = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif content is not None:
        torch.save(content, weights)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []
