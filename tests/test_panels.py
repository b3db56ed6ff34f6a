"""Pictures during training: how many a run draws, and which slices they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from scripts.handlers.panels import SegmentationPanel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn


class Batches:
    """Gives black slices, of the target too unless there is none."""

    def __init__(self, has_target: bool = True) -> None:
        self.keys = ["image", "target_image"] if has_target else ["image"]

    def sample(self, count: int) -> dict[str, torch.Tensor]:
        return {key: torch.zeros(count, 1, 8, 8) for key in self.keys}


class Segmenter(nn.Module):
    """Two classes; keeps how many slices it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.mask = nn.Conv2d(1, 2, 1), list[int](), 0.0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(image))
        logits: torch.Tensor = self.layer(image)
        return logits

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def feature_mask(self, features: torch.Tensor) -> torch.Tensor:
        return torch.full_like(features, self.mask)


def panel(folder: Path, **settings: Any) -> tuple[SegmentationPanel, Segmenter]:
    segmenter = Segmenter()
    given: dict[str, Any] = {"batches": Batches(), "count": 2, "label_names": ["liver"], "interval": 1} | settings
    return SegmentationPanel(segmenter=segmenter, folder=str(folder), **given), segmenter  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "interval", "iterations"), [(1, 10, [2]), (4, 2, [4, 8]), (3, 2, [4, 6])], ids=["short", "even", "odd"]
)
def test_a_run_of_any_length_draws_its_end(epochs: int, interval: int, iterations: list[int], tmp_path: Path) -> None:
    engine = Engine(lambda engine, batch: None)
    drawn, _ = panel(tmp_path, interval=interval)
    drawn.attach(engine)
    engine.run([0, 1], max_epochs=epochs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"segmentation_{k:06d}.png" for k in iterations]


@pytest.mark.parametrize(("has_target", "slices"), [(True, 4), (False, 2)])
def test_labelled_and_target_slices(has_target: bool, slices: int, tmp_path: Path) -> None:
    drawn, segmenter = panel(tmp_path, batches=Batches(has_target))
    drawn.draw(2)
    assert segmenter.seen == [slices]
    assert (tmp_path / "segmentation_000002.png").is_file()


def test_columns_are_those_that_show_something(tmp_path: Path) -> None:
    """Labels of labelled slices alone; a local mask only where it is on."""
    drawn, segmenter = panel(tmp_path, batches=Batches())
    drawn.batches.sample = lambda count: {  # type: ignore[method-assign]
        "image": torch.zeros(count, 1, 8, 8),
        "label": torch.ones(count, 1, 8, 8, dtype=torch.uint8),
        "target_image": torch.zeros(count, 1, 8, 8),
    }
    rows, titles = drawn.rows()
    assert drawn.columns == ("image", "label", "prediction")
    shown = [int(row[1].labels.max()) for row in rows]  # type: ignore[union-attr]
    assert list(zip(titles, shown, strict=True)) == [("labelled", 1), ("labelled", 1), ("target", 0), ("target", 0)]
    segmenter.mask = 0.5
    drawn.rows()
    assert drawn.columns[-1] == "local mask"


def test_tensorboard_gets_the_picture(tmp_path: Path) -> None:
    drawn, _ = panel(tmp_path / "pictures", log_dir=str(tmp_path / "logs"))
    drawn.draw(2)
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [image.step for image in events.Images("segmentation")] == [2]
