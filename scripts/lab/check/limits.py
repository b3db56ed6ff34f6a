"""Every threshold of the check, with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.data.volumes import CT_FAT_HU

__all__ = ["LIMITS", "VOLUMES_ML", "Limits"]

VOLUMES_ML = {
    "liver": (1000.0, 2600.0),
    "right kidney": (10.0, 260.0),
    "left kidney": (10.0, 260.0),
    "spleen": (60.0, 3000.0),
    "myocardium": (80.0, 260.0),
    "left ventricle": (60.0, 240.0),
    "right ventricle": (45.0, 240.0),
}
"""Volumes of structures, by their names in the task files, over public CT and MR of adults, patients among them:
atrophic kidneys and a spleen of three litres occur."""


@dataclass(frozen=True)
class Limits:
    """Thresholds; the report repeats them."""

    smallest_field_mm: float = 20.0
    """Shortest edge of a volume: below it, the spacing is hardly in mm."""

    largest_field_mm: float = 2500.0
    """Longest edge of a volume: above it, likewise."""

    ct_air_hu: float = CT_FAT_HU
    """A CT in HU shows something below this (fat or air); one whose lowest values lie above has another unit."""

    mr_scaled: float = 10.0
    """An MR in the scanner's unit reaches hundreds; one whose 99.5th percentile lies below was scaled or z-scored."""

    most_values: int = 64
    """Distinct values of a label map above which they are no classes."""

    thick_slices: float = 1.5
    """Spacing over the smallest spacing from which on an axis counts as through-plane."""

    rim_faces: int = 200
    """Faces of a structure below which nothing is said of rims."""

    rim_share: float = 0.25
    """Share of a structure's faces behind a thin rim of a value in between: at most 0.06 in clean sets, 0.5 to 1 after
    a linear resampler."""

    shift_voxel: float = 0.7
    """Shift along an axis: below the one voxel to be found, above what soft borders make in a clear image."""

    shift_gain: float = 0.01
    """Share of the explained variance that moving the label adds, at least; 0 in clean CT and MR of the abdomen."""

    shift_gain_others: float = 3.0
    """The same as a multiple of what moving adds in the other cases (their 90th percentile): where labels explain their
    images badly, as in late enhancement, moving always adds something and nothing can be said."""

    least_explained: float = 0.2
    """Share of variance that a label must explain at its best, for shifts and flips to mean anything."""

    flip_gain: float = 0.15
    """Explained variance that mirroring the label must add; where labels are right, mirroring takes it away."""

    duplicate_candidate: float = 0.5
    """Correlation of coarse structure from which on two volumes are compared closely."""

    duplicate: float = 0.75
    """Correlation of fine structure from which on two volumes are one: different images reach 0.54 (one heart in two
    sequences), copies with other values or a small crop 0.88 and more."""

    least_cases: int = 3
    """Other cases needed before one is called an outlier among them."""

    layout_deviation: float = 1.1
    """Deviation of a layout from the others' in spreads (root mean square) from which on a flip or an exchange may
    explain it: an abdomen that is turned upside down deviates by 1.2 and more."""

    layout_left: float = 0.7
    """Share of that deviation that the explanation may leave: at most 0.65 of it where the fault is real, and 0.8 or
    more where a clean layout happens to fit better otherwise."""

    layout_elsewhere: float = 3.6
    """Deviation that no flip or exchange explains: at most 1.7 in clean sets."""

    mirror_cases: int = 5
    """Other images needed before an image is called mirrored."""

    mirror_ratio: float = 1.25
    """How much more alike a mirrored image is to the others than as it stands; at most 1.1 in clean sets this large."""

    mirror_ratio_domains: float = 1.1
    """The same between two domains, which differ in contrast."""

    mirror_t: float = 4.0
    """The same difference over its standard error."""

    stretch: float = 1.3
    """Factor along the stack: at most 1.24 between people where image and structures are asked together."""

    stretch_alone: float = 1.4
    """The same where only one of them can be asked: images alone reach 1.3."""

    stretch_deviations: float = 4.0
    """The same in standard deviations of the others."""

    stretch_agreement: float = 1.1
    """Factor that image and structures must each say at least."""

    size_slack: float = 1.5
    """Factor beyond the volumes that public sets show: people outside them exist."""

    size_factor: float = 1.8
    """Factor by which all structures of a case together are larger or smaller than the others': 0.64 to 1.5 between
    people; a scale of 0.7 along each axis alone is 0.34."""

    stretch_domains: float = 1.35
    """Factor between the structures of two domains, which no image can confirm: 1.07 between cine and late enhancement,
    which cover the heart differently."""


LIMITS = Limits()
