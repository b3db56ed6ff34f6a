"""Comparisons between cases: labels shifted against their images, and wrong slice spacings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scripts.lab.check.cases import Finding, MeasuredCase, Severity, by_domain, others_of
from scripts.lab.check.limits import LIMITS
from scripts.lab.check.proportions import Stretch, middle_proportions, proportions_of, stretch_of

__all__ = ["find_shifted_labels", "find_wrong_spacing"]


def find_shifted_labels(cases: Sequence[MeasuredCase]) -> list[Finding]:
    """Labels that explain their image better when shifted by one or two voxels, and domains in which all labels do.

    The gain of moving a label is compared with the gains in the other cases of the domain.
    """
    findings = []
    for domain, group in by_domain(cases, lambda case: case.alignment).items():
        fit = np.median([case.alignment.best_explained for case in group if case.alignment])
        if len(group) < LIMITS.cases_for_errors and fit < LIMITS.explains_well:
            continue
        gains = {id(case): _gain(case) for case in group}
        typical = np.median([_shift(case) for case in group], axis=0)
        is_common = len(group) >= LIMITS.least_cases and np.abs(typical).max() >= LIMITS.shift_voxel
        if is_common and np.median(list(gains.values())) >= LIMITS.shift_gain and _is_consistent(group, typical):
            findings.append(_shift_finding(domain, (), typical, float(np.median(list(gains.values())))))
            continue
        for case in group:
            others = [gains[id(other)] for other in others_of(group, case)]
            usual = float(np.percentile(others, 95, method="higher")) if others else 0.0
            shift, own = _shift(case), case.alignment
            is_inside = np.abs(shift).max() < 2 and own is not None and own.best_explained >= LIMITS.least_explained
            is_clear = gains[id(case)] >= max(LIMITS.shift_gain, LIMITS.shift_gain_others * usual)
            if is_inside and is_clear and np.abs(shift).max() >= LIMITS.shift_voxel:
                severity: Severity = "error" if gains[id(case)] >= LIMITS.shift_gain_errors else "warning"
                findings.append(_shift_finding(domain, (case.name,), shift, gains[id(case)], severity))
    return findings


def _shift(case: MeasuredCase) -> np.ndarray:
    return np.array(case.alignment.shift_voxel if case.alignment else (0.0, 0.0, 0.0))


def _gain(case: MeasuredCase) -> float:
    fit = case.alignment
    return 0.0 if fit is None or fit.best_explained <= 0 else 1 - fit.explained / fit.best_explained


def _is_consistent(group: Sequence[MeasuredCase], typical: np.ndarray) -> bool:
    """Whether three quarters of the cases have a similar shift along the axis with the largest shift."""
    axis = int(np.abs(typical).argmax())
    return float(np.mean([abs(_shift(case)[axis] - typical[axis]) < 0.5 for case in group])) >= 0.75


def _shift_finding(
    domain: str, names: tuple[str, ...], shift: np.ndarray, gain: float, severity: Severity = "error"
) -> Finding:
    place = ", ".join(f"{value:+.1f}" for value in shift)
    found = (
        f"{'a label' if names else 'labels'} that would fit better ({100 * gain:.0f} % more variance explained) "
        f"when moved by ({place}) voxels along the stored axes"
    )
    remedy = "check the outlines; if they are shifted, correct the origin or the cropping of the label"
    return Finding(severity, "label off its image", domain, names, found, "the best fit without a shift", remedy)


def find_wrong_spacing(cases: Sequence[MeasuredCase]) -> list[Finding]:
    """Cases and domains that are stretched along the stack of slices."""
    groups = by_domain(cases, lambda case: case.shape)
    seen = {id(case): proportions_of(case.structures, case.stack_axis, case.grain) for case in cases if case.shape}
    findings = []
    for domain, group in groups.items():
        for case in group:
            others = [seen[id(other)] for other in others_of(group, case)]
            stretch = stretch_of(seen[id(case)], others) if len(others) >= LIMITS.least_cases else None
            has_both = stretch is not None and stretch.height is not None and stretch.grain is not None
            least = LIMITS.stretch if has_both else LIMITS.stretch_alone
            if stretch and _is_stretched(stretch, least):
                spacing_mm = case.spacing_mm[case.stack_axis]
                findings.append(_stretch_finding(domain, (case.name,), stretch, least, spacing_mm))
    labelled = {domain: [seen[id(case)] for case in group if case.structures] for domain, group in groups.items()}
    for first, second in combinations([name for name in labelled if len(labelled[name]) >= LIMITS.least_cases], 2):
        between = stretch_of(middle_proportions(labelled[first]), labelled[second])
        if between and between.height is not None and _is_stretched(between, LIMITS.stretch_domains):
            findings.append(_stretch_finding(f"{first}, {second}", (), between, LIMITS.stretch_domains))
    return findings


def _is_stretched(stretch: Stretch, factor: float) -> bool:
    size = max(stretch.factor, 1 / stretch.factor)
    is_far = size >= factor and abs(stretch.deviations) >= LIMITS.stretch_deviations
    return is_far and stretch.agrees(LIMITS.stretch_agreement)


def _stretch_finding(
    domain: str, cases: tuple[str, ...], stretch: Stretch, least: float, spacing_mm: float | None = None
) -> Finding:
    estimates = {"structures": stretch.height, "image": stretch.grain, "volumes": stretch.volume}
    detail = ", ".join(f"{name} {value:.2f}" for name, value in estimates.items() if value is not None)
    whom = "the others" if cases else "the second domain's"
    expected = "the same proportions" if spacing_mm is None else f"a spacing near {spacing_mm / stretch.factor:.2g} mm"
    has = "" if spacing_mm is None else f", at a spacing of {spacing_mm:.3g} mm"
    found = f"a body {stretch.factor:.2f} times as long along the stack of slices as {whom}{has} ({detail})"
    remedy = "compute the spacing from the slice positions of the original, and correct the header" + (
        " of image and label" if cases else " of the domain that is wrong"
    )
    severity: Severity = "error" if _is_stretched(stretch, least * LIMITS.error_margin) else "warning"
    return Finding(severity, "wrong slice spacing", domain, cases, found, expected, remedy)
