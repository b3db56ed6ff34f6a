"""Does the local mask mark the errors of the unadapted model (Fig. 6 of the paper)? Correlations and means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from scripts.core.errors import InputError
from scripts.lab.experiments.case_volumes import ComparisonVolumes
from scripts.lab.experiments.method_summaries import MethodSummary
from scripts.lab.experiments.results import LOWER, UPPER, Comparison, RunResult
from scripts.lab.experiments.statistics import Spread, rank_correlation
from scripts.lab.experiments.tables import show
from scripts.lab.page import Table

__all__ = ["KINDS", "REGIONS", "mask_correlations", "mask_numbers", "mask_tables"]

DEFINITIONS = {
    "error": f"1 where the label map of '{LOWER}' differs from the truth, else 0, on the volume's own grid; with the "
    f"mask's seed, or the first seed of '{LOWER}' if it lacks that one",
    "smoothed": "the error averaged over squares of one pixel of the mask (output_stride pixels of the network), "
    "slice by slice",
    "field_of_view": "the box outside which the mask is 0 because the network did not see it",
    "structures": "the voxels of that box that the truth or the unadapted prediction assign to a structure: excludes "
    "the background, where a low mask and few errors agree anyway",
    "sampling": "one voxel per pixel of the network: neighbours on a finer grid repeat each other",
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
class _MaskedCase:
    """A case with the mask of one run: all arrays (H, W, D) on one grid."""

    mask: _Array
    truth: _Array
    unadapted: _Array | None
    feature: tuple[int, ...]
    network: tuple[int, ...]


def mask_numbers(comparison: Comparison, summaries: Sequence[MethodSummary]) -> dict[str, Any]:
    """The content of ``mask.json``.

    Args:
        comparison: its results.
        summaries: one per method, for the gap of each structure.

    Returns:
        ``methods`` (by name: ``cases``, ``correlation``, ``structures``, ``rank_correlation``, ``n_structures``),
        ``dice_gap`` by structure, and ``definitions``.

    Raises:
        InputError: there are no masks or no labels, or a volume cannot be read.
    """
    volumes, names = ComparisonVolumes(comparison), comparison.label_names
    items = {case: item for case, item in volumes.held_out().items() if "label" in item}
    gaps = _dice_gaps(summaries, names)
    methods: dict[str, Any] = {}
    for method in comparison.methods:
        cases = [
            {"seed": run.seed, "case": case} | _measure(_load(comparison, volumes, run, case, item["label"]), names)
            for run in method.done
            for case, item in items.items()
            if run.result_file(case, "mask").is_file()
        ]
        if cases:
            methods[method.name] = _over_cases(cases, gaps)
    if not methods:
        raise InputError(
            file="mask.json",
            found="no local mask of any labelled held-out case",
            expected="those of a method with a mask",
            remedy="run such a method, for instance glua",
        )
    return {"methods": methods, "dice_gap": gaps, "definitions": DEFINITIONS}


def mask_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """The numbers as tables: correlations, and the mask inside each structure beside the structure's gap."""
    methods, gaps = numbers["methods"], numbers["dice_gap"]
    correlations = Table(
        title=f"Local mask and the errors of {LOWER}",
        heads=["method", "region", *(kind.replace("_", ", ").capitalize() for kind in KINDS), "cases"],
        rows=[
            [
                name,
                region.replace("_", " "),
                *(show(entry["correlation"][region][kind], "+.2f") for kind in KINDS),
                str(len(entry["cases"])),
            ]
            for name, entry in methods.items()
            for region in REGIONS
        ],
        note="Correlation over voxels, mean over cases and seeds. Error: 1 where the unadapted prediction is wrong; "
        "smoothed: averaged over one pixel of the mask. Field of view: all that the network saw. Structures: what the "
        "truth or that prediction assign to a structure.",
        is_wide=True,
    )
    inside = Table(
        title="Mean local mask inside each structure",
        heads=["", *gaps, "rank correlation"],
        rows=[
            [f"Dice gap, {LOWER} to {UPPER}", *(show(gap) for gap in gaps.values()), ""],
            *(
                [
                    name,
                    *(show(entry["structures"][structure]["mean_mask"], ".3f") for structure in gaps),
                    f"{show(entry['rank_correlation'], '+.2f')} (n = {entry['n_structures']})",
                ]
                for name, entry in methods.items()
            ),
        ],
        note="Rank correlation: Spearman's, of mean mask and Dice gap over these few structures.",
        is_wide=True,
    )
    return [correlations, inside]


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
        labelled: where the truth or the unadapted prediction has a structure; same shape.
        feature_voxels: edge of one pixel of the mask in voxels, along each axis.
        network_voxels: distance of the voxels that are used, along each axis.

    Returns:
        By region (``REGIONS``), then by kind (``KINDS``); None where mask or error are constant.

    Raises:
        ValueError: the shapes differ.
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
    return {region: _correlate(mask[box][seen[region]], error[box], smoothed[box], seen[region]) for region in REGIONS}


def _load(comparison: Comparison, volumes: ComparisonVolumes, run: RunResult, case: str, label: str) -> _MaskedCase:
    truth, mask = volumes.truth(label), volumes.mask(run, case)
    if mask.voxels.shape != truth.voxels.shape:
        raise InputError(
            file=run.result_file(case, "mask"),
            found=f"{mask.voxels.shape} voxels",
            expected=f"{truth.voxels.shape} as in {label}",
            remedy="run that part of the comparison again",
        )
    lower = comparison.method(LOWER)
    unadapted = lower.run_of(run.seed) if lower else None
    predicted = volumes.prediction(unadapted, case).voxels if unadapted else None
    feature, network = volumes.feature_voxels(truth), volumes.network_voxels(truth)
    return _MaskedCase(mask.voxels, truth.voxels, predicted, feature, network)


def _measure(case: _MaskedCase, names: Sequence[str]) -> dict[str, Any]:
    means = {
        name: float(case.mask[inside].mean()) if (inside := case.truth == k).any() else None
        for k, name in enumerate(names, start=1)
    }
    if case.unadapted is None:
        correlation: dict[str, dict[str, float | None]] = {region: dict.fromkeys(KINDS) for region in REGIONS}
    else:
        correlation = mask_correlations(
            case.mask,
            case.unadapted != case.truth,
            (case.unadapted > 0) | (case.truth > 0),
            feature_voxels=case.feature,
            network_voxels=case.network,
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
        lower, upper = (known[bound].structure_dice(name) if bound in known else None for bound in (LOWER, UPPER))
        gaps[name] = None if lower is None or upper is None else upper - lower
    return gaps


def _correlate(mask: _Array, error: _Array, smoothed: _Array, region: _Array) -> dict[str, float | None]:
    plain, smooth = error[region].astype(np.float64), smoothed[region].astype(np.float64)
    ranks = stats.rankdata(mask)
    return {
        "pearson": _pearson(mask.astype(np.float64), plain),
        "spearman": _pearson(ranks, plain),  # the ranks of a 0/1 map are a shifted and scaled copy of it
        "pearson_smoothed": _pearson(mask.astype(np.float64), smooth),
        "spearman_smoothed": _pearson(ranks, stats.rankdata(smooth)),
    }


def _pearson(first: _Array, second: _Array) -> float | None:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
