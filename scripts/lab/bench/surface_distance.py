"""Speed of the surface distances relative to medpy and MONAI on the same masks, with equal values."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance
from numpy.typing import NDArray
from scripts.evaluation.metrics import mean_distance, nearest_distances, surfaces
from scripts.lab.bench.timing import Measurement, Ratio, round_robin

__all__ = ["measure_surface_distance"]

SPACING_MM = (1.2, 0.9, 2.0)
NUM_LABELS = 4
TOLERANCE = 1e-6

Masks = list[tuple[NDArray[Any], NDArray[Any]]]


def measure_surface_distance(*, quick: bool, rounds: int) -> Measurement:
    """Time the average symmetric surface distance of four structures, after asserting that all values agree."""
    shape = (48, 48, 24) if quick else (256, 256, 128)
    masks = _masks(shape)
    predictions, truths = (torch.from_numpy(np.stack(side))[None] for side in zip(*masks, strict=True))
    variants: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: [mean_distance(nearest_distances(*surfaces(p, t, 1)[0], SPACING_MM)) for p, t in masks],
        "monai": lambda: compute_average_surface_distance(
            predictions, truths, include_background=True, symmetric=True, spacing=list(SPACING_MM)
        )[0].tolist(),
    }
    notes: tuple[str, ...] = ()
    if find_spec("medpy"):
        variants["medpy"] = lambda: _medpy(masks)
    else:
        notes = ("medpy is not installed (requirements-dev.txt has it): not compared",)
    values = {name: variant() for name, variant in variants.items()}
    for name, found in values.items():
        if not np.allclose(found, values["ours"], rtol=TOLERANCE, atol=TOLERANCE):
            raise ValueError(f"{name} gives the distances {found}, ours are {values['ours']}: they must be equal")
    timings = round_robin(variants, rounds=rounds, device=torch.device("cpu"))
    targets = {"medpy": 50.0, "monai": 4.0}
    return Measurement(
        size=f"{NUM_LABELS} labels, {' x '.join(map(str, shape))} voxels",
        timings=timings,
        ratios=[
            Ratio(name=f"surface distance : {name}", value=timings.ratio(name, "ours"), target=target)
            for name, target in targets.items()
            if name in variants
        ],
        notes=notes,
    )


def _medpy(masks: Masks) -> list[float]:
    from medpy.metric.binary import assd

    return [assd(prediction, truth, voxelspacing=SPACING_MM) for prediction, truth in masks]


def _masks(shape: tuple[int, int, int]) -> Masks:
    """Four ellipsoids, each with a shifted, slightly larger and wavy prediction."""
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) / n for n in shape), indexing="ij"))
    masks: Masks = []
    for centre in ((0.3, 0.3, 0.4), (0.7, 0.3, 0.6), (0.3, 0.7, 0.6), (0.7, 0.7, 0.4)):
        away = grid - np.asarray(centre, dtype=np.float32)[:, None, None, None]
        shifted = away - np.float32(0.012)
        wave = 0.005 * np.sin(60 * grid[0]) * np.sin(60 * grid[1])
        masks.append((np.linalg.norm(shifted, axis=0) + wave < 0.145, np.linalg.norm(away, axis=0) < 0.14))
    return masks
