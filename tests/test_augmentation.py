"""Augmentation of batches: exact turns, shifts and flips derived by hand, and the properties a training relies on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scripts.data.augmentation import CURVE_PIECES, BatchAugmentation, Windows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 3, height: int = 8, width: int = 8, seed: int = 1) -> torch.Tensor:
    values = np.random.default_rng(seed).random((count, 1, height, width), dtype=np.float32)
    return torch.from_numpy(values) * 2 - 1


@pytest.fixture
def _extreme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uniform draw gives its upper end."""
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.ones(shape))


def test_all_off_is_the_identity() -> None:
    image, label = batch(), torch.randint(5, (3, 1, 8, 8), dtype=torch.uint8)
    changed, moved = BatchAugmentation()(image, label, generator())
    assert torch.equal(changed, image)
    assert moved is not None
    assert torch.equal(moved, label)


def test_no_label_no_label() -> None:
    assert BatchAugmentation(rotation_degrees=10.0)(batch(), None, generator())[1] is None


@pytest.mark.usefixtures("_extreme")
def test_a_quarter_turn_is_exact() -> None:
    image, label = batch(), torch.randint(5, (3, 1, 8, 8), dtype=torch.uint8)
    changed, moved = BatchAugmentation(rotation_degrees=90.0)(image, label, generator())
    # Output (x, y) reads input (-y, x): output row i, column j is input row j, column n - 1 - i.
    torch.testing.assert_close(changed, image.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    assert torch.equal(moved, label.rot90(1, (2, 3)))
    assert moved.dtype == torch.uint8


@pytest.mark.usefixtures("_extreme")
def test_a_quarter_turn_of_a_frame_that_is_not_square_keeps_shapes() -> None:
    # A centred square of 8 x 8 in a frame of 8 x 16 turns onto itself, neither stretched nor squeezed.
    image = torch.full((1, 1, 8, 16), -1.0)
    image[..., 4:12] = batch(1)
    changed, _ = BatchAugmentation(rotation_degrees=90.0)(image, None, generator())
    torch.testing.assert_close(changed[..., 4:12], image[..., 4:12].rot90(1, (2, 3)), atol=1e-5, rtol=0)
    # What turned in from outside the frame is background.
    for outside in (changed[..., :4], changed[..., 12:]):
        torch.testing.assert_close(outside, torch.full_like(outside, -1.0), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("_extreme")
def test_any_angle_is_kept_in_a_frame_that_is_not_square() -> None:
    # A bright pixel 10 to the right of the centre of a 41 x 61 frame; at an angle a it goes to
    # (10 cos a, -10 sin a), y downwards, since the output reads the input turned the other way.
    image = torch.full((1, 1, 41, 61), -1.0)
    image[0, 0, 19:22, 39:42] = 1.0
    changed, _ = BatchAugmentation(rotation_degrees=30.0)(image, None, generator())
    weights = changed[0, 0] + 1
    rows, columns = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(61.0) - 30, indexing="ij")
    centre = ((weights * columns).sum() / weights.sum(), (weights * rows).sum() / weights.sum())
    assert float(centre[0]) == pytest.approx(10 * math.cos(math.radians(30)), abs=0.1)
    assert float(centre[1]) == pytest.approx(-10 * math.sin(math.radians(30)), abs=0.1)


@pytest.mark.usefixtures("_extreme")
def test_a_shift_is_its_share_of_the_frame() -> None:
    image, label = batch(2, 8, 16), torch.randint(5, (2, 1, 8, 16), dtype=torch.uint8)
    changed, moved = BatchAugmentation(translation=0.25)(image, label, generator())
    # A quarter of 16 columns is 4, of 8 rows 2; the content goes up and to the left, and background comes in.
    torch.testing.assert_close(changed[..., :6, :12], image[..., 2:, 4:], atol=1e-5, rtol=0)
    assert (changed[..., 6:, :] == -1).all()
    assert (changed[..., 12:] == -1).all()
    assert torch.equal(moved[..., :6, :12], label[..., 2:, 4:])
    assert not moved[..., 12:].any()


@pytest.mark.usefixtures("_extreme")
def test_a_zoom_of_two_shows_the_middle_twice_as_large() -> None:
    # A ramp along the columns: at twice the size, neighbouring columns differ by half as much.
    ramp = torch.linspace(-0.8, 0.8, 9).expand(1, 1, 9, 9)
    changed, _ = BatchAugmentation(scale=1.0)(ramp, None, generator())
    torch.testing.assert_close(changed[0, 0, 4], ramp[0, 0, 4] / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("axis", "dimension"), [(0, 2), (1, 3)])
def test_flips_are_exact_and_half_of_the_time(axis: int, dimension: int) -> None:
    image = batch(64)
    changed, _ = BatchAugmentation(flip_axes=(axis,))(image, None, generator())
    flipped = torch.isclose(changed, image.flip(dimension), atol=1e-5).all(3).all(2)[:, 0]
    same = torch.isclose(changed, image, atol=1e-5).all(3).all(2)[:, 0]
    assert bool((flipped ^ same).all())
    # 64 fair coins lie within 4 standard deviations of 4 of 32.
    assert 16 <= int(flipped.sum()) <= 48


def test_the_label_moves_with_the_image() -> None:
    # Where a structure is bright and the rest dark, the label's outline follows it everywhere, up to border pixels.
    label = torch.zeros(8, 1, 48, 64, dtype=torch.uint8)
    label[:, :, 15:35, 22:44] = 3
    image = label.float() / 1.5 - 1
    augment = BatchAugmentation(rotation_degrees=40.0, scale=0.3, translation=0.1, flip_axes=(0, 1))
    changed, moved = augment(image, label, generator())
    assert set(moved.unique().tolist()) == {0, 3}
    disagree = (changed > 0) != (moved == 3)
    assert float(disagree.float().mean()) < 0.01
    assert not torch.equal(moved, label)


@pytest.mark.usefixtures("_extreme")
def test_gamma_contrast_and_brightness_by_hand() -> None:
    image = torch.tensor([-1.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    # Exponent 2 on the image in [0, 1]: 0, 1/4, 1/4, 1.
    changed, _ = BatchAugmentation(gamma=1.0)(image, None, generator())
    assert changed.flatten().tolist() == pytest.approx([-1.0, -0.5, -0.5, 1.0])
    # Twice the distance from the mean, 0; clipped to [-1, 1].
    half = image / 4
    changed, _ = BatchAugmentation(contrast=1.0)(half, None, generator())
    assert changed.flatten().tolist() == pytest.approx([-0.5, 0.0, 0.0, 0.5])
    changed, _ = BatchAugmentation(brightness=0.25)(image, None, generator())
    assert changed.flatten().tolist() == pytest.approx([-0.75, 0.25, 0.25, 1.0])


ALL = BatchAugmentation(
    rotation_degrees=30.0,
    scale=0.2,
    translation=0.1,
    flip_axes=(0,),
    gamma=0.5,
    contrast=0.5,
    brightness=0.5,
    noise=0.5,
)


def test_an_intensity_curve_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Exponential draws -log(1 - u) of 0.5, 0.25, 0.25 and 0 are already normalised.
    draws = torch.tensor([[0.5, 0.25, 0.25, 0.0]])
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: 1 - torch.exp(-draws))
    # On the scale from 0 to 1 the knots 0, 1/4, 1/2, 3/4, 1 go to 0, 0.5, 0.75, 1, 1; 1/8 lies half-way up the first.
    image = torch.tensor([0.0, 0.125, 0.25, 0.5, 0.75, 1.0]).view(1, 1, 1, 6) * 2 - 1
    changed, _ = BatchAugmentation(intensity_curve=1.0)(image, None, generator())
    expected = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0])
    torch.testing.assert_close((changed.flatten() + 1) / 2, expected)
    # At strength 0.5 every rise lies half-way between its share and 1/4: 0.375, 0.25, 0.25, 0.125.
    changed, _ = BatchAugmentation(intensity_curve=0.5)(image, None, generator())
    torch.testing.assert_close((changed.flatten() + 1) / 2, torch.tensor([0.0, 0.1875, 0.375, 0.625, 0.875, 1.0]))


