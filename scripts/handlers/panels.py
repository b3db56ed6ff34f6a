"""Sample pictures during training: translations, segmentations and local masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ignite.engine import Engine, Events
from scripts.core.domains import SOURCE, TARGET
from scripts.core.processes import rank
from scripts.data.slices import UnpairedSliceBatches
from scripts.evaluation.figures import Translation, loss_curves, segmentation_panel, translation_panel
from torch import nn

if TYPE_CHECKING:  # a packed bundle contains the networks of its own stage only
    from scripts.networks.segmenter import Segmenter
    from scripts.networks.translators import Translator

__all__ = ["LossCurves", "SegmentationPanel", "TranslationPanel"]


class _Panel:
    """A picture every ``interval`` epochs and one at the end, on the first process.

    Args:
        folder: where ``<kind>_<iteration>.png`` goes.
        batches: gives the fixed slices to show.
        interval: epochs between two pictures.
        count: slices per domain.
        label_names: for the legend.
    """

    kind = "panel"

    def __init__(
        self,
        *,
        folder: str,
        batches: UnpairedSliceBatches,
        interval: int,
        count: int = 3,
        label_names: Sequence[str] = (),
    ) -> None:
        self.folder, self.batches, self.interval, self.count = Path(folder), batches, interval, count
        self.label_names = list(label_names)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        is_due = lambda engine, epoch: epoch % self.interval == 0 or epoch == engine.state.max_epochs  # noqa: E731
        engine.add_event_handler(Events.EPOCH_COMPLETED(event_filter=is_due), self.show)

    def show(self, engine: Engine) -> None:
        """Draw one picture."""
        if rank() == 0:
            title = f"iteration {engine.state.iteration}"
            with torch.inference_mode():
                self.draw(self.folder / f"{self.kind}_{engine.state.iteration:06d}.png", title)

    def sample_for(self, network: nn.Module) -> dict[str, torch.Tensor]:
        """The slices to show, on the network's device; they may be stored on the host."""
        device = next(network.parameters()).device
        return {key: slices.to(device) for key, slices in self.batches.sample(self.count).items()}

    def draw(self, path: Path, title: str) -> None:
        """Draw the current output of the networks into ``path``."""
        raise NotImplementedError


class TranslationPanel(_Panel):
    """Stage 1: slices of both domains, their translations with the labels' outlines, and the cycle back.

    Args:
        generator: G, usually its moving average. Styles that it draws are the same in every picture of a run.
        domain_names: names of source and target.
        arguments: see :class:`_Panel`.
    """

    kind = "translation"

    def __init__(self, *, generator: Translator, domain_names: Sequence[str], **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.generator, self.domain_names = generator, list(domain_names)

    def draw(self, path: Path, title: str) -> None:
        """Translate the sample both ways."""
        sample, directions = self.sample_for(self.generator), []
        random = torch.Generator().manual_seed(0)
        for key, domain in (("image", SOURCE), ("target_image", TARGET)):
            image, other = sample[key], TARGET + SOURCE - domain
            own, foreign = (torch.full((len(image),), d, device=image.device) for d in (domain, other))
            style, own_style = self.generator.new_style(foreign, random), self.generator.own_style(image, own)
            translated = self.generator.decode(self.generator.encode(image, own), style)
            cycle = self.generator.decode(self.generator.encode(translated, foreign), own_style)
            labels = _slices(sample["label"]) if key == "image" and "label" in sample else None
            directions.append(
                Translation(
                    direction=f"{self.domain_names[domain]} to {self.domain_names[other]}",
                    original=_slices(image),
                    translated=_slices(translated),
                    cycle=_slices(cycle),
                    labels=labels,
                )
            )
        translation_panel(directions, path, title=title, label_names=self.label_names)


class SegmentationPanel(_Panel):
    """Stage 2: labelled and target slices with the prediction as overlay, and the local mask as a heat map.

    Args:
        segmenter: S with D1, usually its moving average.
        arguments: see :class:`_Panel`.
    """

    kind = "segmentation"

    def __init__(self, *, segmenter: Segmenter, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.segmenter = segmenter

    def draw(self, path: Path, title: str) -> None:
        """Segment the sample with running batch-norm statistics, as inference does."""
        sample = self.sample_for(self.segmenter)
        image = torch.cat([sample[key] for key in ("image", "target_image") if key in sample])
        rows = ["labelled"] * self.count + ["target"] * (len(image) - self.count)
        training = self.segmenter.training
        self.segmenter.eval()
        prediction = self.segmenter(image).argmax(1, keepdim=True)
        mask = self.segmenter.feature_mask(self.segmenter.forward_features(image))
        self.segmenter.train(training)
        shown = (_slices(image), _slices(prediction), _slices(mask))
        segmentation_panel(*shown, path, label_names=self.label_names, title=title, row_titles=rows)


class LossCurves:
    """Draw the curves of a loss log when a run ends.

    Args:
        log: the CSV file of :class:`scripts.handlers.losses.LossLog`.
        path: the PNG file.
    """

    def __init__(self, *, log: str, path: str) -> None:
        self.log, self.path = log, path

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self.draw)

    def draw(self, engine: Engine) -> None:
        """Draw, on the first process."""
        if rank() == 0:
            loss_curves(self.log, self.path)


def _slices(batch: torch.Tensor) -> np.ndarray:
    values = batch[:, 0].cpu()
    return (values.float() if values.is_floating_point() else values).numpy()
