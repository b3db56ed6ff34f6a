"""Every threshold of the check, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LIMITS", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Thresholds; the report repeats them."""

    most_values: int = 64
    """Distinct values of a label map above which they are no classes."""

    thick_slices: float = 1.5
    """Spacing over the smallest spacing from which on an axis counts as through-plane."""

    rim_faces: int = 200
    """Faces of a structure below which nothing is said of rims."""

    rim_share: float = 0.25
    """Share of faces behind a thin rim of a value in between."""

    shift_voxel: float = 0.7
    """Shift of a label along one axis: less than the one voxel to be found, more than what soft borders make."""

    shift_gain: float = 0.05
    """Explained variance that moving the label must add."""

    flip_gain: float = 0.15
    """Explained variance that mirroring the label must add."""

    duplicate: float = 0.9
    """Correlation of two fingerprints from which on two images are one."""

    least_cases: int = 3
    """Other cases needed before one of them is called an outlier."""

    layout_deviation: float = 2.0
    """Deviation of a layout from the others', in spreads (root mean square)."""

    layout_gain: float = 0.6
    """Share of that deviation that an explanation may leave."""

    scale_ratio: float = 1.35
    """Factor by which one axis is stretched against the others."""

    scale_deviations: float = 4.0
    """The same in robust standard deviations of the other cases."""

    smallest_field_mm: float = 30.0
    largest_field_mm: float = 2500.0
    """Edge lengths of a volume outside which its spacing cannot be in mm."""


LIMITS = Limits()
