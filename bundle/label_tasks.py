"""Tasks of the MONAI Label app: a bundle with its options, batches that survive a bad volume, the least certain volume.

Copy it beside ``main.py``.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from label_dicom import coded_entries, refused
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.tasks.infer.basic_infer import CallBackTypes
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.utils.others.class_utils import unload_module

__all__ = ["Batch", "LeastCertain", "SegmentTask", "chosen_options", "uncertainty"]

logger = logging.getLogger(__name__)

# Settings of a bundle's inference that viewers may change, where the bundle has them.
OPTIONS = ("largest_component", "flip_axes", "scales", "smoothing_mm", "unlike_images")

# What MONAI Label and its viewers put into a request besides options.
REQUEST = {
    *("model", "image", "label", "session", "session_id", "description", "device", "gpus", "multi_gpu", "logging"),
    *("save_label", "label_tag", "label_info", "labels", "images", "max_workers", "max_batch_size", "_id", "_image_id"),
    *("result_extension", "result_dtype", "result_compress", "result_write_to_file", "restore_label_idx", "timeout"),
    *("skip_writer", "client_id", "user", "output", "file", "bundle_path", "studyInstanceUID", "largest_cc"),
}

# First characters of strings that a bundle's config evaluates as code or as a reference.
EVALUATED = ("$", "@", "%")

# Probability of all structures together above which a voxel counts in the uncertainty.
PLAUSIBLE = 0.05


class SegmentTask(BundleInferTask):
    """A packed bundle as MONAI Label's model, with the bundle's options, structure codes and an uncertainty."""

    def __init__(self, folder: Path, conf: dict[str, str], codes: ModuleType) -> None:
        super().__init__(str(folder), conf, load_strict=True)
        config = self.bundle_config.config
        if "decide" in config["inferer"]:  # the uncertainty needs probabilities, not the classes decided slice by slice
            self.bundle_config.update({"inferer#decide": False})
        self.options = {name: config[name] for name in OPTIONS if name in config}
        self.applied = dict(self.options)
        # Viewers take a list for a choice; it is shown as text instead.
        self._config.update({k: json.dumps(v) if isinstance(v, list) else v for k, v in self.options.items()})
        self.label_info = coded_entries({number: name for name, number in self.labels.items()}, codes)

    def info(self) -> dict[str, Any]:
        """MONAI Label's description, and for each structure what a viewer may send when it saves a label map."""
        return super().info() | {"label_info": self.label_info}

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[str | None, dict[str, Any]]:
        """Segment a volume; the answer has the structures' codes and colours, and the uncertainty."""
        wanted = chosen_options(request, self.options)
        measured: dict[str, Any] = {"label_info": self.label_info}

        def measure(data: dict[str, Any]) -> dict[str, Any]:
            measured["uncertainty"] = uncertainty(data[self.output_label_key][: len(self.labels) + 1])
            return data

        self._apply(wanted)
        file, said = super().__call__(request, {**(callbacks or {}), CallBackTypes.INFERER: measure})
        return file, said | measured

    def _apply(self, wanted: dict[str, Any]) -> None:
        """Check the options with the bundle's own rules and write them into its config."""
        sys.path.insert(0, self.bundle_path)
        unload_module("scripts")
        try:
            importlib.import_module("scripts.core.schema").check_values(wanted, origin="the viewer's options")
        finally:
            sys.path.remove(self.bundle_path)
        if wanted != self.applied:
            self.bundle_config.update(wanted)  # what depends on them is made again
            self.applied = wanted


class Batch(BatchInferTask):
    """MONAI Label's inference over many volumes; a refused volume is reported in the result and does not end it."""

    def __call__(self, request: dict[str, Any], datastore: Any, infer: Callable[..., Any]) -> dict[str, Any]:
        """Segment the chosen volumes one after the other: a bundle's modules cannot be shared by threads."""

        def guarded(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                return infer(one, store)
            except Exception as error:  # of whatever kind: the other volumes are segmented
                said = str(getattr(error, "detail", "") or f"{type(error).__name__}: {error}")
                logger.error("%s: left out of the batch. %s", one["image"], said)
                return {"error": said}

        return super().__call__(request | {"max_workers": 1, "multi_gpu": False}, datastore, guarded)


class LeastCertain(Strategy):
    """The volume whose segmentation was the least certain, of those without a final label.

    Inference leaves an uncertainty with each volume. A volume that was served before comes after those that were not.
    """

    def __init__(self) -> None:
        super().__init__("The volume whose segmentation was the least certain; run batch inference first")

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any] | None:
        """The next volume: its id, its score, and how many volumes have one; None if all are labelled."""
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        infos = {image: datastore.get_image_info(image) for image in images}
        scores = {image: _score(info, request.get("model")) for image, info in infos.items()}
        if not images:
            return None
        served = {
            image: info.get("strategy", {}).get(request["strategy"], {}).get("ts", 0) for image, info in infos.items()
        }
        chosen = max(images, key=lambda image: (-served[image], scores[image] if scores[image] is not None else -1.0))
        count = sum(score is not None for score in scores.values())
        if not count:
            logger.warning("No volume has an uncertainty yet: run batch inference first.")
        return {"id": chosen, "score": scores[chosen], "scored": count, "unlabelled": len(images)}


def chosen_options(request: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's options with the values of a request.

    Raises:
        HTTPException: 422 for a name that is no option, and for text that the config would evaluate.
    """
    for name in request:
        if name not in REQUEST and name not in options and name != "model_filename":
            listed = ", ".join(sorted(options))
            raise refused(
                f"option {name!r}: not an option of this model. Expected one of {listed}. Fix: correct its name."
            )
        if name in (*options, "device") and str(request[name]).startswith(EVALUATED):
            raise refused(f"option {name!r}: {request[name]!r}. Expected a plain value. Fix: write the value itself.")
    given = {name: request.get(name, value) for name, value in options.items()}
    if request.get("largest_cc") and "largest_component" in given:  # MONAI Label's own name for it
        given["largest_component"] = True
    return {name: value if isinstance(options[name], str) else _parsed(value) for name, value in given.items()}


def uncertainty(probabilities: torch.Tensor) -> float:
    """Mean entropy of probabilities (K + 1, X, Y, Z) where a structure is plausible, from 0 to 1; 1 if none is."""
    plausible = probabilities[0] < 1 - PLAUSIBLE  # (X, Y, Z)
    if not bool(plausible.any()):
        return 1.0
    chosen = probabilities[:, plausible].double()  # (K + 1, N)
    entropy = torch.special.entr(chosen).sum(0).mean()
    return round(float(entropy) / math.log(len(probabilities)), 6)


def _score(info: Mapping[str, Any], model: str | None) -> float | None:
    """The uncertainty that a model left with a volume, or the largest of all models."""
    scores = [score for name, score in info.get("uncertainty", {}).items() if model in (None, name)]
    return max(scores, default=None)


def _parsed(value: Any) -> Any:
    """The value of a text such as ``[0.9, 1.0]``; other text stays, and the bundle's rules refuse it."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
