"""nnU-Net's own 2D predictor with random weights, to compare times. Needs requirements-bench.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

__all__ = ["NnUnetPredictor"]

NETWORK = "dynamic_network_architectures.architectures.unet.PlainConvUNet"
LARGEST_FEATURES = 512
SMALLEST_MAP = 4  # pixels; the planner halves the resolution down to it
BATCH_SIZE = 12  # of training; the predictor itself takes one window at a time


class NnUnetPredictor:
    """nnU-Net v2's predictor with the network that its planner sets for 2D slices of a CT.

    Reading, normalisation, windows with a Gaussian weight and half a window's overlap, resampling and writing are its
    own. Nothing of ours runs. ``size`` is that of a slice and of a window, ``spacing_mm`` along (x, y, z).
    """

    def __init__(self, size: int, *, num_classes: int, spacing_mm: Sequence[float]) -> None:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        plans = PlansManager(_plans(size, spacing_mm))
        configuration = plans.get_configuration("2d")
        names = {"background": 0, **{f"structure {index}": index for index in range(1, num_classes)}}
        dataset = {"labels": names, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1}
        architecture = plans.plans["configurations"]["2d"]["architecture"]
        network = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            num_classes,
            deep_supervision=False,
        )
        self.predictor = nnUNetPredictor(device=device, perform_everything_on_device=device.type == "cuda")
        self.predictor.manual_initialization(
            network, plans, configuration, [network.state_dict()], dataset, "nnUNetTrainer", (0, 1)
        )

    def predict(self, volume: Path, out: Path, *, mirrored: bool) -> None:
        """Segment a file; with ``mirrored``, average over flips of both axes, which is nnU-Net's default."""
        self.predictor.use_mirroring = mirrored
        self.predictor.allowed_mirroring_axes = (0, 1) if mirrored else None
        self.predictor.predict_from_files_sequential([[str(volume)]], [str(out)], overwrite=True)


def _plans(size: int, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """The fields of a plans file that prediction reads; arrays are (z, y, x)."""
    levels = 1
    while size >> levels >= SMALLEST_MAP and levels < 7:
        levels += 1
    spacing = [float(value) for value in reversed(spacing_mm)]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"mean": 50.0, "std": 30.0, "percentile_00_5": -100.0, "percentile_99_5": 200.0}
        },
        "configurations": {
            "2d": {
                "data_identifier": "nnUNetPlans_2d",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": BATCH_SIZE,
                "patch_size": [size, size],
                "spacing": spacing[1:],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": _architecture(levels),
            }
        },
    }


def _architecture(levels: int) -> dict[str, Any]:
    kernels = [[3, 3]] * levels
    return {
        "network_class_name": NETWORK,
        "arch_kwargs": {
            "n_stages": levels,
            "features_per_stage": [min(32 * 2**level, LARGEST_FEATURES) for level in range(levels)],
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "kernel_sizes": kernels,
            "strides": [[1, 1], *[[2, 2]] * (levels - 1)],
            "n_conv_per_stage": [2] * levels,
            "n_conv_per_stage_decoder": [2] * (levels - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "nonlin"],
    }
