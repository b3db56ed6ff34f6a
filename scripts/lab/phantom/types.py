"""Types of the phantom: tissues, label values, a painted layer, and the variation between subjects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

__all__ = ["LABEL_VALUES", "Array", "Deformation", "Layer", "Subject", "Tissue"]

Array = NDArray[np.floating]

# Values in the label files, those of MM-WHS; everything else is 0.
LABEL_VALUES = {
    "myocardium": 205,
    "left_atrium": 420,
    "left_ventricle": 500,
    "right_atrium": 550,
    "right_ventricle": 600,
    "ascending_aorta": 820,
    "pulmonary_artery": 850,
}


class Tissue(IntEnum):
    """Tissue of a voxel; each modality has a value and a texture for each."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    LUNG = 4
    LUNG_VESSEL = 5
    AIRWAY_WALL = 6
    GAS = 7
    CORTICAL_BONE = 8
    MARROW = 9
    CARTILAGE = 10
    SPINAL_FLUID = 11
    SPINAL_CORD = 12
    LIVER = 13
    LIVER_VESSEL = 14
    SPLEEN = 15
    STOMACH = 16
    MYOCARDIUM = 17
    LEFT_BLOOD = 18
    RIGHT_BLOOD = 19
    CAVAL_BLOOD = 20
    WALL = 21


@dataclass(frozen=True)
class Layer:
    """One structure, painted over those before it."""

    tissue: Tissue
    box: tuple[slice, slice, slice]  # part of the grid on which it was evaluated
    distance: Array  # signed, in mm, negative inside
    label: int | None = 0  # value in the label file; 0 erases, None leaves the label as it is


@dataclass(frozen=True)
class Deformation:
    """Pose (body to world, 4 x 4) and a smooth displacement: a few sine waves of body coordinates."""

    pose: Array  # rigid, mm
    waves: Array  # wave vectors in radians per mm, (n, 3)
    amplitudes: Array  # mm, (n, 3)
    phases: Array  # radians, (n,)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Deformation:
        """A random pose within a few degrees, three long waves (shape) and five short ones (natural outlines)."""
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-4, 4, 3), degrees=True).as_matrix()
        pose[:3, 3] = rng.uniform(-15, 15, 3)
        lengths = np.concatenate([rng.uniform(150, 260, 3), rng.uniform(38, 75, 5)])
        directions = rng.normal(size=(8, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        amplitudes = rng.normal(size=(8, 3)).clip(-1.8, 1.8) * np.repeat([1.7, 0.45], [3, 5])[:, None]
        waves = directions * (2 * np.pi / lengths)[:, None]
        return cls(pose, waves, amplitudes, rng.uniform(0, 2 * np.pi, 8))


@dataclass(frozen=True)
class Subject:
    """Proportions of one person; lengths in mm."""

    girth: float  # scale of the thorax across the body
    depth: float  # scale of the thorax from back to front
    fat_mm: float  # under the skin
    dome_mm: float  # height of the right dome of the diaphragm, body z
    rib_phase: float  # shift of ribs and vertebrae along the body, in periods
    heart: Array  # heart to body, scale times rotation and offset (4, 4)
    cavity_mm: float  # radius of the left ventricle's cavity
    length_mm: float  # its semi-axis towards the apex
    wall_mm: float  # of the left ventricle
    atrium: float  # scale of the left atrium
    right: float  # scale of the right chambers
    aorta_mm: float  # radius of the ascending aorta
    trees_seed: int  # of the branching vessels

    @property
    def half_width_mm(self) -> float:
        """Half the width of the body, skin to skin."""
        return 137 * self.girth + self.fat_mm

    @property
    def back_mm(self) -> float:
        """From the body's axis to the skin of the back."""
        return 82 * self.depth + 31 + self.fat_mm

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Subject:
        """A random adult."""
        girth = rng.uniform(0.93, 1.04)
        heart = np.eye(4)
        angles = rng.normal(size=3).clip(-1.7, 1.7) * (6, 6, 8)
        heart[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (girth * rng.uniform(1.0, 1.08))
        heart[:3, 3] = np.array([-15, 25, 5]) + rng.uniform(-1, 1, 3) * (6, 3, 6)
        return cls(
            girth=girth,
            depth=rng.uniform(0.98, 1.1),
            fat_mm=rng.uniform(7, 19),
            dome_mm=rng.uniform(-34, -14),
            rib_phase=rng.uniform(0, 1),
            heart=heart,
            cavity_mm=rng.uniform(20.5, 26.5),
            length_mm=rng.uniform(49, 58),
            wall_mm=rng.uniform(9.5, 12.5),
            atrium=rng.uniform(0.93, 1.07),
            right=rng.uniform(0.92, 1.06),
            aorta_mm=rng.uniform(14.5, 18.0),
            trees_seed=int(rng.integers(2**31)),
        )
