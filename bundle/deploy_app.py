"""A MONAI Deploy application that segments a DICOM series with a packed bundle and writes a DICOM Segmentation.

Started with the SDK's own options: ``python deploy_app.py --input STUDY --output FOLDER --model BUNDLE``. The SDK loads
the study and selects the series; what happens to it is the bundle's own code, as in ``python -m bundle dicom``. It
needs nothing of this project but this file: the bundle brings the rest.
"""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application, Fragment, Operator, OperatorSpec, init_app_context
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator

__all__ = ["SegmentSeriesOperator", "SegmentationApp"]

logger = logging.getLogger(__name__)

RULES_FILE = "selection_rules.json"
"""The SDK's selection rules, beside this file, where a study has several series; without it there may be one alone."""


class SegmentationApp(Application):
    """The SDK's loader and selector, and the bundle behind them."""

    def compose(self) -> None:
        """Join the operators: study -> its series -> the one to segment -> file."""
        context: AppContext = init_app_context(self.argv)
        bundle = _bundle_in(Path(context.model_path).absolute())
        sys.path.insert(0, str(bundle))  # a bundle brings its own code
        importlib.import_module("scripts.core.errors").show_input_errors_as_sentences()
        rules = Path(__file__).with_name(RULES_FILE)
        # The loader would end with an error of its own where it finds nothing; the operator has a sentence for that.
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), must_load=False, name="loader"
        )
        selector = DICOMSeriesSelectorOperator(
            self, rules=rules.read_text(encoding="utf-8") if rules.is_file() else "", name="selector"
        )
        segmenter = SegmentSeriesOperator(
            self, bundle=bundle, source=Path(context.input_path), out=Path(context.output_path), name="segmenter"
        )
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, segmenter, {("study_selected_series_list", "study_selected_series_list")})


class SegmentSeriesOperator(Operator):
    """Segment the selected series and write a DICOM Segmentation.

    Named input:
        study_selected_series_list: what the selector chose, one series in all.

    Args:
        fragment: the application.
        args: conditions.
        bundle: folder of a packed segmentation bundle with weights, which is on the path for imports.
        source: the study's folder, for messages.
        out: folder to write into.
        kwargs: the operator's name.
    """

    def __init__(self, fragment: Fragment, *args: Any, bundle: Path, source: Path, out: Path, **kwargs: Any) -> None:
        self.bundle, self.source, self.out = bundle, source, out
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """Declare the input."""
        spec.input("study_selected_series_list")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Read the series' files anew, with every check of its geometry, segment and write."""
        chosen = op_input.receive("study_selected_series_list") or []
        series = [one.series for study in chosen for one in study.selected_series]
        if len(series) != 1:
            named = [f"{one.SeriesInstanceUID} ({one.SeriesDescription or 'without description'})" for one in series]
            raise importlib.import_module("scripts.core.errors").InputError(
                file=self.source,
                found=f"{len(series)} series to segment{': ' if named else ''}{', '.join(named)}",
                expected="one, with UIDs of its study, its series and its slices",
                remedy=f"write rules that select it into {RULES_FILE}, or give it a folder of its own"
                if named
                else f"look at {RULES_FILE}, and at the log for slices that were ignored; python -m bundle dicom reads "
                "slices without UIDs",
            )
        files = [Path(piece.get_native_sop_instance().filename) for piece in series[0].get_sop_instances()]
        segment_series = importlib.import_module("scripts.inference.dicom_segmentation").segment_series
        written = segment_series(self.bundle, sorted(files), source=self.source, out=self.out)
        logger.info("Wrote %s", written)


def _bundle_in(models: Path) -> Path:
    """The bundle that is meant: the folder itself, or, as in a packaged application, the one folder in it."""
    inside = [folder for folder in models.glob("*/") if (folder / "configs").is_dir()]
    return models if (models / "configs").is_dir() or len(inside) != 1 else inside[0]


if __name__ == "__main__":
    SegmentationApp().run()
