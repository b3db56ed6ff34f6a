"""The numbers of each method over seeds, compared with the bounds and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison, MethodResult
from scripts.lab.experiments.statistics import GapClosed, PairedTest, Spread, gap_closed, paired_test

__all__ = ["MEASURES", "MethodSummary", "summarise_methods"]

# The measures of an evaluation that are shown.
MEASURES = ("dice_percent", "asd_mm", "asd_voxel")


@dataclass(frozen=True, kw_only=True)
class MethodSummary:
    """The numbers of a method."""

    method: MethodResult
    mean: Mapping[str, Spread]  # by measure, over the structures
    largest_mean: Mapping[str, Spread]  # of the largest component of each structure
    structures: Mapping[str, Mapping[str, Spread]]  # by structure, then by measure
    missing: int  # structures only in the prediction or only in the truth, over all cases and seeds
    counted: int  # all structures of these cases
    gap_closed: GapClosed  # in mean Dice, over the seeds that the method and both bounds have
    structure_gap_closed: Mapping[str, GapClosed]
    test: PairedTest | None  # None for the reference itself
    training_seconds: Spread

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
    """The summaries of all methods, in the comparison's order, including methods without results."""
    return [_summary(method, comparison) for method in comparison.methods]


def _summary(method: MethodResult, comparison: Comparison) -> MethodSummary:
    names = comparison.label_names
    summaries = [run.summary for run in method.evaluated]
    largest = [run.summary_largest for run in method.evaluated]
    return MethodSummary(
        method=method,
        mean={measure: Spread.of(s["mean_over_structures"][measure] for s in summaries) for measure in MEASURES},
        largest_mean={measure: Spread.of(s["mean_over_structures"][measure] for s in largest) for measure in MEASURES},
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
        test=_test(method, comparison.method(REFERENCE)),
        training_seconds=Spread.of(run.seconds.get("training") for run in method.done),
    )


def _closed(comparison: Comparison, method: MethodResult, structure: str | None) -> GapClosed:
    three = (method, comparison.method(LOWER), comparison.method(UPPER))
    return gap_closed(*(_dice_by_seed(one, structure) if one else {} for one in three))


def _dice_by_seed(method: MethodResult, structure: str | None) -> dict[int, float]:
    """Dice in % of a structure, or the mean over all, by seed; seeds without a number are left out."""
    found = {
        run.seed: run.summary["structures"][structure]["dice_percent"]["mean"]
        if structure
        else run.summary["mean_over_structures"]["dice_percent"]
        for run in method.evaluated
    }
    return {seed: dice for seed, dice in found.items() if Spread.of([dice]).values}


def _test(method: MethodResult, reference: MethodResult | None) -> PairedTest | None:
    if reference is None or method.name == reference.name:
        return None
    first, second = ({run.seed: run.dice_of_case for run in one.evaluated} for one in (method, reference))
    return paired_test(first, second)
