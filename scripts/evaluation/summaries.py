"""Summaries of evaluations as in section IV: a CSV row for each case and structure, and a JSON summary.

Structures missing in one map count as Dice 0 and the image diagonal in every mean and are listed by name; structures
missing in both are not counted. The summary states its conventions, for comparison with other results.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scripts.core.errors import InputError
from scripts.core.files import atomic_path, write_json
from scripts.evaluation.metrics import StructureResult

__all__ = ["CONVENTIONS", "format_table", "summarise", "worst_and_median_case", "write_evaluation"]

ResultsByCase = Mapping[str, Sequence[StructureResult]]

# How every number of a summary is defined.
CONVENTIONS = {
    "dice": "2|P and T| / (|P| + |T|) over the whole volume on the truth's own grid, in percent",
    "asd": "average symmetric surface distance: mean over the pooled distances of both directions (medpy 0.5 and "
    "later, MONAI symmetric=True), between 6-connected surfaces, voxels at the volume's border being surface",
    "asd_voxel": "the same distance with every voxel edge counted as 1",
    "hd95": "larger of the two directed 95th percentiles of the same distances",
    "volume_difference": "100 (V_prediction - V_truth) / V_truth; not counted where the truth lacks the structure",
    "missing": "a structure missing in exactly one of prediction and truth is a failure: Dice 0, distances = diagonal "
    "of the image, counted in every mean; one missing in both is not counted",
    "std": "standard deviation over cases, with divisor n",
    "mean_over_structures": "mean of the structures' means",
}

# Measures of a summary, attributes of a result, and their headings in tables.
_HEADINGS = {
    "dice_percent": "Dice [%]",
    "asd_mm": "ASD [mm]",
    "asd_voxel": "ASD [voxel]",
    "hd95_mm": "HD95 [mm]",
    "volume_difference_percent": "volume diff. [%]",
}

_COLUMNS = (*_HEADINGS, "volume_prediction_ml", "volume_truth_ml")


def summarise(results_by_case: ResultsByCase, label_names: Sequence[str]) -> dict[str, Any]:
    """Statistics over cases for JSON, from the :func:`evaluate_case` of each; ``None`` if nothing was counted."""
    _check(results_by_case, label_names)
    structures = {
        name: _summarise_structure([results[k] for results in results_by_case.values()])
        for k, name in enumerate(label_names)
    }
    return {
        "cases": len(results_by_case),
        "structures": structures,
        "mean_over_structures": {
            measure: _statistics(structure[measure]["mean"] for structure in structures.values())["mean"]
            for measure in _HEADINGS
        },
        "failures": [
            {"case": case, "structure": result.name, "status": result.status}
            for case, results in results_by_case.items()
            for result in results
            if result.failed
        ],
        "conventions": dict(CONVENTIONS),
    }


def write_evaluation(
    folder: str | os.PathLike[str],
    results_by_case: ResultsByCase,
    label_names: Sequence[str],
    provenance: Mapping[str, Any],
    selection: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.csv`` (a row for each case and structure) and ``summary.json``, both or neither.

    ``provenance`` has config, seed, data, commit, device and the like; ``selection`` says how the weights were
    selected. Returns the summary.
    """
    origin = {"selection": dict(selection) if selection else None, "provenance": dict(provenance)}
    summary = summarise(results_by_case, label_names) | origin
    with atomic_path(Path(folder) / "metrics.csv") as temporary:
        _write_csv(temporary, results_by_case)
        write_json(Path(folder) / "summary.json", summary)  # inside the block: if it fails, neither file is written
    return summary


def format_table(summary: Mapping[str, Any]) -> str:
    """A summary as a plain-text table: mean and standard deviation of each structure, then the failures."""
    rows = [["structure", *_HEADINGS.values(), "n", "failures"]]
    for name, structure in summary["structures"].items():
        cells = [_cell(structure[measure]["mean"], structure[measure]["std"]) for measure in _HEADINGS]
        rows.append([name, *cells, str(structure["n"]), str(structure["failures"])])
    means = [_cell(summary["mean_over_structures"][measure]) for measure in _HEADINGS]
    rows.append(["mean", *means, "", str(len(summary["failures"]))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    listed = [f"failed: {f['case']}, {f['structure']} ({f['status'].replace('_', ' ')})" for f in summary["failures"]]
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], *listed])


def worst_and_median_case(results_by_case: ResultsByCase) -> tuple[str, str]:
    """Names of the cases with the lowest and the median mean Dice (the better of two medians).

    Structures missing in both maps, and cases without any structure, are not counted.
    """
    means = {case: _statistics(result.dice for result in results)["mean"] for case, results in results_by_case.items()}
    ranked = sorted((mean, case) for case, mean in means.items() if mean is not None)
    if not ranked:
        raise _no_case_error("no structure in any prediction or truth")
    return ranked[0][1], ranked[len(ranked) // 2][1]


def _check(results_by_case: ResultsByCase, label_names: Sequence[str]) -> None:
    if not results_by_case:
        raise _no_case_error("no evaluated case")
    for case, results in results_by_case.items():
        names = [result.name for result in results]
        if names != list(label_names):
            raise ValueError(f"case {case} has results for {names}: expected {list(label_names)}")


def _no_case_error(found: str) -> InputError:
    remedy = "check that the datalist names images together with their labels"
    return InputError(file="evaluation", found=found, expected="at least one labelled case", remedy=remedy)


def _summarise_structure(results: Sequence[StructureResult]) -> dict[str, Any]:
    return {
        "n": sum(result.status != "absent_in_both" for result in results),
        "failures": sum(result.failed for result in results),
        **{measure: _statistics(getattr(result, measure) for result in results) for measure in _HEADINGS},
    }


def _statistics(values: Iterable[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and number of the values that are numbers."""
    counted = [value for value in values if value is not None and not math.isnan(value)]
    if not counted:
        return {"mean": None, "std": None, "n": 0}
    return {"mean": float(np.mean(counted)), "std": float(np.std(counted)), "n": len(counted)}


def _write_csv(path: Path, results_by_case: ResultsByCase) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["case", "structure", "status", *_COLUMNS])
        for case, results in results_by_case.items():
            for result in results:
                writer.writerow([case, result.name, result.status, *(getattr(result, column) for column in _COLUMNS)])


def _cell(mean: float | None, std: float | None = None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
