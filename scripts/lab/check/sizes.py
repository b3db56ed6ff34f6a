"""Are structures as large as people's are? By the volumes that people have, and by the others of the domain.

A header that went stale when a volume was resized or cropped changes every structure by one factor, which no comparison
of shapes along the stack can see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from scripts.lab.check.cases import Case, Finding, by_domain, others_of
from scripts.lab.check.limits import LIMITS, VOLUMES_ML

__all__ = ["common_factor", "find_wrong_sizes"]

Volumes = Mapping[float, float]
"""Volume in ml of each structure, by its value."""

_REMEDY = "compare the spacing in the header with the original's: resizing or cropping leaves it stale"


def find_wrong_sizes(cases: Sequence[Case], names: Mapping[float, str]) -> list[Finding]:
    """Domains and cases whose structures are no person's size, and cases far from the others of their domain.

    All are warnings: organs may be atrophic or enlarged. Where the spacing is known to be missing nothing is said.

    Args:
        cases: as measured.
        names: of structures, by value.
    """
    findings = []
    for domain, group in by_domain(cases, lambda case: case.structures and case.files.has_spacing).items():
        volumes = {id(case): _volumes(case, names) for case in group}
        middle = _medians(list(volumes.values()))
        odd = _implausible(middle, names) if len(group) >= LIMITS.least_cases else []
        if odd:
            findings.append(_finding(domain, (), f"medians of {', '.join(odd)}", "volumes that people have"))
            continue
        for case in group:
            others = [volumes[id(other)] for other in others_of(group, case)]
            factor = common_factor(volumes[id(case)], others) if len(others) >= LIMITS.least_cases else 1.0
            odd = _implausible(volumes[id(case)], names)
            if max(factor, 1 / factor) >= LIMITS.size_factor:
                found = f"structures {factor:.2g} times as large as the others' median, all together and one by one"
                findings.append(_finding(domain, (case.name,), found, f"less than {LIMITS.size_factor:g} times apart"))
            elif odd:
                findings.append(_finding(domain, (case.name,), ", ".join(odd), "volumes that people have"))
    return findings


def common_factor(case: Volumes, others: Sequence[Volumes]) -> float:
    """By what factor all structures of a case are larger than others'; 1 where they do not agree.

    Two things must say it: the sum of the volumes and the median of the structures' own factors; the smaller is taken.
    One organ that is enlarged moves the first alone, and small ones that are atrophic at most the second.

    Args:
        case: its volumes.
        others: of the same domain.
    """
    shared = [other for other in others if case.keys() <= other.keys()]
    if not case or not shared:
        return 1.0
    whole = math.log(sum(case.values()) / float(np.median([sum(other[v] for v in case) for other in shared])))
    each = float(np.median([math.log(case[v] / float(np.median([other[v] for other in shared]))) for v in case]))
    return math.exp(math.copysign(min(abs(whole), abs(each)), whole)) if whole * each > 0 else 1.0


def _volumes(case: Case, names: Mapping[float, str]) -> dict[float, float]:
    """Volumes of the named structures; of all where none is named."""
    return {value: one.volume_ml for value, one in case.structures.items() if value in names or not names}


def _medians(cases: Sequence[Volumes]) -> dict[float, float]:
    values = sorted({value for case in cases for value in case})
    return {value: float(np.median([case[value] for case in cases if value in case])) for value in values}


def _implausible(volumes: Volumes, names: Mapping[float, str]) -> list[str]:
    """Structures whose volume no person has, each with it and with the range."""
    odd = []
    for value, volume in volumes.items():
        low, high = VOLUMES_ML.get(names.get(value, "").lower().replace("_", " "), (0.0, math.inf))
        if not low / LIMITS.size_slack <= volume <= high * LIMITS.size_slack:
            odd.append(f"{names[value]} {volume:.3g} ml (people: {low:g} to {high:g})")
    return odd


def _finding(domain: str, cases: tuple[str, ...], found: str, expected: str) -> Finding:
    return Finding(
        severity="warning",
        kind="implausible size",
        domain=domain,
        cases=cases,
        found=found,
        expected=expected,
        remedy=_REMEDY,
    )
