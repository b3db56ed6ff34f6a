"""The phantom's heart and great vessels, as layers in painting order.

Coordinates here are the heart's: RAS in mm about a point in the middle of the heart of an average adult. The subject's
``heart`` matrix scales, turns and places them in the body.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scripts.lab.phantom.shapes import Grid, Patch, Point, ellipsoid, smooth_union, tube
from scripts.lab.phantom.types import LABEL_VALUES, Array, Layer, Subject, Tissue

__all__ = ["Heart"]

# Long axis of the left ventricle, from base to apex: to the left, to the front, down.
AXIS = np.array([-0.68, 0.55, -0.48]) / np.linalg.norm([-0.68, 0.55, -0.48])

SEPTAL = np.array([0.679, 0.707, -0.15]) - AXIS * (np.array([0.679, 0.707, -0.15]) @ AXIS)
# From the left ventricle's axis to the right ventricle, perpendicular to ``AXIS``.
SEPTAL = SEPTAL / np.linalg.norm(SEPTAL)

FRAME = np.stack([AXIS, SEPTAL, np.cross(AXIS, SEPTAL)], axis=1)
# Middle of the left ventricle's base.
BASE = np.array([1.0, -13.0, 9.0])

# From the base to the widest section of the left ventricle.
EQUATOR_MM = 26.0

# Ascending aorta, from the valve; it ends below the arch.
AORTA = np.array([(12, -4, 8), (17, -1, 20), (22, 4, 34), (27, 6, 50), (27, 2, 66), (24, -4, 76)], dtype=float)

ARCH = np.array([(24, -4, 76), (17, -13, 85), (6, -27, 90), (-4, -43, 86)], dtype=float)
TRUNK = np.array([(0, 28, 12), (-7, 22, 26), (-10, 10, 40), (-8, -4, 53)], dtype=float)
# Right and left pulmonary artery.
BRANCHES = (
    np.array([(-8, -4, 53), (8, -14, 56), (28, -20, 54), (52, -22, 50)], dtype=float),
    np.array([(-8, -4, 53), (-22, -18, 55), (-42, -30, 50)], dtype=float),
)

# Pulmonary veins: right upper, right lower, left upper, left lower.
VEINS = (
    np.array([(38, -30, 28), (54, -28, 34), (76, -24, 40)], dtype=float),
    np.array([(38, -36, 8), (54, -42, 4), (74, -48, 0)], dtype=float),
    np.array([(-8, -28, 30), (-26, -26, 36), (-46, -18, 42)], dtype=float),
    np.array([(-8, -36, 10), (-24, -42, 5), (-46, -50, 0)], dtype=float),
)

UPPER_CAVA = np.array([(50, -12, 110), (50, -12, 60), (52, -10, 26)], dtype=float)
LOWER_CAVA = np.array([(50, -16, -14), (46, -28, -42), (43, -36, -100)], dtype=float)


@dataclass(frozen=True)
class _Chambers:
    cavity: Array
    ventricle: Array
    base: Array
    left_atrium: Array
    right_atrium: Array
    right_ventricle: Array
    aorta: Array
    pulmonary: Array


class Heart:
    """Distances of every part of the heart on one grid."""

    def __init__(self, *, grid: Grid, subject: Subject) -> None:
        self._subject = subject
        self._scale = float(np.cbrt(np.linalg.det(subject.heart[:3, :3])))
        corners = self._place(np.array([(-92, -70, -62), (92, 78, 104)], dtype=float))
        self.patch = grid.patch(corners.min(0) - 12, corners.max(0) + 12)
        self._parts = self._chambers(self.patch)
        self._caval = np.minimum(self._tube(UPPER_CAVA, (9, 9.5, 11)), self._tube(LOWER_CAVA, (12, 11.5, 11)))
        self._veins = np.minimum.reduce([self._tube(vein, (7.5, 6, 4.5)) for vein in VEINS])
        self._arch = self._tube(ARCH, np.multiply(subject.aorta_mm, (0.98, 0.93, 0.86, 0.8)) / self._scale)

    def sac(self) -> Array:
        """Distance to the pericardium: all chambers and great vessels, filleted, in fat of varying thickness."""
        parts = self._parts
        shape = smooth_union(parts.ventricle, parts.right_ventricle - 3.5, 16)
        for part in (parts.right_atrium - 2.5, parts.left_atrium - 2, parts.aorta, parts.pulmonary, self._arch):
            shape = smooth_union(shape, part, 14)
        phase = self._subject.rib_phase * 6
        ripple = np.sin(self.patch.x * 0.045 + phase) + np.sin(self.patch.y * 0.06 + phase) * np.sin(
            self.patch.z * 0.05
        )
        return smooth_union(shape, self._caval, 10) - 5.2 - np.float32(1.5) * ripple

    def arch_end(self) -> Array:
        """The junction of arch and descending aorta, body coordinates in mm (3,)."""
        return self._place(ARCH[-1:])[0]

    def hila(self) -> tuple[list[Array], list[Array]]:
        """Ends of the pulmonary vessels, where they branch into the right and into the left lung, body mm."""
        ends = [self._place(path[-1:])[0] for path in (*BRANCHES, *VEINS)]
        return [ends[0], ends[2], ends[3]], [ends[1], ends[4], ends[5]]

    def layers(self) -> Iterator[Layer]:
        """The heart in painting order: fat, vessels, right heart, left heart, aorta."""
        sac = self.sac()
        yield self._layer(Tissue.MUSCLE, sac)
        yield self._layer(Tissue.FAT, sac + 1.3)
        yield self._layer(Tissue.CAVAL_BLOOD, self._caval)
        yield self._layer(Tissue.WALL, np.minimum(self._arch, self._veins) - 1.2)
        yield self._layer(Tissue.LEFT_BLOOD, self._veins)
        yield from self._right_heart()
        yield from self._left_heart()

    def _right_heart(self) -> Iterator[Layer]:
        parts = self._parts
        yield self._layer(Tissue.WALL, parts.pulmonary - 1.2)
        yield self._layer(Tissue.MYOCARDIUM, parts.right_ventricle - 3.5)
        yield self._layer(Tissue.WALL, parts.right_atrium - 2.2)
        yield self._layer(Tissue.RIGHT_BLOOD, parts.right_ventricle, "right_ventricle")
        yield self._layer(Tissue.RIGHT_BLOOD, parts.right_atrium, "right_atrium")
        yield self._layer(Tissue.RIGHT_BLOOD, parts.pulmonary, "pulmonary_artery")
        trabecula = self._trabeculae(parts.right_ventricle, 5.0)
        yield Layer(Tissue.MYOCARDIUM, self.patch.box, trabecula, None)

    def _left_heart(self) -> Iterator[Layer]:
        parts = self._parts
        yield self._layer(Tissue.WALL, parts.left_atrium - 2)
        yield self._layer(Tissue.MYOCARDIUM, np.maximum(parts.ventricle, -parts.base - 4), "myocardium")
        yield self._layer(Tissue.LEFT_BLOOD, parts.left_atrium, "left_atrium")
        yield self._layer(Tissue.LEFT_BLOOD, parts.cavity, "left_ventricle")
        for muscle in self._papillary_muscles():
            yield Layer(Tissue.MYOCARDIUM, self.patch.box, np.maximum(muscle, parts.cavity), None)
        yield Layer(Tissue.MYOCARDIUM, self.patch.box, self._trabeculae(parts.cavity, 3.2), None)
        yield self._layer(Tissue.WALL, parts.aorta - 1.3)
        # The arch is opened last: a wall across the vessel would show the end of the label.
        yield self._layer(Tissue.LEFT_BLOOD, self._arch)
        yield self._layer(Tissue.LEFT_BLOOD, parts.aorta, "ascending_aorta")

    def _chambers(self, patch: Patch) -> _Chambers:
        cavity, ventricle, base = self._left_ventricle(patch)
        solid = np.maximum(ventricle, -base - 4)
        aorta = self._ascending_aorta(patch)
        left_atrium = np.maximum(self._left_atrium(), -np.maximum(ventricle, -base))
        size = self._subject.right
        right_ventricle = self._ellipsoid(BASE + 27 * AXIS + 33 * SEPTAL, np.multiply(size, (44, 24, 36)), FRAME)
        outflow = self._tube(np.array([(-6, 26, -8), (0, 30, 12)]), (15, 13))
        right_ventricle = np.maximum(smooth_union(right_ventricle, outflow, 10), -solid)
        right_atrium = self._ellipsoid((54, -8, 2), np.multiply(size, (25, 28, 31)))
        right_atrium = np.maximum(right_atrium, -(left_atrium - 2.5))
        right_atrium = np.maximum(right_atrium, -solid)
        return _Chambers(
            cavity, ventricle, base, left_atrium, right_atrium, right_ventricle, aorta, self._pulmonary_artery()
        )

    def _left_ventricle(self, patch: Patch) -> tuple[Array, Array, Array]:
        subject = self._subject
        middle = BASE + EQUATOR_MM * AXIS
        wall = subject.wall_mm / self._scale
        inner = np.array([subject.length_mm, subject.cavity_mm, subject.cavity_mm * 0.96])
        cavity = self._ellipsoid(middle, inner, FRAME)
        outer = inner + np.array([0.75, 1, 1]) * wall
        ventricle = self._ellipsoid(middle, outer, FRAME)
        start, axis = self._place(BASE[None])[0], self._turn(AXIS)
        base = _plane(patch, start, axis)
        return np.maximum(cavity, -base), ventricle, base

    def _left_atrium(self) -> Array:
        body = self._ellipsoid((14, -28, 19), np.multiply(self._subject.atrium, (31, 20.5, 24)))
        appendage = self._tube(np.array([(-13, -17, 28), (-24, -6, 34), (-31, 3, 33)]), (9, 8, 5.5))
        atrium = smooth_union(body, appendage, 8)
        for vein in VEINS:
            stub = self._tube(np.stack([vein[0], vein[:2].mean(0)]), (8, 6.5))
            atrium = smooth_union(atrium, stub, 8)
        return atrium

    def _ascending_aorta(self, patch: Patch) -> Array:
        radii = np.multiply(self._subject.aorta_mm / self._scale, (0.93, 1.06, 0.98, 1, 1, 0.98))
        path = self._place(AORTA)
        lower = _plane(patch, path[0], path[1] - path[0])
        upper = _plane(patch, path[-1], self._turn(np.array([0.0, 0.0, 1.0])))
        return np.maximum(np.maximum(self._tube(AORTA, radii), -lower), upper)

    def _pulmonary_artery(self) -> Array:
        trunk = self._tube(TRUNK, (13, 13, 13, 12))
        right, left = (self._tube(path, (10.5, 9.5, 8.5, 6)[: len(path)]) for path in BRANCHES)
        shape = smooth_union(smooth_union(trunk, right, 8), left, 8)
        start = self._place(TRUNK)
        return np.maximum(shape, -_plane(self.patch, start[0], start[1] - start[0]))

    def _papillary_muscles(self) -> Iterator[Array]:
        radius = self._subject.cavity_mm / self._scale
        for angle in (2.3, 4.3):
            side = np.cos(angle) * FRAME[:, 1] + np.sin(angle) * FRAME[:, 2]
            start = BASE + 62 * AXIS + 0.52 * radius * side
            tip = BASE + 28 * AXIS + 0.52 * radius * side
            yield self._tube(np.stack([start, tip]), (5.2, 3.2))

    def _trabeculae(self, cavity: Array, depth_mm: float) -> Array:
        """Muscle ridges on a cavity's inner wall, as deep as an irregular pattern of waves makes them."""
        patch = self.patch
        rng = np.random.default_rng((self._subject.trees_seed, 3))
        pattern = np.zeros_like(cavity)
        for wave in rng.normal(size=(5, 3)):
            wave *= rng.uniform(0.3, 0.75) / np.linalg.norm(wave)
            pattern += np.sin(patch.x * wave[0] + patch.y * wave[1] + patch.z * wave[2] + rng.uniform(0, 6))
        ridge = np.float32(depth_mm / 3) * np.maximum(pattern, 0)
        return np.maximum(-cavity - ridge + 0.5, cavity)

    def _layer(self, tissue: Tissue, distance: Array, label: str | None = None) -> Layer:
        return Layer(tissue, self.patch.box, distance, LABEL_VALUES[label] if label else 0)

    def _ellipsoid(self, center: Point, radii: Array, axes: Array | None = None) -> Array:
        turned = self._subject.heart[:3, :3] / self._scale @ (np.eye(3) if axes is None else axes)
        return ellipsoid(self.patch, self._place(np.asarray(center)[None])[0], radii * self._scale, turned)

    def _tube(self, points: Array, radii: Point) -> Array:
        return tube(self.patch, self._place(points), np.multiply(radii, self._scale))

    def _place(self, points: Array) -> Array:
        return points @ self._subject.heart[:3, :3].T + self._subject.heart[:3, 3]

    def _turn(self, direction: Array) -> Array:
        return self._subject.heart[:3, :3] / self._scale @ direction


def _plane(patch: Patch, point: Array, normal: Array) -> Array:
    unit = (normal / np.linalg.norm(normal)).astype(np.float32)
    shift = np.float32(unit @ point)
    return patch.x * unit[0] + patch.y * unit[1] + patch.z * unit[2] - shift
