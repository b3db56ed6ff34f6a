"""``python -m scripts segment``: segment volumes with a trained run, whose settings need not be repeated."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from scripts.core.errors import InputError
from scripts.core.files import make_folder
from scripts.core.schema import read_yaml
from scripts.lab.experiments.plan import LOGGING, bundle_command
from scripts.lab.page import write_text

__all__ = ["run_segment", "settings_for_inference"]

INFERENCE = Path("configs") / "segmentation" / "inference.yaml"
TASK = ("task", "dataset_name", "source_domain", "target_domain", "label_names", "label_values", "background_values")
GRID = ("orientation", "spacing_mm", "slice_axis", "slice_size")
IMAGES = ("source_intensity", "target_intensity", "source_section", "target_section")


def run_segment(run: Path, volumes: Path, out: Path, settings: Mapping[str, str]) -> None:
    """Run the inference config with the settings that a training recorded, and others, which take precedence."""
    overlay = make_folder(out) / "settings.yaml"
    trained = settings_for_inference(run) | {key: yaml.safe_load(value) for key, value in settings.items()}
    write_text(overlay, yaml.safe_dump(trained, sort_keys=False, allow_unicode=True, width=120))
    places = ["--dataset_dir", str(volumes), "--output_dir", str(out)]
    command = bundle_command("inference", [INFERENCE, overlay], run, *places, *LOGGING)
    sys.argv[1:] = command[2:]  # in this process, which answers signals already
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def settings_for_inference(run: Path) -> dict[str, Any]:
    """What inference must share with a training: the task, the network, and what the weights recommend."""
    remedy = "name the --bundle_root of a segmentation training, with its config.yaml and models/model.pt"
    trained = read_yaml(run / "config.yaml", "the settings of a training", remedy)
    if not {"network_def", "weights_metadata", *TASK} <= trained.keys():
        expected = "the settings of a segmentation training"
        raise InputError(file=run / "config.yaml", found="other settings", expected=expected, remedy=remedy)
    metadata = trained["weights_metadata"]
    keys = [*TASK, *GRID, *IMAGES, *metadata["network"], *metadata.get("inference", {})]
    return {key: trained[key] for key in keys if key in trained}
