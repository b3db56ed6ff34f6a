"""Measures of the check on arrays small enough to compute by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scripts.lab.check.cases import Structure
from scripts.lab.check.coarse import body_of, grain, resample
from scripts.lab.check.fingerprints import agreement, detail_of, mirrored, similarity, spectrum_of
from scripts.lab.check.label_fit import measure_alignment
from scripts.lab.check.labels import find_structures, ranked, rim_shares
from scripts.lab.check.layout import explain_layout, middle_layout, reference_of
from scripts.lab.check.limits import LIMITS
from scripts.lab.check.proportions import Proportions, proportions_of, stretch_of
from scripts.lab.check.sizes import common_factor

RNG = np.random.default_rng(0)


def blobs(shape: tuple[int, int, int] = (48, 40, 36), smooth: float = 2.0, seed: int = 0) -> np.ndarray:
    """Structure of one size everywhere."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth).astype(np.float32)


def test_resampling_to_the_same_grid_changes_nothing() -> None:
    volume = RNG.normal(size=(5, 6, 7)).astype(np.float32)
    np.testing.assert_allclose(resample(volume, (1, 2, 3), (1, 2, 3)), volume, rtol=1e-6)


def test_resampling_keeps_a_ramp_and_its_place() -> None:
    ramp = np.arange(12.0)[:, None]  # value = place of the sample, in samples
    finer = resample(ramp, (1, 1), (0.5, 1))[:, 0]
    # 24 samples at -0.25, 0.25, 0.75 ...; outside of the first sample's centre its value is kept
    np.testing.assert_allclose(finer[1:-1], np.arange(24)[1:-1] / 2 - 0.25, atol=1e-6)
    coarser = resample(ramp, (1, 1), (3, 1))[:, 0]
    np.testing.assert_allclose(coarser, [1, 4, 7, 10], atol=0.4)


def test_ranks_keep_the_order_of_values() -> None:
    label = np.array([[[0, 205], [820, 420]]])
    found = ranked(label)
    assert found.values.tolist() == [0, 205, 420, 820]
    assert found.counts.tolist() == [1, 1, 1, 1]
    assert found.ranks.tolist() == [[[0, 1], [3, 2]]]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_ranks_of_values_without_a_background_start_at_one(offset: float) -> None:
    found = ranked(np.array([[[3.0, 7.0 + offset]]]))
    assert found.values.tolist() == [0, 3, 7 + offset]
    assert found.ranks.tolist() == [[[1, 2]]]
    assert found.counts.tolist() == [0, 1, 1]


def test_negative_values_are_background() -> None:
    found = ranked(np.array([[[-1, 0, 2]]]))
    assert found.values.tolist() == [0, 2]
    assert found.negative == {-1: 1}
    assert found.ranks.tolist() == [[[0, 0, 1]]]


def test_a_box_has_its_volume_place_and_spread() -> None:
    label = np.zeros((10, 10, 10), int)
    label[2:6, 3:5, 4:10] = 5  # 4 x 2 x 6 voxels, middle at (3.5, 3.5, 6.5)
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    box = find_structures(ranked(label), affine, np.array([4.5, 4.5, 4.5]))[5.0]
    assert box.volume_ml == pytest.approx(4 * 2 * 6 * 6 / 1000)
    assert box.centre_mm == pytest.approx((2.0, -1.0, 6.0))
    # uniform over a length L: standard deviation L / sqrt(12)
    assert box.spread_mm == pytest.approx(np.array([8, 2, 18]) / math.sqrt(12))


def test_classes_that_meet_directly_have_no_rims() -> None:
    label = np.zeros((30, 30, 4), int)
    label[5:25, 5:25] = 1
    label[10:20, 10:20] = 4
    assert rim_shares(ranked(label), (0, 1), 10) == {1.0: 0.0, 4.0: 0.0}


def test_a_ring_of_real_thickness_is_no_rim() -> None:
    label = np.zeros((40, 40, 4), int)
    label[5:35, 5:35] = 1  # a wall of five voxels
    label[10:30, 10:30] = 2
    assert rim_shares(ranked(label), (0, 1), 10)[2.0] == 0.0


def test_half_a_voxel_of_linear_interpolation_covers_every_face() -> None:
    label = np.zeros((30, 30, 4))
    label[8:22, 8:22] = 4
    shifted = np.rint(ndimage.shift(label, (0.5, 0.5, 0), order=1))  # 4 * 0.5 = 2 on the sides, 4 * 0.25 = 1 at corners
    assert set(np.unique(shifted)) == {0, 1, 2, 4}
    assert rim_shares(ranked(shifted), (0, 1), 10)[4.0] == 1.0
    assert rim_shares(ranked(shifted), (0, 1), 10_000) == {}


