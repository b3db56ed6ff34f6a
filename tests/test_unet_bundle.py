"""The U-Net in every job of the bundle: training, evaluation, packing, export, inference by an exported network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.export import export_network
from bundle.pack import pack_bundle
from conftest import CONFIGS, SHORT, TASK, assert_same_weights, config_files, refused
from monai.bundle import ConfigParser
from scripts.data.slices import UnpairedSliceBatches
from scripts.inference.exported_network import ENGINES, ExportedNetwork
from test_export import every_engine
from torch import nn

pytestmark = pytest.mark.slow

UNET = CONFIGS / "networks" / "unet.yaml"
NETWORK = {"network_def#channels": 4, "network_def#levels": 4}
GRID = {"slice_size": [32, 32], "spacing_mm": [-1.0, -1.0, -1.0]}


def run(run_id: str, config: str, *overlays: Path, **settings: Any) -> None:
    """Run a segmentation config with a tiny U-Net."""
    places = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    files = config_files("segmentation", config, *overlays, UNET)
    monai.bundle.run(
        run_id=run_id, config_file=files, **{"device": "cpu", "precision": "float32", **GRID, **NETWORK, **places}
    )


def network_of(root: Path) -> nn.Module:
    """The network of a training, from its metadata."""
    parser = ConfigParser()
    parser.read_config(config_files("segmentation", "inference"))
    parser.update(json.loads((root / "models" / "model.json").read_text())["network"])
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(root / "models" / "model.pt", weights_only=True))
    return network


@pytest.fixture(scope="module")
def trained_unet(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of GLUA with the U-Net as S."""
    root = tmp_path_factory.mktemp("unet")
    settings = {"val_interval": 1, "adversarial_warmup": 1, **SHORT}
    run(
        "training",
        "train",
        bundle_root=root,
        dataset_dir=data,
        labelled_datalist=data / "mr.json",
        translator="none",
        **settings,
    )
    return root


def test_a_card_names_the_network_and_the_evaluation_takes_it(trained_unet: Path, data: Path, tmp_path: Path) -> None:
    metadata = json.loads((trained_unet / "models" / "model.json").read_text())
    assert metadata["network"]["mask_mode"] == "abs"
    network = metadata["network"]["network_def"]
    assert network["_target_"] == "scripts.networks.masked_unet.MaskedUNet"
    assert (network["channels"], network["levels"], network["alignment_level"]) == (4, 4, 2)
    run("evaluating", "evaluate", bundle_root=trained_unet, dataset_dir=data, output_dir=tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["cases"] == 1
    error = refused(run, "evaluating", "evaluate", bundle_root=trained_unet, dataset_dir=data, mask_mode="off")
    assert error.found == "weights made with mask_mode: abs"


def test_a_packed_bundle_builds_the_network_of_its_weights(trained_unet: Path, tmp_path: Path) -> None:
    weights = trained_unet / "models" / "model.pt"
    folder = pack_bundle("segmentation", task=TASK, out=tmp_path, weights=weights).folder
    for config in ("train", "inference", "evaluate"):
        parser = ConfigParser()
        (file,) = (folder / "configs").glob(f"{config}.*")
        parser.read_config(str(file))
        state = torch.load(weights, weights_only=True)
        missing, unexpected = parser.get_parsed_content("network_def").load_state_dict(state, strict=False)
        assert (missing, unexpected) == ([], []), config
    train = json.loads((folder / "configs" / "train.json").read_text())
    optimizer = train["segmenter_optimizer"]["optimizer"]["_target_"]
    assert (optimizer, train["learning_rate"]) == ("torch.optim.AdamW", 2e-3), "those of configs/networks/unet.yaml"


def test_an_interrupted_training_continues_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    original = UnpairedSliceBatches.batch

    def batch(self: UnpairedSliceBatches, index: int) -> dict[str, torch.Tensor]:
        if index == 5:
            raise KeyboardInterrupt
        return original(self, index)

    schedule = {"max_epochs": 4, "iterations_per_epoch": 2, "batch_size": 2, "checkpoint_interval": 1}
    shown = {"panel_interval": 0, "val_interval": 0, "adversarial_warmup": 3}
    places = {"dataset_dir": data, "labelled_datalist": data / "mr.json", "translator": "none"}
    settings: dict[str, Any] = {**schedule, **shown, **places}
    run("training", "train", bundle_root=tmp_path / "whole", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            run("training", "train", bundle_root=tmp_path / "resumed", **settings)
    run("training", "train", bundle_root=tmp_path / "resumed", resume=True, **settings)
    assert_same_weights(*(tmp_path / name / "models" / "model.pt" for name in ("whole", "resumed")))
    losses = [(tmp_path / name / "logs" / "losses.csv").read_text() for name in ("whole", "resumed")]
    assert losses[0] == losses[1]


@every_engine
def test_an_engine_segments_volumes_as_pytorch_does(
    trained_unet: Path, data: Path, tmp_path: Path, engine: str
) -> None:
    out = tmp_path / f"model{ENGINES[engine]}"
    export_network("segmentation", task=TASK, weights=trained_unet / "models" / "model.pt", engine=engine, out=out)
    exported = ExportedNetwork(engine=engine, path=out, precision="float32")
    network = network_of(trained_unet)
    for shape in [(1, 1, 33, 47), (3, 1, 64, 96)]:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.inference_mode():
            torch.testing.assert_close(exported(images), network(images), atol=1e-4, rtol=1e-4)
    places = {"bundle_root": trained_unet, "dataset_dir": data / "ct.json"}
    run("inference", "inference", output_dir=tmp_path / "pytorch", **places)
    run("inference", "inference", output_dir=tmp_path / engine, engine=engine, checkpoint=out, **places)
    volumes = sorted((tmp_path / "pytorch").glob("*.nii.gz"))
    assert len(volumes) == 3
    for volume in volumes:
        expected, found = (np.asarray(nib.load(path).dataobj) for path in (volume, tmp_path / engine / volume.name))
        assert (expected == found).mean() >= 0.999
