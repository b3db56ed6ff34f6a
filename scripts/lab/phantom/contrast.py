"""Images of the phantom by two scanners: tissue values, texture, sharpness, bias field, noise, table.

CT is in Hounsfield units, arterial phase. MR is balanced steady-state free precession (bSSFP) in arbitrary units:
signal follows T2/T1, hence bright blood and fat, dark muscle. Values are of the order given in textbooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scripts.lab.phantom.shapes import Grid
from scripts.lab.phantom.types import Array, Layer, Tissue

__all__ = ["CT_VALUES", "MR_VALUES", "Contrast", "Painting", "ct_image", "mr_image", "paint"]


@dataclass(frozen=True)
class Contrast:
    """A tissue in one modality: mean, standard deviation of the mean between cases, amplitude of its texture."""

    mean: float
    between: float
    texture: float


# Hounsfield units.
CT_VALUES = {
    Tissue.AIR: Contrast(-1000, 0, 0),
    Tissue.SKIN: Contrast(20, 10, 15),
    Tissue.FAT: Contrast(-102, 5, 13),
    Tissue.MUSCLE: Contrast(55, 6, 18),
    Tissue.LUNG: Contrast(-835, 22, 38),
    Tissue.LUNG_VESSEL: Contrast(190, 70, 15),
    Tissue.AIRWAY_WALL: Contrast(-40, 25, 15),
    Tissue.GAS: Contrast(-985, 5, 0),
    Tissue.CORTICAL_BONE: Contrast(760, 120, 110),
    Tissue.MARROW: Contrast(210, 40, 48),
    Tissue.CARTILAGE: Contrast(105, 15, 22),
    Tissue.SPINAL_FLUID: Contrast(12, 5, 5),
    Tissue.SPINAL_CORD: Contrast(38, 4, 4),
    Tissue.LIVER: Contrast(84, 12, 12),
    Tissue.LIVER_VESSEL: Contrast(112, 22, 6),
    Tissue.SPLEEN: Contrast(118, 15, 22),
    Tissue.STOMACH: Contrast(28, 12, 18),
    Tissue.MYOCARDIUM: Contrast(104, 12, 13),
    Tissue.LEFT_BLOOD: Contrast(365, 38, 13),
    Tissue.RIGHT_BLOOD: Contrast(255, 75, 30),
    Tissue.CAVAL_BLOOD: Contrast(180, 80, 45),
    Tissue.WALL: Contrast(70, 12, 10),
}

# Arbitrary units before the case's own gain.
MR_VALUES = {
    Tissue.AIR: Contrast(0, 0, 0),
    Tissue.SKIN: Contrast(330, 40, 30),
    Tissue.FAT: Contrast(600, 45, 34),
    Tissue.MUSCLE: Contrast(190, 16, 30),
    Tissue.LUNG: Contrast(48, 10, 16),
    Tissue.LUNG_VESSEL: Contrast(450, 60, 40),
    Tissue.AIRWAY_WALL: Contrast(180, 30, 20),
    Tissue.GAS: Contrast(8, 3, 0),
    Tissue.CORTICAL_BONE: Contrast(60, 12, 20),
    Tissue.MARROW: Contrast(350, 50, 55),
    Tissue.CARTILAGE: Contrast(260, 30, 30),
    Tissue.SPINAL_FLUID: Contrast(920, 50, 30),
    Tissue.SPINAL_CORD: Contrast(430, 30, 15),
    Tissue.LIVER: Contrast(295, 28, 22),
    Tissue.LIVER_VESSEL: Contrast(520, 50, 20),
    Tissue.SPLEEN: Contrast(430, 40, 25),
    Tissue.STOMACH: Contrast(480, 130, 60),
    Tissue.MYOCARDIUM: Contrast(245, 20, 24),
    Tissue.LEFT_BLOOD: Contrast(770, 30, 42),
    Tissue.RIGHT_BLOOD: Contrast(735, 35, 50),
    Tissue.CAVAL_BLOOD: Contrast(690, 60, 60),
    Tissue.WALL: Contrast(260, 25, 20),
}

TABLE_HU, FOAM_HU, TABLE_MM = -60.0, -890.0, 5.0
BELT_MM = 3.0
HOUNSFIELD_FLOOR = -1024


@dataclass(frozen=True)
class Painting:
    """Result of painting: image (float32), texture amplitude (float32), label values (int16), body mask (bool)."""

    image: Array
    texture: Array
    labels: NDArray[np.int16]
    body: NDArray[np.bool_]


def paint(
    layers: Iterable[Layer], grid: Grid, values: dict[Tissue, Contrast], rng: np.random.Generator, backdrop: Array
) -> Painting:
    """Paint the layers over the backdrop; a voxel a surface passes through takes a share of either side."""
    means = {tissue: rng.normal(value.mean, value.between) for tissue, value in values.items()}
    image, texture = backdrop, np.zeros(grid.shape, np.float32)
    labels, body = np.zeros(grid.shape, np.int16), np.zeros(grid.shape, bool)
    for layer in layers:
        share = np.clip(np.float32(0.5) - layer.distance / np.float32(grid.voxel_mm * 1.1), 0, 1)
        view = image[layer.box]
        view += share * (np.float32(means[layer.tissue]) - view)
        inside = layer.distance < 0
        texture[layer.box][inside] = values[layer.tissue].texture
        if layer.label is not None:
            labels[layer.box][inside] = layer.label
        if layer.tissue is Tissue.SKIN:
            body[layer.box] |= inside
    return Painting(image, texture, labels, body)


def ct_image(
    layers: Iterable[Layer], grid: Grid, affine: Array, back_mm: float, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A contrast-enhanced CT in HU and its labels, int16: texture, the reconstruction's blur, beam noise, table."""
    picture = paint(layers, grid, CT_VALUES, rng, _table(affine, grid.shape, back_mm))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = picture.image + picture.texture * _texture(grid.shape, spacing, rng)
    image = gaussian_filter(image, 0.75 / spacing)
    noise = gaussian_filter(rng.standard_normal(grid.shape, np.float32), 0.62 * spacing.min() / spacing)
    # Fewer photons get through the middle of the body: noise grows with the tissue around a voxel.
    shade = gaussian_filter(picture.body[::4, ::4, ::4].astype(np.float32), 30 / spacing / 4)
    depth = _enlarge(shade, grid.shape)
    image += noise / noise.std() * (np.float32(rng.uniform(17, 26)) * (np.float32(0.35) + depth))
    return np.maximum(np.rint(image), HOUNSFIELD_FLOOR).astype(np.int16), picture.labels


