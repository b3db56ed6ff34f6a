"""Surface distances of two masks, to compare those of :mod:`scripts.evaluation.metrics` with other libraries'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scripts.evaluation.metrics import check_spacing, mean_distance, nearest_distances, percentile_95, surfaces

__all__ = ["Reduction", "average_symmetric_surface_distance", "directed_surface_distances", "hausdorff_distance_95"]

Reduction = Literal["pooled", "mean_of_means"]


def directed_surface_distances(
    prediction_mask: NDArray[Any], truth_mask: NDArray[Any], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance in mm of every surface voxel to the nearest of the other mask: prediction to truth, truth to prediction.

    Args:
        prediction_mask: non-zero inside the structure, any number of axes.
        truth_mask: the same, same shape.
        spacing_mm: edge lengths of a voxel, one for each axis.

    Raises:
        ValueError: a mask is empty, shapes differ, or the spacing does not fit.
    """
    spacing = check_spacing(spacing_mm, truth_mask.ndim)
    if prediction_mask.shape != truth_mask.shape:
        raise ValueError(f"prediction has shape {prediction_mask.shape}, truth {truth_mask.shape}: they must be equal")
    prediction, truth = prediction_mask.astype(bool, copy=False), truth_mask.astype(bool, copy=False)
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if not mask.any():
            raise ValueError(f"the {name} mask is empty: a surface distance is not defined")
    ((predicted, true),) = surfaces(prediction, truth, 1)
    return nearest_distances(predicted, true, spacing)


def average_symmetric_surface_distance(
    prediction_mask: NDArray[Any],
    truth_mask: NDArray[Any],
    spacing_mm: Sequence[float],
    *,
    reduction: Reduction = "pooled",
) -> float:
    """Average symmetric surface distance (ASD in the paper's tables) in mm.

    Args:
        prediction_mask: as for :func:`directed_surface_distances`.
        truth_mask: as for :func:`directed_surface_distances`.
        spacing_mm: edge lengths of a voxel, one for each axis; ones give the distance in voxels.
        reduction: ``"pooled"``, over all surface voxels, or ``"mean_of_means"``, of the two directed means.

    Raises:
        ValueError: as for :func:`directed_surface_distances`, or an unknown reduction.
    """
    directed = directed_surface_distances(prediction_mask, truth_mask, spacing_mm)
    if reduction == "mean_of_means":
        return float((directed[0].mean() + directed[1].mean()) / 2)
    if reduction != "pooled":
        raise ValueError(f"reduction is {reduction!r}: it must be 'pooled' or 'mean_of_means'")
    return mean_distance(directed)


def hausdorff_distance_95(
    prediction_mask: NDArray[Any], truth_mask: NDArray[Any], spacing_mm: Sequence[float]
) -> float:
    """The larger of the two directed 95th percentiles of the surface distances, in mm."""
    return percentile_95(directed_surface_distances(prediction_mask, truth_mask, spacing_mm))