def test_intensity_curves_equal_numpys_interpolation() -> None:
    image, strength = batch(5), 0.7
    draws = -torch.log1p(-torch.rand(5, CURVE_PIECES, generator=generator(3)))
    shares = draws / draws.sum(1, keepdim=True)
    changed, _ = BatchAugmentation(intensity_curve=strength)(image, None, generator(3))
    for sample, result, share in zip(image, changed, shares.numpy(), strict=True):
        rises = (1 - strength) / CURVE_PIECES + strength * share
        knots = np.concatenate([[0.0], np.cumsum(rises)]) * 2 - 1
        expected = np.interp(sample.numpy(), np.linspace(-1, 1, CURVE_PIECES + 1), knots)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_structures_have_curves_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # One sample, background and two structures. Class k's curve rises on its k-th piece alone: it maps everything up
    # to knot k / 4 to 0 and everything from knot (k + 1) / 4 on to 1.
    # Of one dimension is only the draw that selects samples: 0 selects.
    monkeypatch.setattr(
        torch, "rand", lambda *shape, generator: 1 - torch.exp(-torch.eye(*shape)) if len(shape) > 1 else torch.zeros(1)
    )
    image = torch.tensor([0.125, 0.375, 0.625, 0.875]).repeat(3, 1).view(1, 1, 3, 4) * 2 - 1
    label = torch.arange(3, dtype=torch.uint8).view(1, 1, 3, 1).expand(1, 1, 3, 4)
    augment = BatchAugmentation(intensity_curve=1.0, structure_curves=1.0, num_structures=2)
    changed, _ = augment(image, label, generator())
    expected = torch.tensor([[0.5, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 1.0]])
    torch.testing.assert_close((changed[0, 0] + 1) / 2, expected)
    # Without a label there are no structures: the first curve serves all.
    changed, _ = augment(image, None, generator())
    torch.testing.assert_close((changed[0, 0] + 1) / 2, expected[:1].expand(3, 4))


