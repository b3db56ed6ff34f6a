"""Names that say where a structure lies, against where it does."""

from __future__ import annotations

import pytest
from scripts.lab.check.anatomy import find_wrong_sides
from scripts.lab.check.cases import ListedCase, MeasuredCase, Structure

NAMES = {1.0: "liver", 2.0: "Right_Kidney", 3.0: "left kidney", 4.0: "spleen"}

ABDOMEN = {1.0: (60.0, 20.0, 30.0), 2.0: (55.0, -40.0, -20.0), 3.0: (-55.0, -40.0, -20.0), 4.0: (-80.0, -20.0, 30.0)}
"""Centroids in mm: right, front and head are positive."""


def cases(centres: dict[float, tuple[float, float, float]], count: int = 3, name: str = "ct") -> list[MeasuredCase]:
    structures = {
        value: Structure(volume_ml=100.0, centre_mm=centre, spread_mm=(9.0, 9.0, 9.0))
        for value, centre in centres.items()
    }
    return [
        MeasuredCase(
            files=ListedCase(domain=name, section="training", name=str(k), image="", label=None, modality="CT"),
            structures=structures,
        )
        for k in range(count)
    ]


def exchanged(first: float, second: float) -> dict[float, tuple[float, float, float]]:
    return ABDOMEN | {first: ABDOMEN[second], second: ABDOMEN[first]}


def test_an_abdomen_as_it_is() -> None:
    assert find_wrong_sides(cases(ABDOMEN), NAMES) == []


@pytest.mark.parametrize("axis", [None, 0, 1, 2], ids=["as it is", "left-right", "front-back", "head-feet"])
def test_a_heart_without_a_right_ventricle(axis: int | None) -> None:
    """The aorta rises on the right of the left ventricle, and the left atrium lies behind it."""
    names = {1.0: "left ventricle", 2.0: "left atrium", 3.0: "ascending aorta"}
    heart = {1.0: (-25.0, 10.0, -20.0), 2.0: (0.0, -30.0, 10.0), 3.0: (15.0, 5.0, 50.0)}
    turned = {v: tuple(-x if k == axis else x for k, x in enumerate(place)) for v, place in heart.items()}
    findings = find_wrong_sides(cases(turned), names)
    assert [(one.severity, one.kind) for one in findings] == ([] if axis is None else [("error", "mirrored volume")])


@pytest.mark.parametrize(
    ("centres", "kind", "words"),
    [
        ({v: (-x, y, z) for v, (x, y, z) in ABDOMEN.items()}, "mirrored volume", ["liver is not right of the spleen"]),
        (exchanged(2.0, 3.0), "swapped labels", ["Right_Kidney is not right of the left kidney in 3 of 3 cases"]),
        (exchanged(1.0, 4.0), "swapped labels", ["liver is not right of the spleen"]),
        ({v: (x, -y, z) for v, (x, y, z) in ABDOMEN.items()}, "mirrored volume", ["not in front of the Right_Kidney"]),
        ({v: (x, y, -z) for v, (x, y, z) in ABDOMEN.items()}, "mirrored volume", ["not above the Right_Kidney"]),
    ],
    ids=["left-right", "kidneys", "liver and spleen", "front-back", "head-feet"],
)
def test_a_fault_that_all_cases_share(centres: dict, kind: str, words: list[str]) -> None:
    (finding,) = find_wrong_sides(cases(centres), NAMES)
    assert (finding.severity, finding.kind, finding.domain, finding.cases) == ("error", kind, "ct", ())
    assert all(word in finding.found for word in words), finding


def test_one_pair_alone_may_be_mirrored_or_exchanged() -> None:
    """Of a heart's two ventricles nothing tells which: both remedies are named."""
    names = {1.0: "left ventricle", 2.0: "right ventricle"}
    assert find_wrong_sides(cases({1.0: (-20.0, 0.0, 0.0), 2.0: (15.0, 0.0, 0.0)}), names) == []
    (finding,) = find_wrong_sides(cases({1.0: (20.0, 0.0, 0.0), 2.0: (-15.0, 0.0, 0.0)}), names)
    assert "exchange the names" in finding.remedy
    assert "mirror" in finding.remedy


def test_one_case_among_others_is_not_a_fault_of_the_domain() -> None:
    """One patient in five may have a situs inversus; the comparison between cases names it."""
    assert find_wrong_sides([*cases(ABDOMEN, 4), *cases(exchanged(2.0, 3.0), 1)], NAMES) == []


def test_names_that_say_nothing() -> None:
    assert find_wrong_sides(cases(exchanged(2.0, 3.0)), {value: f"label_{value:g}" for value in NAMES}) == []
