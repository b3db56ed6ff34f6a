"""Speed of whole-volume inference relative to MONAI's inferer with the same network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from monai.inferers import SliceInferer
from scripts.inference.inferers import SliceWiseInferer
from scripts.lab.bench.timing import Measurement, Ratio, channels_last, round_robin
from scripts.networks.masked_deeplab import MaskedDeepLab

__all__ = ["measure_inference"]


def measure_inference(device: torch.device, *, quick: bool, rounds: int) -> Measurement:
    """Time our inferer as configured, and MONAI's in eager float32 and torch's default memory layout."""
    size, slices = (64, 4) if quick else (256, 16)
    settings: dict[str, Any] = {"layers": (1, 1, 1, 1), "width": 4, "feature_channels": 16} if quick else {}
    network = MaskedDeepLab(num_classes=5, **settings).eval().to(device)
    fast_network = channels_last(copy.deepcopy(network))
    volume = torch.rand(1, 1, size, size, slices, device=device) * 2 - 1
    ours = SliceWiseInferer(window_size=(size, size), slice_batch_size=8)
    theirs = SliceInferer(roi_size=(size, size), sw_batch_size=4, spatial_dim=2)

    def plain() -> torch.Tensor:
        with torch.inference_mode():
            return theirs(volume, network)

    reference, result = plain(), ours(volume, fast_network)
    equal = (result.argmax(1) == reference.argmax(1)).float().mean().item()
    error = ((result - reference).norm() / reference.norm()).item()
    timings = round_robin(
        {"ours": lambda: ours(volume, fast_network), "slice_inferer": plain}, rounds=rounds, device=device
    )
    return Measurement(
        size=f"{size} x {size} x {slices} voxels, {'a tiny backbone' if quick else 'ResNet-50'}, output stride 8",
        timings=timings,
        ratios=[
            Ratio(
                name="volume inference : MONAI's SliceInferer, float32",
                value=timings.ratio("slice_inferer", "ours"),
                target=2.5,
            )
        ],
        notes=(f"random weights: relative error of the logits {error:.1e}, equal labels {equal:.2%}",),
    )