def mr_image(
    layers: Iterable[Layer], grid: Grid, affine: Array, rng: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A bSSFP MR and its labels, int16: texture, thick slices' blur, coil bias, breathing ghost, Rician noise."""
    picture = paint(layers, grid, MR_VALUES, rng, np.zeros(grid.shape, np.float32))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = picture.image + picture.texture * _texture(grid.shape, spacing, rng)
    image = gaussian_filter(image, np.where(spacing > spacing.min() * 1.5, 0.33, 0.62))
    image *= _coil_bias(grid, rng)
    ghost = np.roll(image, int(rng.integers(grid.shape[0] // 5, grid.shape[0] // 2)), axis=int(np.argmin(spacing)))
    image += np.float32(rng.uniform(0.01, 0.03)) * ghost
    sigma = np.float32(rng.uniform(20, 32))
    real = image + sigma * rng.standard_normal(grid.shape, np.float32)
    image = np.hypot(real, sigma * rng.standard_normal(grid.shape, np.float32))
    return np.rint(image * rng.uniform(0.5, 1.6)).astype(np.int16), picture.labels


def _texture(shape: tuple[int, ...], spacing: Array, rng: np.random.Generator) -> Array:
    """A zero-mean, unit-variance pattern with a fine (2 mm) and a coarse (7 mm) part."""
    fine = gaussian_filter(rng.standard_normal(shape, np.float32), 1.6 / spacing)
    small = tuple(-(-size // 3) for size in shape)
    coarse = _enlarge(gaussian_filter(rng.standard_normal(small, np.float32), 7 / spacing / 3), shape)
    return (0.8 * fine / fine.std() + 0.6 * coarse / coarse.std()).astype(np.float32)


def _enlarge(small: Array, shape: tuple[int, ...]) -> Array:
    """Linear interpolation of a coarse grid to ``shape``, axis by axis."""
    for axis, size in enumerate(shape):
        position = np.linspace(0, small.shape[axis] - 1, size)
        low = np.minimum(position.astype(int), max(small.shape[axis] - 2, 0))
        share = (position - low).astype(np.float32).reshape([-1 if index == axis else 1 for index in range(3)])
        high = np.minimum(low + 1, small.shape[axis] - 1)
        small = small.take(low, axis) * (1 - share) + small.take(high, axis) * share
    return small


def _coil_bias(grid: Grid, rng: np.random.Generator) -> Array:
    """Receive sensitivity of a chest and a back coil, and a gentle slope across the body."""
    whole = grid.whole
    chest, back = rng.uniform(0.35, 0.7), rng.uniform(0.25, 0.6)
    field = chest * np.exp((whole.y - 110) / 70) + back * np.exp((-whole.y - 115) / 70)
    slope = rng.uniform(-1, 1, 3) * 0.0012
    field += np.float32(0.85) + (whole.x * slope[0] + whole.y * slope[1] + whole.z * slope[2]).astype(np.float32)
    ripple = np.float32(0.06) * np.sin(whole.x * 0.022 + rng.uniform(0, 6)) * np.cos(whole.z * 0.02)
    return (field + ripple).astype(np.float32)


def _table(affine: Array, shape: tuple[int, ...], back_mm: float) -> Array:
    """Air with the patient table below the back: a curved shell filled with foam, straight along world z."""
    axes = [np.arange(size, dtype=np.float32) for size in shape]
    x, y = (
        sum(np.float32(affine[row, col]) * _along(axes[col], col) for col in range(3)) + np.float32(affine[row, 3])
        for row in range(2)
    )
    top = np.float32(back_mm) + (x / 420) ** 2 * 190
    height = y - top
    width = np.abs(x) - 205
    slab = np.maximum(np.maximum(height, -height - 34), width)
    air = np.full(shape, -1000, np.float32)
    for value, distance in ((TABLE_HU, slab), (FOAM_HU, slab + BELT_MM)):
        air += np.clip(0.5 - distance / 1.5, 0, 1).astype(np.float32) * (np.float32(value) - air)
    return air


def _along(values: Array, axis: int) -> Array:
    return values.reshape([-1 if index == axis else 1 for index in range(3)])
