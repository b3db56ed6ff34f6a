"""What an inference writes beside its label maps: volumes with warnings, names for viewers, pictures."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from numpy.typing import NDArray
from scripts.core.files import atomic_path, write_json
from scripts.core.processes import rank
from scripts.core.weights import TRAINING_CASES, read_metadata
from scripts.data.case_names import case_name
from scripts.data.geometry import spacing_of
from scripts.data.likeness import UNLIKE
from scripts.evaluation.figures import case_figure
from scripts.inference.structure_codes import structure_colour
from scripts.inference.work_sharing import Worklist

__all__ = ["SegmentationSummary", "range_slack", "volume_warning", "write_names"]

logger = logging.getLogger(__name__)

# Spread of the logarithm of a structure's volume between people (root mean square over 14 structures of public data),
# and the number of spreads that one person in a thousand exceeds.
SPREAD, RARE = 0.35, 3.09

COLUMNS = ("case", "structure", "value", "ml", "slices", "labelled_least_ml", "labelled_greatest_ml", "warning")


def range_slack(cases: int) -> float:
    """Factor by which a plausible volume may lie outside the range of labelled cases: 2 for 4 cases, 1.5 for 24.

    The fewer the cases, the closer to the middle their extremes are expected (Blom's approximation).
    """
    extreme = NormalDist().inv_cdf((cases - 0.375) / (cases + 0.25))
    return math.exp(SPREAD * max(RARE - extreme, 0.0))


def volume_warning(ml: float, least: float, greatest: float, slack: float) -> str:
    """``missing``, ``too small`` or ``too large`` against the range of the labelled cases; empty if plausible."""
    if ml < least / slack:
        return "too small" if ml else "missing"
    return "too large" if ml > greatest * slack else ""


class SegmentationSummary:
    """Write ``summary.csv``, the names of the label values, and ``<case>_preview.png`` beside label maps.

    Attach it before the worklist, whose records carry the measurements over interruptions and processes.

    Args:
        folder: where the files go.
        worklist: whose volumes are segmented.
        weights: their metadata hold the volumes of the labelled training cases.
        exported: an exported network that is used instead; None for the weights.
        label_names: of the structures.
        label_values: their values in the label maps.
        slice_axis: axis of the slices of preprocessed images.
    """

    def __init__(
        self,
        *,
        folder: str,
        worklist: Worklist,
        weights: str,
        label_names: Sequence[str],
        label_values: Sequence[int],
        exported: Any = None,
        slice_axis: int = 2,
    ) -> None:
        self.folder, self.worklist, self.weights, self.exported = Path(folder), worklist, Path(weights), exported
        self.values = dict(zip(label_names, label_values, strict=True))
        self.slice_axis = slice_axis

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, and with the end of the worklist."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.measure)
        self.worklist.at_end.append(self.write)

    def measure(self, engine: Engine) -> None:
        """Measure and draw the volumes of one iteration, and report at once what is odd."""
        metadata = read_metadata(self.weights) if self.exported is None else self.exported.metadata
        training = metadata.get(TRAINING_CASES, {})
        slack = range_slack(training.get("labelled_cases", 24))  # earlier versions did not record it
        known = {name: (*ends, slack) for name, ends in training.get("volumes_ml", {}).items()}
        for case in engine.state.output:
            image, labels = case["image"], case["pred"]
            name = case_name(image.meta["filename_or_obj"])
            shown, axes = _on_grid_of(image, labels)
            rows = [self._row(labels, axes[self.slice_axis], item, known.get(item[0])) for item in self.values.items()]
            odd = [f"{row['structure']} {row['warning']} ({row['ml']} ml)" for row in rows if row["warning"]]
            if odd:
                advice = "Expected volumes as in the labelled cases (summary.csv). Fix: look at the preview before use."
                logger.warning("%s: %s. %s", name, "; ".join(odd), advice)
            if unlike := image.meta.get(UNLIKE):
                rows.insert(0, {"structure": "image", "warning": unlike})
            case["results"] = rows
            preview = self.folder / f"{name}_preview.png"
            classes = sum(np.uint8(k) * (shown == value) for k, value in enumerate(self.values.values(), start=1))
            case_figure(
                np.asarray(image[0].cpu()),
                {"segmentation": np.asarray(classes)},
                np.asarray(image.affine),
                preview,
                label_names=list(self.values),
                title=name,
                orientation=None,
                slice_axis=self.slice_axis,
            )
            labels.meta["saved_to"] = [*labels.meta.get("saved_to", ()), str(preview)]

    def write(self) -> None:
        """Write the table and the names, on the first process; a collective call."""
        records = self.worklist.finished()
        if rank() > 0:
            return
        with (
            atomic_path(self.folder / "summary.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for name, record in records.items():
                writer.writerows({"case": name, **row} for row in record["results"] or ())
        write_names(self.folder, self.values)

    def _row(
        self, labels: MetaTensor, axis: int, item: tuple[str, int], known: tuple[float, ...] | None
    ) -> dict[str, Any]:
        name, value = item
        mask = np.asarray(labels[0].cpu()) == value  # (H, W, D)
        others = tuple(other for other in range(3) if other != axis)
        # torch would convert to 8 bytes a voxel to count.
        ml = int(np.count_nonzero(mask)) * math.prod(spacing_of(labels.affine)) / 1000
        row = {"structure": name, "value": value, "ml": f"{ml:.6g}", "slices": int(mask.any(others).sum())}
        if known is not None:
            row |= {"labelled_least_ml": f"{known[0]:.4g}", "labelled_greatest_ml": f"{known[1]:.4g}"}
        return row | {"warning": volume_warning(ml, *known) if known else ""}


def write_names(folder: Path, values: Mapping[str, int]) -> None:
    """Write names and colours of label values: JSON, ITK-SNAP's label descriptions, and Slicer's colour table."""
    rows = [(value, name, *bytes.fromhex(structure_colour(k)[1:])) for k, (name, value) in enumerate(values.items(), 1)]
    write_json(folder / "labels.json", {str(value): name for name, value in values.items()})
    snap = [f"{v} {r} {g} {b} 1 1 1 {json.dumps(name, ensure_ascii=False)}" for v, name, r, g, b in rows]
    slicer = [f"{v} {name.replace(' ', '_')} {r} {g} {b} 255" for v, name, r, g, b in rows]
    for file, first, lines in (
        ("labels_itksnap.txt", '0 0 0 0 0 0 0 "Clear Label"', snap),
        ("labels_slicer.ctbl", "0 background 0 0 0 0", slicer),
    ):
        with atomic_path(folder / file) as temporary:
            temporary.write_text("\n".join([first, *lines, ""]), encoding="utf-8")


def _on_grid_of(image: MetaTensor, labels: MetaTensor) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels (1, H0, W0, D0) at the voxels of the preprocessed image (1, H, W, D), and their axes along its axes."""
    matrix = np.linalg.solve(np.asarray(labels.affine, np.float64), np.asarray(image.affine, np.float64))
    axes = np.abs(matrix[:3, :3]).argmax(0)
    turned = np.asarray(labels[0].cpu()).transpose(axes)
    places = [
        (matrix[row, column] * np.arange(size) + matrix[row, 3]).round().astype(int).clip(0, turned.shape[column] - 1)
        for column, (row, size) in enumerate(zip(axes, image.shape[1:], strict=True))
    ]
    return turned[np.ix_(*places)], axes
