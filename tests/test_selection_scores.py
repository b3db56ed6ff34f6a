"""The label-free scores, each by hand on tiny tensors; and the choice by them."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from scripts.core.errors import InputError
from scripts.core.weights import selection_sentence
from scripts.data.augmentation import BatchAugmentation
from scripts.data.slices import SliceSet
from scripts.losses.segmentation import supervised_loss
from scripts.selection.choice import KEPT, best_epoch, check_choice_is_possible, read_scores
from scripts.selection.scorer import SnapshotScorer, predict_classes
from scripts.selection.scores import PARTS, SCORES, mask_patches, masked_consistency_loss, mean_dice
from torch import nn


def test_dice_is_taken_over_a_whole_case_and_averaged_over_cases_then_structures() -> None:
    # Case 0 has two slices. Structure 1: 2 found, 2 true, 1 common in the first; nothing found of 1 true in the second.
    prediction = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]], [[2, 2, 0, 1]]])
    label = np.array([[[0, 1, 1, 0]], [[1, 0, 0, 0]], [[2, 0, 0, 1]]])
    of_one = np.mean([2 * 1 / (2 + 3), 1.0])  # 0.4 in case 0, perfect in case 1
    of_two = 2 * 1 / (2 + 1)  # absent from case 0, which does not count
    assert mean_dice(prediction, label, np.array([0, 0, 1]), 2) == pytest.approx((of_one + of_two) / 2)
    assert mean_dice(np.zeros_like(label), label, np.array([0, 0, 1]), 2) == 0
    assert math.isnan(mean_dice(np.zeros((1, 1, 2), int), np.zeros((1, 1, 2), int), np.array([0]), 2))


def test_masked_patches_are_squares_each_sample_with_its_own() -> None:
    image = torch.full((8, 1, 8, 8), 0.5)
    masked = mask_patches(image, share=0.25, patches_per_side=4, generator=torch.Generator().manual_seed(0))
    blocks = masked.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (8, 1, 4, 4, 4 pixels)
    assert set(masked.unique().tolist()) == {-1.0, 0.5}
    assert torch.equal(blocks.amin(4), blocks.amax(4)), "no patch is cut"
    assert (blocks[..., 0] == -1).flatten(1).sum(1).tolist() == [4] * 8
    assert len({tuple(pattern.flatten().tolist()) for pattern in blocks[..., 0]}) > 1
    assert torch.equal(mask_patches(image, share=0, patches_per_side=4, generator=torch.Generator()), image)
    assert bool((image == 0.5).all()), "the image itself stays"


def test_consistency_is_cross_entropy_and_dice_against_the_unchanged_prediction() -> None:
    prediction = torch.tensor([[[[0, 1]]]])
    sure = torch.tensor([[[[20.0, 0.0]], [[0.0, 20.0]]]])  # the same decision, without doubt
    assert masked_consistency_loss(sure, prediction) == pytest.approx(0.0, abs=1e-4)
    # Nothing known: cross-entropy log 2, and a soft Dice of 2 * 0.5 / (1 + 1).
    assert masked_consistency_loss(torch.zeros(1, 2, 1, 2), prediction) == pytest.approx(math.log(2) + 0.5, abs=1e-4)


def test_the_process_that_scores_asks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, prediction = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0, 1]]]])
    monkeypatch.setattr("scripts.losses.segmentation.sum_over_processes", lambda values: values * math.nan)
    assert math.isnan(supervised_loss(logits, prediction)[0]), "training does"
    assert masked_consistency_loss(logits, prediction) == pytest.approx(math.log(2) + 0.5, abs=1e-4)


def test_of_every_score_more_is_better() -> None:
    good = dict(zip(PARTS, [0.9, 0.2], strict=True))
    bad = dict(zip(PARTS, [0.5, 1.2], strict=True))
    assert all(score(good) > score(bad) for score in SCORES.values())
    assert SCORES["masked_consistency"](good) == pytest.approx(0.9 - 0.5 * 0.2)
    assert next(iter(SCORES)) == "masked_consistency", "the default"


GREY = (-1.0, 1.0, 0.0)
"""What the background and the two structures of the scene look like."""


class Nearest(nn.Module):
    """Each pixel's class is that of the nearest grey value, unless a bias makes everything background.

    ``mask_bias`` is a second such bias, on the target's road alone: what a local mask does to a prediction.
    """

    def __init__(self, sharpness: float = 4.0, bias: float = 0.0, mask_bias: float = 0.0) -> None:
        super().__init__()
        self.sharpness, self.bias, self.mask_bias = nn.Parameter(torch.tensor(float(sharpness))), bias, mask_bias

    def forward_features(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def predict_unmasked(self, features: torch.Tensor, size: list[int]) -> torch.Tensor:
        assert list(features.shape[2:]) == size
        logits = torch.cat([-self.sharpness * (features - grey) ** 2 for grey in GREY], 1)
        return logits + torch.tensor([self.bias, 0, 0]).view(1, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.predict_unmasked(self.forward_features(image), list(image.shape[2:]))
        return logits + torch.tensor([self.mask_bias, 0, 0]).view(1, 3, 1, 1)


def slices_of(images: torch.Tensor, labels: torch.Tensor | None, cases: int = 2) -> SliceSet:
    """A slice set without files."""
    found = object.__new__(SliceSet)
    found.images, found.labels, found.window_size = images, labels, tuple(images.shape[2:])
    found.sizes = torch.tensor(images.shape[2:]).expand(len(images), 2)
    found.case_of = torch.arange(len(images)) * cases // len(images)
    return found


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight slices with one square of each structure, and their labels."""
    labels = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    labels[:, :, 2:6, 2:6], labels[:, :, 9:12, 9:13] = 1, 2
    return torch.tensor(GREY)[labels.long()], labels


