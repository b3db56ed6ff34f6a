"""Checks of a single case: files, headers, intensities, label values, rims, mirrored labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scripts.data.geometry import AFFINE_TOLERANCE_MM
from scripts.lab.check.cases import Finding, MeasuredCase
from scripts.lab.check.limits import LIMITS

__all__ = ["find_unlabelled_structures", "judge_case", "listed"]

_AXES = ("first", "second", "third")


def judge_case(
    case: MeasuredCase,
    names: Mapping[float, str],
    known: Collection[float] | None,
    scaled_within: tuple[float, float] | None = None,
) -> list[Finding]:
    """Findings on a case that need no other case.

    Args:
        case: as measured.
        names: of the structures by value; every label map should show all of them.
        known: every value that a label map may have besides 0; None for any.
        scaled_within: intensity range that the task expects of scaled volumes; None for others.
    """
    if not case.shape:
        return list(case.findings)
    checks = [_field_of_view(case), *_headers(case), _unit(case, scaled_within)]
    if case.label_shape:
        checks += [_grid(case), *_values(case, names, known), _rims(case), _mirrored_label(case)]
    return [*case.findings, *(finding for finding in checks if finding is not None)]


def find_unlabelled_structures(
    cases: Sequence[MeasuredCase], names: Mapping[float, str], source_domain: str | None
) -> list[Finding]:
    """Structures of the task without a voxel in the source's training label maps (or all, without such a list)."""
    labelled = [case for case in cases if case.label_shape and case.files.domain == source_domain]
    trained = [case for case in labelled if case.files.section == "training"] or labelled
    absent = [name for value, name in names.items() if not any(value in case.volumes_ml for case in trained)]
    if not trained or not absent:
        return []
    found, expected = f"no voxel of {listed(absent)} in {len(trained)} label maps", "some of every structure"
    remedy = "correct label_values in the task file, or add labelled cases"
    return [Finding("error", "nothing to learn", str(source_domain), (), found, expected, remedy)]


def listed(values: Sequence[Any], most: int = 8) -> str:
    """Values or names in one line, at most ``most``."""
    shown = ", ".join(f"{value:g}" if isinstance(value, int | float) else str(value) for value in values[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")


def _field_of_view(case: MeasuredCase) -> Finding | None:
    edges = [size * edge for size, edge in zip(case.shape, case.spacing_mm, strict=True)]
    if LIMITS.smallest_field_mm <= min(edges) and max(edges) <= LIMITS.largest_field_mm:
        return None
    found = f"a volume of {' x '.join(f'{edge:.0f}' for edge in edges)} mm"
    expected = f"edges of {LIMITS.smallest_field_mm:g} to {LIMITS.largest_field_mm:g} mm"
    return case.finding("warning", "field of view", found, expected, "correct the spacing in the header")


def _headers(case: MeasuredCase) -> list[Finding]:
    """A warning for each inconsistent or missing entry, which libraries resolve differently."""
    remedy = "rewrite qform, sform, spacing and unit from the original; 'prepare' does it"
    return [
        case.finding("warning", "unclear header", note, "one position, in mm", remedy) for note in case.header_notes
    ]


def _unit(case: MeasuredCase, scaled_within: tuple[float, float] | None) -> Finding | None:
    lowest, highest = min(case.percentiles.values()), max(case.percentiles.values())
    if scaled_within is not None:
        if scaled_within[0] <= lowest and highest <= scaled_within[1]:
            return None
        found, expected = f"intensities of {lowest:.4g} to {highest:.4g}", "volumes scaled to about -1 to 1"
        remedy = "prepare them with the protocol of this task file, or take the task file for volumes in their own unit"
        return case.finding("error", "not scaled", found, expected, remedy)
    modality = case.files.modality.upper().split() if case.files.has_unit else []
    if "CT" in modality and lowest >= LIMITS.ct_air_hu:
        found, expected = f"no value below {lowest:g} in a CT", "air and fat below 0 HU"
        remedy = "apply the rescale slope and intercept, or choose an intensity window for this unit"
        return case.finding("warning", "not in Hounsfield units", found, expected, remedy)
    if "MR" in modality and highest <= LIMITS.mr_scaled:
        found, expected = f"an MR of {lowest:.3g} to {highest:.3g}", "the scanner's unit, up to hundreds"
        remedy = "use the original if possible: values clipped by a window or scaled per slice are lost"
        return case.finding("warning", "already scaled", found, expected, remedy)
    return None


def _grid(case: MeasuredCase) -> Finding | None:
    if case.label_shape != case.shape:
        found, expected = f"a label of {case.label_shape} voxels", f"{case.shape} as the image"
    elif (case.affine_gap_mm or 0.0) > AFFINE_TOLERANCE_MM:
        found, expected = f"a label whose affine differs by up to {case.affine_gap_mm:.3g} mm", "the image's affine"
    else:
        return None
    remedy = "resample the label to the image's grid, or copy the image's header if only that is wrong"
    return case.finding("error", "label on another grid", found, expected, remedy)


def _values(case: MeasuredCase, names: Mapping[float, str], known: Collection[float] | None) -> list[Finding]:
    values = sorted(case.volumes_ml)
    if not values:
        remedy = "leave the label out, or export it again if something should be there"
        return [case.finding("warning", "empty label", "a label map of background alone", "structures", remedy)]
    broken = [value for value in values if value != round(value)]
    if broken or len(values) > LIMITS.most_values:
        found = f"{len(values)} label values, among them {listed(broken or values, 4)}"
        remedy = "resample the original label map with nearest neighbour"
        return [case.finding("error", "interpolated label", found, "whole numbers, one for each class", remedy)]
    findings = []
    unknown = [value for value in values if value < 0 or (known is not None and value not in known)]
    if unknown:
        found = f"label value(s) {listed(unknown)}"
        expected = f"only 0, {listed(sorted(known), 20)}" if known else "whole numbers from 0 on"
        remedy = "add them to label_values or background_values of the task file, or correct the label map"
        findings.append(case.finding("error", "unknown label value", found, expected, remedy))
    missing = [name for value, name in names.items() if value not in case.volumes_ml]
    if missing:
        found, remedy = f"no {listed(missing)}", "check whether the volume contains it; complete the label if it does"
        findings.append(case.finding("warning", "missing structure", found, "every structure of the task", remedy))
    return findings


def _rims(case: MeasuredCase) -> Finding | None:
    rims = {value: share for value, share in case.rims.items() if share > LIMITS.rim_share}
    if not rims or len(case.volumes_ml) > LIMITS.most_values:
        return None
    value, share = max(rims.items(), key=lambda item: item[1])
    found = f"a thin rim of intermediate values around value {value:g} ({100 * share:.0f} % of its surface)"
    remedy = "resample the original label map with nearest neighbour, or class by class"
    return case.finding("error", "interpolated label", found, "classes without intermediate values", remedy)


def _mirrored_label(case: MeasuredCase) -> Finding | None:
    fit = case.alignment
    if fit is None or max(fit.flipped_explained) < max(LIMITS.least_explained, fit.best_explained + LIMITS.flip_gain):
        return None
    axis = fit.flipped_explained.index(max(fit.flipped_explained))
    found = (
        f"a label that explains {100 * fit.explained:.0f} % of its image's variance, and "
        f"{100 * max(fit.flipped_explained):.0f} % when mirrored along the {_AXES[axis]} axis"
    )
    remedy = "mirror the label along that axis, or the image if the label is right"
    return case.finding("error", "label mirrored against its image", found, "the best fit without mirroring", remedy)
