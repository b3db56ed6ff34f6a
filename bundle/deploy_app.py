"""A MONAI Deploy application that segments a DICOM series with a packed bundle and writes a DICOM Segmentation.

Start it with the SDK's options: ``python deploy_app.py --input STUDY --output FOLDER --model BUNDLE``. The SDK loads
the study and selects the series; the bundle's own code segments it, as in ``python -m bundle dicom``. Of this project
it needs only this file and the bundle.
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

__all__ = ["SegmentSeriesOperator", "SegmentationApp", "main"]

logger = logging.getLogger(__name__)

# The SDK's selection rules, beside this file, for studies with several series; without it a study has to have one.
RULES_FILE = "selection_rules.json"


class SegmentationApp(Application):
    """The SDK's loader and selector, followed by the bundle."""

    def compose(self) -> None:
        """Connect the operators: study -> series -> selected series -> file."""
        context: AppContext = init_app_context(self.argv)
        bundle = _bundle_in(Path(context.model_path).absolute())
        sys.path.insert(0, str(bundle))  # the bundle's own code
        rules = Path(__file__).with_name(RULES_FILE)
        # must_load: the loader would raise its own error for an empty study; the operator has a clearer one.
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
        study_selected_series_list: the selected series, exactly one.

    Args:
        fragment: the application.
        args: conditions.
        bundle: folder of a packed segmentation bundle with weights, from which Python imports.
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
        """Read the series' files again, with all checks of their geometry, segment and write."""
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
    """The bundle: the folder itself or, in a packaged application, the only folder in it."""
    inside = [folder for folder in models.glob("*/") if (folder / "configs").is_dir()]
    return models if (models / "configs").is_dir() or len(inside) != 1 else inside[0]


def main() -> None:
    """Run the application; an input error ends it with one sentence and exit code 1."""
    try:
        SegmentationApp().run()
    except Exception as error:
        errors = sys.modules.get("scripts.core.errors")  # the bundle's, once compose() has found it
        cause = errors.find_input_error(error) if errors else None
        if cause is None:
            raise
        sys.exit(f"error: {cause}")


if __name__ == "__main__":
    main()
