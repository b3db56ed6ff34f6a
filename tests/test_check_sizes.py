"""Volumes of structures against those of people and of the other cases, by hand."""

from __future__ import annotations

import pytest
from scripts.lab.check.cases import ListedCase, MeasuredCase, Structure
from scripts.lab.check.sizes import find_wrong_sizes, most_common_factor

HEART = ("left ventricle", "myocardium", "right ventricle")
ABDOMEN = ("liver", "right kidney", "left kidney", "spleen")


def kinds_of(names: tuple[str, ...], *volumes_ml: tuple[float, ...]) -> dict[tuple[str, ...], str]:
    """The findings, cases and kind, on cases 0, 1 and so on with these volumes of the structures."""
    cases = []
    for index, each in enumerate(volumes_ml):
        files = ListedCase(domain="mr", section="training", name=str(index), image="", label="", modality="MR")
        place = {"centre_mm": (0.0, 0.0, 0.0), "spread_mm": (9.0, 9.0, 9.0)}
        structures = {float(value): Structure(volume_ml=ml, **place) for value, ml in enumerate(each, start=1)}
        cases.append(MeasuredCase(files=files, structures=structures))
    findings = find_wrong_sizes(cases, {float(value): name for value, name in enumerate(names, start=1)})
    return {finding.cases: finding.kind for finding in findings}


def test_hearts_of_a_child_everywhere_are_found() -> None:
    """Slices 8 mm apart whose header says 1 mm: 120, 110 and 140 ml become an eighth of that."""
    assert kinds_of(HEART, *[(120.0, 110.0, 140.0)] * 4) == {}
    assert kinds_of(HEART, *[(15.0, 13.75, 17.5)] * 4) == {(): "implausible size"}


@pytest.mark.parametrize(("others", "factor"), [(3, 2.066), (10, 1.882), (1000, 1.801)])
def test_few_cases_allow_a_larger_factor(others: int, factor: float) -> None:
    """1.8 to the power of sqrt(1 + pi / 2n): for n = 3 of sqrt(1.5236) = 1.2343, exp(1.2343 x 0.5878) = 2.066; for
    n = 10 of sqrt(1.1571) = 1.0757, exp(0.6323) = 1.882.
    """
    assert most_common_factor(others) == pytest.approx(factor, abs=0.001)


def test_a_small_patient_among_four_is_a_person() -> None:
    """Structures 1 / 1.95 times as large as the three others': a person; 1 / 2.2 times: an outdated header."""
    usual = (140.0, 150.0, 160.0)

    def four(factor: float) -> list[tuple[float, ...]]:
        return [usual, usual, usual, tuple(volume / factor for volume in usual)]

    assert kinds_of(HEART, *four(1.95)) == {}
    assert kinds_of(HEART, *four(2.2)) == {("3",): "implausible size"}


def test_atrophic_kidneys_and_a_huge_spleen_are_people() -> None:
    usual = (1500.0, 150.0, 160.0, 200.0)
    assert kinds_of(ABDOMEN, usual, (1500.0, 10.0, 11.0, 200.0), (1500.0, 150.0, 160.0, 3000.0), usual) == {}
