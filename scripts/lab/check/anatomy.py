"""Structures whose names say where they lie in the body: right of, above or in front of another one.

Comparisons between cases miss a fault that all cases share. Names do not: a liver is right of a spleen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.lab.check.cases import Finding, MeasuredCase, by_domain

__all__ = ["find_wrong_sides"]

# Axis in RAS, and the word for its positive direction.
RIGHT, FRONT, HEAD = (0, "right of"), (1, "in front of"), (2, "above")

# Pairs of names that always lie so: the first one right of, in front of or above the second one.
ALWAYS = (
    ("liver", RIGHT, "spleen"),
    ("liver", RIGHT, "left kidney"),
    ("right kidney", RIGHT, "spleen"),
    ("liver", FRONT, "right kidney"),
    ("liver", HEAD, "right kidney"),
    ("left ventricle", FRONT, "left atrium"),
    ("ascending aorta", RIGHT, "left ventricle"),
    ("ascending aorta", HEAD, "left ventricle"),
)

# Centroids nearer to each other than this say nothing.
LEAST_MM = 5.0
# Share of a domain's cases that must agree for a fault of the whole domain.
SHARE = 0.8


@dataclass(frozen=True)
class _Relation:
    """A spatial relation of two structures of a task, and the number of cases that violate it."""

    first: float
    second: float
    axis: int
    word: str
    wrong: int
    counted: int


def find_wrong_sides(cases: Sequence[MeasuredCase], names: Mapping[float, str]) -> list[Finding]:
    """Domains whose cases, measured along the axes of the body, nearly all contradict the names of their structures."""
    findings = []
    for domain, group in by_domain(cases, lambda case: case.structures and case.files.has_spacing).items():
        relations = [_counted(relation, group) for relation in _relations(names)]
        for axis in range(3):
            of_axis = [relation for relation in relations if relation.axis == axis and relation.counted]
            if violated := [relation for relation in of_axis if relation.wrong >= SHARE * relation.counted]:
                findings.append(_finding(domain, of_axis, violated, names))
    return findings


def _relations(names: Mapping[float, str]) -> list[tuple[float, float, int, str]]:
    value_of = {re.sub(r"[\W_]+", " ", name).strip().lower(): value for value, name in names.items()}
    pairs = [(name, RIGHT, re.sub(r"\bright\b", "left", name)) for name in value_of if re.search(r"\bright\b", name)]
    return [
        (value_of[first], value_of[second], axis, word)
        for first, (axis, word), second in [*pairs, *ALWAYS]
        if first in value_of and second in value_of
    ]


def _counted(relation: tuple[float, float, int, str], cases: Sequence[MeasuredCase]) -> _Relation:
    first, second, axis, word = relation
    both = [case.structures for case in cases if {first, second} <= case.structures.keys()]
    ahead = [shown[first].centre_mm[axis] - shown[second].centre_mm[axis] for shown in both]
    return _Relation(first, second, axis, word, sum(gap < -LEAST_MM for gap in ahead), len(both))


def _finding(
    domain: str, relations: Sequence[_Relation], violated: Sequence[_Relation], names: Mapping[float, str]
) -> Finding:
    """One finding for an axis: mirrored if every relation is violated, else two structures exchanged."""
    sentences = [
        f"the {names[one.first]} is not {one.word} the {names[one.second]} in {one.wrong} of {one.counted} cases"
        for one in violated
    ]
    expected = f"the {names[violated[0].first]} {violated[0].word} the {names[violated[0].second]}"
    pairs = " or ".join(f"{names[one.first]} and {names[one.second]}" for one in violated)
    exchanged = f"exchange the names or values of {pairs}"
    mirrored = "correct the affines, or mirror the volumes back"
    if len(violated) < len(relations):
        kind, remedy = "swapped labels", exchanged
    elif len(relations) > 1:
        kind, remedy = "mirrored volume", f"{mirrored}; names in the wrong order are possible, too"
    else:
        kind, remedy = "mirrored volume", f"look at a picture: {exchanged}, or {mirrored}"
    return Finding("error", kind, domain, (), "; ".join(sentences), expected, remedy)
