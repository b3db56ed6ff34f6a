"""A MONAI Label app that serves packed bundles offline and reports bad input clearly.

Copy it as ``main.py``, and ``label_tasks.py`` and ``label_dicom.py`` beside it, into a folder with the bundles in its
``model/``. It replaces MONAI Label's app ``monaibundle``, which contacts the model zoo at every start, silently ignores
bundles without weights, and reports input errors of a bundle as "Internal Server Error". Of this project it needs only
these files and the bundles.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import monailabel
import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

__all__ = ["BundleApp"]

logger = logging.getLogger(__name__)

# HTTP status codes for missing and for invalid input.
NOT_FOUND, NOT_USABLE = 404, 422

KILLED = (
    "error: the training process was killed before it finished, often because memory ran out. The earlier weights are "
    "still in use. Fix: free memory or lower batch_size in configs/train.json, and start the training again."
)
# A program that reports if its standard input closes without data: a killed process cannot report itself.
WATCHER = f"import sys; sys.stdin.read() or print({KILLED!r}, flush=True)"


class BundleApp(MONAILabelApp):
    """Packed bundles as models and trainers: those that ``--conf models`` names, or all in ``model/``."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folder = Path(app_dir) / "model"
        named = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        found = sorted(place.name for place in folder.iterdir() if (place / "configs").is_dir())
        self.bundles = {name: folder / name for name in named or found}
        _make_torchvision_importable()
        self.tasks, dicom = _module_beside("label_tasks"), _module_beside("label_dicom")
        self.check_converter = dicom.check_converter
        bundles = [bundle for bundle in self.bundles.values() if (bundle / "configs" / "inference.json").is_file()]
        self.codes = dicom.load_codes(bundles)
        dicom.use_codes(self.codes)
        dicom.use_modalities(bundles)
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="GLUA",
            description="Cross-modality segmentation: packed bundles",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, Any]:
        """A model for each bundle with weights; the log says why others are left out."""
        infers = {}
        for name in self.bundles:
            reason = self._why_not(name)
            if reason is None:
                infers[name] = self.tasks.SegmentTask(self.bundles[name], self.conf, self.codes)
            else:
                logger.error("Model %s is left out. %s", name, reason)
        return infers

    def init_trainers(self) -> dict[str, Any]:
        """A trainer for each bundle."""
        from monailabel.tasks.train.bundle import BundleTrainTask

        tasks = {
            name: BundleTrainTask(str(folder), self.conf) for name, folder in self.bundles.items() if folder.is_dir()
        }
        return {name: task for name, task in tasks.items() if task.is_valid()}

    def init_strategies(self) -> dict[str, Any]:
        """MONAI Label's two strategies for the next volume that need no model, and the least certain one."""
        return {"first": First(), "random": Random(), "uncertainty": self.tasks.LeastCertain()}

    def init_batch_infer(self) -> Any:
        """Inference over many volumes."""
        return self.tasks.Batch()

    def init_remote_datastore(self) -> Any:
        """A DICOMweb server as the store of volumes; the command ends without the converter to DICOM Segmentations."""
        self.check_converter()
        return super().init_remote_datastore()

    def infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Segment a volume; its uncertainty is kept for the choice of the next one.

        Raises:
            HTTPException: 404 for a missing model or volume, 422 for input that the bundle refuses; the detail is the
                bundle's message.
        """
        name, image = request.get("model", ""), request.get("image")
        if name not in self._infers:
            if (reason := self._why_not(name)) is not None:
                raise HTTPException(NOT_FOUND, detail=reason)
            self._infers |= self.init_infers()  # the weights were copied there after the start
        if isinstance(image, str) and not Path(image).exists() and not self.datastore().get_image_uri(image):
            raise HTTPException(NOT_FOUND, detail=f"{image}: no such volume on this server; upload it first.")
        try:
            answer = super().infer(request, datastore)
        except Exception as error:
            if (refusal := _refusal(error)) is None:
                raise
            raise refusal from error
        store = datastore or self.datastore()
        if isinstance(image, str) and image in store.list_images():
            scores = store.get_image_info(image).get("uncertainty", {})
            store.update_image_info(image, {"uncertainty": scores | {name: answer["params"]["uncertainty"]}})
        return answer

    def train(self, request: dict[str, Any]) -> Any:
        """Continue training from a bundle's weights, in a separate process; its last lines are the task's ``details``.

        Raises:
            HTTPException: in the server's own process (``run_sync``), as :meth:`infer`.
            SystemExit: in a separate process, with the message.
        """
        try:
            if (reason := self._why_not(request.get("model", ""))) is not None:
                raise HTTPException(NOT_FOUND, detail=reason)
            with _watched():
                return super().train(request)
        except Exception as error:
            refusal = error if isinstance(error, HTTPException) else _refusal(error)
            if refusal is None:
                raise
            if self._server_mode:
                raise refusal from None
            sys.exit(f"error: {refusal.detail}")

    def _why_not(self, name: str) -> str | None:
        """Why a bundle cannot be served, or None."""
        folder = self.bundles.get(name)
        if folder is None:
            return f"{name}: no such model on this server; it has {', '.join(self.bundles) or 'none'}."
        if not (folder / "configs" / "inference.json").is_file():
            return f"{folder}: no bundle. Expected a packed one. Fix: copy its folder there."
        weights = [folder / "models" / "model.pt", folder / "models" / "model.ts"]
        if not any(file.is_file() for file in weights):
            remedy = "pack the bundle with --weights, or copy model.pt and model.json there"
            return f"{weights[0]}: no such file. Expected the weights of a finished training. Fix: {remedy}."
        return None


def _module_beside(name: str) -> ModuleType:
    """A module in the app's folder, which MONAI Label has on the path only while it imports ``main.py``."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def _make_torchvision_importable() -> None:
    """Declare the operators of torchvision's compiled library if it cannot be loaded.

    MONAI Label imports torchvision for 2D slides. PyPI's build is for CUDA: with a CPU build of torch, its import fails
    at the first operator that is missing.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)


def _refusal(error: Exception) -> HTTPException | None:
    """The HTTP error with the bundle's message; None if the error is not an input error."""
    cause: BaseException | None = error
    # By name: each bundle has its own class, which is imported again for every request.
    while cause is not None and "InputError" not in [kind.__name__ for kind in type(cause).__mro__]:
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    logger.error("%s", cause)
    return HTTPException(NOT_USABLE, detail=str(cause))


@contextmanager
def _watched() -> Iterator[None]:
    """Run a second process that reports if this one is killed."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER], stdin=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        watcher.communicate("over")
