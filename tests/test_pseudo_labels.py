"""Pseudo-labels: what is kept, what is ignored, when they are renewed, and how batches carry them."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import refused
from ignite.engine import Engine
from scripts.core.domains import IGNORED
from scripts.data.augmentation import BatchAugmentation
from scripts.data.pseudo_labels import (
    TOO_SMALL,
    PseudoLabels,
    SelfTrainingBatches,
    cleaned_labels,
    plausible_cases,
    volume_ranges_ml,
    with_volume_limits,
)
from scripts.data.slices import SliceSet
from scripts.handlers.pseudo_labels import PseudoLabelRounds
from scripts.inference.inferers import SliceWiseInferer
from torch import Tensor, nn

K = 2
"""Structures of these tests: 1 where an image is bright, 2 where it is dark, background where it is 0."""


class ByBrightness(nn.Module):
    """Logits of each pixel: 0, ``gain`` times what the image has above ``start``, and ``-gain`` times the image."""

    def __init__(self, gain: float = 10.0, start: float = 0.0) -> None:
        super().__init__()
        self.gain, self.start = nn.Parameter(torch.tensor(gain)), start

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), self.gain * (image - self.start), -self.gain * image], 1)


def slice_set(*volumes: Tensor) -> SliceSet:
    """A set without files: the volumes, (D, H, W) each, are its cases."""
    made = SliceSet.__new__(SliceSet)
    made.images = torch.cat(volumes)[:, None]
    made.labels = None
    made.case_of = torch.cat([torch.full((len(volume),), case) for case, volume in enumerate(volumes)])
    made.voxel_ml = [0.5 * (case + 1) for case in range(len(volumes))]
    made.content = "volumes"
    made.sizes = torch.tensor([volumes[0].shape[1:]]).expand(len(made.images), 2)
    made.window_size = tuple(volumes[0].shape[1:])
    return made


def bright_and_dark() -> Tensor:
    """(3, 4, 6): a bright column of 2 x 2 pixels through all slices; a dark pixel, and a bright one, apart from it."""
    volume = torch.zeros(3, 4, 6)
    volume[:, :2, :2] = 1.0  # 12 voxels
    volume[1, 3, 3] = -1.0
    volume[2, 3, 5] = 1.0
    return volume


ANY = (0.0, torch.inf, torch.inf)
"""Least, usual and greatest volume of a structure that no labelled case has: every volume is plausible."""


def pseudo_labels(
    *volumes: Tensor,
    min_confidence: float = 0.7,
    bright_ml: tuple[float, float, float] = ANY,
    dark_ml: tuple[float, float] = ANY,
    early_rounds: int = 1,
) -> PseudoLabels:
    inferer = SliceWiseInferer(window_size=None, slice_axis=2, softmax=True, precision="float32")
    return PseudoLabels(
        slices=slice_set(*volumes),
        inferer=inferer,
        volume_ranges_ml=torch.tensor([bright_ml, dark_ml]),
        min_confidence=min_confidence,
        early_rounds=early_rounds,
    )


def of_winners(winners: Tensor, confidence: Tensor) -> Tensor:
    """Probabilities of three classes in which ``winners`` win with that confidence; the others share the rest."""
    rest = ((1 - confidence) / 2)[None].expand(K + 1, *winners.shape).clone()
    return rest.scatter(0, winners[None], confidence[None])


def test_the_smaller_component_and_unsure_voxels_are_ignored() -> None:
    # One row of seven voxels: structure 1 in pieces of 2 and 1, structure 2 whole, one voxel of it unsure.
    winners = torch.tensor([1, 1, 0, 1, 0, 2, 2]).view(1, 7, 1)
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.9, 0.6]).view(1, 7, 1)
    labels = cleaned_labels(of_winners(winners, confidence), 0.7)
    assert labels.dtype == torch.uint8
    assert labels.flatten().tolist() == [1, 1, 0, IGNORED, IGNORED, 2, IGNORED]


def test_each_class_may_have_its_own_confidence() -> None:
    winners = torch.tensor([0, 1, 2]).view(1, 3, 1)
    probabilities = of_winners(winners, torch.full((1, 3, 1), 0.6))
    assert cleaned_labels(probabilities, [0.5, 0.7, 0.6]).flatten().tolist() == [0, IGNORED, 2]
    assert refused(cleaned_labels, probabilities, [0.5, 0.7]).found == "2 confidences"


def test_a_round_learns_from_the_cases_with_the_fewest_implausible_structures() -> None:
    ranges = torch.tensor([[1.0, 2.0, 4.0], [2.0, 3.0, 4.0]])
    # Implausible structures of the eight cases: 0, 1, 2, 1, 2, 2, 2, 2. A quarter of eight is two.
    volumes = torch.tensor([[1, 2], [1, 5], [0, 0], [5, 4], [0, 5], [9, 9], [0, 1], [5, 1]], dtype=torch.float32)
    assert plausible_cases(volumes, ranges).tolist() == [True, True, False, True, False, False, False, False]
    volumes[1:3] = torch.tensor([[4, 4], [2, 3]])  # three plausible cases are enough
    assert plausible_cases(volumes, ranges).tolist() == [True, True, True, False, False, False, False, False]
    assert plausible_cases(torch.zeros(3, 2), ranges).all()  # none is better than another


def test_batches_hold_no_slice_of_a_case_that_was_left_out() -> None:
    # Voxels of 0.5, 1 and 1.5 ml: 12 bright voxels are 6, none and 18 ml; from 5 to 10 are plausible. Structure 2: any.
    bright = bright_and_dark().clamp_min(0)
    made = pseudo_labels(bright, torch.zeros_like(bright), bright, bright_ml=(5.0, 8.0, 10.0))
    made.renew(ByBrightness())
    assert made.labelled_slices.tolist() == [0, 1, 2]
    resumed = pseudo_labels(bright, torch.zeros_like(bright), bright)
    resumed.load_state_dict(made.state_dict())
    assert resumed.labelled_slices.tolist() == [0, 1, 2]


def test_a_case_whose_slices_were_all_constant_does_not_shift_the_others() -> None:
    # Case 1 has no slice left. Bright: 12 voxels of 0.5 ml in case 0 and of 1.5 ml in case 2; from 15 ml is plausible.
    bright = bright_and_dark().clamp_min(0)
    bright[2, 3, 5] = 0.0
    made = pseudo_labels(bright, bright[:0], bright, bright_ml=(15.0, 18.0, 20.0))
    made.renew(ByBrightness())
    assert made.slices.case_of[made.labelled_slices].unique().tolist() == [2]


def test_batches_go_on_where_nothing_is_confident() -> None:
    made = pseudo_labels(torch.full((3, 4, 6), 0.01))
    made.renew(ByBrightness())  # logits of 0, 0.1 and -0.1: the winner has 37 %
    batches = SelfTrainingBatches(
        pseudo_labels=made,
        target_augmentation=BatchAugmentation(),
        source=slice_set(bright_and_dark()),
        batch_size=2,
        augmentation=BatchAugmentation(),
    )
    assert len(made.used_cases) == 0
    assert (batches.batch(0)["target_label"] == IGNORED).all()


def test_plausible_volumes_come_from_the_labelled_cases_that_have_the_structure() -> None:
    # Structure 1: 8, 16 and 16 voxels of 0.5, 1 and 1.5 ml: 4, 16 and 24 ml, the median is 16. The 5th and 95th
    # percentile by linear interpolation are 4 + 0.1 x 12 = 5.2 and 16 + 0.9 x 8 = 23.2. Structure 2 is in no case.
    slices = slice_set(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    slices.labels = torch.ones(3, 1, 4, 4, dtype=torch.uint8)
    slices.labels[0, 0, :2] = 0
    expected = torch.tensor([[5.2 / 2, 16.0, 23.2 * 2], ANY])
    torch.testing.assert_close(volume_ranges_ml(slices, K, tolerance=2.0), expected)


def test_a_structure_that_is_too_large_keeps_its_most_certain_voxels() -> None:
    # Structure 1 wins five voxels with 0.9 to 0.5 against 0.05 to 0.4 of the background: it leads by 18, 8, 4, 2 and
    # 1.25 times. Limit 3: divided by 2, the fourth is level with the background and the fifth belongs to it.
    own, background = torch.tensor([0.9, 0.8, 0.8, 0.6, 0.5]), torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4])
    probabilities = torch.stack([background, own, 1 - own - background]).view(3, 5, 1, 1)
    limited = with_volume_limits(probabilities, torch.tensor([3.0, torch.inf]))
    torch.testing.assert_close(limited.sum(0), torch.ones(5, 1, 1))
    lead = (limited[1] / limited[0]).flatten()
    torch.testing.assert_close(lead, torch.tensor([9.0, 4.0, 2.0, 1.0, 0.625]))
    labels = cleaned_labels(limited, 0.6)
    # 0.45 of 0.55 in all is 0.82, 0.4 of 0.6 is 0.67, 0.4 of 0.6 is 0.67, 0.3 of 0.7 is unsure.
    assert labels.flatten().tolist() == [1, 1, 1, IGNORED, IGNORED]
    torch.testing.assert_close(with_volume_limits(probabilities, torch.tensor([5.0, 0.0])), probabilities)


@pytest.mark.parametrize(
    ("bright_ml", "kept"),
    [
        ((0.0, 6.0, 9.0), [4, 8, 4]),  # 2 and 4 ml are below 0.9 x 6 ml: each round is a new one
        ((0.0, 4.0, 9.0), [4, 8, 8]),  # 2 ml are below 3.6 ml, and 4 ml are not
        ((0.0, 2.0, 9.0), [4, 4, 4]),  # the first round is large enough
        ((0.0, 0.5, 1.0), [4, 4, 4]),  # too large: a further round would not make it smaller
    ],
)
def test_pseudo_labels_are_renewed_only_while_a_structure_is_too_small(
    bright_ml: tuple[float, float, float], kept: list[int]
) -> None:
    # Voxels of 0.5 ml, of falling brightness: 4 are brighter than 0.9, all 8 are brighter than 0.
    brightness = torch.linspace(1.6, 0.2, 8).view(1, 8, 1)
    made = pseudo_labels(brightness, min_confidence=0.0, bright_ml=bright_ml)
    for rounds, count in enumerate(kept):
        resumed = pseudo_labels(brightness, min_confidence=0.0, bright_ml=bright_ml)
        resumed.load_state_dict(made.state_dict())
        for labels in (made, resumed):
            is_new = labels.renew(ByBrightness(start=(0.9, 0.0, 0.9)[rounds]))
            assert int((labels.labels == 1).sum()) == count
            assert is_new == (rounds == 0 or 0.5 * kept[rounds - 1] < TOO_SMALL * bright_ml[1])
            assert labels.rounds == rounds + 1


@pytest.mark.parametrize(
    ("usual_ml", "due"),
    [
        (2.1, [True, True, False]),  # 2 ml are above 0.9 x 2.1 ml, and below 2.1 ml: an early round is due
        (2.0, [True, False, False]),  # as large as in labelled cases
    ],
)
def test_in_early_rounds_a_volume_below_the_labelled_median_is_enough(usual_ml: float, due: list[bool]) -> None:
    # 4 voxels of 0.5 ml. In the second round the network finds 8: the 4 most certain ones stay.
    brightness = torch.linspace(1.6, 0.2, 8).view(1, 8, 1)
    made = pseudo_labels(brightness, min_confidence=0.0, bright_ml=(0.0, usual_ml, 9.0), early_rounds=2)
    for start, is_new in zip((0.9, 0.0, 0.0), due, strict=True):
        assert made.renew(ByBrightness(start=start)) is is_new
        assert (made.labels == 1).flatten().tolist() == [True] * 4 + [False] * 4


def test_a_structure_is_too_small_by_its_median_over_the_cases() -> None:
    # 12 bright voxels in two of three cases, 6 and 18 ml: the median, 6 ml, is above 0.9 x 6.5 ml = 5.85 ml.
    bright = bright_and_dark().clamp_min(0)
    bright[2, 3, 5] = 0.0
    made = pseudo_labels(bright, torch.zeros_like(bright), bright, bright_ml=(5.0, 6.5, 20.0))
    assert made.renew(ByBrightness())
    assert not made.renew(ByBrightness())
    one_of_three = pseudo_labels(bright, *[torch.zeros_like(bright)] * 2, bright_ml=(5.0, 6.5, 20.0))
    assert one_of_three.renew(ByBrightness())
    assert one_of_three.renew(ByBrightness())


@pytest.mark.parametrize(
    ("least_ml", "usual_ml", "kept"),
    [
        (0.0, 2.0, (4, 4, 4)),  # 2 ml are large enough: the first volume is the limit
        (3.0, 3.0, (4, 8, 8)),  # 2 ml are too small, 4 ml are not: the second volume is the limit
        (3.0, 2.0, (4, 6, 6)),  # the least plausible volume is larger than the first
        (0.0, 9.0, (4, 8, 12)),  # too small in every round: no limit
    ],
)
def test_a_structure_that_is_large_enough_does_not_grow_while_others_have_to(
    least_ml: float, usual_ml: float, kept: tuple[int, ...]
) -> None:
    # Voxels of 0.5 ml, of falling brightness. Structure 1 would have 4, 8 and 12 in three rounds. A dark structure of
    # 50 ml is expected, and none found: each round is a new one.
    brightness = torch.linspace(1.6, 0.2, 12).view(1, 12, 1)
    made = pseudo_labels(brightness, min_confidence=0.0, bright_ml=(least_ml, usual_ml, 10.0))
    made.volume_ranges_ml[1] = torch.tensor([0.0, 50.0, 100.0])
    starts = [(brightness[0, count - 1, 0] + brightness[0, count, 0]).item() / 2 for count in (4, 8)]
    for start, count in zip([*starts, 0.0], kept, strict=True):
        made.renew(ByBrightness(start=start))
        assert int((made.labels == 1).sum()) == count


def test_components_are_those_of_the_volume_not_of_a_slice() -> None:
    # Two separate pixels in slice 1 that slice 0 joins: one component in 3D, two in the slice.
    winners = torch.zeros(1, 3, 2, dtype=torch.int64)
    winners[0, :, 0] = 1
    winners[0, [0, 2], 1] = 1
    labels = cleaned_labels(of_winners(winners, torch.full(winners.shape, 0.9)), 0.7)
    assert torch.equal(labels.long(), winners)


def test_a_round_labels_every_volume_and_counts_what_it_kept() -> None:
    made = pseudo_labels(bright_and_dark(), -bright_and_dark())
    assert (made.labels == IGNORED).all()
    network = ByBrightness().train()
    made.renew(network)
    assert network.training
    first, second = made.labels[:3, 0], made.labels[3:, 0]
    assert (first[:, :2, :2] == 1).all()
    assert first[1, 3, 3] == 2
    assert first[2, 3, 5] == IGNORED
    # At brightness 0 all three classes have probability 1/3.
    assert (first[0, 2:] == IGNORED).all()
    assert (second[:, :2, :2] == 2).all()
    assert made.volumes_ml.tolist() == [[6.5, 0.5], [1.0, 13.0]]  # voxels of 0.5 and 1 ml
    assert made.kept_ml.tolist() == [[6.0, 0.5], [1.0, 12.0]]


def test_a_volume_is_labelled_without_the_frame_around_it() -> None:
    made = pseudo_labels(bright_and_dark() + 0.01)
    framed = torch.full((3, 1, 6, 8), -1.0)  # the frame's background is as dark as structure 2
    framed[:, :, 1:5, 1:7] = made.slices.images
    other = pseudo_labels(framed[:, 0])
    other.slices.sizes = torch.tensor([[4, 6]]).expand(3, 2)
    made.renew(ByBrightness(gain=500.0))
    other.renew(ByBrightness(gain=500.0))
    assert torch.equal(other.labels[:, :, 1:5, 1:7], made.labels)
    assert (other.labels.sum((0, 1)) == torch.nn.functional.pad(made.labels.sum((0, 1)), (1, 1, 1, 1))).all()
    assert torch.equal(other.kept_ml, made.kept_ml)


def test_a_checkpoint_brings_pseudo_labels_back_and_those_of_other_slices_are_refused() -> None:
    made, other = pseudo_labels(bright_and_dark()), pseudo_labels(bright_and_dark())
    made.renew(ByBrightness())
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.labels, made.labels)
    assert other.rounds == 1
    assert "(3, 1, 4, 6)" in refused(pseudo_labels(bright_and_dark()[:2]).load_state_dict, made.state_dict()).found


def test_batches_move_a_pseudo_label_with_its_image_and_change_the_image_alone() -> None:
    made = pseudo_labels(*(bright_and_dark() + 0.1 for _ in range(2)))
    made.renew(ByBrightness(gain=100.0))
    source = slice_set(bright_and_dark())
    source.labels = torch.ones(3, 1, 4, 6, dtype=torch.uint8)
    batches = SelfTrainingBatches(
        source=source,
        pseudo_labels=made,
        batch_size=8,
        augmentation=BatchAugmentation(flip_axes=(0,)),
        target_augmentation=BatchAugmentation(brightness=0.05),
    )
    batch = batches.batch(3)
    assert {key: value.shape for key, value in batch.items()} == dict.fromkeys(
        ("image", "label", "target_image", "target_label"), torch.Size([8, 1, 4, 6])
    )
    trusted = batch["target_label"] != IGNORED
    # Whatever was flipped, bright stays structure 1 and dark structure 2, though every brightness has changed.
    assert (batch["target_image"][trusted & (batch["target_label"] == 1)] > 0).all()
    assert (batch["target_image"][trusted & (batch["target_label"] == 2)] < 0).all()
    assert not torch.isin(batch["target_image"], made.slices.images).any()
    again = batches.batch(3)
    assert all(torch.equal(batch[key], again[key]) for key in batch)


def rounds_of(made: PseudoLabels, network: nn.Module, folder: Path) -> PseudoLabelRounds:
    return PseudoLabelRounds(
        pseudo_labels=made,
        network=network,
        rounds=2,
        log=str(folder / "pseudo_labels.csv"),
        folder=str(folder),
        label_names=["bright", "dark"],
    )


def epoch(number: int) -> Engine:
    engine = Engine(lambda engine, batch: None)
    engine.state = SimpleNamespace(epoch=number)  # type: ignore[assignment]
    return engine


def test_each_round_leaves_a_picture_and_rows_of_kept_shares_and_volumes(tmp_path: Path) -> None:
    made = pseudo_labels(bright_and_dark(), -bright_and_dark(), bright_ml=(100.0, 150.0, 200.0))  # always too small
    handler = rounds_of(made, ByBrightness(), tmp_path)
    for number in range(1, 5):
        handler.renew_if_due(epoch(number))
    rows = list(csv.DictReader((tmp_path / "pseudo_labels.csv").open()))
    assert [(row["round"], row["structure"]) for row in rows] == [
        (str(number), name) for number in (1, 2) for name in ("bright", "dark")
    ]
    # Bright: 13 voxels of 0.5 ml in case 0, one of 1 ml in case 1; one of the 13 is not kept.
    assert rows[0] == {
        "round": "1",
        "structure": "bright",
        "cases": "2",
        "kept_share": f"{7.0 / 7.5:.4f}",
        "least_ml": "1.00",
        "median_ml": "3.75",
        "greatest_ml": "6.50",
    }
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["pseudo_labels_01.png", "pseudo_labels_02.png"]


def test_a_resumed_run_keeps_its_round_and_drops_rows_of_later_ones(tmp_path: Path) -> None:
    made, resumed = (
        pseudo_labels(bright_and_dark(), bright_ml=(100.0, 150.0, 200.0)) for _ in range(2)
    )  # always too small
    handler = rounds_of(made, ByBrightness(), tmp_path)
    handler.renew_if_due(epoch(1))
    state = made.state_dict() | {"labels": made.labels.clone()}
    handler.renew_if_due(epoch(2))  # then the run is killed, and its checkpoint is from before
    resumed.load_state_dict(state)
    continued = rounds_of(resumed, ByBrightness(gain=0.0), tmp_path)
    continued.renew_if_due(epoch(1))
    assert torch.equal(resumed.labels, state["labels"]), "the round goes on"
    continued.renew_if_due(epoch(2))
    rows = list(csv.DictReader((tmp_path / "pseudo_labels.csv").open()))
    assert [row["round"] for row in rows] == ["1", "1", "2", "2"]
    assert rows[2]["kept_share"] == "0.0000", "of the new second round, which trusts nothing"
