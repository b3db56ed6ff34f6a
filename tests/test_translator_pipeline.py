"""Every translator trains, resumes, translates and packs with tiny settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.pack import pack_bundle
from conftest import CONFIGS, refused, run_base, run_config
from scripts.data.slices import UnpairedSliceBatches

pytestmark = pytest.mark.slow

LOSSES = {
    "style": {"reconstruction", "cycle", "content", "adversarial"},
    "demodulated": {"reconstruction", "cycle", "content", "adversarial"},
    "cyclegan": {"cycle", "adversarial", "identity"},
    "starganv2": {"cycle", "adversarial", "style", "diversity"},
    "munit": {"reconstruction", "content", "adversarial", "style"},
    "dritpp": {"reconstruction", "cycle", "adversarial", "confusion", "latent", "normality", "mode_seeking"}
    | {"content_discriminator"},
}
DRAWING = ["starganv2", "munit", "dritpp"]
"""Translators that draw a style for each volume."""
SHORT = {"max_epochs": 2, "iterations_per_epoch": 2, "checkpoint_interval": 1}


def train(name: str, data: Path, root: Path, **more: object) -> None:
    overlay = CONFIGS / "translators" / f"{name}.yaml"
    run_config("training", "synthesis", "train", overlay, bundle_root=root, dataset_dir=data, **SHORT | more)


def translate(name: str, data: Path, root: Path, output: Path, **more: object) -> list[np.ndarray]:
    places = {"bundle_root": root, "dataset_dir": data, "output_dir": output}
    run_config("inference", "synthesis", "inference", translator=name, **places | more)
    return [np.asarray(nib.load(path).dataobj) for path in sorted(output.glob("*_translated.nii.gz"))]


@pytest.fixture(scope="module")
def run_of(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a translator's finished training."""

    @cache
    def run(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        train(name, data, root, panel_interval=1)
        return root

    return run


@pytest.mark.parametrize("name", LOSSES)
def test_it_trains_on_its_own_losses_and_says_what_it_is(name: str, run_of: Callable[[str], Path]) -> None:
    run = run_of(name)
    header, *rows = (run / "logs" / "losses.csv").read_text().splitlines()
    assert set(header.split(",")) == {"iteration", "loss", "discriminator", "content_std"} | LOSSES[name]
    assert len(rows) == 4
    assert json.loads((run / "models" / "model.json").read_text())["network"] == {
        "translator": name,
        "generator_channels": 4,
        "generator_blocks": 1,
    }
    assert list((run / "pictures").glob("translation_*.png"))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "style"])
def test_it_translates_a_volume_twice_to_the_same(
    name: str, run_of: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    run = run_of(name)
    first, second = (translate(name, data, run, tmp_path / folder) for folder in "ab")
    assert len(first) == 3
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))
    assert all(0 <= voxels.min() < voxels.max() <= 1000 for voxels in first)
    other = translate(name, data, run, tmp_path / "c", style_seed=1)
    assert np.array_equal(first[0], other[0]) == (name not in DRAWING)


@pytest.mark.parametrize("name", DRAWING)
def test_drawn_styles_continue_to_the_same_result(
    name: str, run_of: Callable[[str], Path], data: Path, tmp_path: Path
) -> None:
    run = run_of(name)
    original = UnpairedSliceBatches.batch

    def batch(self: UnpairedSliceBatches, index: int) -> dict[str, torch.Tensor]:
        if index == 3:
            raise KeyboardInterrupt
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            train(name, data, tmp_path)
    train(name, data, tmp_path, resume=True)
    whole, continued = (torch.load(root / "models" / "model.pt", weights_only=True) for root in (run, tmp_path))
    assert [key for key in whole if not torch.equal(whole[key], continued[key])] == []
    assert (run / "logs" / "losses.csv").read_text() == (tmp_path / "logs" / "losses.csv").read_text()


def test_weights_of_another_translator_are_refused(run_of: Callable[[str], Path], data: Path, tmp_path: Path) -> None:
    places = {"dataset_dir": data, "bundle_root": tmp_path, "ckpt_dir": run_of("cyclegan") / "models"}
    error = refused(run_base, "synthesis/inference", **places)
    assert (error.found, error.expected) == ("weights made with translator: cyclegan", "translator: style")


def test_packing_takes_the_translator_from_the_weights(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    weights = run_of("cyclegan") / "models" / "model.pt"
    packed = pack_bundle("synthesis", task="phantom_mr2ct", out=tmp_path, weights=weights)
    for config in ("train", "inference"):
        assert json.loads((packed.folder / "configs" / f"{config}.json").read_text())["translator"] == "cyclegan"
