"""Speed from an image file to a label map on disk: ours, a plain MONAI pipeline, and nnU-Net's 2D predictor."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SliceInferer
from monai.networks.nets import DynUNet
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)
from scripts.core.settings import Settings, run_bundle
from scripts.core.weights import save_weights
from scripts.lab.bench.nnunet import NnUnetPredictor
from scripts.lab.bench.timing import Measurement, Ratio, round_robin
from scripts.lab.prepare.nifti_pairs import write_nifti

__all__ = ["measure_file_to_labels"]

CONFIGS = ["configs/segmentation/inference.yaml", "configs/tasks/abdomen_mr2ct.yaml", "configs/networks/unet.yaml"]
SPACING_MM = (1.25, 1.25, 3.0)
NUM_CLASSES = 5
MISSING = "nnU-Net is not installed (requirements-bench.txt): not compared"


def measure_file_to_labels(*, quick: bool, rounds: int) -> Measurement:
    """Time one volume of a generated body on the grid of the task, so that every pipeline segments the same slices.

    Weights are random: only time is compared. Ours is the recommended network with its inference settings; MONAI's is a
    DynUNet of the same channels in a pipeline of stock transforms; nnU-Net's is its plain 2D U-Net of seven levels, as
    its planner sets it for this size, with and without its default test-time mirroring.
    """
    size, slices = (64, 4) if quick else (256, 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = folder / "images" / "body_0000.nii.gz"
        volume.parent.mkdir()
        write_nifti(volume, _body(size, slices), np.diag([*SPACING_MM, 1.0]))
        variants: dict[str, Callable[[], object]] = {
            "ours": _ours(folder / "ours", volume, size),
            "monai": _monai(folder / "monai", volume, size),
        }
        ratios = [("MONAI's transforms, SliceInferer and DynUNet", "monai", 4.0)]
        notes: tuple[str, ...] = (MISSING,)
        if find_spec("nnunetv2"):
            predictor = NnUnetPredictor(size, num_classes=NUM_CLASSES, spacing_mm=SPACING_MM)
            for variant, mirrored in (("nnunet", False), ("nnunet_mirrored", True)):
                variants[variant] = partial(predictor.predict, volume, folder / f"{variant}.nii.gz", mirrored=mirrored)
            ratios += [("nnU-Net without mirroring", "nnunet", 3.0), ("nnU-Net's default", "nnunet_mirrored", 12.0)]
            notes = ()
        timings = round_robin({key: _quiet(call) for key, call in variants.items()}, rounds=rounds, device=_device())
    return Measurement(
        size=f"one file of {size} x {size} x {slices} voxels to a label map, random weights",
        timings=timings,
        ratios=[
            Ratio(name=f"file to label map : {name}", value=timings.ratio(variant, "ours"), target=target)
            for name, variant, target in ratios
        ],
        notes=notes,
    )


def _ours(folder: Path, volume: Path, size: int) -> Callable[[], object]:
    settings = {
        "bundle_root": str(folder),
        "dataset_dir": str(volume),
        "slice_size": [size, size],
        "mask_mode": "off",
        "smoothing_mm": 20.0,
        "largest_component": True,
        "device": str(_device()),
    }
    parser = ConfigParser(Settings.read(CONFIGS, settings).merged)
    network = parser.get_parsed_content("network_def")
    (folder / "models").mkdir(parents=True)
    save_weights(folder / "models" / "model.pt", network.state_dict(), parser.get_parsed_content("weights_metadata"))

    def run() -> None:
        shutil.rmtree(folder / "predictions", ignore_errors=True)
        run_bundle("inference", CONFIGS, **settings)

    return run


def _monai(folder: Path, volume: Path, size: int) -> Callable[[], object]:
    folder.mkdir()
    load = Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=SPACING_MM),
            ScaleIntensityRanged("image", -125.0, 275.0, -1.0, 1.0, clip=True),
        ]
    )
    save = Compose(
        [
            Invertd("pred", transform=load, orig_keys="image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            SaveImaged("pred", output_dir=folder, output_postfix="seg", separate_folder=False, print_log=False),
        ]
    )
    channels = [24, 48, 96, 192, 384]
    network = DynUNet(2, 1, NUM_CLASSES, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, channels).eval().to(_device())
    inferer = SliceInferer(roi_size=(size, size), sw_batch_size=8, spatial_dim=2)

    def run() -> None:
        for batch in DataLoader(Dataset([{"image": str(volume)}], load), batch_size=1):
            with torch.inference_mode():
                batch["pred"] = inferer(batch["image"].to(_device()), network).softmax(1)
            for item in decollate_batch(batch):
                save(item)

    return run


def _body(size: int, slices: int) -> np.ndarray:
    """A cylinder of soft tissue with noise in air, in HU."""
    place = np.linspace(-1, 1, size)
    inside = (place[:, None] ** 2 + place**2 < 0.6)[..., None]
    noise = 30 * np.random.default_rng(0).standard_normal((size, size, slices))
    return (np.where(inside, 50, -1000) + noise).astype(np.int16)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _quiet(call: Callable[[], object]) -> Callable[[], object]:
    """The call without its progress bars and messages."""

    def run() -> None:
        logging.disable(logging.WARNING)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            call()
        logging.disable(logging.NOTSET)

    return run
