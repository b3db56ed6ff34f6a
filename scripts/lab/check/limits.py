"""All thresholds of the check, with units and reasons."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.data.volumes import CT_FAT_HU

__all__ = ["LIMITS", "VOLUMES_ML", "Limits"]

# Volumes of structures, by their names in the task files, over public CT and MR of adults, patients among them:
# atrophic kidneys and a spleen of three litres occur.
VOLUMES_ML = {
    "liver": (1000.0, 2600.0),
    "right kidney": (10.0, 260.0),
    "left kidney": (10.0, 260.0),
    "spleen": (60.0, 3000.0),
    "myocardium": (80.0, 260.0),
    "left ventricle": (60.0, 240.0),
    "right ventricle": (45.0, 240.0),
}


@dataclass(frozen=True)
class Limits:
    """Thresholds, which the report repeats."""

    # Shortest edge of a volume: below it, the spacing is hardly in mm.
    smallest_field_mm: float = 20.0
    # Longest edge of a volume: above it, likewise.
    largest_field_mm: float = 2500.0
    # A CT in HU shows something below this (fat or air); one whose lowest values lie above has another unit.
    ct_air_hu: float = CT_FAT_HU
    # An MR in the scanner's unit reaches hundreds; one whose 99.5th percentile lies below was scaled or z-scored.
    mr_scaled: float = 10.0
    # Largest number of classes of a label map.
    most_values: int = 64
    # Ratio to the smallest spacing from which an axis counts as through-plane.
    thick_slices: float = 1.5
    # Ratio to the second largest spacing from which an axis is the one that slices are stacked along.
    thickest: float = 1.2
    # Angle to the body's axes from which a volume is oblique: the letters of its axes tell little.
    oblique_degrees: float = 20.0
    # Cases of a domain that are preprocessed as in training: faults of a task file show in any.
    preprocessed_cases: int = 3
    # Share of a structure outside the section from which it is reported; limits of a section may cut a tip off.
    lost_share: float = 0.2
    # Share of padding in windows from which it is reported: slices of half a window's height and width.
    padded_share: float = 0.75
    # Share of a slice's area at the lowest intensity from which it is reported: a CT of a heart has about 0.6.
    blank_share: float = 0.95
    # Least number of faces of a structure for a result on rims.
    rim_faces: int = 200
    # Share of a structure's faces behind a thin rim of a value in between: at most 0.06 in clean sets, 0.5 to 1 after a
    # linear resampler.
    rim_share: float = 0.25
    # Shift along an axis: below the one voxel to be found, above what soft borders make in a clear image.
    shift_voxel: float = 0.7
    # Share of the explained variance that moving the label adds, at least; 0 in clean CT and MR of the abdomen.
    shift_gain: float = 0.01
    # The same as a multiple of the gain in the other cases (their 95th percentile, the largest of up to 20): where
    # labels explain their images poorly, as in late enhancement, moving any label adds something.
    shift_gain_others: float = 3.0
    # The same from which a shifted label is an error: 0.04 at most in 3,000 subsets of 16 hearts without a fault, 0.18
    # and more for a label one slice off; below it is a warning.
    shift_gain_errors: float = 0.06
    # Median share of variance that the labels of a domain must explain for a shift to be judged among fewer than
    # ``cases_for_errors`` cases: 0.45 and 0.34 in cine and late-enhanced hearts, where few cases say nothing.
    explains_well: float = 0.5
    # Share of variance that a label must explain at its best place for shifts and flips to be judged.
    least_explained: float = 0.2
    # Explained variance that mirroring the label must add; mirroring a correct label lowers it.
    flip_gain: float = 0.15
    # Correlation of coarse structure from which two volumes are compared closely.
    duplicate_candidate: float = 0.5
    # Correlation of fine structure from which two volumes are copies: different images reach 0.54 (one heart in two
    # sequences), copies with other values or a small crop 0.88 and more.
    duplicate: float = 0.75
    # Other cases needed before one is called an outlier among them.
    least_cases: int = 3
    # Cases of a domain from which a comparison between cases may give an error; among fewer it gives a warning. With
    # errors from 3 cases on, subsets of 4 + 4 and 8 + 8 of 60 hearts without a fault gave one in 43 and 28 of 100.
    cases_for_errors: int = 15
    # Factor by which a stretch or a mirrored image must exceed its threshold to be an error; below it is a warning. 400
    # subsets of 16 + 16 hearts without a fault reached 1.35 (a stretch) and 1.3 (a mirrored image) once each.
    error_margin: float = 1.1
    # Deviation of a layout from the others', in spreads (root mean square), from which a flip or an exchange may
    # explain it: an abdomen that is turned upside down deviates by 1.2 and more.
    layout_deviation: float = 1.1
    # Share of that deviation that the explanation may leave: at most 0.65 of it where the fault is real, and 0.8 or
    # more where a clean layout happens to fit better otherwise.
    layout_left: float = 0.7
    # Deviation from which unexplained layouts are reported: at most 1.7 in clean sets.
    layout_elsewhere: float = 3.6
    # Other images needed before an image is called mirrored.
    mirror_cases: int = 5
    # Ratio of an image's similarity to the others, mirrored over as it is; at most 1.1 in clean sets this large.
    mirror_ratio: float = 1.25
    # The same between two domains, which differ in contrast.
    mirror_ratio_domains: float = 1.1
    # The same difference over its standard error.
    mirror_t: float = 4.0
    # Factor along the stack: at most 1.24 between people where image and structures are combined.
    stretch: float = 1.3
    # The same where only one of them is available: images alone reach 1.3.
    stretch_alone: float = 1.4
    # The same in standard deviations of the others.
    stretch_deviations: float = 4.0
    # Factor that image and structures must each reach.
    stretch_agreement: float = 1.1
    # Tolerance factor around the volumes in public data, because people outside that range exist.
    size_slack: float = 1.5
    # Factor by which all structures of a case together are larger or smaller than the others': 0.64 to 1.5 between
    # people; a scale of 0.7 along each axis alone is 0.34.
    size_factor: float = 1.8
    # Factor between the structures of two domains, which no image can confirm: 1.07 between cine and late enhancement,
    # which cover the heart differently.
    stretch_domains: float = 1.35


LIMITS = Limits()
