"""False alarms of the check on real volumes without a fault: at most one error in 100 random subsets of any size."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ROOT
from scripts.lab.check import copies, orientation
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.run_check import TaskLabels, judge_cases, measure_and_judge

DATA = ROOT.parent / "shared" / "data"
SUBSETS = 100


def remembered(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The same comparison, made once for each pair."""
    known: dict[tuple[int, int], Any] = {}

    def looked_up(first: Any, second: Any) -> Any:
        key = (id(first), id(second))
        if key not in known:
            known[key] = compare(first, second)
        return known[key]

    return looked_up


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cardiac_cmr", "abdomen"])
def test_volumes_without_a_fault_give_no_errors_in_subsets_of_any_size(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4, 8 and 16 cases of each domain; all of a domain where it has fewer."""
    dataset = DATA / name / "dataset.json"
    if not dataset.is_file():
        pytest.skip("no real volumes beside the checkout")
    files = find_cases([str(dataset)])
    labels = TaskLabels(names=dict(files[0].label_names))
    cases, findings = measure_and_judge(files, labels, workers=None)
    assert [one for one in findings if one.severity == "error"] == []
    for module, function in ((orientation, "_likeness"), (copies, "similarity"), (copies, "agreement")):
        monkeypatch.setattr(module, function, remembered(getattr(module, function)))
    rng = random.Random(0)
    domains = [[case for case in cases if case.domain == domain] for domain in sorted({case.domain for case in cases})]
    for size in (4, 8, 16):
        alarms = []
        for _ in range(SUBSETS):
            subset = [case for group in domains for case in rng.sample(group, min(size, len(group)))]
            alarms.append([one.found for one in judge_cases(subset, labels) if one.severity == "error"])
        assert sum(map(bool, alarms)) <= 1, (size, [found for alarm in alarms for found in alarm])
