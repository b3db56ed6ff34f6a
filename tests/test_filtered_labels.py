"""Filtered pseudo-labels: weights of pixels and slices derived by hand, and views of several sizes."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events
from scripts.core.errors import InputError
from scripts.losses.filtered_labels import FilteredSelfTraining, agreement_weights
from test_trainers import OFF, dual_trainer, tiny_deeplab
from torch import nn
from torch.nn import functional as F

LN2 = math.log(2.0)
SCALES = [0.5, 1.0, 2.0]


def views(*winners: list[int], classes: int = 3) -> torch.Tensor:
    """Certain predictions of one row of pixels, a list for each view: (V, 1, classes, 1, W)."""
    return F.one_hot(torch.tensor(winners), classes).float().movedim(2, 1)[:, None, :, None]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Agreement on both structures and the background: all count fully.
        ([0, 1, 2, 0], [0, 1, 2, 0], [1.0, 1.0, 1.0, 1.0]),
        # Of three pixels in which any sees a structure, they agree on two: the slice has 2/3, pixel 3 half of it.
        ([0, 1, 2, 0], [0, 1, 2, 1], [2 / 3, 2 / 3, 2 / 3, 1 / 3]),
        # Two structures in each other's place are no agreement.
        ([1, 1, 0, 0], [2, 1, 0, 0], [0.25, 0.5, 0.5, 0.5]),
        # No structure at all: nothing to disagree on.
        ([0, 0, 0, 0], [0, 0, 0, 0], [1.0, 1.0, 1.0, 1.0]),
        # Agreement on nothing: the slice does not count.
        ([0, 1, 0, 0], [0, 0, 1, 0], [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_weights_by_hand(first: list[int], second: list[int], expected: list[float]) -> None:
    weights = agreement_weights(views(first, second), doubtful_weight=0.5)
    torch.testing.assert_close(weights.flatten(), torch.tensor(expected))


def test_slices_are_weighed_apart_and_a_third_view_can_only_doubt() -> None:
    sure, unsure = views([1, 0], [1, 0], [1, 0]), views([1, 1], [1, 1], [1, 0])
    weights = agreement_weights(torch.cat([sure, unsure], 1), doubtful_weight=0.0)
    assert weights.shape == (2, 1, 1, 2)
    assert weights.flatten().tolist() == [1.0, 1.0, 0.5, 0.0]


def test_the_loss_by_hand() -> None:
    # Equal logits of two classes: ln 2 everywhere; weights 1/2 (the slice's) and 1/4 over two pixels.
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    taught = views([1, 1], [1, 0], classes=2)
    loss = FilteredSelfTraining(teacher=nn.Identity(), scales=[1.0, 1.5]).loss(logits, taught)
    assert float(loss) == pytest.approx((0.5 + 0.25) / 2 * LN2)


def test_the_label_is_the_views_mean() -> None:
    # (0.9 + 0.2) / 2 = 0.55 for class 0: its cross-entropy falls as its logit rises.
    logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
    taught = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).view(2, 1, 2, 1, 1)
    term = FilteredSelfTraining(teacher=nn.Identity(), scales=[1.0, 1.5])
    # The one pixel is doubtful, and so is all that the views see of a structure: no weight.
    assert float(term.loss(logits, taught)) == 0.0
    agreed = torch.cat([taught, taught]).clone()
    agreed[:, :, :, :, :] = torch.tensor([0.55, 0.45]).view(1, 1, 2, 1, 1)
    term.loss(logits, agreed).backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.5, 0.5])


def test_each_view_comes_back_to_the_slices_grid() -> None:
    # A teacher that says how bright each pixel is: a constant slice looks the same at any size.
    sizes: list[int] = []

    class Teacher(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            sizes.append(image.shape[2])
            return torch.cat([image, -image], 1)

    taught = FilteredSelfTraining(teacher=Teacher(), scales=SCALES).teach(torch.full((2, 1, 8, 8), 0.5))
    assert sizes == [4, 8, 16]
    assert taught.shape == (3, 2, 2, 8, 8)
    torch.testing.assert_close(taught[:, :, 0], torch.full((3, 2, 8, 8), 1 / (1 + math.exp(-1.0))))


def test_one_view_has_none_to_agree_with() -> None:
    with pytest.raises(InputError, match=r"setting 'scales': \[1\.0\]\. Expected at least two zoom factors"):
        FilteredSelfTraining(teacher=nn.Identity(), scales=[1.0])


def test_it_begins_when_it_is_time() -> None:
    trainer = dual_trainer(
        iterations=4,
        d1=OFF,
        d2=OFF,
        segmenter=tiny_deeplab(mask_mode="off"),
        extra_losses=lambda made: {
            "filtered": FilteredSelfTraining(teacher=made.average.module, scales=SCALES, start=0.5)
        },
    )
    losses: list[float] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: losses.append(float(trainer.state.output[0]["filtered"]))
    )
    trainer.run()
    assert losses[:2] == [0.0, 0.0]
    assert all(loss > 0 for loss in losses[2:])