def test_a_share_of_the_samples_has_structure_curves() -> None:
    augment = BatchAugmentation(intensity_curve=1.0, structure_curves=0.5, num_structures=1)
    # Two equal halves, one of them a structure: they differ afterwards exactly where the curves do.
    image, label = torch.full((400, 1, 1, 2), 0.3), torch.tensor([0, 1], dtype=torch.uint8).repeat(400, 1, 1, 1)
    changed, _ = augment(image, label, generator())
    apart = (changed[..., 0] - changed[..., 1]).abs() > 1e-6
    # 400 fair coins: 200 with a standard deviation of 10.
    assert 160 < int(apart.sum()) < 240


def test_intensity_curves_rise_keep_both_ends_and_differ() -> None:
    ramp = torch.linspace(-1, 1, 101).view(1, 1, 1, -1).repeat(50, 1, 1, 1)
    changed = BatchAugmentation(intensity_curve=1.0)(ramp, None, generator())[0].flatten(1)
    assert bool((changed.diff(dim=1) >= -1e-6).all())
    torch.testing.assert_close(changed[:, [0, -1]], torch.tensor([[-1.0, 1.0]]).expand(50, 2))
    # A quarter of the range lies on one piece; its rise is Beta(1, 3): 0.25 on average, 0.19 its standard deviation.
    rise = (changed[:, 50] - changed[:, 25]) / 2
    assert 0.1 < rise.std() < 0.3
    assert 0.15 < rise.mean() < 0.35


def test_the_range_is_kept() -> None:
    changed, _ = ALL(batch(16), None, generator())
    assert float(changed.min()) >= -1
    assert float(changed.max()) <= 1


def test_the_same_generator_gives_the_same_batch() -> None:
    first, second, other = (ALL(batch(), None, generator(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_every_sample_has_its_own_draw() -> None:
    same = batch(1).expand(4, -1, -1, -1)
    changed, _ = ALL(same, None, generator())
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(changed[i], changed[j], atol=1e-2)


def test_noise_has_the_strength_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.ones(count))
    changed, _ = BatchAugmentation(noise=0.1)(torch.zeros(2, 1, 64, 64), None, generator())
    # The standard error of a standard deviation from 8192 values is 0.1 / sqrt(2 * 8192) = 0.0008.
    assert float(changed.std()) == pytest.approx(0.1, abs=0.004)
    assert float(changed.mean()) == pytest.approx(0.0, abs=0.005)


def test_the_inputs_are_not_changed() -> None:
    image, label = batch(), torch.randint(5, (3, 1, 8, 8), dtype=torch.uint8)
    before = image.clone(), label.clone()
    ALL(image, label, generator())
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def windows_of(image: torch.Tensor, *first: tuple[int, int], size: tuple[int, int]) -> Windows:
    return Windows(torch.tensor(first), size)


def test_a_window_without_changes_is_cut_exactly() -> None:
    image, label = batch(2, 9, 12), torch.randint(5, (2, 1, 9, 12), dtype=torch.uint8)
    windows = windows_of(image, (0, 3), (5, 8), size=(4, 4))
    changed, moved = BatchAugmentation()(image, label, generator(), windows)
    assert torch.equal(changed[0], image[0, :, :4, 3:7])
    assert torch.equal(moved[1], label[1, :, 5:, 8:])


def test_the_interpolated_window_is_the_cut_one() -> None:
    """A zoom of 1 within rounding: the same pixels through the grid."""
    image, label = batch(2, 9, 12), torch.randint(5, (2, 1, 9, 12), dtype=torch.uint8)
    windows = windows_of(image, (0, 3), (5, 8), size=(4, 4))
    expected, classes = BatchAugmentation()(image, label, generator(), windows)
    changed, moved = BatchAugmentation(scale=1e-7)(image, label, generator(), windows)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
    assert torch.equal(moved, classes)


@pytest.mark.usefixtures("_extreme")
def test_a_turned_window_shows_what_the_slice_has_there() -> None:
    """A quarter turn about the window's middle, anywhere in a slice that is not square."""
    image = batch(1, 20, 30)
    windows = windows_of(image, (6, 15), size=(8, 8))
    changed, _ = BatchAugmentation(rotation_degrees=90.0)(image, None, generator(), windows)
    torch.testing.assert_close(changed, image[..., 6:14, 15:23].rot90(1, (2, 3)), atol=1e-5, rtol=0)


@pytest.mark.usefixtures("_extreme")
def test_a_shifted_window_shows_its_neighbourhood() -> None:
    image = batch(1, 20, 30)
    windows = windows_of(image, (6, 15), size=(8, 8))
    changed, _ = BatchAugmentation(translation=0.25)(image, None, generator(), windows)
    # A quarter of eight pixels: two rows down, two columns to the right.
    torch.testing.assert_close(changed, image[..., 8:16, 17:25], atol=1e-5, rtol=0)
