"""The volumes of labelled cases as a prior for pseudo-labels."""

from __future__ import annotations

import pytest
import torch
from scripts.data.slices import SliceSet
from scripts.data.volume_prior import VolumePrior
from torch import Tensor


def labelled_cases() -> SliceSet:
    """Three cases of one 4 x 4 slice with voxels of 0.5, 1 and 1.5 ml; structure 1 has 8, 16, 16 voxels, 2 has none."""
    made = SliceSet.__new__(SliceSet)
    made.labels = torch.ones(3, 1, 4, 4, dtype=torch.uint8)
    made.labels[0, 0, :2] = 0
    made.case_of = torch.arange(3)
    made.spacing_mm = torch.tensor([[5.0, 10.0, 10.0], [10.0, 10.0, 10.0], [15.0, 10.0, 10.0]])
    return made


def test_ranges_come_from_the_labelled_cases_that_have_the_structure() -> None:
    assert labelled_cases().volumes_ml(2).tolist() == [[4.0, 0.0], [16.0, 0.0], [24.0, 0.0]]
    # By linear interpolation, the 5th and 95th percentile of 4, 16 and 24 ml are 4 + 0.1 x 12 = 5.2 and
    # 16 + 0.9 x 8 = 23.2; the quartiles are 10 and 20.
    prior = VolumePrior(labelled_cases(), 2, tolerance=2.0)
    torch.testing.assert_close(prior.plausible_ml, torch.tensor([[5.2 / 2, 23.2 * 2], [0.0, torch.inf]]))
    torch.testing.assert_close(prior.median_ml, torch.tensor([[10.0, 20.0], [0.0, torch.inf]]))


def test_a_round_learns_from_the_cases_with_the_fewest_implausible_structures() -> None:
    prior = VolumePrior(labelled_cases(), 2)
    prior.plausible_ml = torch.tensor([[1.0, 4.0], [2.0, 4.0]])
    # Implausible structures of the eight cases: 0, 1, 2, 1, 2, 2, 2, 2. A quarter of eight is two.
    volumes = torch.tensor([[1, 2], [1, 5], [0, 0], [5, 4], [0, 5], [9, 9], [0, 1], [5, 1]], dtype=torch.float32)
    assert prior.plausible_cases(volumes).tolist() == [True, True, False, True, False, False, False, False]
    volumes[1:3] = torch.tensor([[4, 4], [2, 3]])  # three plausible cases are enough
    assert prior.plausible_cases(volumes).tolist() == [True, True, True, False, False, False, False, False]
    assert prior.plausible_cases(torch.zeros(3, 2)).all()  # none is better than another


def graded(share: float) -> Tensor:
    """Probabilities (3, 100) in which structure 1 has more than 1/2 in that share of the voxels, falling evenly."""
    first = torch.linspace(0.5 + share * 0.2, 0.3 + share * 0.2, 100)
    return torch.stack([1 - first - 1e-4, first, torch.full((100,), 1e-4)])


@pytest.mark.parametrize(("share", "expected"), [(0.05, 10), (0.15, 15), (0.35, 20)])
def test_a_shift_brings_the_median_volume_into_the_range_and_no_further(share: float, expected: int) -> None:
    prior = VolumePrior(labelled_cases(), 2, max_shift=3.0)  # the median of structure 1 belongs between 10 and 20 ml
    cases = [graded(share)] * 3
    shifts = prior.class_shifts(cases, [1.0] * 3)
    found = (cases[0].log() + shifts[:, None]).argmax(0).bincount(minlength=3)
    assert found[1].item() == pytest.approx(expected, abs=1)
    assert shifts[0] == 0
    assert shifts[2] == 0, "a structure that no labelled case has"
    assert shifts[1].sign() == {0.05: 1, 0.15: 0, 0.35: -1}[share]


def test_a_shift_is_bounded_and_may_be_switched_off() -> None:
    rare = torch.tensor([[1.0], [0.0], [0.0]]).repeat(1, 100)
    rare[:, :15] = torch.tensor([[0.94], [0.06], [0.0]])  # 0.06 e^2.75 = 0.94
    for bound, shift in ((2.0, 2.0), (3.0, 2.75)):
        found = VolumePrior(labelled_cases(), 2, max_shift=bound).class_shifts([rare] * 3, [1.0] * 3)[1].item()
        assert found == pytest.approx(shift, abs=0.01)
        assert found < bound
    assert not VolumePrior(labelled_cases(), 2).class_shifts([rare] * 3, [1.0] * 3).any()