def test_an_empty_label_has_no_rims_and_no_alignment() -> None:
    empty = np.zeros((8, 8, 8), np.int32)
    assert rim_shares(ranked(empty), (0, 1), 1) == {}
    assert measure_alignment(blobs((8, 8, 8)), empty) is None


@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, 1)])
def test_a_shifted_label_is_drawn_back(shift: tuple[int, int, int]) -> None:
    axes = np.meshgrid(*[np.arange(n) for n in (40, 36, 24)], indexing="ij")
    inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, (15, 14, 10), (9, 7, 6), strict=True)) <= 1
    image = 100.0 * ndimage.gaussian_filter(inside.astype(float), 0.7) + RNG.normal(0, 5, inside.shape)
    fit = measure_alignment(image, np.roll(inside.astype(np.int32), shift, (0, 1, 2)))
    assert fit is not None
    np.testing.assert_allclose(fit.shift_voxel, -np.array(shift), atol=0.2)
    assert (fit.best_explained > fit.explained) == any(shift)
    assert max(fit.flipped_explained) < fit.explained


def test_a_mirrored_label_fits_when_it_is_mirrored_back() -> None:
    inside = np.zeros((40, 36, 24), np.int32)
    inside[6:16, 8:20, 6:18] = 1
    image = 100.0 * inside + RNG.normal(0, 5, inside.shape)
    fit = measure_alignment(image, np.flip(inside, 0))
    assert fit is not None
    assert fit.flipped_explained[0] > 0.8 > 0.3 > fit.explained


def test_the_body_is_found_without_its_table() -> None:
    axes = np.meshgrid(*[np.arange(n) for n in (60, 50, 20)], indexing="ij")
    body = ((axes[0] - 30) / 22) ** 2 + ((axes[1] - 28) / 15) ** 2 <= 1
    image = np.where(body, 40.0, -1000.0)
    image[8:52, 5:7] = 20  # the table
    assert np.mean(body_of(image) == body) > 0.98


def test_grain_falls_by_the_factor_of_the_stack() -> None:
    isotropic = blobs((60, 60, 60), 3.0)
    longer = resample(isotropic, (1, 1, 1), (1, 1, 1 / 1.6))[:, :, 18:-18]
    body = np.ones(isotropic.shape, bool)
    assert grain(isotropic, body, 2) == pytest.approx(0, abs=0.1)
    assert grain(longer, body[:, :, : longer.shape[2]], 2) == pytest.approx(-math.log(1.6), abs=0.12)
    assert math.isnan(grain(isotropic, ~body, 2))


def test_a_fingerprint_knows_a_scaled_cropped_copy_and_no_other_volume() -> None:
    volume = blobs((96, 88, 80))
    copy, other = (volume[5:-3, 2:, 3:] * 0.2 + 7).astype(np.float16), blobs((96, 88, 80), seed=1)
    details = [detail_of(one, np.ones(one.shape, bool)) for one in (volume, copy, other)]
    assert similarity(spectrum_of(volume), spectrum_of(volume)) == pytest.approx(1, abs=1e-4)
    assert agreement(details[0], details[1]) > 0.9
    assert agreement(details[0], details[2]) < 0.3


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_mirroring_a_spectrum_is_mirroring_the_volume(axes: tuple[int, ...]) -> None:
    volume = blobs((96, 88, 80))
    flipped = spectrum_of(np.flip(volume, axes))
    assert similarity(mirrored(spectrum_of(volume), axes), flipped) == pytest.approx(1, abs=1e-3)
    assert similarity(spectrum_of(volume), flipped) < 0.5


ABDOMEN = {1: (-70.0, 20.0, 30.0), 2: (-60.0, -50.0, -40.0), 3: (60.0, -45.0, -30.0), 4: (90.0, -30.0, 40.0)}
"""Liver, right kidney, left kidney, spleen: RAS mm from the body's centre."""


def people(number: int) -> list[dict[int, tuple[float, float, float]]]:
    rng = np.random.default_rng(1)
    return [{v: tuple(np.array(c) + rng.normal(0, 6, 3)) for v, c in ABDOMEN.items()} for _ in range(number)]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("layout", "kind", "what"),
    [
        (ABDOMEN, "as it is", ()),
        ({v: (-x, y, z) for v, (x, y, z) in ABDOMEN.items()}, "flipped", (0,)),
        ({v: (x, -y, z) for v, (x, y, z) in ABDOMEN.items()}, "flipped", (1,)),
        ({v: (-x, -y, z) for v, (x, y, z) in ABDOMEN.items()}, "flipped", (0, 1)),
        (ABDOMEN | {2: ABDOMEN[3], 3: ABDOMEN[2]}, "swapped", (2, 3)),
    ],
)
def test_a_layout_is_explained(layout: dict[int, tuple[float, float, float]], kind: str, what: tuple[int, ...]) -> None:
    explanation = explain_layout(layout, reference_of(people(5)))
    assert (explanation.kind, explanation.what) == (kind, what)
    assert explanation.remaining < 0.6
    assert explanation.deviation > (0 if kind == "as it is" else 1.8)


