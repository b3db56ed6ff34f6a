"""A MONAI Label app that serves packed bundles offline and answers bad input with a sentence.

Copied as ``main.py`` into a folder with the bundles in its ``model/``, it takes the place of MONAI Label's own app
``monaibundle``, which asks the model zoo at every start, leaves bundles without weights out silently, and answers what
a bundle refuses with "Internal Server Error". It needs nothing of this project but this file: the bundles bring theirs.
"""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import monailabel
import torch
from fastapi import HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

__all__ = ["BundleApp"]

logger = logging.getLogger(__name__)

NOT_FOUND, NOT_USABLE = 404, 422
"""HTTP's words for what is not there, and for what is there and cannot be used."""

KILLED = (
    "error: the training process was ended from outside before it finished, often for want of memory; the weights of "
    "before are in use still: free memory or lower batch_size in configs/train.json, and start the training again."
)
WATCHER = f"import sys; sys.stdin.read() or print({KILLED!r}, flush=True)"
"""A program that speaks if its standard input ends without a word: a killed process says nothing itself."""


class BundleApp(MONAILabelApp):
    """Packed bundles as models and trainers: those that ``--conf models`` names, or all in ``model/``.

    Args:
        app_dir: folder of this file and of ``model/``.
        studies: folder of volumes, or address of a DICOMweb server.
        conf: the ``--conf`` pairs of the command line.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        folder = Path(app_dir) / "model"
        named = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        found = sorted(box.name for box in folder.iterdir() if (box / "configs").is_dir())
        self.boxes = {name: folder / name for name in named or found}
        _make_torchvision_importable()
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="GLUA",
            description="Cross-modality segmentation: packed bundles",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, Any]:
        """A model per bundle that has its weights; the log says why one is left out."""
        from monailabel.tasks.infer.bundle import BundleInferTask

        infers = {}
        for name in self.boxes:
            reason = self._why_not(name)
            if reason is None:
                infers[name] = BundleInferTask(str(self.boxes[name]), self.conf, load_strict=True)
            else:
                logger.error("Model %s is left out. %s", name, reason)
        return infers

    def init_trainers(self) -> dict[str, Any]:
        """A trainer per bundle."""
        from monailabel.tasks.train.bundle import BundleTrainTask

        tasks = {name: BundleTrainTask(str(box), self.conf) for name, box in self.boxes.items() if box.is_dir()}
        return {name: task for name, task in tasks.items() if task.is_valid()}

    def init_strategies(self) -> dict[str, Any]:
        """Which volume to correct next: MONAI Label's two that need no model."""
        return {"first": First(), "random": Random()}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> Any:
        """Segment a volume.

        Raises:
            HTTPException: 404 for a model or a volume that is not there, 422 for what the bundle refuses; each with
                the sentence as its detail.
        """
        name, image = request.get("model", ""), request.get("image")
        if name not in self._infers:
            if (reason := self._why_not(name)) is not None:
                raise HTTPException(NOT_FOUND, detail=reason)
            self._infers |= self.init_infers()  # the weights were put there since the start
        if isinstance(image, str) and not Path(image).exists() and not self.datastore().get_image_uri(image):
            raise HTTPException(NOT_FOUND, detail=f"{image}: no such volume on this server; upload it first.")
        try:
            return super().infer(request, datastore)
        except Exception as error:
            if (refusal := _refusal(error)) is None:
                raise
            raise refusal from error

    def train(self, request: dict[str, Any]) -> Any:
        """Train a bundle on from its weights: in a process of its own, whose last lines are the task's ``details``.

        Raises:
            HTTPException: in the server's own process (``run_sync``), as :meth:`infer`.
            SystemExit: in a process of its own, with the sentence.
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
        box = self.boxes.get(name)
        if box is None:
            return f"{name}: no such model on this server; it has {', '.join(self.boxes) or 'none'}."
        if not (box / "configs" / "inference.json").is_file():
            return f"{box}: no bundle. Expected a packed one. Fix: copy its folder there."
        weights = [box / "models" / "model.pt", box / "models" / "model.ts"]
        if not any(file.is_file() for file in weights):
            remedy = "pack the bundle with --weights, or copy model.pt and model.json there"
            return f"{weights[0]}: no such file. Expected the weights of a finished training. Fix: {remedy}."
        return None


def _make_torchvision_importable() -> None:
    """Declare what torchvision's compiled part would, where that does not load.

    MONAI Label imports torchvision for pictures of 2D slides. PyPI's build is for CUDA: beside a CPU build of torch its
    import ends at the first operator that it describes and does not have.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            signature = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", signature)


def _refusal(error: Exception) -> HTTPException | None:
    """The HTTP answer with the bundle's own sentence, or None where the error is no refusal of a bundle."""
    cause: BaseException | None = error
    # By its name: each bundle has a class of its own, loaded anew with every request.
    while cause is not None and type(cause).__name__ != "InputError":
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return None
    logger.error("%s", cause)
    return HTTPException(NOT_USABLE, detail=str(cause))


@contextmanager
def _watched() -> Iterator[None]:
    """While this runs, a second process waits to say that the first was killed."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCHER], stdin=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        watcher.communicate("over")
