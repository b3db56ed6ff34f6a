"""Mirrored and rotated volumes and exchanged labels, found by the positions of structures and by the images."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scripts.lab.check.cases import Finding, MeasuredCase, Severity, by_domain, others_of
from scripts.lab.check.fingerprints import mirrored, similarity
from scripts.lab.check.layout import AXES, Explanation, Layout, explain_layout, middle_layout, reference_of
from scripts.lab.check.limits import LIMITS

__all__ = ["find_mirrored_images", "find_misplaced_structures"]

# Approximate number of images that an image is compared with.
MOST_COMPARED = 20

_FLIPS: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


def find_misplaced_structures(
    cases: Sequence[MeasuredCase], names: Mapping[float, str], axes: Sequence[str] = AXES
) -> list[Finding]:
    """Cases and domains whose structures are mirrored, rotated, exchanged or displaced compared with the others."""
    layouts: dict[int, Layout] = {
        id(case): {int(value): structure.centre_mm for value, structure in case.structures.items()} for case in cases
    }
    groups = by_domain(cases, lambda case: case.structures)
    findings, in_conflict = [], set()
    for first, second in combinations(groups, 2):
        middle = middle_layout([layouts[id(case)] for case in groups[first]])
        explanation = explain_layout(middle, reference_of([layouts[id(case)] for case in groups[second]]))
        if explanation.kind != "as it is" and _is_clear(explanation):
            in_conflict |= {first, second}
            whom = f"{second} when {first} is compared"
            findings.append(_layout_finding(f"{first}, {second}", (), explanation, whom, names, axes))
    agreeing = [case for domain, group in groups.items() if domain not in in_conflict for case in group]
    for domain, group in groups.items():
        for case in group:
            others = [layouts[id(other)] for other in others_of(group if domain in in_conflict else agreeing, case)]
            explanation = explain_layout(layouts[id(case)], reference_of(others))
            if len(others) >= LIMITS.least_cases and _is_clear(explanation):
                findings.append(_layout_finding(domain, (case.name,), explanation, "the others", names, axes))
    return findings


def _is_clear(explanation: Explanation) -> bool:
    if explanation.kind == "as it is":
        return explanation.deviation >= LIMITS.layout_elsewhere
    return (
        explanation.deviation >= LIMITS.layout_deviation
        and explanation.remaining <= LIMITS.layout_left * explanation.deviation
    )


def _layout_finding(
    domain: str,
    cases: tuple[str, ...],
    explanation: Explanation,
    whom: str,
    names: Mapping[float, str],
    axes: Sequence[str],
) -> Finding:
    kind, remedy = "structures elsewhere", "check the pictures for another body part or labels of another case"
    severity: Severity = "warning" if explanation.kind == "as it is" else "error"
    rivals = [rival for rival in explanation.rivals if rival[0] != "as it is"]
    correction = " or ".join(
        _explanation(*explained, names, axes) for explained in [(explanation.kind, explanation.what), *rivals]
    )
    if explanation.kind == "flipped":
        kind, remedy = "mirrored volume", "correct the affine, or flip the volume back"
    if explanation.kind == "swapped":
        kind, remedy = "swapped labels", "exchange the two values in the label map"
    found = f"structures {explanation.deviation:.1f} spreads from their positions in {whom}"
    if explanation.kind != "as it is":
        found += f", {explanation.remaining:.1f} if {correction}"
    expected = f"the same arrangement in {'all cases' if cases else 'both domains'}"
    remedy = remedy if cases else f"find out from the pictures which of the two is wrong; {remedy}"
    return Finding(severity, kind, domain, cases, found, expected, remedy)


def _explanation(kind: str, what: tuple[int, ...], names: Mapping[float, str], axes: Sequence[str]) -> str:
    if kind == "swapped":
        return f"{names.get(what[0], what[0])} and {names.get(what[1], what[1])} exchanged"
    if kind == "flipped":
        return f"mirrored {' and '.join(axes[axis] for axis in what)}"
    return "they are"


def find_mirrored_images(
    cases: Sequence[MeasuredCase], already: Collection[tuple[str, str]], axes: Sequence[str] = AXES
) -> list[Finding]:
    """Images that are more similar to the others of their domain when mirrored, and the same between domains.

    Labels are not used. Images rarely distinguish left and right, but anterior and posterior, and head and feet.
    ``already`` holds domain and name of cases, and pairs of domains, that were found by their structures.
    """
    findings, upright = [], {}
    for domain, group in by_domain(cases, lambda case: case.spectrum is not None).items():
        upright[domain] = [case for case in group if (domain, case.name) not in already]
        for case, flip, ratio in _taken_out(upright[domain]):
            findings.append(_mirror_finding(domain, (case.name,), flip, ratio, axes))
    for first, second in combinations(upright, 2):
        if (first, second) in already or min(len(upright[first]), len(upright[second])) <= LIMITS.mirror_cases:
            continue
        others = _thinned(upright[second])
        rows = [np.mean([_likeness(case, other) for other in others], axis=0) for case in _thinned(upright[first])]
        flip, ratio, deviations = _best_flip(np.array(rows))
        if ratio >= LIMITS.mirror_ratio_domains and deviations >= LIMITS.mirror_t:
            findings.append(_mirror_finding(f"{first}, {second}", (), flip, ratio, axes))
    return findings


def _taken_out(group: list[MeasuredCase]) -> Iterator[tuple[MeasuredCase, tuple[int, ...], float]]:
    """Remove mirrored cases from a group, the clearest first, so that they do not affect the others."""
    known: dict[tuple[int, int], NDArray[np.float64]] = {}
    while len(group) > LIMITS.mirror_cases:
        clear = []
        for case in group:
            others = _thinned(others_of(group, case))
            for other in others:
                if (id(case), id(other)) not in known:
                    known[id(case), id(other)] = _likeness(case, other)
            flip, ratio, deviations = _best_flip(np.array([known[id(case), id(other)] for other in others]))
            if ratio >= LIMITS.mirror_ratio and deviations >= LIMITS.mirror_t:
                clear.append((ratio, flip, case))
        if not clear:
            return
        ratio, flip, case = max(clear, key=lambda one: one[0])
        group.remove(case)
        yield case, flip, ratio


def _likeness(case: MeasuredCase, other: MeasuredCase) -> NDArray[np.float64]:
    """Similarity of two images under each flip (8,), the first being none."""
    assert case.spectrum is not None
    assert other.spectrum is not None
    return np.array([similarity(mirrored(case.spectrum, flip), other.spectrum) for flip in _FLIPS])


def _thinned(group: Sequence[MeasuredCase]) -> Sequence[MeasuredCase]:
    return group[:: max(len(group) // MOST_COMPARED, 1)]


def _best_flip(likeness: NDArray[np.float64]) -> tuple[tuple[int, ...], float, float]:
    """The flip with the highest similarity: axes, ratio of similarities, their difference in standard errors.

    ``likeness`` (n, 8) is the similarity to n others under each flip, the first being none.
    """
    means = likeness.mean(0)
    best = int(means[1:].argmax()) + 1
    gain = likeness[:, best] - likeness[:, 0]
    error = max(float(gain.std(ddof=1)) / math.sqrt(len(gain)), 1e-6)
    return _FLIPS[best], float(means[best] / max(means[0], 1e-6)), float(gain.mean() / error)


def _mirror_finding(
    domain: str, cases: tuple[str, ...], flip: tuple[int, ...], ratio: float, axes: Sequence[str]
) -> Finding:
    what = "an image that is" if cases else "images that are"
    whom = "the others" if cases else "the second domain's"
    found = f"{what} {ratio:.1f} times as similar to {whom} when {_explanation('flipped', flip, {}, axes)}"
    remedy = "correct the affine, or flip the volume back"
    remedy += "" if cases else "; the pictures show which of the two domains is wrong"
    is_clear = ratio >= LIMITS.mirror_ratio * LIMITS.error_margin
    severity: Severity = "error" if cases and is_clear else "warning"
    return Finding(severity, "mirrored volume", domain, cases, found, "all images the same way up", remedy)
