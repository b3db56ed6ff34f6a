"""3D evaluation on the input's own grid: numbers for every case and structure, and pictures of two cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scripts.core.processes import rank
from scripts.core.run_folder import provenance
from scripts.core.weights import read_metadata, selection_sentence
from scripts.data.case_names import case_name
from scripts.data.geometry import spacing_of
from scripts.data.nifti import read_nifti
from scripts.evaluation.figures import case_figure
from scripts.evaluation.metrics import StructureResult, evaluate_case
from scripts.evaluation.summaries import format_table, worst_and_median_case, write_evaluation
from scripts.inference.exported_network import ExportedNetwork
from scripts.inference.work_sharing import Worklist

__all__ = ["EvaluationReport"]


class EvaluationReport:
    """Compare each prediction with its label, then write ``metrics.csv``, ``summary.json`` and two pictures.

    Expects an evaluator whose output holds, per case, ``pred`` and ``label`` (1, H, W, D) of class ids on the image's
    grid, ``pred`` saved before. The summary is over the whole worklist; its means are the evaluator's metrics.

    Args:
        folder: where the files go.
        worklist: whose cases are evaluated.
        preprocessing: gives a case's ``label`` on the image's grid.
        label_names: names of the classes 1..K.
        metadata: of the evaluated weights, recorded in ``summary.json``.
        weights: file of the evaluated weights; their selection, from the metadata beside it, is printed and recorded
            with the numbers.
        exported: the exported network that was evaluated instead, which contains its metadata; None for the weights.
        orientation: axes the pictures are turned to; None leaves them as stored.
        slice_axis: axis of the slices shown, after that.
    """

    def __init__(
        self,
        *,
        folder: str,
        worklist: Worklist,
        preprocessing: Callable[[dict[str, str]], dict[str, Any]],
        label_names: Sequence[str],
        metadata: Mapping[str, Any],
        weights: str,
        exported: ExportedNetwork | None = None,
        orientation: str | None = "RAS",
        slice_axis: int = 2,
    ) -> None:
        self.folder, self.label_names, self.metadata = Path(folder), list(label_names), dict(metadata)
        self.worklist, self.preprocessing = worklist, preprocessing
        self.weights, self.exported = Path(weights), exported
        self.orientation, self.slice_axis = orientation, slice_axis

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.compare)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def compare(self, engine: Engine) -> None:
        """Measure the cases of one iteration."""
        for case in engine.state.output:
            prediction, label = case["pred"], case["label"]
            maps = np.asarray(prediction[0].cpu()), np.asarray(label[0].cpu())
            results = evaluate_case(*maps, spacing_mm=spacing_of(label.affine), label_names=self.label_names)
            case["results"] = [asdict(result) for result in results]

    def write(self, engine: Engine) -> None:
        """Write the tables and the pictures, and print the table, on the first process."""
        records = self.worklist.collect()
        if rank() > 0:
            return
        results = {name: [StructureResult(**one) for one in record["results"]] for name, record in records.items()}
        selection = (read_metadata(self.weights) if self.exported is None else self.exported.metadata).get("selection")
        origin = provenance() | {"weights_metadata": self.metadata}
        summary = write_evaluation(self.folder, results, self.label_names, origin, selection)
        means = summary["mean_over_structures"].items()
        engine.state.metrics.update({measure: mean for measure, mean in means if mean is not None})
        print(f"{summary['cases']} cases\n{format_table(summary)}\n{selection_sentence(selection)}", flush=True)
        for word, name in zip(("worst", "median"), worst_and_median_case(results), strict=True):
            dice = float(np.nanmean([result.dice for result in results[name]]))
            title = f"{word} case: {name}, mean Dice {100 * dice:.1f} %"
            self._draw(name, records[name]["written"], self.folder / f"{word}_case.png", title)

    def _draw(self, name: str, written: Iterable[str], path: Path, title: str) -> None:
        (item,) = [item for item in self.worklist.items if case_name(item["image"]) == name]
        (file,) = [path for path in written if path.endswith("_seg.nii.gz")]  # not the mask or the probabilities
        image, truth = read_nifti(item["image"]), self.preprocessing(dict(item))["label"]
        case_figure(
            image.voxels,
            {"prediction": read_nifti(file).voxels, "truth": np.asarray(truth[0])},
            image.affine,
            path,
            label_names=self.label_names,
            title=title,
            orientation=self.orientation,
            slice_axis=self.slice_axis,
        )
