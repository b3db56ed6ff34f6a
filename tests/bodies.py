"""Generated abdomens with spine, ribs and four organs, in CT with a table and in MR."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from conftest import write_volume
from scipy import ndimage

__all__ = ["Body", "body_case", "make_body"]

ORGANS = [  # centre from the body's middle and radii, RAS mm: x is positive on the patient's right
    (1, (60, 20, 20), (70, 54, 62)),
    (2, (52, -45, -40), (23, 21, 46)),
    (3, (-52, -42, -34), (23, 21, 46)),
    (4, (-88, -22, 30), (26, 30, 44)),
]
CT_VALUES, MR_VALUES = (40.0, 110.0, 160.0, 165.0, 120.0), (150.0, 260.0, 520.0, 540.0, 470.0)
FAT = {"ct": -70.0, "mr": 70.0}
GRIDS = {"ct": ((4.0, 4.0, 5.0), (88, 64, 46)), "mr": ((3.6, 3.6, 7.0), (94, 70, 32))}
"""Spacing in mm and shape."""

FLIPS = {"ct": (0,), "mr": (0, 1)}
"""Axes that run against RAS: CT is stored as LAS, MR as LPS."""


@dataclass(frozen=True)
class Body:
    """A volume: image (H, W, D) int16 in HU or arbitrary units, label 0 to 4 int16, affine (4, 4) in mm."""

    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


def make_body(domain: str, number: int, *, finer: int = 1) -> Body:
    """A person.

    Args:
        domain: ``ct`` or ``mr``.
        number: who.
        finer: pixels in plane for each one of :data:`GRIDS`.
    """
    rng = np.random.default_rng([number, domain == "ct"])
    spacing, shape = GRIDS[domain]
    spacing = (spacing[0] / finer, spacing[1] / finer, spacing[2])
    shape = (shape[0] * finer, shape[1] * finer, shape[2])
    places = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(shape, spacing, strict=True)]
    x, y, z = (axis + rng.normal(0, 3) for axis in np.meshgrid(*places, indexing="ij"))
    size = rng.uniform(0.93, 1.07)
    wide, deep = rng.uniform(0.85, 1.1, 2)
    values = CT_VALUES if domain == "ct" else MR_VALUES
    body = ((x / 150 / wide) ** 2 + (y / np.where(y > 0, 110 * deep, 95)) ** 2 <= 1) & (y > -80)
    image = np.where(body, values[0], -1000.0 if domain == "ct" else 3.0)
    texture = ndimage.gaussian_filter(rng.normal(size=shape), [9 / edge for edge in spacing])
    image += body * texture / texture.std() * (35 if domain == "ct" else 50)
    lean = np.random.default_rng([number, 7]).uniform(0.8, 0.95)
    inner = (x / 150 / wide / lean) ** 2 + (y / np.where(y > 0, 110 * deep, 95) / lean) ** 2 <= 1
    image[body & ~inner] += FAT[domain] - values[0]
    spine = body & (x**2 + (y + 55) ** 2 <= 15**2)
    image[spine] = np.where(
        np.sin(z[spine] / 5 + rng.uniform(0, 6)) > -0.5, 400.0 if domain == "ct" else 60.0, values[0]
    )
    label = np.zeros(shape, np.int16)
    for value, centre, radii in ORGANS:
        c = np.array(centre) * size + rng.normal(0, 4, 3)
        r = np.array(radii) * size * rng.uniform(0.95, 1.05, 3)
        inside = ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 <= 1
        label[inside & body] = value
        image[inside & body] = values[value] + texture[inside & body] * 10
    if domain == "ct":
        image[8 * finer : -8 * finer, 6 * finer : 8 * finer] = 60.0
    image = ndimage.gaussian_filter(image, 0.5) + rng.normal(0, 8, shape)
    affine = np.diag([*spacing, 1.0])
    for axis in FLIPS[domain]:
        affine[axis, axis] *= -1
    flips = FLIPS[domain]
    return Body(np.flip(image, flips).astype(np.int16), np.flip(label, flips), affine)


def body_case(folder: Path, domain: str, number: int) -> dict[str, str]:
    """Write a body; gives its entry of a datalist."""
    body = make_body(domain, number)
    names = {key: f"{domain}_{number:02}_{key}.nii.gz" for key in ("image", "label")}
    write_volume(folder / names["image"], body.image, body.affine)
    write_volume(folder / names["label"], body.label, body.affine)
    return names
