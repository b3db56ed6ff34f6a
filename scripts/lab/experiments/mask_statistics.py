"""Does the local mask lie where the unadapted model errs (Fig. 6 of the paper)? The numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from scripts.core.errors import InputError
from scripts.lab.experiments.case_volumes import ComparisonVolumes, mask_path
from scripts.lab.experiments.method_summaries import MethodSummary
from scripts.lab.experiments.results import LOWER, UPPER, Comparison, RunResult
from scripts.lab.experiments.statistics import Spread, rank_correlation

__all__ = ["KINDS", "REGIONS", "mask_correlations", "mask_numbers"]

MASK_CONVENTIONS = {
    "error": f"1 where the label map of '{LOWER}' differs from the truth, else 0, on the volume's own grid; of the "
    f"mask's seed, or of the first seed of '{LOWER}' if it lacks that one",
    "smoothed": "the error averaged over squares of one pixel of the mask (output_stride pixels of the network), "
    "slice by slice",
    "field_of_view": "the box outside which the mask is 0 because no network looked there",
    "structures": "the voxels of that box which truth or unadapted prediction give to any structure: the agreement of "
    "an idle mask and a trivial background does not count here",
    "sampling": "every voxel of the network's pixel grid: on a finer grid neighbours repeat each other",
    "mean": "of the correlations of all cases and seeds, each case by itself",
    "mean_mask": "mean of the mask over the true voxels of a structure, then over cases and seeds",
    "dice_gap": f"Dice of '{UPPER}' minus Dice of '{LOWER}', in points, means over seeds",
    "rank_correlation": "Spearman's, of mean mask and Dice gap over the structures",
}
"""How the numbers of ``mask.json`` are defined."""

REGIONS = ("field_of_view", "structures")
KINDS = ("pearson", "spearman", "pearson_smoothed", "spearman_smoothed")

_Array = NDArray[Any]


@dataclass(frozen=True)
class _Case:
    """A case with the mask of one run: all arrays (H, W, D) on one grid."""

    mask: _Array
    error: _Array | None
    labelled: _Array | None
    truth: _Array
    feature: tuple[int, ...]
    network: tuple[int, ...]


def mask_correlations(
    mask: _Array,
    error: _Array,
    labelled: _Array,
    *,
    feature_voxels: Sequence[int],
    network_voxels: Sequence[int] = (1, 1, 1),
) -> dict[str, dict[str, float | None]]:
    """Pearson's and Spearman's correlation of a local mask with an error map, over two regions.

    Args:
        mask: (H, W, D), 0 outside the field of view.
        error: 1 where the unadapted model errs, else 0; same shape.
        labelled: where truth or unadapted prediction see a structure; same shape.
        feature_voxels: edge of one pixel of the mask in voxels, for each axis.
        network_voxels: of voxels so far apart one is looked at, for each axis.

    Returns:
        By region (``REGIONS``), then by kind (``KINDS``); None where mask or error are constant.

    Raises:
        ValueError: the shapes differ.
    """
    if not mask.shape == error.shape == labelled.shape:
        raise ValueError(f"one shape is needed: {mask.shape}, {error.shape} and {labelled.shape} were given")
    smoothed = ndimage.uniform_filter(error.astype(np.float32), tuple(feature_voxels), mode="nearest")
    found = ndimage.find_objects((mask > 0).astype(np.uint8))
    box = tuple(
        slice(part.start, part.stop, step)
        for part, step in zip(found[0] if found else [slice(0, 0)] * mask.ndim, network_voxels, strict=True)
    )
    seen = {"field_of_view": np.ones_like(labelled[box], dtype=bool), "structures": labelled[box].astype(bool)}
    return {region: _correlate(mask[box][seen[region]], error[box], smoothed[box], seen[region]) for region in REGIONS}


def mask_numbers(comparison: Comparison, summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """Everything that ``mask.json`` holds.

    Args:
        comparison: what was read.
        summaries: a line for each method, for the gap of each structure.

    Returns:
        ``methods`` (by name: ``cases``, ``correlation``, ``structures``, ``rank_correlation``, ``n_structures``),
        ``dice_gap`` by structure, and ``conventions``.

    Raises:
        InputError: no run has left masks, or a volume cannot be read.
    """
    volumes, names = ComparisonVolumes(comparison), comparison.label_names
    items = volumes.held_out()
    gaps = _dice_gaps(summaries, names)
    methods: dict[str, Any] = {}
    for method in comparison.methods:
        cases = [
            {"seed": run.seed, "case": case} | _measure(_load(comparison, volumes, run, case, item["label"]), names)
            for run in method.done
            for case, item in items.items()
            if mask_path(run, case).is_file()
        ]
        if cases:
            methods[method.name] = _over_cases(cases, gaps)
    if not methods:
        raise InputError(
            file="mask.json",
            found="no local mask in any run's masks folder",
            expected="those of a method with a mask",
            remedy="run such a method, for instance glua",
        )
    return {"methods": methods, "dice_gap": gaps, "conventions": MASK_CONVENTIONS}


def _load(comparison: Comparison, volumes: ComparisonVolumes, run: RunResult, case: str, label: str) -> _Case:
    truth, mask = volumes.truth(label), volumes.mask(run, case)
    if mask.voxels.shape != truth.voxels.shape:
        raise InputError(
            file=mask_path(run, case),
            found=f"{mask.voxels.shape} voxels",
            expected=f"{truth.voxels.shape} as in {label}",
            remedy="run that part of the comparison again",
        )
    lower = comparison.method(LOWER)
    unadapted = lower.run_of(run.seed) if lower else None
    predicted = volumes.prediction(unadapted, case).voxels if unadapted else None
    return _Case(
        mask=mask.voxels,
        error=None if predicted is None else predicted != truth.voxels,
        labelled=None if predicted is None else (predicted > 0) | (truth.voxels > 0),
        truth=truth.voxels,
        feature=volumes.feature_voxels(truth),
        network=volumes.network_voxels(truth),
    )


def _measure(case: _Case, names: Sequence[str]) -> dict[str, Any]:
    means = {
        name: float(case.mask[inside].mean()) if (inside := case.truth == k).any() else None
        for k, name in enumerate(names, start=1)
    }
    if case.error is None or case.labelled is None:
        correlation = {region: dict.fromkeys(KINDS) for region in REGIONS}
    else:
        correlation = mask_correlations(
            case.mask, case.error, case.labelled, feature_voxels=case.feature, network_voxels=case.network
        )
    return {"correlation": correlation, "mean_mask": means}


def _over_cases(cases: Sequence[Mapping[str, Any]], gaps: Mapping[str, float | None]) -> dict[str, Any]:
    means = {name: Spread.of(case["mean_mask"][name] for case in cases).mean for name in gaps}
    known = [(mean, gap) for name, gap in gaps.items() if (mean := means[name]) is not None and gap is not None]
    return {
        "correlation": {
            region: {kind: Spread.of(case["correlation"][region][kind] for case in cases).mean for kind in KINDS}
            for region in REGIONS
        },
        "structures": {name: {"mean_mask": means[name], "dice_gap": gap} for name, gap in gaps.items()},
        "rank_correlation": rank_correlation([mean for mean, _ in known], [gap for _, gap in known]),
        "n_structures": len(known),
        "cases": list(cases),
    }


def _dice_gaps(summaries: Sequence[MethodSummary], names: Sequence[str]) -> dict[str, float | None]:
    known = {summary.name: summary for summary in summaries}
    gaps: dict[str, float | None] = {}
    for name in names:
        ends = [known[yardstick].structure_dice(name) if yardstick in known else None for yardstick in (LOWER, UPPER)]
        gaps[name] = None if ends[0] is None or ends[1] is None else ends[1] - ends[0]
    return gaps


def _correlate(mask: _Array, error: _Array, smoothed: _Array, region: _Array) -> dict[str, float | None]:
    plain, smooth = error[region].astype(np.float64), smoothed[region].astype(np.float64)
    ranks = stats.rankdata(mask)
    pairs = {"": (plain, plain), "_smoothed": (smooth, stats.rankdata(smooth))}
    found: dict[str, float | None] = {}
    for suffix, (values, their_ranks) in pairs.items():
        found[f"pearson{suffix}"] = _pearson(mask.astype(np.float64), values)
        found[f"spearman{suffix}"] = _pearson(ranks, their_ranks)  # ranks of a 0/1 map are a shift and scale of it
    return found


def _pearson(first: _Array, second: _Array) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