def scorer(scene: tuple[torch.Tensor, torch.Tensor], **changes: Any) -> SnapshotScorer:
    images, labels = scene
    settings: dict[str, Any] = {
        "labelled": slices_of(images, labels),
        "target": slices_of(images, None),
        "augmentation": BatchAugmentation(noise=0.1, rotation_degrees=5),
        "num_structures": 2,
        "slices": 6,
        "precision": "float32",
        "batch_size": 4,
    }
    return SnapshotScorer(**settings | changes)


def test_a_perfect_network_has_perfect_parts(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    parts = scorer(scene, masked_share=0.0, augmentation=BatchAugmentation()).parts(Nearest(50))
    assert set(parts) == set(PARTS)
    assert parts["labelled_dice"] == 1
    assert parts["consistency_loss"] == pytest.approx(0, abs=1e-3)


def test_parts_are_the_same_whenever_they_are_asked_for(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    state = torch.get_rng_state()
    first, second = scorer(scene).parts(Nearest()), scorer(scene).parts(Nearest())
    assert first == second
    assert torch.equal(state, torch.get_rng_state()), "no random number of the training is used up"
    assert first != scorer(scene, seed=1).parts(Nearest())
    # Masks and noise are noticed; so is a network that finds nothing.
    assert first["consistency_loss"] > 0.01
    empty = scorer(scene).parts(Nearest(bias=25))
    assert empty["labelled_dice"] == 0
    assert SCORES["masked_consistency"](empty) < SCORES["masked_consistency"](first)


def test_held_out_cases_come_before_training_cases(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = scene
    held_out = slices_of(images, torch.zeros_like(labels))
    with_them, without = scorer(scene, held_out=held_out), scorer(scene)
    assert (with_them.labelled_cases, without.labelled_cases) == ("held-out", "training")
    assert with_them.parts(Nearest())["labelled_dice"] == 0
    assert without.parts(Nearest())["labelled_dice"] == 1


def test_labelled_slices_are_masked_if_training_masks_them(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    blinded = Nearest(mask_bias=25)  # the mask makes everything background
    unmasked, masked = (scorer(scene, mask_labelled=it).parts(blinded) for it in (False, True))
    assert (unmasked["labelled_dice"], masked["labelled_dice"]) == (1, 0)
    assert unmasked["consistency_loss"] == masked["consistency_loss"], "the target is always masked"


def test_labels_of_the_target_are_not_looked_at(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = scene
    parts = [scorer(scene, target=slices_of(images, other)).parts(Nearest()) for other in (None, labels, 1 - labels)]
    assert parts[0] == parts[1] == parts[2]


def test_without_a_target_only_the_labelled_dice_is_known(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    parts = scorer(scene, target=None).parts(Nearest())
    assert parts["labelled_dice"] == 1
    assert [name for name in PARTS if math.isnan(parts[name])] == list(PARTS[1:])


def test_classes_do_not_depend_on_the_batch(scene: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = scene
    for batch_size in (1, 3, 8):
        found = predict_classes(Nearest(), images, batch_size, "float32")
        np.testing.assert_array_equal(found, labels[:, 0].numpy())


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({1: 0.1, 2: 0.3, 3: 0.2}, 2),
        ({1: 0.3, 2: 0.1, 3: 0.3}, 3),  # of equal ones the later
        ({1: -0.5, 2: float("nan"), 3: -0.7}, 1),  # what has no score is not chosen
        ({2: -float("inf")}, 2),
    ],
)
def test_the_best_epoch(values: dict[int, float], best: int) -> None:
    assert best_epoch(values) == best


def test_nothing_to_choose_by() -> None:
    assert refused(best_epoch, {1: float("nan")}).found == "no score to choose by"
    assert refused(best_epoch, {}).found == "no score to choose by"


@pytest.mark.parametrize(
    ("keep", "interval", "has_target", "setting"),
    [
        ("best", 1, True, "keep"),
        ("labelled_dice", 0, True, "interval"),
        ("oracle", 0, True, "interval"),
        ("masked_consistency", 1, False, "keep"),
    ],
)
def test_what_cannot_choose_is_refused(keep: str, interval: int, has_target: bool, setting: str) -> None:
    error = refused(check_choice_is_possible, keep, interval, has_target=has_target)
    assert error.file == f"setting 'selection#{setting}'"


def test_only_the_consistency_needs_target_images() -> None:
    refusals = {}
    for keep in KEPT:
        try:
            check_choice_is_possible(keep, 2, has_target=False)
        except InputError as error:
            refusals[keep] = error.expected
    assert refusals == {"masked_consistency": "a datalist of target images; labels are not read"}


@pytest.mark.parametrize(
    "content", [None, "", "a,b\n1,2\n", "epoch,iteration,x\n1,2,word\n", "epoch,iteration,x\n1,2\n"]
)
def test_a_table_that_is_none(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "selection.csv"
    if content is not None:
        path.write_text(content)
    if content == "":
        assert read_scores(path) == {}
    else:
        assert "no table of snapshots" in refused(read_scores, path).found


def test_a_table_is_read_by_epoch(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["epoch", "iteration", "a"], [2, 20, 0.5], [4, 40, "nan"]])
    found = read_scores(tmp_path / "t.csv")
    assert (found[2]["epoch"], found[2]["iteration"], found[2]["a"]) == (2, 20, 0.5)
    assert math.isnan(found[4]["a"])
    assert math.isnan(found[2]["score_labelled_dice"]), "an absent column"


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (None, "selection unknown"),
        ({"rule": "last", "epoch": 7}, "the last (epoch 7); nothing was selected"),
        ({"rule": "snapshot", "epoch": 3}, "the snapshot of epoch 3"),
        (
            {"rule": "label_free", "epoch": 3, "score": "labelled_dice", "value": 0.5, "labelled_cases": "training"},
            "epoch 3, selected without target labels by labelled_dice = 0.5000 (labelled Dice on training cases)",
        ),
        ({"rule": "oracle", "epoch": 3, "value": 0.5}, "SELECTED WITH TARGET LABELS"),
    ],
)
def test_how_weights_were_chosen_is_a_sentence(selection: dict[str, Any] | None, words: str) -> None:
    assert words in selection_sentence(selection)
