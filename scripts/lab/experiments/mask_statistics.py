"""Correlation of the local mask with the errors of the unadapted model over voxels (Fig. 6 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scripts.core.errors import InputError
from scripts.lab.experiments.case_volumes import ComparisonVolumes
from scripts.lab.experiments.results import LOWER, Comparison, RunResult
from scripts.lab.experiments.statistics import Spread
from scripts.lab.experiments.tables import show
from scripts.lab.page import Table

__all__ = ["KINDS", "REGIONS", "mask_correlations", "mask_numbers", "mask_table"]

REGIONS = ("field_of_view", "structures")
KINDS = ("error", "smoothed_error")

_Array = NDArray[Any]


def mask_numbers(comparison: Comparison) -> dict[str, Any]:
    """The content of ``mask.json``: by method the mean ``correlation``, and that of all ``cases`` and seeds."""
    volumes = ComparisonVolumes(comparison)
    items = {case: item for case, item in volumes.held_out().items() if "label" in item}
    lower = comparison.method(LOWER)
    numbers: dict[str, Any] = {}
    for method in comparison.methods:
        cases: list[dict[str, Any]] = [
            {"seed": run.seed, "case": case, "correlation": _of_case(volumes, run, unadapted, case, item["label"])}
            for run in method.done
            for case, item in items.items()
            if run.result_file(case, "mask").is_file() and lower and (unadapted := lower.run_of(run.seed))
        ]
        if cases:
            mean = {
                region: {kind: Spread.of(case["correlation"][region][kind] for case in cases).mean for kind in KINDS}
                for region in REGIONS
            }
            numbers[method.name] = {"correlation": mean, "cases": cases}
    if not numbers:
        found = f"no local mask of a labelled held-out case beside a prediction of {LOWER}"
        remedy = f"run {LOWER} and a method with a mask, for instance glua"
        raise InputError(file="mask.json", found=found, expected="at least one case with both", remedy=remedy)
    return numbers


def mask_table(numbers: Mapping[str, Any]) -> Table:
    """The mean correlations, a row for each method and region."""
    rows = [
        [
            name,
            region.replace("_", " "),
            *(show(entry["correlation"][region][kind], "+.2f") for kind in KINDS),
            str(len(entry["cases"])),
        ]
        for name, entry in numbers.items()
        for region in REGIONS
    ]
    return Table(
        title=f"Correlation of the local mask with the errors of {LOWER}",
        heads=["method", "region", *(kind.replace("_", " ") for kind in KINDS), "cases"],
        rows=rows,
        note="Pearson's correlation over voxels, mean over cases and seeds. Error: 1 where the unadapted prediction "
        "with the same seed (else the first seed) is wrong, else 0. Smoothed: averaged over one pixel of the mask "
        "(output_stride pixels of the network), slice by slice. Field of view: the box outside which the mask is 0. "
        "Structures: the voxels of that box that the truth or the unadapted prediction assign to a structure, without "
        "the background, where a low mask and few errors agree trivially. One voxel per pixel of the network is used, "
        "because neighbours on a finer grid are redundant.",
        is_wide=True,
    )


def mask_correlations(
    mask: _Array,
    error: _Array,
    labelled: _Array,
    *,
    feature_voxels: Sequence[int],
    network_voxels: Sequence[int] = (1, 1, 1),
) -> dict[str, dict[str, float | None]]:
    """Pearson's correlation of a local mask with an error map, by region (``REGIONS``), then by kind (``KINDS``).

    Args:
        mask: (H, W, D), 0 outside the field of view.
        error: 1 where the unadapted model errs, else 0; same shape.
        labelled: where the truth or the unadapted prediction has a structure; same shape.
        feature_voxels: edge of one pixel of the mask in voxels, along each axis.
        network_voxels: distance of the voxels that are used, along each axis.

    Returns:
        Correlations; None where mask or error are constant.
    """
    if not mask.shape == error.shape == labelled.shape:
        raise ValueError(f"shapes {mask.shape}, {error.shape} and {labelled.shape} differ")
    smoothed = ndimage.uniform_filter(error.astype(np.float32), tuple(feature_voxels), mode="nearest")
    found = ndimage.find_objects((mask > 0).astype(np.uint8))
    box = tuple(
        slice(part.start, part.stop, step)
        for part, step in zip(found[0] if found else [slice(0, 0)] * mask.ndim, network_voxels, strict=True)
    )
    seen = {"field_of_view": np.ones_like(labelled[box], dtype=bool), "structures": labelled[box].astype(bool)}
    return {
        region: {
            kind: _pearson(mask[box][inside], values[box][inside])
            for kind, values in zip(KINDS, (error, smoothed), strict=True)
        }
        for region, inside in seen.items()
    }


def _of_case(
    volumes: ComparisonVolumes, run: RunResult, unadapted: RunResult, case: str, label: str
) -> dict[str, dict[str, float | None]]:
    truth, mask, predicted = volumes.truth(label), volumes.mask(run, case), volumes.prediction(unadapted, case)
    if not mask.voxels.shape == predicted.voxels.shape == truth.voxels.shape:
        found = f"{mask.voxels.shape} voxels, and {predicted.voxels.shape} in the prediction"
        expected, remedy = f"{truth.voxels.shape} as in {label}", "run that part of the comparison again"
        raise InputError(file=run.result_file(case, "mask"), found=found, expected=expected, remedy=remedy)
    return mask_correlations(
        mask.voxels,
        predicted.voxels != truth.voxels,
        (predicted.voxels > 0) | (truth.voxels > 0),
        feature_voxels=volumes.feature_voxels(truth),
        network_voxels=volumes.network_voxels(truth),
    )


def _pearson(first: _Array, second: _Array) -> float | None:
    if len(first) < 2 or np.ptp(first.astype(np.float64)) == 0 or np.ptp(second.astype(np.float64)) == 0:
        return None
    return float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])
