"""Dice, surface distances and the policy for missing structures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy.ndimage import gaussian_filter
from scripts.evaluation.metrics import (
    StructureResult,
    dice_per_class,
    evaluate_case,
    mean_distance,
    nearest_distances,
    percentile_95,
    surfaces,
    volume_difference_percent,
)

ANISOTROPIC_MM = (0.7, 1.3, 4.0)


def blob(seed: int, shape: tuple[int, ...] = (24, 20, 12), fraction: float = 0.3) -> np.ndarray:
    """A smooth random mask; at this size it always touches the border of the volume."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return noise > np.quantile(noise, 1 - fraction)


def cube(start: int, stop: int, size: int = 10) -> np.ndarray:
    mask = np.zeros((size, size, size), dtype=bool)
    mask[start:stop, start:stop, start:stop] = True
    return mask


def with_islands(mask: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    scattered = mask.copy()
    for corner in np.random.default_rng(seed).integers(0, mask.shape, (count, mask.ndim)):
        scattered[tuple(slice(c, c + 2) for c in corner)] = True
    return scattered


def directed_surface_distances(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> tuple:
    return nearest_distances(*surfaces(prediction, truth, 1)[0], spacing_mm)


def average_symmetric_surface_distance(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    return mean_distance(directed_surface_distances(prediction, truth, spacing_mm))


def hausdorff_distance_95(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    return percentile_95(directed_surface_distances(prediction, truth, spacing_mm))


def mean_of_means(prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """As older medpy: the mean of both directed means."""
    return float(np.mean([distances.mean() for distances in directed_surface_distances(prediction, truth, spacing_mm)]))


def test_dice_by_hand() -> None:
    # class 1: truth has 3 voxels, the prediction 2, both 2 -> 2 * 2 / (3 + 2) = 0.8
    # class 2: truth 1, prediction 2, both 1 -> 2 / 3; class 3: in neither -> NaN; class 4: prediction only -> 0
    truth = np.array([[0, 1, 1], [1, 2, 0]])
    prediction = np.array([[0, 1, 1], [2, 2, 4]])
    np.testing.assert_allclose(dice_per_class(prediction, truth, 4), [0.8, 2 / 3, np.nan, 0.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_dice_is_independent_of_the_integer_type(dtype: type) -> None:
    ids = np.random.default_rng(0).integers(0, 20, (9, 8, 7))
    other = np.random.default_rng(1).integers(0, 20, (9, 8, 7))
    expected = [2 * np.sum((ids == k) & (other == k)) / (np.sum(ids == k) + np.sum(other == k)) for k in range(1, 20)]
    np.testing.assert_allclose(dice_per_class(ids.astype(dtype), other.astype(dtype), 19), expected)


def test_two_voxels_two_millimetres_apart() -> None:
    prediction, truth = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    prediction[1, 2, 2] = truth[2, 2, 2] = True  # neighbours along an axis whose voxels are 2 mm long
    there, back = directed_surface_distances(prediction, truth, (2.0, 1.0, 1.0))
    assert there.tolist() == back.tolist() == [2.0]
    assert average_symmetric_surface_distance(prediction, truth, (2.0, 1.0, 1.0)) == 2.0
    assert hausdorff_distance_95(prediction, truth, (2.0, 1.0, 1.0)) == 2.0


def test_diagonal_neighbours_in_anisotropic_voxels() -> None:
    prediction, truth = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    prediction[1, 1, 1] = truth[2, 2, 2] = True  # one step along each axis: sqrt(1 + 4 + 4) = 3 mm
    assert average_symmetric_surface_distance(prediction, truth, (1.0, 2.0, 2.0)) == pytest.approx(3.0)
    assert average_symmetric_surface_distance(prediction, truth, (1, 1, 1)) == pytest.approx(math.sqrt(3))


def test_cube_shifted_by_one_voxel() -> None:
    # A 3 x 3 x 3 cube has 26 surface voxels (all but the centre). Shifted by one along x, the first cube sticks out
    # with a face of 9 voxels, each 1 away. The two other layers are surface of the second cube too (distance 0), except
    # the middle voxel of the last layer, the second cube's centre: its nearest surface voxels are 1 away.
    # So 10 of 26 voxels lie 1 away in each direction, and the average is 10 / 26.
    truth = np.zeros((8, 8, 8), bool)
    truth[2:5, 2:5, 2:5] = True
    prediction = np.roll(truth, 1, axis=0)
    there, back = directed_surface_distances(prediction, truth, (1, 1, 1))
    assert len(there) == len(back) == 26
    assert np.count_nonzero(there == 1) == np.count_nonzero(back == 1) == 10
    assert average_symmetric_surface_distance(prediction, truth, (1, 1, 1)) == pytest.approx(10 / 26)


def test_reductions_differ_when_the_surfaces_differ_in_size() -> None:
    # truth: one voxel; prediction: the same and another 4 away. There: 0 and 4; back: 0.
    # pooled: 4 / 3; mean of means: (2 + 0) / 2 = 1. 95th percentile of (0, 4): 3.8.
    truth, prediction = np.zeros((1, 1, 6), bool), np.zeros((1, 1, 6), bool)
    truth[..., 0] = prediction[..., 0] = prediction[..., 4] = True
    assert average_symmetric_surface_distance(prediction, truth, (1, 1, 1)) == pytest.approx(4 / 3)
    assert mean_of_means(prediction, truth, (1, 1, 1)) == 1.0
    assert hausdorff_distance_95(prediction, truth, (1, 1, 1)) == pytest.approx(3.8)


def test_mask_at_the_border_has_its_surface_there() -> None:
    # A full 3 x 3 x 3 volume: all but the centre are surface; the lone voxel in the corner is 0..sqrt(12) away.
    full, corner = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    corner[0, 0, 0] = True
    there, back = directed_surface_distances(full, corner, (1, 1, 1))
    assert len(there) == 26
    assert there.max() == pytest.approx(math.sqrt(12))
    assert back.tolist() == [0.0]


PAIRS = {
    "blobs": (blob(0), blob(1)),
    "nested": (blob(0, fraction=0.2), blob(0, fraction=0.4)),
    "islands": (with_islands(cube(3, 8, 24), 40), cube(4, 9, 24)),
    "whole volume": (np.ones((6, 5, 4), bool), cube(0, 2, 6)[:, :5, :4]),
    "two-dimensional": (blob(2, (40, 30)), blob(3, (40, 30))),
    "Fortran order": (np.asfortranarray(blob(4)), blob(5)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ANISOTROPIC_MM])
def test_equals_medpy(name: str, spacing_mm: tuple[float, ...]) -> None:
    medpy = pytest.importorskip("medpy.metric.binary")
    prediction, truth = PAIRS[name]
    spacing_mm = spacing_mm[: truth.ndim]
    there, back = (medpy.asd(*pair, spacing_mm) for pair in ((prediction, truth), (truth, prediction)))
    pooled = average_symmetric_surface_distance(prediction, truth, spacing_mm)
    assert pooled == pytest.approx(medpy.assd(prediction, truth, spacing_mm), abs=1e-12)
    assert mean_of_means(prediction, truth, spacing_mm) == pytest.approx((there + back) / 2, abs=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), ANISOTROPIC_MM])
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_equals_monai(name: str, spacing_mm: tuple[float, ...]) -> None:
    prediction, truth = PAIRS[name]
    spacing_mm = spacing_mm[: truth.ndim]
    batches = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": spacing_mm}
    asd = compute_average_surface_distance(*batches, symmetric=True, **options).item()
    hd95 = compute_hausdorff_distance(*batches, percentile=95, **options).item()
    assert average_symmetric_surface_distance(prediction, truth, spacing_mm) == pytest.approx(asd, rel=1e-5, abs=1e-6)
    assert hausdorff_distance_95(prediction, truth, spacing_mm) == pytest.approx(hd95, rel=1e-5, abs=1e-6)


seeds = st.integers(0, 10_000)
spacings = st.tuples(*[st.floats(0.3, 6.0)] * 3)


@settings(max_examples=25, deadline=None)
@given(seeds, seeds, spacings)
def test_distances_are_symmetric_and_scale_with_the_spacing(first: int, second: int, spacing_mm: tuple) -> None:
    one, other = blob(first, (9, 8, 7)), blob(second, (9, 8, 7))
    for distance in (average_symmetric_surface_distance, hausdorff_distance_95):
        value = distance(one, other, spacing_mm)
        assert distance(other, one, spacing_mm) == pytest.approx(value, abs=1e-9)
        assert distance(one, other, [3 * edge for edge in spacing_mm]) == pytest.approx(3 * value, abs=1e-9)
        assert 0 <= value <= math.hypot(*(n * edge for n, edge in zip(one.shape, spacing_mm, strict=True)))


@settings(max_examples=25, deadline=None)
@given(seeds, spacings)
def test_a_mask_is_nowhere_away_from_itself(seed: int, spacing_mm: tuple) -> None:
    mask = blob(seed, (9, 8, 7))
    (result,) = evaluate_case(
        mask.astype(np.uint8), mask.astype(np.uint8), spacing_mm=spacing_mm, label_names=["heart"]
    )
    assert (result.dice, result.asd_mm, result.asd_voxel, result.hd95_mm) == (1.0, 0.0, 0.0, 0.0)
    assert result.volume_difference_percent == 0.0


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(0, 5))
def test_distances_do_not_depend_on_the_empty_space_around(seed: int, margin: int) -> None:
    one, other = blob(seed, (9, 8, 7)), blob(seed + 1, (9, 8, 7))
    padded = [np.pad(mask, margin) for mask in (one, other)]
    value = average_symmetric_surface_distance(one, other, ANISOTROPIC_MM)
    assert average_symmetric_surface_distance(*padded, ANISOTROPIC_MM) == pytest.approx(value, abs=1e-12)


def label_maps() -> tuple[np.ndarray, np.ndarray]:
    """Class 1 in both, class 2 in the truth alone, class 3 in the prediction alone, class 4 in neither."""
    truth, prediction = np.zeros((10, 10, 10), np.uint8), np.zeros((10, 10, 10), np.uint8)
    truth[1:5, 1:5, 1:5], prediction[1:5, 1:5, 1:4] = 1, 1
    truth[7:9, 7:9, 7:9], prediction[7:9, 1:3, 1:3] = 2, 3
    return prediction, truth


def test_case_results_agree_with_the_functions() -> None:
    prediction, truth = label_maps()
    result = evaluate_case(prediction, truth, spacing_mm=ANISOTROPIC_MM, label_names=["a", "b", "c", "d"])[0]
    masks = prediction == 1, truth == 1
    assert result.name == "a"
    assert result.status == "ok"
    assert not result.failed
    assert result.dice == pytest.approx(2 * 48 / (48 + 64))
    assert result.asd_mm == pytest.approx(average_symmetric_surface_distance(*masks, ANISOTROPIC_MM))
    assert result.asd_voxel == pytest.approx(average_symmetric_surface_distance(*masks, (1, 1, 1)))
    assert result.hd95_mm == pytest.approx(hausdorff_distance_95(*masks, ANISOTROPIC_MM))
    assert result.volume_difference_percent == pytest.approx(-25.0)  # 48 of 64 voxels
    assert result.volume_truth_ml == pytest.approx(64 * 0.7 * 1.3 * 4.0 / 1000)
    assert result.volume_prediction_ml == pytest.approx(48 * 0.7 * 1.3 * 4.0 / 1000)


def test_slices_without_a_label_count() -> None:
    """Basal slices show a heart that annotators left out: what is found there costs Dice as any false positive."""
    truth = np.zeros((6, 6, 5), np.uint8)
    truth[2:4, 2:4, :3] = 1
    prediction = truth.copy()
    prediction[2:4, 2:4, 3] = 1
    (found,) = evaluate_case(prediction, truth, spacing_mm=(1.25, 1.25, 8.0), label_names=["ventricle"])
    assert found.dice == pytest.approx(2 * 12 / (16 + 12))
    assert found.volume_difference_percent == pytest.approx(100 / 3)


def test_touching_structures_are_measured_each_by_itself() -> None:
    truth, prediction = np.zeros((12, 12, 12), np.int16), np.zeros((12, 12, 12), np.int16)
    truth[2:10, 2:10, 2:10], truth[4:8, 4:8, 4:8] = 1, 2  # one structure inside the other
    prediction[2:10, 2:10, 3:10], prediction[4:8, 4:9, 4:8] = 1, 2
    results = evaluate_case(prediction, truth, spacing_mm=ANISOTROPIC_MM, label_names=["wall", "pool"])
    for k, result in enumerate(results, start=1):
        expected = average_symmetric_surface_distance(prediction == k, truth == k, ANISOTROPIC_MM)
        assert result.asd_mm == pytest.approx(expected, abs=1e-12)


def test_missing_structures_get_dice_zero_and_the_diagonal() -> None:
    results = evaluate_case(*label_maps(), spacing_mm=ANISOTROPIC_MM, label_names=["a", "b", "c", "d"])
    diagonal_mm = math.sqrt(7**2 + 13**2 + 40**2)  # ten voxels along each axis
    for result, status in zip(results[1:3], ("missing_in_prediction", "missing_in_truth"), strict=True):
        assert result.status == status
        assert result.failed
        assert result.dice == 0.0
        assert result.asd_mm == result.hd95_mm == pytest.approx(diagonal_mm)
        assert result.asd_voxel == pytest.approx(math.sqrt(300))
    assert results[1].volume_difference_percent == -100.0
    assert math.isnan(results[2].volume_difference_percent)


def test_a_structure_absent_in_both_counts_as_nothing() -> None:
    result = evaluate_case(*label_maps(), spacing_mm=ANISOTROPIC_MM, label_names=["a", "b", "c", "d"])[3]
    assert result.status == "absent_in_both"
    assert not result.failed
    assert all(math.isnan(value) for value in (result.dice, result.asd_mm, result.asd_voxel, result.hd95_mm))
    assert result.volume_truth_ml == result.volume_prediction_ml == 0.0


def test_empty_prediction_of_everything() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    results = evaluate_case(empty, empty, spacing_mm=(1, 1, 1), label_names=["a", "b"])
    assert [result.status for result in results] == ["absent_in_both"] * 2


def test_volume_difference_by_hand() -> None:
    assert volume_difference_percent(30.0, 20.0) == 50.0
    assert volume_difference_percent(0.0, 20.0) == -100.0
    assert math.isnan(volume_difference_percent(5.0, 0.0))


def test_results_are_frozen() -> None:
    result: StructureResult = evaluate_case(*label_maps(), spacing_mm=(1, 1, 1), label_names=list("abcd"))[0]
    with pytest.raises(AttributeError):
        result.dice = 1.0  # type: ignore[misc]


def test_bad_inputs_are_named() -> None:
    ids = cube(2, 5).astype(np.uint8)
    with pytest.raises(ValueError, match=r"shape \(9, 10, 10\).*must be equal"):
        dice_per_class(ids[1:], ids, 1)
    for spacing_mm in ((1, 0, 1), (1, 1)):
        with pytest.raises(ValueError, match="3 positive numbers"):
            evaluate_case(ids, ids, spacing_mm=spacing_mm, label_names=["a"])
    with pytest.raises(ValueError, match="float32 values"):
        dice_per_class(ids.astype(np.float32), ids, 1)
    with pytest.raises(ValueError, match=r"truth holds ids 0\.\.5: they must lie in 0\.\.4"):
        dice_per_class(ids, ids * 5, 4)