def test_organs_at_nearly_one_depth_still_tell_front_from_back() -> None:
    """Kidneys 20 mm behind the liver are enough: half of what others show, turned round."""
    shallow = {v: (x, -0.5 * y, z) for v, (x, y, z) in ABDOMEN.items()}
    explanation = explain_layout(shallow, reference_of(people(5)))
    assert (explanation.kind, explanation.what) == ("flipped", (1,))
    assert explanation.deviation >= LIMITS.layout_deviation
    assert explanation.remaining <= LIMITS.layout_left * explanation.deviation
    assert ("as it is", ()) not in explanation.rivals


def test_one_swapped_pair_alone_may_as_well_be_a_mirrored_volume() -> None:
    kidneys = [{v: layout[v] for v in (2, 3)} for layout in people(5)]
    explanation = explain_layout({2: ABDOMEN[3], 3: ABDOMEN[2]}, reference_of(kidneys))
    assert {(explanation.kind, explanation.what), *explanation.rivals} >= {("swapped", (2, 3)), ("flipped", (0,))}


def test_layouts_without_a_common_structure_tell_nothing() -> None:
    assert explain_layout({7: (1.0, 2.0, 3.0)}, reference_of(people(3))).deviation == 0.0
    assert middle_layout([{1: (0.0, 0.0, 0.0)}, {1: (2.0, 4.0, 6.0)}, {2: (1.0, 1.0, 1.0)}]) == {1: (1.0, 2.0, 3.0)}


def body(height_mm: float, grain_of_image: float = 0.0, volume_ml: float = 100.0) -> Proportions:
    structure = Structure(volume_ml=volume_ml, centre_mm=(0, 0, 0), spread_mm=(10.0, 10.0, height_mm))
    return proportions_of({1: structure}, 2, grain_of_image)


def test_both_witnesses_speak_of_a_stretched_stack() -> None:
    others = [body(20), body(20), body(20)]
    # the grain changes by 0.75 of the logarithm: log 1.6 * 0.75 less
    stretch = stretch_of(body(32, -0.75 * math.log(1.6), 160), others)
    assert stretch is not None
    assert (stretch.factor, stretch.height, stretch.grain, stretch.volume) == pytest.approx((1.6, 1.6, 1.6, 1.6))
    # independent witnesses of 0.08 and 0.05: 1 / sqrt(1 / 0.08^2 + 1 / 0.05^2) = 0.0424
    assert stretch.deviations == pytest.approx(math.log(1.6) / 0.0424, rel=1e-2)
    assert stretch.agrees(1.5)
    assert not stretch.agrees(1.7)


def test_a_tall_organ_in_a_plain_image_is_no_agreement() -> None:
    stretch = stretch_of(body(32), [body(20)] * 3)
    assert stretch is not None
    assert not stretch.agrees(1.1)


def test_without_labels_the_image_speaks_alone() -> None:
    blank = proportions_of({}, 2, 0.0)
    stretch = stretch_of(proportions_of({}, 2, 0.75 * math.log(1.6)), [blank] * 3)
    assert stretch is not None
    assert (stretch.height, stretch.volume) == (None, None)
    assert stretch.factor == pytest.approx(1 / 1.6)
    assert stretch_of(proportions_of({}, 2, math.nan), [blank]) is None


ORGANS = {1.0: 1600.0, 2.0: 150.0, 3.0: 150.0, 4.0: 200.0}


@pytest.mark.parametrize(
    ("changed", "factor"),
    [
        ({}, 1.0),
        ({value: volume * 0.216 for value, volume in ORGANS.items()}, 0.216),
        ({value: volume * 8 for value, volume in ORGANS.items()}, 8.0),
        ({4.0: 3000.0}, 1.0),  # one organ alone: the median of the four factors is 1
        ({2.0: 10.0, 3.0: 10.0}, 1820 / 2100),  # both kidneys alone: the sum hardly changes
        ({1.0: 3200.0, 4.0: 100.0}, 1.0),  # one grew, one shrank
    ],
)
def test_all_structures_must_have_grown_together(changed: dict[float, float], factor: float) -> None:
    assert common_factor({**ORGANS, **changed}, [ORGANS] * 3) == pytest.approx(factor)


def test_factors_need_the_same_structures() -> None:
    assert common_factor({9.0: 1.0}, [ORGANS]) == 1.0
    assert common_factor({}, [ORGANS]) == 1.0
