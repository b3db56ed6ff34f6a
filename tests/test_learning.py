"""The method learns: on a tiny data set the translator keeps anatomy in place, and GLUA beats no adaptation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CONFIGS, ellipsoid, run_config, write_volume

pytestmark = pytest.mark.slow

TASK = {"label_names": ["heart"], "label_values": [500], "background_values": []}
GENERATOR = {"generator_channels": 8}
SEGMENTER = {"network_def#width": 8, "network_def#output_stride": 4}
VALUES = {"mr": (0.0, 200.0, 400.0), "ct": (-1000.0, -100.0, 100.0)}
"""Air, body and heart. In the networks' range [-1, 1], MR is -1, 0 and 1, and CT -1, -0.5 and 0.

So a CT heart looks like an MR body, and the contrast of a CT is half as large.
"""


def write_case(folder: Path, domain: str, index: int) -> dict[str, str]:
    """A body with one round heart at a random place."""
    shape, rng = (32, 32, 6), np.random.default_rng([index, len(VALUES[domain]), domain == "ct"])
    air, body, heart = VALUES[domain]
    label = ellipsoid(shape, (*rng.uniform(0.38, 0.62, 2), 0.5), (0.2, 0.2, 0.6))
    image = np.where(ellipsoid(shape, (0.5, 0.5, 0.5), (0.47, 0.45, 5.0)), body, air)
    image = np.where(label, heart, image) + rng.normal(0, 8, shape)
    entry = {kind: f"{domain}_{index}_{kind}.nii.gz" for kind in ("image", "label")}
    write_volume(folder / entry["image"], image.astype(np.int16))
    write_volume(folder / entry["label"], (500 * label).astype(np.int16))
    return entry


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three training cases and a validation case of each domain."""
    folder = tmp_path_factory.mktemp("hearts")
    for domain in VALUES:
        cases = [write_case(folder, domain, index) for index in range(4)]
        lists = {"name": domain, "modality": domain.upper(), "training": cases[:3], "validation": cases[3:]}
        (folder / f"{domain}.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def translator(hearts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short training of stage 1, with its translated volumes."""
    root = tmp_path_factory.mktemp("translator")
    shared: dict[str, Any] = {"bundle_root": root, "dataset_dir": hearts} | TASK | GENERATOR
    training = {"iterations_per_epoch": 100, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.95}
    run_config("training", "synthesis", "train", **shared | training | {"discriminator_channels": 8})
    run_config("inference", "synthesis", "inference", **shared)
    return root


def dice_percent(method: str, hearts: Path, labelled: Path, root: Path) -> float:
    """Mean Dice of a short training of stage 2 on the target's validation case."""
    shared: dict[str, Any] = {"bundle_root": root, "dataset_dir": hearts} | TASK | SEGMENTER
    training = {"iterations_per_epoch": 100, "batch_size": 4, "learning_rate": 1e-2, "ema_decay": 0.95}
    training |= {"adversarial_warmup": 50, "labelled_datalist": labelled}
    run_config("training", "segmentation", "train", CONFIGS / "methods" / f"{method}.yaml", **shared | training)
    mask = {"mask_mode": "off"} if method == "none" else {}
    run_config("evaluating", "segmentation", "evaluate", **shared | mask)
    summary = json.loads((root / "eval" / "summary.json").read_text())
    return float(summary["structures"]["heart"]["dice_percent"]["mean"])


def test_the_translator_halves_its_cycle_loss(translator: Path) -> None:
    with (translator / "logs" / "losses.csv").open() as file:
        cycle = [float(row["cycle"]) for row in csv.DictReader(file)]
    assert np.mean(cycle[-10:]) < np.mean(cycle[:5]) / 2


def test_glua_is_better_than_no_adaptation(hearts: Path, translator: Path, tmp_path: Path) -> None:
    none = dice_percent("none", hearts, hearts / "mr.json", tmp_path / "none")
    glua = dice_percent("glua", hearts, translator / "translated" / "datalist.json", tmp_path / "glua")
    assert glua > none + 30, f"no adaptation {none:.1f} %, GLUA {glua:.1f} %"
