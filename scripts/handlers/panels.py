"""Sample pictures during training, and its loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ignite.engine import Engine, Events
from matplotlib.image import imread
from scripts.core.processes import rank
from scripts.data.slices import UnpairedSliceBatches
from scripts.evaluation.figures import loss_curves
from scripts.evaluation.montage import NORMALISED, Panel, slice_montage
from torch import nn
from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:  # a packed synthesis bundle has no segmenter
    from scripts.networks.segmenter import Segmenter

__all__ = ["LossCurves", "PeriodicPicture", "SegmentationPanel", "slices_of"]


class PeriodicPicture:
    """A picture every ``interval`` epochs and one at the end, on the first process.

    Args:
        folder: where ``<kind>_<iteration>.png`` goes.
        batches: gives the fixed slices to show.
        interval: epochs between two pictures.
        count: slices per domain.
        label_names: for the legend.
        log_dir: where TensorBoard gets the pictures; None for nowhere.
        marks: letters at the left and right edges of each slice, see :func:`scripts.evaluation.montage.edge_marks`.
    """

    kind = "panel"
    columns: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        folder: str,
        batches: UnpairedSliceBatches,
        interval: int,
        count: int = 3,
        label_names: Sequence[str] = (),
        marks: Sequence[str] = (),
        log_dir: str | None = None,
    ) -> None:
        self.folder, self.batches, self.interval, self.count = Path(folder), batches, interval, count
        self.label_names, self.marks, self.log_dir = list(label_names), marks, log_dir

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        is_due = lambda engine, epoch: epoch % self.interval == 0 or epoch == engine.state.max_epochs  # noqa: E731
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=is_due), self.show)

    def show(self, engine: Engine) -> None:
        """Draw one picture."""
        if rank() == 0:
            with torch.inference_mode():
                self.draw(engine.state.iteration)

    def sample_for(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """The slices to show, on the network's device; they may be stored on the host."""
        device = next(network.parameters()).device
        return {key: slices.to(device) for key, slices in self.batches.sample(self.count).items()}

    def draw(self, iteration: int) -> None:
        """Draw the current output of the networks."""
        (rows, row_titles), path = self.rows(), self.folder / f"{self.kind}_{iteration:06d}.png"
        slice_montage(
            rows,
            path,
            column_titles=self.columns,
            row_titles=row_titles,
            label_names=self.label_names,
            title=f"iteration {iteration}",
            marks=self.marks,
        )
        if self.log_dir is not None:
            with SummaryWriter(self.log_dir) as writer:
                writer.add_image(self.kind, imread(path), iteration, dataformats="HWC")

    def rows(self) -> tuple[list[list[Panel]], list[str]]:
        """The rows of the picture and their titles."""
        raise NotImplementedError


class SegmentationPanel(PeriodicPicture):
    """Stage 2: slices, the labelled ones' labels, predictions, and the local mask as a heat map where it is on.

    ``segmenter`` is S with D1, usually its moving average.
    """

    kind = "segmentation"

    def __init__(self, *, segmenter: Segmenter, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.segmenter = segmenter

    def rows(self) -> tuple[list[list[Panel]], list[str]]:
        """Segment the sample with running batch-norm statistics, as inference does."""
        sample = self.sample_for(self.segmenter)
        image = torch.cat([sample[key] for key in ("image", "target_image") if key in sample])
        truth = torch.zeros_like(image, dtype=torch.uint8)
        truth[: self.count] = sample.get("label", truth[: self.count])
        training = self.segmenter.training
        self.segmenter.eval()
        prediction = self.segmenter(image).argmax(1, keepdim=True)
        mask = self.segmenter.feature_mask(self.segmenter.forward_features(image))
        self.segmenter.train(training)
        self.columns = ("image", "label", "prediction", "local mask")[: 4 if bool(mask.any()) else 3]
        rows = [
            [
                Panel(image=plain, limits=NORMALISED),
                *(Panel(image=plain, limits=NORMALISED, labels=classes, style="area") for classes in shown),
                Panel(image=heat, heat=True),
            ][: len(self.columns)]
            for plain, heat, *shown in zip(*map(slices_of, (image, mask, truth, prediction)), strict=True)
        ]
        return rows, ["labelled"] * self.count + ["target"] * (len(image) - self.count)


class LossCurves:
    """Draw the curves of a :class:`scripts.handlers.losses.LossLog` into a PNG file when a run ends."""

    def __init__(self, *, log: str, path: str) -> None:
        self.log, self.path = log, path

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def draw(self, engine: Engine) -> None:
        """Draw, on the first process."""
        if rank() == 0:
            loss_curves(self.log, self.path)


def slices_of(batch: torch.Tensor) -> np.ndarray:
    """A batch (B, 1, H, W) as an array (B, H, W), for pictures."""
    values = batch[:, 0].cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
