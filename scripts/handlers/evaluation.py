"""3D evaluation on the input's own grid: numbers for every case and structure, and pictures of two cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation

from scripts.data.case_names import case_name
from scripts.evaluation import format_table, worst_and_median_case, write_evaluation
from scripts.figures import case_figure
from scripts.metrics import StructureResult, evaluate_case
from scripts.run_folder import provenance
from scripts.selection.choice import selection_of_weights, selection_sentence

__all__ = ["EvaluationReport"]

logger = logging.getLogger(__name__)


class EvaluationReport:
    """Compare each prediction with its label, then write ``metrics.csv``, ``summary.json`` and two pictures.

    Expects an evaluator whose output holds, per case, ``pred`` (1, H, W, D) of class ids on the image's grid, and
    ``label`` likewise; both MetaTensors with the spacing in their affine.

    Args:
        folder: where the files go.
        label_names: names of the classes 1..K.
        card: what was evaluated, kept in ``summary.json``.
        weights: file of the evaluated weights; the card beside it says how they were chosen, which is printed and kept
            with the numbers.
        orientation: axes the pictures are turned to; None leaves them as stored.
        slice_axis: axis of the slices shown, after that.
    """

    def __init__(
        self,
        *,
        folder: str,
        label_names: Sequence[str],
        card: Mapping[str, Any],
        weights: str | None = None,
        orientation: str | None = "RAS",
        slice_axis: int = 2,
    ) -> None:
        self.folder, self.label_names, self.card = Path(folder), list(label_names), dict(card)
        self.weights, self.orientation, self.slice_axis = weights, orientation, slice_axis
        self.results: dict[str, list[StructureResult]] = {}
        self.images: dict[str, str] = {}
        self.label_maps: dict[str, tuple[MetaTensor, MetaTensor]] = {}

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.compare)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Forget an earlier evaluation."""
        self.results, self.images, self.label_maps = {}, {}, {}

    def compare(self, engine: Engine) -> None:
        """Measure the cases of one iteration."""
        for case in engine.state.output:
            prediction, label = case["pred"], case["label"]
            name = case_name(str(case["image"].meta["filename_or_obj"]))
            self.images[name] = str(case["image"].meta["filename_or_obj"])
            spacing_mm = np.linalg.norm(np.asarray(label.affine)[:3, :3], axis=0).tolist()
            self.results[name] = evaluate_case(
                _array(prediction), _array(label), spacing_mm=spacing_mm, label_names=self.label_names
            )
            # One byte a voxel: the worst and the median case are known only at the end.
            self.label_maps[name] = (prediction.to("cpu", torch.uint8), label.to("cpu", torch.uint8))

    def write(self, engine: Engine) -> None:
        """Write the tables and the pictures, and print the table."""
        selection = selection_of_weights(Path(self.weights)) if self.weights else None
        origin = provenance() | {"card": self.card}
        summary = write_evaluation(self.folder, self.results, self.label_names, origin, selection)
        logger.info("evaluation of %d cases\n%s", summary["cases"], format_table(summary))
        print(selection_sentence(selection), flush=True)
        for word, name in zip(("worst", "median"), worst_and_median_case(self.results), strict=True):
            self._draw(name, self.folder / f"{word}_case.png", word)

    def _draw(self, name: str, path: Path, word: str) -> None:
        prediction, label = (self._oriented(label_map) for label_map in self.label_maps[name])
        image = self._oriented(LoadImage(image_only=True, ensure_channel_first=True)(self.images[name]))
        dice = float(np.nanmean([result.dice for result in self.results[name]]))
        spacing_mm = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0).tolist()
        case_figure(
            _array(image),
            _array(prediction),
            _array(label),
            spacing_mm,
            self.label_names,
            f"{word} case: {name}, mean Dice {100 * dice:.1f} %",
            path,
            through_plane_axis=self.slice_axis,
        )

    def _oriented(self, volume: MetaTensor) -> MetaTensor:
        return Orientation(self.orientation, labels=None)(volume) if self.orientation else volume


def _array(volume: torch.Tensor) -> np.ndarray:
    values = np.asarray(volume[0].cpu())
    return values if values.dtype != np.float64 else values.astype(np.float32)
