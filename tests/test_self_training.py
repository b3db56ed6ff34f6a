"""Self-training as a second training: what it starts from and learns from, and that nothing is lost or peeked at."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from conftest import CONFIGS, assert_same_weights, config_files, refused, small_settings
from scripts.core.domains import IGNORED
from scripts.data.slices import UnpairedSliceBatches
from scripts.engines.schedules import averaged_model
from scripts.engines.self_training_trainer import SelfTrainingTrainer
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.masked_unet import MaskedUNet
from scripts.networks.segmenter import Segmenter
from test_trainers import copies, make_batches, same, settings
from torch.optim import SGD

SECOND = CONFIGS / "segmentation" / "self_train.yaml"
METHODS = CONFIGS / "methods"
UNET = CONFIGS / "networks" / "unet.yaml"
SMALL_UNET = {"network_def#channels": 4, "network_def#levels": 4}
# Structures of 1e9 ml are expected: all are too small, and each round is a new one.
HUGE = "$__import__('torch').tensor([[0.0, 1e9, 1e9]] * 4)"
LENGTH = {
    "pseudo_labels#volume_ranges_ml": HUGE,
    "max_epochs": 4,
    "iterations_per_epoch": 3,
    "checkpoint_interval": 1,
    "pseudo_label_rounds": 2,
}
CHECKPOINT = Path("models", "resume", "checkpoint.pt")


def batches_with_pseudo_labels(pseudo_label: int) -> list[dict[str, torch.Tensor]]:
    batches = make_batches()
    for batch in batches:
        batch["target_label"] = torch.full_like(batch["label"], pseudo_label)
    return batches


def small_segmenter(kind: str, mask_mode: str = "abs") -> Segmenter:
    torch.manual_seed(0)
    if kind == "unet":
        return MaskedUNet(num_classes=3, channels=4, levels=3, alignment_level=1, heads=2, mask_mode=mask_mode)
    return MaskedDeepLab(
        num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16, atrous_rates=(1,), mask_mode=mask_mode
    )


def self_trainer(segmenter: Segmenter, batches: Any, iterations: int = 1, **changes: Any) -> SelfTrainingTrainer:
    optimizer = SGD(segmenter.segmenter_parameters(), lr=0.05, momentum=0.9)
    return SelfTrainingTrainer(
        segmenter=segmenter,
        optimizer=optimizer,
        average=averaged_model(segmenter, 0.9),
        **settings(iterations, batches, changes),
    )


@pytest.mark.parametrize("kind", ["deeplab", "unet"])
def test_the_segmenter_learns_from_pseudo_labels_and_d1_stays_as_it_was(kind: str) -> None:
    segmenter = small_segmenter(kind)
    d1, own = copies(segmenter.feature_discriminator.parameters()), copies(segmenter.segmenter_parameters())
    trainer = self_trainer(segmenter, batches_with_pseudo_labels(pseudo_label=1), iterations=20)
    trainer.run()
    assert same(segmenter.feature_discriminator.parameters(), d1)
    assert not same(segmenter.segmenter_parameters(), own)
    # Labelled slices have random labels; every target pixel is of class 1.
    target = batches_with_pseudo_labels(1)[0]["target_image"]
    assert (segmenter.eval()(target).argmax(1) == 1).float().mean() > 0.9


def test_ignored_slices_teach_nothing() -> None:
    # With instance norm, whatever the target's images are: the labelled slices alone decide.
    results = []
    for shift in (0.0, 0.5):
        batches = batches_with_pseudo_labels(IGNORED)
        for batch in batches:
            batch["target_image"] = batch["target_image"] + shift
        segmenter = small_segmenter("unet", mask_mode="off")
        self_trainer(segmenter, batches, iterations=2).run()
        results.append(copies(segmenter.segmenter_parameters()))
    assert same(*results)


@pytest.fixture(scope="module")
def trained(without_labels: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a second training after a first one of ``method``, on target labels in some state."""

    def run(method: str = "augment", labels: str = "as they are", network: str = "deeplab", **more: Any) -> Path:
        root = tmp_path_factory.mktemp("second")
        start(method, network, without_labels(labels), root)
        second(method, network, without_labels(labels), root, **more)
        return root

    return run


def run(method: str, network: str, *overlays: Path, **more: Any) -> None:
    """Run a training of a tiny network."""
    files = config_files("segmentation", "train", *([UNET] if network == "unet" else []), METHODS / f"{method}.yaml")
    small = small_settings("segmentation", "train", **more)
    if network == "unet":
        small = {key: value for key, value in small.items() if not key.startswith("network_def")} | SMALL_UNET
    monai.bundle.run(run_id="training", config_file=[*files, *map(str, overlays)], **small)


def start(method: str, network: str, data: Path, root: Path) -> None:
    run(method, network, bundle_root=root / "start", dataset_dir=data, labelled_datalist=data / "mr.json")


def second(method: str, network: str, data: Path, root: Path, **more: Any) -> None:
    places = {"bundle_root": root, "dataset_dir": data, "labelled_datalist": data / "mr.json"}
    weights = {"initial_weights": root / "start" / "models" / "model.pt"}
    run(method, network, SECOND, **LENGTH | places | weights | {"min_confidence": 0.2} | more)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "network"), [("augment", "deeplab"), ("glua", "deeplab"), ("augment", "unet")])
def test_it_follows_any_first_training(method: str, network: str, trained: Callable[..., Path]) -> None:
    root = trained(method, network=network)
    rows = list(csv.DictReader((root / "logs" / "pseudo_labels.csv").open()))
    assert [row["round"] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert any(float(row["kept_share"]) > 0 for row in rows)
    assert (root / "pictures" / "pseudo_labels_02.png").exists()
    assert (root / "models" / "model.json").exists()


@pytest.mark.slow
def test_no_label_of_the_target_is_read(trained: Callable[..., Path]) -> None:
    honest = trained()
    for labels in ("deleted", "scrambled"):
        other = trained(labels=labels)
        assert_same_weights(honest / "models" / "model.pt", other / "models" / "model.pt")
        for table in ("losses.csv", "pseudo_labels.csv"):
            assert (honest / "logs" / table).read_text() == (other / "logs" / table).read_text()


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_result(trained: Callable[..., Path], data: Path) -> None:
    # Stopped at batch 10 of 12, in the second round: its pseudo-labels are those of the checkpoint after batch 9.
    whole, root = trained(), trained(max_epochs=1)
    original = UnpairedSliceBatches.batch

    def batch(self: UnpairedSliceBatches, index: int) -> dict[str, torch.Tensor]:
        if index == 10:
            raise KeyboardInterrupt
        return original(self, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnpairedSliceBatches, "batch", batch)
        with pytest.raises(KeyboardInterrupt):
            second("augment", "deeplab", data, root)
    states = torch.load(root / CHECKPOINT, weights_only=True)
    assert (states["trainer"]["iteration"], states["pseudo_labels"]["rounds"]) == (9, 2)
    second("augment", "deeplab", data, root, resume=True)
    assert_same_weights(whole / "models" / "model.pt", root / "models" / "model.pt")
    for table in ("losses.csv", "pseudo_labels.csv"):
        assert (whole / "logs" / table).read_text() == (root / "logs" / table).read_text()


@pytest.mark.slow
def test_weights_to_start_from_are_needed_and_must_fit(data: Path, tmp_path: Path) -> None:
    error = refused(second, "augment", "deeplab", data, tmp_path)
    assert error.file == str(tmp_path / "start" / "models" / "model.pt")
