"""Time and memory of a run on this machine, estimated before it starts, and the length of training that fits."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, SettingError
from scripts.core.files import write_json
from scripts.data.datalists import TRANSLATED_TO, read_datalist
from scripts.data.geometry import free_memory_bytes
from scripts.lab.adapt.kept_timings import KeptTimings
from scripts.lab.adapt.timed_training import Timing, time_training
from scripts.lab.adapt.training_lengths import AdaptRules, Schedule, duration_text
from scripts.lab.experiments.plan import PlannedRun
from scripts.lab.page import Table

__all__ = ["Cost", "check_memory", "decide", "load_sentence", "measure_cost"]

# A forward pass takes about a third of a training's iteration.
FORWARD_SHARE = 1 / 3
# Lengths are chosen so that a run ends within this share of --time.
SAFETY = 0.9
# The slices of a domain are held four times while they are put together: volumes, slices, framed slices, one tensor.
COPIES = 4
GIGA = 1e9


@dataclass(frozen=True)
class Cost:
    """Times of a run whose trainings are of length 1, and the memory of the largest training."""

    trainings: tuple[tuple[str, int, float], ...]  # name, iterations, seconds
    fixed: tuple[tuple[str, float], ...]  # name and seconds of everything else
    memory_bytes: float

    @property
    def training_s(self) -> float:
        """Seconds of the iterations of all trainings."""
        return sum(seconds for *_, seconds in self.trainings)

    @property
    def fixed_s(self) -> float:
        """Seconds of everything else."""
        return sum(seconds for _, seconds in self.fixed)

    def total_s(self, length: float) -> float:
        """Seconds of a run whose trainings are ``length`` times as long."""
        return self.fixed_s + length * self.training_s

    def table(self, length: float) -> Table:
        """The steps and their times."""
        rows = [
            [f"training: {name}", f"{max(1, round(count * length))} iterations", duration_text(seconds * length)]
            for name, count, seconds in self.trainings
        ]
        rows += [[name, "", duration_text(seconds)] for name, seconds in self.fixed]
        return Table(heads=["step", "", "time"], rows=[*rows, ["all", "", duration_text(self.total_s(length))]])


def measure_cost(
    runs: Sequence[PlannedRun], data: Path, folder: Path, rules: AdaptRules, domains: tuple[str, str], segmented: int
) -> Cost:
    """Time a few iterations of each training on a few cases; those of an interrupted command are not repeated.

    ``runs`` are planned for ``folder``, with its ``data`` as their data set; ``data`` is the real one. ``segmented`` is
    the number of volumes to segment at the end.
    """
    cases = {name: read_datalist(str(data / f"{name}.json"), "training") for name in domains}
    for name in domains:
        _write_few(data / f"{name}.json", folder / "data" / f"{name}.json", rules, is_source=name == domains[0])
    trainings, rounds, largest, timings, kept = [], 0.0, 0.0, [], KeptTimings(folder)
    for run in runs:
        if run.translator != "none" and run.kind == "method":
            few = folder / "translators" / f"{run.translator}_seed{run.seed}" / "translated" / "datalist.json"
            # The time does not depend on the images' style: originals stand for what is not translated yet.
            _write_few(data / f"{domains[0]}.json", few, rules, is_source=True, **{TRANSLATED_TO: domains[1]})
        count = int(run.settings["max_epochs"]) * int(run.settings["iterations_per_epoch"])
        command, short = run.steps[0].command, _short(run, data, min(rules.timed_iterations, count))
        log = folder / "logs" / f"{run.name}.log"
        timing = kept.of(run.name, command, short, partial(time_training, command, log, **short))
        timings.append(timing)
        trainings.append((run.name, count, count * timing.iteration_s))
        renewals = min(int(run.settings.get("pseudo_label_rounds", 0)), int(run.settings["max_epochs"]))
        rounds += renewals * timing.start_s * len(cases[domains[1]])
        largest = max(largest, _memory(timing, [len(cases[name]) for name in domains], rules.timed_cases))
    number = sum(map(len, cases.values()))
    per_volume = timings[-1].slices * timings[-1].iteration_s * FORWARD_SHARE / int(runs[-1].settings["batch_size"])
    fixed = [(f"preprocessing of {number} volumes", timings[0].preparation_s * number)]
    fixed += [("pseudo-labels", rounds)] if rounds else []
    fixed += [(f"segmentation of {segmented} volumes", segmented * max(per_volume, timings[-1].start_s, 1.0))]
    return Cost(tuple(trainings), tuple(fixed), largest)


def decide(schedule: Schedule, cost: Cost, rules: AdaptRules, budget_s: float | None, is_chosen: bool) -> Schedule:
    """The schedule with the length that fits a budget in seconds, if there is one.

    Raises:
        InputError: the budget is too small, or nobody chose a run that takes longer than a night.
    """
    if budget_s is not None:
        shortest, longest = rules.time_lengths
        length = (SAFETY * budget_s - cost.fixed_s) / cost.training_s
        if length < shortest:
            raise SettingError(
                setting="--time",
                found=f"{duration_text(budget_s)}, too short for a training that learns anything",
                expected=f"at least {duration_text(cost.total_s(shortest) / SAFETY)} on this machine",
                remedy="give more time, or use a faster machine; --schedule trial only tests the sequence",
            )
        return replace(schedule, length=round(min(length, longest), 2))
    total = cost.total_s(schedule.length)
    if total > rules.ask_above_hours * 3600 and not is_chosen:
        raise SettingError(
            setting="--schedule",
            found=f"none, and the default schedule, {schedule.name}, would take {duration_text(total)} on this machine",
            expected=f"a choice for a run of more than {rules.ask_above_hours:g} hours",
            remedy=f"add --time 8h or another time, or --schedule {schedule.name} if this is what you want",
        )
    return schedule


def check_memory(needed_bytes: float) -> str:
    """A sentence on the memory needed and free; too little is refused."""
    free = free_memory_bytes()
    if needed_bytes > free:
        raise InputError(
            file="memory",
            found=f"{free / GIGA:.1f} GB free, but the training needs about {needed_bytes / GIGA:.1f} GB",
            expected="enough for all slices of both domains and the network",
            remedy="close other programs, use a larger machine, or give the task file a larger spacing_mm",
        )
    known = f", {free / GIGA:.1f} GB are free" if free < math.inf else ""
    return f"about {needed_bytes / GIGA:.1f} GB of memory{known}"


def load_sentence() -> str:
    """A sentence if other programs use the cores; empty if not, or if the load is unknown."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < cores / 2:
        return ""
    return f"Other programs use the cores (load {load:.1f} of {cores}): an idle machine needs less time."


def _short(run: PlannedRun, data: Path, iterations: int) -> dict[str, Any]:
    """Settings of the short training."""
    short = {"max_epochs": 1, "iterations_per_epoch": iterations, "panel_interval": 0, "val_interval": 0}
    short = {key: value for key, value in short.items() if key in run.settings}
    return short | {"cache_dir": str(data.parent / "cache")}


def _memory(timing: Timing, cases: Sequence[int], timed: int) -> float:
    """Bytes of a training on all cases of each domain: while each domain's slices are put together, or after that."""
    more = [size * max(number - timed, 0) for size, number in zip(timing.case_bytes, cases, strict=False)]
    loading = max((sum(more[:index]) + COPIES * size for index, size in enumerate(more)), default=0.0)
    return max(timing.loaded_bytes + loading, timing.peak_bytes + sum(more))


def _write_few(datalist: Path, few: Path, rules: AdaptRules, *, is_source: bool, **more: str) -> None:
    """A datalist with the first cases of another one, the target's without labels, and ``more`` keys."""
    items = read_datalist(str(datalist), "training", needs_label=is_source)
    write_json(few, {"name": few.stem, "training": list(items[: rules.timed_cases]), "validation": []} | more)
