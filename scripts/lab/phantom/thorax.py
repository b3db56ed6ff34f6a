"""The phantom's body around the heart: outline, bones, lungs, diaphragm, upper abdomen, as layers in painting order.

Coordinates are the body's, RAS in mm; z = 0 is the height of the middle of the heart.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scripts.lab.phantom.shapes import (
    Grid,
    Patch,
    Point,
    Segment,
    chain,
    ellipsoid,
    smooth_union,
    superellipse,
    tube,
    tubes,
)
from scripts.lab.phantom.types import Array, Layer, Subject, Tissue

__all__ = ["Thorax", "branches"]

RIB_PITCH_MM = 27.0
VERTEBRA_PITCH_MM = 25.0
CARINA = (0.0, -20.0, 72.0)


class Thorax:
    """Distances of the body's large structures on one grid."""

    def __init__(self, *, grid: Grid, subject: Subject) -> None:
        self._grid, self._subject = grid, subject
        self._box, whole = grid.whole.box, grid.whole
        self._x, self._y, self._z = whole.x, whole.y, whole.z
        taper = 1 - np.float32(0.22) * (np.maximum(self._z - 25, 0) / 100) ** 2
        front, back = 87 * subject.depth, 82 * subject.depth
        depth = np.where(self._y > 0, np.float32(front), np.float32(back))
        self._cavity = superellipse(self._x / taper, self._y / taper, 118 * subject.girth, depth, 2.35) * taper
        self._spine_y = -50 * subject.depth + 0.0012 * self._z**2
        self._front, self._back = front, back
        self._above = 0.8 * (self._z - self._diaphragm())
        self._spine = superellipse(self._x, self._y - self._spine_y, 17.5, 15.5, 2.3)

    def outline(self) -> Iterator[Layer]:
        """Skin, fat under it, the muscles of the chest wall with the fat between them."""
        subject = self._subject
        muscle = self._muscle()
        breast = 1 + 0.5 * np.exp(-(((np.abs(self._x) - 75) / 40) ** 2)) * (self._y > 0) * np.clip(self._y / 50, 0, 1)
        body = muscle - np.float32(subject.fat_mm) * breast.astype(np.float32)
        yield self._layer(Tissue.SKIN, body)
        yield self._layer(Tissue.FAT, body + 2.2)
        yield self._layer(Tissue.MUSCLE, muscle)
        wave = 3 * np.sin(self._x * 0.05 + 1) + 4 * np.sin(self._y * 0.06) + 2 * np.sin(self._z * 0.08)
        sheet = np.abs(self._cavity - 14 - wave) - 1.1
        yield self._layer(Tissue.FAT, np.maximum(sheet, muscle + 3))
        yield self._layer(Tissue.FAT, self._cavity)

    def abdomen(self) -> Iterator[Layer]:
        """Liver with its vessels, spleen, stomach, and the diaphragm over them."""
        border = (-45 + 0.55 * (60 - self._y) - self._x) / 1.14
        below = np.maximum(self._cavity + 4, self._above + 3)
        liver = -smooth_union(-np.maximum(below, border), np.full_like(border, 200), 12)
        yield self._layer(Tissue.LIVER, liver)
        rng = np.random.default_rng((self._subject.trees_seed, 1))
        vessels = tubes(self._grid, branches(rng, (35, -5, -88), (0.4, 0.3, 0.9), radius=5.0, length=30, depth=5))
        yield self._layer(Tissue.LIVER_VESSEL, np.maximum(vessels, liver + 4))
        left = np.maximum(below, 6 - border)
        yield from self._left_organ(Tissue.SPLEEN, (-86, -38, -78), (30, 32, 46), left)
        yield from self._left_organ(Tissue.STOMACH, (-52, 16, -76), (40, 40, 34), left)
        yield from self._left_organ(Tissue.GAS, (-50, 40, -68), (24, 13, 19), left + 4)
        yield self._layer(Tissue.MUSCLE, np.maximum(np.abs(self._above + 1) - 1.6, self._cavity))

    def lungs(self, mediastinum: Array, hila: tuple[list[Array], list[Array]]) -> Iterator[Layer]:
        """Both lungs beside the mediastinum (distance in mm), vessels branching from the hila (mm), and airways."""
        free = np.maximum(self._cavity + 2.5, 2 - self._above)
        gutter = superellipse(self._x, self._y - self._spine_y + 36, 36, 22, 2.2)
        space = smooth_union(mediastinum, smooth_union(self._spine - 4, gutter, 16), 16)
        septum = np.abs(self._x + 3) - (2 + 0.12 * np.maximum(self._y - 30, 0))
        space = smooth_union(space, np.maximum(septum, -np.abs(self._y) + 12), 12)
        lung = np.maximum(free, -space)
        yield self._layer(Tissue.LUNG, lung)
        yield self._layer(Tissue.MUSCLE, gutter + 3)
        rng = np.random.default_rng((self._subject.trees_seed, 2))
        segments: list[Segment] = []
        for side, ends in zip((1, -1), hila, strict=True):
            for end in ends:
                for fan, tilt in ((0.5, 0.7), (-0.9, 0.3), (0.9, -0.4), (-0.4, -0.9)):
                    course = (side, fan + rng.normal() * 0.2, tilt + rng.normal() * 0.2)
                    segments += branches(rng, end, course, radius=3.9, length=26, depth=5)
        yield self._layer(Tissue.LUNG_VESSEL, np.maximum(tubes(self._grid, segments), lung + 1.5))
        yield from self._airways()

    def bones(self) -> Iterator[Layer]:
        """Ribs, sternum, shoulder blades, spine."""
        yield from self._ribs()
        yield from self._flat_bone((0, self._front + 7, 35), (19, 6.5, 95))
        for side in (1, -1):
            yield from self._flat_bone((side * 88, -self._back - 4, 100), (36, 4.5, 62))
        yield from self._vertebrae()

    def vessels(self, arch_end: Array) -> Iterator[Layer]:
        """The descending aorta and the oesophagus beside it."""
        x = -27 * self._subject.girth
        y = -33 * self._subject.depth
        points = [tuple(arch_end), (x, y - 2, 66), (x, y, 30), (x + 3, y - 3, -30), (x + 12, y - 4, -110)]
        aorta = tubes(self._grid, chain(points, (14.2, 13.2, 12.6, 12.2, 11.5)))
        oesophagus = tubes(
            self._grid, chain([(-4, -30, 110), (-8, -29, 30), (-14, -26, -20), (-24, -14, -70)], (6, 6, 6, 8))
        )
        yield self._layer(Tissue.WALL, oesophagus)
        yield self._layer(Tissue.STOMACH, oesophagus + 3.4)
        yield self._layer(Tissue.WALL, aorta - 1.2)
        yield self._layer(Tissue.LEFT_BLOOD, aorta)

    def descending_course(self) -> Array:
        """Distance to the space along the spine that descending aorta and oesophagus take, for the mediastinum."""
        x, y = -24 * self._subject.girth, -32 * self._subject.depth
        aorta = tube(self._grid.whole, [(x, y, 90), (x, y, -110)], (15.5, 15.5))
        middle = tube(self._grid.whole, [(0, -18, 120), CARINA, (-6, -26, 20), (-18, -18, -70)], (16, 15, 10, 12))
        return smooth_union(aorta, middle, 10)

    def _diaphragm(self) -> Array:
        """Height of the diaphragm: a right dome, a lower left one, a saddle under the heart, steep at the rim."""
        right = np.exp(-(((self._x - 58) / 62) ** 2) - ((self._y - 5) / 70) ** 2)
        left = np.exp(-(((self._x + 68) / 50) ** 2) - ((self._y - 0) / 66) ** 2)
        rim = 46 * np.clip(1 + self._cavity / 60, 0, 1) ** 2
        saddle = np.exp(-(((self._x + 18) / 45) ** 2) - ((self._y - 30) / 50) ** 2)
        top = self._subject.dome_mm
        return top - 58 + 58 * np.maximum(right, 0.72 * left) + 25 * saddle - rim

    def _muscle(self) -> Array:
        """Outline of the chest's muscles: breast, shoulder and back muscles bulge, the spine lies in a furrow."""
        depth = np.where(self._y > 0, np.float32(self._front + 15), np.float32(self._back + 30))
        outline = superellipse(self._x, self._y, 131 * self._subject.girth, depth, 2.4)
        side = np.abs(self._x) / np.float32(self._subject.girth)
        high = 1 / (1 + np.exp(-(self._z - 15) / 22))
        for across, along, width, rise in ((62, 85, 34, 9 * high), (118, -42, 36, 4 + 10 * high), (34, -110, 24, 4)):
            outline -= rise * np.exp(-((side - across) ** 2 + (self._y - along) ** 2) / width**2)
        return outline + 5 * np.exp(-((side / 12) ** 2)) * (self._y < 0)

    def _airways(self) -> Iterator[Layer]:
        trunk = chain([(1, -14, 130), CARINA], (9.2, 9.2))
        right = chain([CARINA, (24, -20, 54), (48, -26, 36)], (7.5, 6.8, 4.5))
        left = chain([CARINA, (-26, -24, 52), (-50, -34, 38)], (7, 6.2, 4.2))
        airway = tubes(self._grid, trunk + right + left)
        yield self._layer(Tissue.AIRWAY_WALL, airway - 1.6)
        yield self._layer(Tissue.GAS, airway)

    def _ribs(self) -> Iterator[Layer]:
        fall = 0.62 * (self._y + self._back) - 0.0006 * (self._y + self._back) ** 2
        phase = (self._z + fall) / np.float32(RIB_PITCH_MM) + self._subject.rib_phase
        height = (phase - np.round(phase)) * np.float32(RIB_PITCH_MM)
        rib = (np.hypot((self._cavity - 5.2) / 4.0, height / 6.8) - 1) * 4.0
        front = (self._y > 0) * np.clip(self._y - 0.55 * self._front, -50, 50)
        behind = np.where(self._y < 0, 14 - np.abs(self._x), np.float32(-20))
        rib = np.maximum(rib, behind)
        gap = np.where(self._y > 0, 15 - np.abs(self._x), np.float32(-20))
        yield self._layer(Tissue.CARTILAGE, np.maximum(np.maximum(rib, -front), gap))
        yield from self._bone(np.maximum(rib, front), 1.3, self._grid.whole)

    def _vertebrae(self) -> Iterator[Layer]:
        patch = self._grid.patch((-45, -150, -200), (45, -15, 200))
        x, y, spine = patch.x, patch.y - self._spine_y[patch.box], self._spine[patch.box]
        phase = patch.z / np.float32(VERTEBRA_PITCH_MM) + self._subject.rib_phase * 0.7
        level = (phase - np.round(phase)) * np.float32(VERTEBRA_PITCH_MM)
        waist = 1.6 * (1 - (level / 12) ** 2)
        yield Layer(Tissue.CARTILAGE, patch.box, spine + 1.0)
        yield from self._bone(np.maximum(spine + waist, np.abs(level) - 9.8), 1.3, patch)
        canal = superellipse(x, y + 25, 9.5, 8, 2.0)
        arch = np.maximum(np.maximum(canal - 4.5, np.abs(level + 1) - 9), -canal)
        spinous = np.maximum(np.maximum(np.abs(x) - 3.2, np.abs(y + 45) - 14), np.abs(level - 0.5 * (y + 40)) - 6)
        wings = np.maximum(np.maximum(np.abs(x) - 34, np.abs(y + 27 + 0.18 * np.abs(x)) - 4.2), np.abs(level - 3) - 5.5)
        rear = np.minimum(np.minimum(arch, spinous), wings)
        yield from self._bone(np.maximum(rear, -canal), 1.4, patch)
        yield Layer(Tissue.SPINAL_FLUID, patch.box, canal + 0.6)
        yield Layer(Tissue.SPINAL_CORD, patch.box, superellipse(x, y + 25, 4.8, 3.9, 2.0))

    def _flat_bone(self, center: Point, radii: Point) -> Iterator[Layer]:
        patch = self._grid.patch(np.subtract(center, radii), np.add(center, radii))
        yield from self._bone(ellipsoid(patch, center, radii), 1.4, patch)

    def _bone(self, distance: Array, shell_mm: float, patch: Patch) -> Iterator[Layer]:
        yield Layer(Tissue.CORTICAL_BONE, patch.box, distance)
        yield Layer(Tissue.MARROW, patch.box, distance + shell_mm)

    def _left_organ(self, tissue: Tissue, center: Point, radii: Point, room: Array) -> Iterator[Layer]:
        patch = self._grid.patch(np.subtract(center, radii), np.add(center, radii))
        yield Layer(tissue, patch.box, np.maximum(ellipsoid(patch, center, radii), room[patch.box]))

    def _layer(self, tissue: Tissue, distance: Array) -> Layer:
        return Layer(tissue, self._box, distance)


def branches(
    rng: np.random.Generator,
    start: Array | tuple[float, ...],
    course: tuple[float, ...] | Array,
    *,
    radius: float,
    length: float,
    depth: int,
) -> list[Segment]:
    """A vessel that forks ``depth`` times, thinner and shorter each time; all in body coordinates in mm."""
    course = np.asarray(course, dtype=float)
    course = course / np.linalg.norm(course)
    end = np.asarray(start, dtype=float) + course * length * rng.uniform(0.8, 1.2)
    segments: list[Segment] = [(tuple(start), tuple(end), radius, radius * 0.8)]
    if depth > 1:
        aside = np.cross(course, rng.normal(size=3))
        aside /= np.linalg.norm(aside)
        for sign, share in ((0.75, 0.72), (-0.5, 0.8)):
            turned = course + sign * rng.uniform(0.7, 1.2) * aside
            segments += branches(rng, end, turned, radius=radius * share, length=length * 0.8, depth=depth - 1)
    return segments
