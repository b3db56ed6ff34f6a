"""What a run will cost, and which length fits a budget: numbers by hand."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import CONFIGS, ROOT, refused
from scripts.data.datalists import read_datalist
from scripts.lab.adapt import cost as cost_module
from scripts.lab.adapt.cost import Cost, _memory, check_memory, decide, measure_cost
from scripts.lab.adapt.request import AdaptRequest
from scripts.lab.adapt.steps import plan_trainings
from scripts.lab.adapt.timed_training import Timing, parse_command
from scripts.lab.adapt.training_lengths import AdaptRules, duration_text, parse_duration, read_adapt_rules
from scripts.lab.experiments.plan import PlannedRun

HOUR = Cost(
    trainings=(("first", 1000, 2000.0), ("second", 500, 1000.0)), fixed=(("segmentation", 600.0),), memory_bytes=1
)
"""Trainings of 3,000 s and 600 s of everything else."""

TIMING = Timing(
    iteration_s=0.5,
    preparation_s=2.0,
    start_s=3.0,
    slices=6.0,
    loaded_bytes=8 * 10**8,
    peak_bytes=10**9,
    case_bytes=[1e6, 2e6],
)


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> AdaptRules:
    monkeypatch.chdir(ROOT)
    return read_adapt_rules()


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("1h", 3600), ("2h30m", 9000), ("1.5h", 5400), ("1d", 86400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "one hour", "1h 30m"])
def test_no_duration(text: str) -> None:
    assert "--time" in refused(parse_duration, text).file


def test_durations_as_text() -> None:
    assert [duration_text(seconds) for seconds in (40, 1500, 12600)] == ["40 s", "25 min", "3.5 h"]


def test_the_schedule_as_it_is_when_nobody_asks(rules: AdaptRules) -> None:
    assert decide(rules.schedule(None), HOUR, rules, None, is_chosen=False).length == 1.0


def test_a_budget_gives_the_length(rules: AdaptRules) -> None:
    """0.9 x 2 h = 6,480 s; without 600 s they are 5,880 s: 1.96 times 3,000 s."""
    assert decide(rules.schedule(None), HOUR, rules, 7200.0, is_chosen=False).length == 1.96


def test_no_training_longer_than_what_helps(rules: AdaptRules) -> None:
    assert decide(rules.schedule(None), HOUR, rules, 1e6, is_chosen=False).length == rules.time_lengths[1]


def test_a_budget_that_is_too_small(rules: AdaptRules) -> None:
    """The shortest: (600 s + 0.25 x 3,000 s) / 0.9 = 1,500 s."""
    error = refused(decide, rules.schedule(None), HOUR, rules, 600.0, is_chosen=False)
    assert "at least 25 min" in error.expected
    assert decide(rules.schedule(None), HOUR, rules, 1501.0, is_chosen=False).length == 0.25


def test_more_than_a_night_needs_a_word(rules: AdaptRules) -> None:
    long = replace(HOUR, trainings=(("first", 40000, 133200.0),))  # 37 h
    error = refused(decide, rules.schedule(None), long, rules, None, is_chosen=False)
    assert "37.2 h" in error.found
    assert "--time" in error.remedy
    assert decide(rules.schedule("short"), long, rules, None, is_chosen=True).length == 1.0


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_module, "free_memory_bytes", lambda: 8e9)
    assert "2.0 GB of memory, 8.0 GB are free" in check_memory(2e9)
    assert refused(check_memory, 12e9).found == "8.0 GB free, but the training needs about 12.0 GB"
    monkeypatch.setattr(cost_module, "free_memory_bytes", lambda: math.inf)
    assert check_memory(12e9) == "about 12.0 GB of memory"


def test_every_schedule_plans_trainings(rules: AdaptRules, tmp_path: Path) -> None:
    """Without evaluations, and with the length of the schedule: 100 iterations an epoch become 800 in ``day``."""
    for name in rules.schedules:
        runs = plan_trainings(request(tmp_path), rules.schedule(name), tmp_path)
        assert {step.name for run in runs for step in run.steps} <= {"training", "translation"}
        assert runs[-1].kind == "method"
        _, settings = parse_command(runs[-1].steps[0].command)
        iterations = {"trial": 2, "day": 800}.get(name)
        assert settings.get("iterations_per_epoch") == iterations
        assert runs[-1].settings["iterations_per_epoch"] == (iterations or 100)


def request(out: Path) -> AdaptRequest:
    (out / "task.yaml").write_text((CONFIGS / "tasks" / "phantom_mr2ct.yaml").read_text())
    return AdaptRequest(source_images=out, source_labels=out, target_images=out, out=out)


def test_costs_from_timings(rules: AdaptRules, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings: all iterations at 0.5 s, and a round of pseudo-labels of 3 s a volume for 2 volumes."""
    commands = []

    def timed(command: list[str], log: Path, **settings: object) -> Timing:
        commands.append((parse_command(command)[1], settings))
        return TIMING

    monkeypatch.setattr(cost_module, "time_training", timed)
    runs = plan_trainings(request(tmp_path), rules.schedule("short"), tmp_path / "cost")
    cost = measure_cost(runs, data, tmp_path / "cost", rules, ("mr", "ct"), segmented=3)
    counts = [int(run.settings["max_epochs"]) * int(run.settings["iterations_per_epoch"]) for run in runs]
    assert [seconds for *_, seconds in cost.trainings] == [0.5 * count for count in counts]
    rounds = int(runs[-1].settings["pseudo_label_rounds"])
    assert dict(cost.fixed) == {
        "preprocessing of 4 volumes": 8.0,
        "pseudo-labels": 3.0 * 2 * rounds,
        "segmentation of 3 volumes": 9.0,
    }
    assert cost.memory_bytes == 1e9  # two of two cases were measured: no more slices are to come
    assert "all" in cost.table(1.0).as_text()
    for settings, short in commands:
        assert settings["dataset_dir"] == str(tmp_path / "cost" / "data")
        assert (short["max_epochs"], short["iterations_per_epoch"]) == (1, rules.timed_iterations)


