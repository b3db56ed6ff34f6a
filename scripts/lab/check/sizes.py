"""Volumes of structures compared with those of adults and with the other cases of the domain.

A header that was not updated after resizing scales all structures by one factor, which comparisons of shapes cannot
find.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scripts.lab.check.cases import Finding, MeasuredCase, by_domain, medians, others_of
from scripts.lab.check.limits import LIMITS, VOLUMES_ML

__all__ = ["common_factor", "find_wrong_sizes", "most_common_factor"]

# Volume in ml of each structure, by its value.
Volumes = Mapping[float, float]

_KIND = "implausible size"
_REMEDY = "compare the spacing in the header with the original's: it may be outdated after resizing or cropping"


def find_wrong_sizes(cases: Sequence[MeasuredCase], names: Mapping[float, str]) -> list[Finding]:
    """Domains and cases with structures of implausible volume, and outliers within their domain.

    All are warnings: organs may be atrophic or enlarged. Cases without a spacing are skipped.
    """
    findings = []
    for domain, group in by_domain(cases, lambda case: case.structures and case.files.has_spacing).items():
        volumes = {id(case): _volumes(case, names) for case in group}
        middle = medians(list(volumes.values()))
        odd = _implausible(middle, names) if len(group) >= LIMITS.least_cases else []
        if odd:
            found = f"medians of {', '.join(odd)}"
            findings.append(Finding("warning", _KIND, domain, (), found, "plausible volumes", _REMEDY))
            continue
        for case in group:
            others = [volumes[id(other)] for other in others_of(group, case)]
            factor = common_factor(volumes[id(case)], others) if len(others) >= LIMITS.least_cases else 1.0
            odd = _implausible(volumes[id(case)], names)
            most = most_common_factor(len(others))
            if max(factor, 1 / factor) >= most:
                found = f"structures {factor:.2g} times as large as the others' median, in total and individually"
                expected = f"a factor below {most:.3g} among {len(group)} cases"
                findings.append(case.finding("warning", _KIND, found, expected, _REMEDY))
            elif odd:
                findings.append(case.finding("warning", _KIND, ", ".join(odd), "plausible volumes", _REMEDY))
    return findings


def common_factor(case: Volumes, others: Sequence[Volumes]) -> float:
    """The factor by which all structures of a case are larger than those of others; 1 if the structures disagree.

    It is the smaller of two estimates, from the sum of the volumes and from the median factor of the structures: one
    enlarged organ changes only the first, small atrophic organs at most the second.
    """
    shared = [other for other in others if case.keys() <= other.keys()]
    if not case or not shared:
        return 1.0
    whole = math.log(sum(case.values()) / float(np.median([sum(other[v] for v in case) for other in shared])))
    each = float(np.median([math.log(case[v] / float(np.median([other[v] for other in shared]))) for v in case]))
    return math.exp(math.copysign(min(abs(whole), abs(each)), whole)) if whole * each > 0 else 1.0


def most_common_factor(others: int) -> float:
    """The largest usual factor between a case and the median of others: 2.1 for three others, 1.8 for many.

    The variance of a median of n normal values is pi / 2n of that of one value, which adds to the variance of the case.
    """
    return LIMITS.size_factor ** math.sqrt(1 + math.pi / (2 * max(others, 1)))


def _volumes(case: MeasuredCase, names: Mapping[float, str]) -> dict[float, float]:
    """Volumes of the named structures; of all if there are no names."""
    return {value: one.volume_ml for value, one in case.structures.items() if value in names or not names}


def _implausible(volumes: Volumes, names: Mapping[float, str]) -> list[str]:
    """Structures of implausible volume, with their volume and the normal range."""
    odd = []
    for value, volume in volumes.items():
        low, high = VOLUMES_ML.get(names.get(value, "").lower().replace("_", " "), (0.0, math.inf))
        if not low / LIMITS.size_slack <= volume <= high * LIMITS.size_slack:
            odd.append(f"{names[value]} {volume:.3g} ml (people: {low:g} to {high:g})")
    return odd
