"""One line of the table for each method: its numbers over seeds, and how they stand to the yardsticks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison, MethodResult
from scripts.lab.experiments.statistics import GapClosed, PairedTest, Spread, gap_closed, paired_test

__all__ = ["MEASURES", "MethodSummary", "summarise_methods"]

MEASURES = ("dice_percent", "asd_mm", "asd_voxel")
"""What is shown of an evaluation."""


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """What a method reached.

    Attributes:
        method: its runs.
        mean: by measure, the mean over the structures.
        structures: by structure, then by measure.
        missing: structures that exactly one of prediction and truth lacks, over all cases of all done seeds.
        counted: all structures of all those cases.
        gap_closed: what it closes of the gap between the yardsticks' mean Dice, over the seeds that all three have.
        structure_gap_closed: the same for each structure.
        test: against the reference; None for the reference itself.
        training_seconds: of the done seeds.
    """

    method: MethodResult
    mean: Mapping[str, Spread]
    structures: Mapping[str, Mapping[str, Spread]]
    missing: int
    counted: int
    gap_closed: GapClosed = field(default_factory=GapClosed)
    structure_gap_closed: Mapping[str, GapClosed] = field(default_factory=dict)
    test: PairedTest | None = None
    training_seconds: Spread = field(default_factory=lambda: Spread(()))

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    @property
    def dice(self) -> Spread:
        """Mean Dice in % over the structures, by seed."""
        return self.mean["dice_percent"]

    def structure_dice(self, structure: str) -> float | None:
        """Dice in % of a structure, mean over the seeds."""
        return self.structures[structure]["dice_percent"].mean


def summarise_methods(comparison: Comparison) -> list[MethodSummary]:
    """The summaries of all methods, in the comparison's order; methods without results are among them."""
    reference = comparison.method(REFERENCE)
    return [_summary(method, comparison, reference) for method in comparison.methods]


def _summary(method: MethodResult, comparison: Comparison, reference: MethodResult | None) -> MethodSummary:
    names = comparison.label_names
    summaries = [run.summary for run in method.done]
    return MethodSummary(
        method=method,
        mean={measure: Spread.of(s["mean_over_structures"][measure] for s in summaries) for measure in MEASURES},
        structures={
            name: {
                measure: Spread.of(s["structures"][name][measure]["mean"] for s in summaries) for measure in MEASURES
            }
            for name in names
        },
        missing=sum(s["structures"][name]["failures"] for s in summaries for name in names),
        counted=sum(s["structures"][name]["n"] for s in summaries for name in names),
        gap_closed=_closed(comparison, method, None),
        structure_gap_closed={name: _closed(comparison, method, name) for name in names},
        test=_test(method, reference),
        training_seconds=Spread.of(run.seconds.get("training") for run in method.done),
    )


def _closed(comparison: Comparison, method: MethodResult, structure: str | None) -> GapClosed:
    three = (method, comparison.method(LOWER), comparison.method(UPPER))
    return gap_closed(*(_dice_by_seed(one, structure) if one else {} for one in three))


def _dice_by_seed(method: MethodResult, structure: str | None) -> dict[int, float]:
    """Dice in % of a structure, or their mean, by seed; without seeds of which it is not known."""
    summaries = {run.seed: run.summary for run in method.done}
    found = {
        seed: s["structures"][structure]["dice_percent"]["mean"]
        if structure
        else s["mean_over_structures"]["dice_percent"]
        for seed, s in summaries.items()
    }
    return {seed: dice for seed, dice in found.items() if Spread.of([dice]).values}


def _test(method: MethodResult, reference: MethodResult | None) -> PairedTest | None:
    if reference is None or method.name == reference.name:
        return None
    return paired_test(
        {run.seed: run.dice_of_case for run in method.done}, {run.seed: run.dice_of_case for run in reference.done}
    )