@pytest.mark.parametrize(
    ("cases", "case_bytes", "needed"),
    [
        ((2, 2), (10, 30), 1000),  # all were timed
        ((4, 3), (10, 30), 1050),  # 2 x 10 and 1 x 30 more are held in the iterations
        ((22, 12), (10, 30), 2200),  # 800 + 200, and four times 300 while the target's slices are put together
        ((102, 3), (10, 30), 4800),  # 800 + four times 1,000 while the labelled ones are put together
        ((22, 12), (10,), 1600),  # without target slices: 800 + four times 200
    ],
)
def test_memory_by_hand(cases: tuple[int, int], case_bytes: tuple[int, ...], needed: int) -> None:
    """Two cases of each domain were timed: 800 bytes until they were loaded, 1,000 until the end."""
    few = Timing(iteration_s=1, preparation_s=1, start_s=1, slices=9, loaded_bytes=800, peak_bytes=1000, case_bytes=())
    assert _memory(replace(few, case_bytes=case_bytes), cases, timed=2) == needed


def test_no_more_iterations_are_timed_than_trained(
    rules: AdaptRules, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial: 2 epochs of 2 iterations each; the translator and two trainings."""
    timed = []
    monkeypatch.setattr(cost_module, "time_training", lambda *_, **settings: timed.append(settings) or TIMING)
    runs = plan_trainings(request(tmp_path), rules.schedule("trial"), tmp_path / "cost")
    measure_cost(runs, data, tmp_path / "cost", rules, ("mr", "ct"), segmented=3)
    assert [one["iterations_per_epoch"] for one in timed] == [4, 4, 4]


def test_a_timing_is_kept_for_the_same_training_alone(
    rules: AdaptRules, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []
    monkeypatch.setattr(cost_module, "time_training", lambda command, log, **_: timed.append(log.stem) or TIMING)
    runs = plan_trainings(request(tmp_path), rules.schedule("short"), tmp_path / "cost")

    def measure() -> list[str]:
        timed.clear()
        cost = measure_cost(runs, data, tmp_path / "cost", rules, ("mr", "ct"), segmented=3)
        assert [seconds / count for _, count, seconds in cost.trainings] == [0.5, 0.5, 0.5]
        return list(timed)

    assert measure() == [run.name for run in runs]
    assert measure() == []
    kept, whole = tmp_path / "cost" / "timings.json", (tmp_path / "cost" / "timings.json").read_text()
    for damaged in (whole[:100], "[]", whole.replace("0.5", '"x"'), whole.replace("0.5", "0.7"), '{"a": 1}', "\0" * 99):
        kept.write_text(damaged)
        assert measure() == [run.name for run in runs]
        assert measure() == []
    with (tmp_path / "task.yaml").open("a") as stream:
        stream.write("slice_size: [96, 96]\n")
    assert measure() == [run.name for run in runs]


@pytest.mark.parametrize("schedule", ["short", "paper"])
def test_trainings_on_translated_images_are_timed_before_there_are_any(
    schedule: str, rules: AdaptRules, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training accepts the list of originals that stands for the translator's."""
    read = []

    def timed(command: list[str], log: Path, **settings: object) -> Timing:
        given = parse_command(command)[1]
        if "labelled_datalist" in given:
            read.append(read_datalist(given["labelled_datalist"], "training", needs_label=True, translated_to="ct"))
        return TIMING

    monkeypatch.setattr(cost_module, "time_training", timed)
    runs = plan_trainings(request(tmp_path), rules.schedule(schedule), tmp_path / "cost")
    relative = Path(os.path.relpath(data))  # as in --out runs/mine with DICOM series, which are converted into it
    measure_cost(runs, relative, tmp_path / "cost", rules, ("mr", "ct"), segmented=3)
    assert [len(cases) for cases in read] == [rules.timed_cases] * (len(runs) - 1)


def test_planned_runs_are_of_the_task(rules: AdaptRules, tmp_path: Path) -> None:
    runs: list[PlannedRun] = plan_trainings(request(tmp_path), rules.schedule("paper"), tmp_path)
    assert [run.kind for run in runs] == ["translator", "method"]
    assert all(str(tmp_path / "task.yaml") in parse_command(run.steps[0].command)[0] for run in runs)
