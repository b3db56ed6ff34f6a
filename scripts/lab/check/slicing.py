"""The slices that a task cuts against the slices that its volumes consist of: their axis, and the sides they show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from scripts.lab.check.cases import Finding, MeasuredCase, by_domain
from scripts.lab.check.limits import LIMITS

__all__ = ["find_turned_volumes", "find_wrong_slice_axis"]

PLANES = {"L": "sagittal", "R": "sagittal", "P": "coronal", "A": "coronal", "I": "axial", "S": "axial"}


def find_wrong_slice_axis(
    cases: Sequence[MeasuredCase], orientation: str | None, slice_axis: int | None
) -> list[Finding]:
    """Domains whose volumes are stacked along another axis than the one that the task cuts slices along."""
    if slice_axis is None:
        return []
    stacked = by_domain(
        cases, lambda case: case.shape and case.files.has_spacing and _thickness(case)[0] > LIMITS.thickest
    )
    findings = []
    for domain, group in stacked.items():
        across = [case for case in group if _frame_axis(case, orientation) != slice_axis]
        if not across:
            continue
        names = () if len(across) > len(group) / 2 else tuple(case.name for case in across)
        _, thick, fine = _thickness(across[0])
        others = [_shown_axis(other[0], orientation) for name, other in stacked.items() if name != domain]
        found = (
            f"slices are cut along axis {slice_axis}, but {len(across)} of {len(group)} volumes are stacked along axis "
            f"{_shown_axis(across[0], orientation)}: {thick:.3g} mm apart against {fine:.3g} mm between pixels"
        )
        found += f"; the other domain's along axis {others[0]}" if others else ""
        expected = "slices as they were acquired, along the thickest axis of both domains"
        remedy = "correct slice_axis or orientation in the task file, or leave out volumes acquired in another plane"
        findings.append(Finding("warning", "slice axis", domain, names, found, expected, remedy))
    return findings


def find_turned_volumes(cases: Sequence[MeasuredCase], orientation: str | None) -> list[Finding]:
    """Volumes along the axes of the body that are stored in several directions, where the stored axes are kept.

    Oblique volumes, such as short-axis hearts, count for nothing: their letters depend on a few degrees.
    """
    straight = [case for case in cases if case.shape and case.oblique_degrees < LIMITS.oblique_degrees]
    kinds = Counter(f"{case.orientation} in {case.domain}" for case in straight)
    if orientation is not None or len({case.orientation for case in straight}) < 2:
        return []
    found = "stored axes of several directions: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    expected = "one direction, as orientation: null shows the network all volumes as they are stored"
    remedy = "write orientation: RAS in the task file, or store the volumes alike"
    domains = ", ".join(dict.fromkeys(case.domain for case in straight))
    return [Finding("warning", "turned volumes", domains, (), found, expected, remedy)]


def _thickness(case: MeasuredCase) -> tuple[float, float, float]:
    """Ratio of the spacing between slices to the next largest one, and both in mm."""
    others = [edge for axis, edge in enumerate(case.spacing_mm) if axis != case.stack_axis]
    thick, fine = case.spacing_mm[case.stack_axis], max(others)
    return thick / fine, thick, fine


def _frame_axis(case: MeasuredCase, orientation: str | None) -> int:
    """The axis of the slices' frame that a case is stacked along."""
    if orientation is None:
        return case.stack_axis
    plane = PLANES[case.orientation[case.stack_axis]]
    return [PLANES[letter] for letter in orientation].index(plane)


def _shown_axis(case: MeasuredCase, orientation: str | None) -> str:
    axis = _frame_axis(case, orientation)
    return f"{axis} ({PLANES[orientation[axis]]} slices)" if orientation else f"{axis} as stored"
