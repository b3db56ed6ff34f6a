"""Implicit shapes of the phantom: signed distances in mm, negative inside, on any voxel grid.

A grid knows the body coordinates of its voxels; a patch is the part of it near one structure. Body coordinates are RAS
in mm (x to the patient's right, y to the front, z to the head), posed and smoothly deformed per subject, so that an
oblique grid costs no more than a straight one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scripts.lab.phantom.types import Array, Deformation

__all__ = [
    "FAR_MM",
    "Grid",
    "Patch",
    "Point",
    "Segment",
    "chain",
    "ellipsoid",
    "smooth_union",
    "superellipse",
    "tube",
    "tubes",
]

# Distance reported where a structure was not evaluated.
FAR_MM = 1000.0

# How much wider than the structure its box is: more than the deformation can move a point.
BOX_MARGIN_MM = 12.0

# A point, or three lengths, in mm.
Point = Sequence[float] | Array

# A round cone: start and end in body coordinates (mm), radius at each (mm).
Segment = tuple[Point, Point, float, float]


@dataclass(frozen=True)
class Patch:
    """The voxels in a box of the grid and their body coordinates in mm, three float32 arrays (h, w, d)."""

    box: tuple[slice, slice, slice]
    x: Array
    y: Array
    z: Array


class Grid:
    """A grid of voxels (``affine``: voxel to world RAS mm) and their body coordinates under a deformation."""

    def __init__(self, *, affine: Array, shape: tuple[int, int, int], deformation: Deformation) -> None:
        self.shape, self._inverse, self._deformation = shape, np.linalg.inv(affine), deformation
        posed = np.linalg.inv(deformation.pose) @ affine
        axes = [np.arange(size, dtype=np.float32) for size in shape]
        ramps = [[(posed[row, col] * axes[col]) for col in range(3)] for row in range(3)]
        rigid = [_outer_sum(*ramps[row]) + np.float32(posed[row, 3]) for row in range(3)]
        for wave, amplitude, phase in zip(deformation.waves, deformation.amplitudes, deformation.phases, strict=True):
            angles = wave @ posed[:3]
            angle = _outer_sum(*(angles[col] * axes[col] for col in range(3)))
            ripple = np.sin(angle + np.float32(angles[3] + phase))
            for row in range(3):
                rigid[row] += np.float32(amplitude[row]) * ripple
        whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
        self.whole = Patch(whole, *rigid)
        self.voxel_mm = float(np.abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))

    def patch(self, low: Point, high: Point) -> Patch:
        """The voxels that may fall into a box of body coordinates, corners in mm."""
        corners = np.array(np.meshgrid(*np.stack([np.subtract(low, BOX_MARGIN_MM), np.add(high, BOX_MARGIN_MM)], 1)))
        corners = np.concatenate([corners.reshape(3, -1), np.ones((1, 8))])
        voxels = (self._inverse @ self._deformation.pose @ corners)[:3]
        first = np.clip(np.floor(voxels.min(1)).astype(int), 0, self.shape)
        last = np.clip(np.ceil(voxels.max(1)).astype(int) + 1, 0, self.shape)
        a, b, c = (slice(int(start), int(stop)) for start, stop in zip(first, last, strict=True))
        whole = self.whole
        return Patch((a, b, c), whole.x[a, b, c], whole.y[a, b, c], whole.z[a, b, c])

    def spread(self, patch: Patch, distance: Array) -> Array:
        """A patch's distances on the whole grid, ``FAR_MM`` outside the patch."""
        whole = np.full(self.shape, FAR_MM, np.float32)
        whole[patch.box] = distance
        return whole


def ellipsoid(patch: Patch, center: Point, radii: Point, axes: Array | None = None) -> Array:
    """Distance to an ellipsoid, first-order exact at its surface; centre and semi-axes in mm of the body.

    The columns of ``axes`` (3, 3) are the directions of the semi-axes; the body's own where None.
    """
    offset: list[Array] = [
        patch.x - np.float32(center[0]),
        patch.y - np.float32(center[1]),
        patch.z - np.float32(center[2]),
    ]
    if axes is not None:
        x, y, z = offset
        turned = axes.astype(np.float32)
        offset = [x * turned[0, col] + y * turned[1, col] + z * turned[2, col] for col in range(3)]
    scaled = [part / np.float32(radius) for part, radius in zip(offset, radii, strict=True)]
    norm = np.sqrt(sum(part * part for part in scaled)) + np.float32(1e-6)
    slope = np.sqrt(sum((part / np.float32(radius)) ** 2 for part, radius in zip(scaled, radii, strict=True)))
    return norm * (norm - 1) / (slope + np.float32(1e-6))


def superellipse(x: Array, y: Array, radius_x: float, radius_y: float | Array, power: float) -> Array:
    """Distance to the outline ``|x/a|^n + |y/b|^n = 1`` in the plane, first-order exact at the outline."""
    across, along = np.abs(x) / np.float32(radius_x), np.abs(y) / np.asarray(radius_y, np.float32)
    slope_x, slope_y = across ** np.float32(power - 1), along ** np.float32(power - 1)
    level = (slope_x * across + slope_y * along + np.float32(1e-6)) ** np.float32(1 / power)
    slope = np.hypot(slope_x / np.float32(radius_x), slope_y / np.asarray(radius_y, np.float32))
    return (level - 1) * level ** np.float32(power - 1) / (slope + np.float32(1e-6))


def tube(patch: Patch, points: Sequence[Point] | Array, radii: Point) -> Array:
    """Distance to a tube through control points (mm) with a radius (mm) at each, as a chain of round cones."""
    return np.minimum.reduce([_round_cone(patch, segment) for segment in chain(points, radii)])


def chain(points: Sequence[Point] | Array, radii: Point) -> list[Segment]:
    """The pieces of a tube through control points (mm) with a radius (mm) at each."""
    return list(zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True))


def tubes(grid: Grid, segments: Iterable[Segment]) -> Array:
    """Distance to many short round cones on the whole grid, each evaluated in its own box."""
    whole = np.full(grid.shape, FAR_MM, np.float32)
    for segment in segments:
        start, end, first, last = segment
        reach = max(first, last)
        patch = grid.patch(np.minimum(start, end) - reach, np.maximum(start, end) + reach)
        view = whole[patch.box]
        np.minimum(view, _round_cone(patch, segment), out=view)
    return whole


def smooth_union(first: Array, second: Array, width_mm: float) -> Array:
    """Union of two shapes with a fillet of ``width_mm`` where they meet."""
    mix = np.maximum(np.float32(width_mm) - np.abs(first - second), 0) / np.float32(width_mm)
    return np.minimum(first, second) - mix * mix * np.float32(width_mm / 4)


def _round_cone(patch: Patch, segment: Segment) -> Array:
    start, end, first, last = segment
    axis = np.subtract(end, start).astype(np.float32)
    x, y, z = patch.x - np.float32(start[0]), patch.y - np.float32(start[1]), patch.z - np.float32(start[2])
    along = np.clip((x * axis[0] + y * axis[1] + z * axis[2]) / np.float32(axis @ axis + 1e-6), 0, 1)
    x, y, z = x - along * axis[0], y - along * axis[1], z - along * axis[2]
    return np.sqrt(x * x + y * y + z * z) - (np.float32(first) + along * np.float32(last - first))


def _outer_sum(first: Array, second: Array, third: Array) -> Array:
    planes = first[:, None].astype(np.float32) + second[None].astype(np.float32)
    return planes[:, :, None] + third.astype(np.float32)
