"""A computed, unpaired cardiac MR/CT data set: NIfTI with the file names and label values of MM-WHS.

Every case is a different person in a different position on its own grid. It contains no patient data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scripts.core.errors import SettingError
from scripts.core.files import make_folder
from scripts.lab.phantom.contrast import ct_image, mr_image
from scripts.lab.phantom.heart import Heart
from scripts.lab.phantom.shapes import Grid, smooth_union
from scripts.lab.phantom.thorax import Thorax
from scripts.lab.phantom.types import Array, Deformation, Layer, Subject
from scripts.lab.prepare.nifti_pairs import write_nifti
from tqdm import tqdm

__all__ = ["FIRST_ID", "MODALITIES", "PhantomCase", "anatomy", "make_case", "write_phantom"]

MODALITIES = ("ct", "mr")
FIRST_ID = 1001

CT_CODES = ("LPS", "RAS", "LAS", "RPS", "LPI")
# Orientation of the stored axes; slices are stacked along the body in all of them.
MR_CODES = ("RAI", "LPS", "PSR", "LSP", "RSA")

CT_PIXELS, MR_PIXELS = 192, 176
CT_COVER_MM, MR_COVER_MM = 176.0, 190.0


@dataclass(frozen=True)
class PhantomCase:
    """One volume: image and labels (int16, h x w x d) and their affine (4, 4), voxel to world RAS in mm."""

    image: NDArray[np.int16]
    label: NDArray[np.int16]
    affine: Array


def write_phantom(out: Path, *, cases: int = 10, seed: int = 0, progress: bool = True) -> None:
    """Write ``cases`` CT and as many MR volumes of different people, each with its labels.

    The files are ``out/ct_train/ct_train_1001_{image,label}.nii.gz`` and ``out/mr_train/mr_train_1001_...``. A case
    depends on the seed, its modality and its number alone, so that more cases leave the earlier ones as they are.

    Raises:
        InputError: ``cases`` or ``seed`` is out of range, or the folder cannot be written.
    """
    _check(cases, seed)
    jobs = [(modality, index) for index in range(cases) for modality in MODALITIES]
    for modality in MODALITIES:
        make_folder(Path(out) / f"{modality}_train")
    for modality, index in tqdm(jobs, desc="phantom", unit="volume", disable=not progress):
        case = make_case(modality, index, seed=seed)
        stem = Path(out) / f"{modality}_train" / f"{modality}_train_{FIRST_ID + index}"
        write_nifti(stem.with_name(f"{stem.name}_image.nii.gz"), case.image, case.affine)
        write_nifti(stem.with_name(f"{stem.name}_label.nii.gz"), case.label, case.affine, is_label=True)


def make_case(modality: str, index: int, *, seed: int = 0) -> PhantomCase:
    """Compute the volume of case ``index``, from 0, of modality ``ct`` or ``mr``."""
    sequence = np.random.SeedSequence((seed, MODALITIES.index(modality), index))
    person, scan, noise = (np.random.default_rng(child) for child in sequence.spawn(3))
    subject, deformation = Subject.draw(person), Deformation.draw(person)
    if modality == "ct":
        affine, shape = _ct_grid(subject, deformation, index, scan)
    else:
        affine, shape = _mr_grid(subject, deformation, index, scan)
    grid = Grid(affine=affine, shape=shape, deformation=deformation)
    layers = anatomy(grid, subject)
    if modality == "ct":
        back = float(deformation.pose[1, 3] - subject.back_mm)
        image, label = ct_image(layers, grid, affine, back, noise)
    else:
        image, label = mr_image(layers, grid, affine, noise)
    return PhantomCase(image, label, affine)


def anatomy(grid: Grid, subject: Subject) -> Iterator[Layer]:
    """All structures of one person on one grid, from the skin inwards; later ones cover earlier ones."""
    thorax = Thorax(grid=grid, subject=subject)
    heart = Heart(grid=grid, subject=subject)
    yield from thorax.outline()
    yield from thorax.abdomen()
    sac = grid.spread(heart.patch, heart.sac() - 0.5)
    yield from thorax.lungs(smooth_union(sac, thorax.descending_course(), 12), heart.hila())
    yield from thorax.bones()
    yield from thorax.vessels(heart.arch_end())
    yield from heart.layers()


def _check(cases: int, seed: int) -> None:
    for name, value, least in (("cases", cases, 1), ("seed", seed, 0)):
        if value < least:
            expected, remedy = f"a whole number of at least {least}", f"give --{name} {max(least, 10 * least)}"
            raise SettingError(setting=f"--{name}", found=str(value), expected=expected, remedy=remedy)


def _ct_grid(
    subject: Subject, deformation: Deformation, index: int, rng: np.random.Generator
) -> tuple[Array, tuple[int, int, int]]:
    """The whole cross-section of the chest with the table, straight in the scanner."""
    pixel = round(float(2 * subject.half_width_mm + rng.uniform(12, 22)) / CT_PIXELS, 3)
    step = round(float(rng.uniform(2.2, 3.0)), 1)
    center = deformation.pose[:3, 3] + rng.uniform(-4, 4, 3) + (0, -10, 12 + subject.heart[2, 3])
    spacing, counts = (pixel, pixel, step), (CT_PIXELS, CT_PIXELS, round(CT_COVER_MM / step))
    return _grid(CT_CODES[index % len(CT_CODES)], spacing, counts, center, np.eye(3))


def _mr_grid(
    subject: Subject, deformation: Deformation, index: int, rng: np.random.Generator
) -> tuple[Array, tuple[int, int, int]]:
    """A somewhat smaller field about the heart, in thick slices tilted by 5 to 20 degrees."""
    pixel = round(float(rng.uniform(1.65, 1.9)), 3)
    step = round(float(rng.uniform(3.5, 5.0)), 1)
    center = deformation.pose[:3, 3] + rng.uniform(-5, 5, 3) + (-6, 2, 12 + subject.heart[2, 3])
    axis = rng.normal(size=3) * (1, 1, 0.3)
    tilt = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(5, 20), degrees=True).as_matrix()
    spacing, counts = (pixel, pixel, step), (MR_PIXELS, MR_PIXELS, round(MR_COVER_MM / step))
    return _grid(MR_CODES[index % len(MR_CODES)], spacing, counts, center, tilt)


def _grid(
    code: str, spacing: tuple[float, ...], counts: tuple[int, ...], center: Array, tilt: Array
) -> tuple[Array, tuple[int, int, int]]:
    """Affine and shape of a grid with the given axis code about a world point."""
    axes = [next(axis for axis, pair in enumerate(("LR", "PA", "IS")) if letter in pair) for letter in code]
    signs = [1 if letter in "RAS" else -1 for letter in code]
    shape = (counts[axes[0]], counts[axes[1]], counts[axes[2]])
    affine = np.eye(4)
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, column] = tilt[:, axis] * sign * spacing[axis]
    affine[:3, 3] = center - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64), shape
