"""The shapes the phantom is made of: signed distances with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scripts.lab.phantom import generate as phantom
from scripts.lab.phantom.shapes import Grid, ellipsoid, smooth_union, superellipse, tube, tubes
from scripts.lab.phantom.thorax import branches
from scripts.lab.phantom.types import Deformation, Subject


def still() -> Deformation:
    return Deformation(np.eye(4), np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))


def cube(size: int, spacing: float) -> Grid:
    """A straight grid of ``size`` voxels a side, centred on the origin, undeformed."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (size - 1) / 2
    return Grid(affine=affine, shape=(size, size, size), deformation=still())


def test_ball_has_its_exact_distance_and_volume() -> None:
    grid = cube(41, 1.0)
    ball = ellipsoid(grid.whole, (0, 0, 0), (10, 10, 10))
    assert ball[20, 20, 35] == pytest.approx(5, abs=1e-3)  # 15 mm from the centre of a ball of 10 mm
    # 4/3 pi 10^3 = 4188.8 mm^3 in voxels of 1 mm^3, to the accuracy of counting them.
    assert (ball < 0).sum() == pytest.approx(4188.8, rel=0.02)


def test_turned_ellipsoid_reaches_along_its_axes() -> None:
    grid = cube(41, 1.0)
    axes = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=float)  # first axis along y, second along z, third along x
    shape = ellipsoid(grid.whole, (0, 0, 0), (15, 10, 5), axes)
    for voxel in ((25, 20, 20), (20, 35, 20), (20, 20, 30)):
        assert shape[voxel] == pytest.approx(0, abs=1e-3)


def test_superellipse_of_power_two_is_a_circle() -> None:
    x, y = np.meshgrid(np.linspace(-20, 20, 41), np.linspace(-20, 20, 41), indexing="ij")
    np.testing.assert_allclose(superellipse(x, y, 10, 10, 2)[20, [30, 35, 25]], [0, 5, -5], atol=0.02)


def test_cone_tapers_and_tubes_agree_with_tube() -> None:
    grid = cube(61, 1.0)
    path, radii = [(-10, 0, 0), (10, 0, 0)], (4, 2)
    cone = tube(grid.whole, path, radii)
    # Radius 4 at x = -10, 3 half way, 2 at x = 10; 6 mm off the axis that leaves 2, 3 and 4.
    np.testing.assert_allclose(cone[[20, 30, 40], 36, 30], [2, 3, 4], atol=1e-4)
    boxed = tubes(grid, [(path[0], path[1], 4, 2)])
    np.testing.assert_array_equal(boxed[boxed < 5], cone[boxed < 5])
    np.testing.assert_array_equal(boxed < 0, cone < 0)


def test_smooth_union_lies_below_the_union_by_a_quarter_of_its_width_at_most() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.uniform(-20, 20, (2, 1000))
    union = np.minimum(first, second)
    gap = union - smooth_union(first, second, 8)
    assert gap.min() >= 0
    assert gap.max() <= 2 + 1e-6
    np.testing.assert_array_equal(gap[np.abs(first - second) > 8], 0)


def test_patch_holds_every_voxel_of_its_box_on_a_deformed_oblique_grid() -> None:
    for seed in range(5):
        deformation = Deformation.draw(np.random.default_rng(seed))
        affine, shape = phantom._mr_grid(
            Subject.draw(np.random.default_rng(seed)), deformation, seed, np.random.default_rng(seed)
        )
        grid = Grid(affine=affine, shape=shape, deformation=deformation)
        low, high = np.array([-30, -20, -25]), np.array([15, 40, 30])
        whole = grid.whole
        inside = np.ones(shape, bool)
        for values, first, last in zip((whole.x, whole.y, whole.z), low, high, strict=True):
            inside &= (values >= first) & (values <= last)
        patch = grid.patch(low, high)
        assert inside.sum() == inside[patch.box].sum() > 0
        assert patch.x.size < 0.4 * whole.x.size


def test_branches_double_and_thin_out() -> None:
    pieces = branches(np.random.default_rng(0), (0, 0, 0), (0, 0, 2), radius=4, length=10, depth=4)
    assert len(pieces) == 2**4 - 1
    assert max(first for _, _, first, _ in pieces[1:]) <= 4 * 0.8
    assert all(last < first for _, _, first, last in pieces)
