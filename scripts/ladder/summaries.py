"""One line of the table for each method: its numbers over seeds, and how they stand to the yardsticks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scripts.ladder.results import LOWER, REFERENCE, UPPER, Ladder, Method
from scripts.ladder.statistics import PairedTest, Spread, gap_closed_percent, paired_test

__all__ = ["MEASURES", "MethodSummary", "summarise_ladder"]

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
        gap_closed: share of the gap between the yardsticks' mean Dice that the method closes, in %.
        structure_gap_closed: the same for each structure.
        test: against the reference; None for the reference itself.
        training_seconds: of the done seeds.
    """

    method: Method
    mean: Mapping[str, Spread]
    structures: Mapping[str, Mapping[str, Spread]]
    missing: int
    counted: int
    gap_closed: float | None = None
    structure_gap_closed: Mapping[str, float | None] = field(default_factory=dict)
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


def summarise_ladder(ladder: Ladder) -> list[MethodSummary]:
    """The summaries of all methods, in the ladder's order; methods without results are among them."""
    plain = {method.name: _plain(method, ladder.label_names) for method in ladder.methods}
    lower, upper = plain.get(LOWER), plain.get(UPPER)
    reference = ladder.method(REFERENCE)

    def closed(summary: MethodSummary, value_of: Callable[[MethodSummary], float | None]) -> float | None:
        return gap_closed_percent(value_of(summary), value_of(lower), value_of(upper)) if lower and upper else None

    return [
        MethodSummary(
            method=summary.method,
            mean=summary.mean,
            structures=summary.structures,
            missing=summary.missing,
            counted=summary.counted,
            gap_closed=closed(summary, lambda s: s.dice.mean),
            structure_gap_closed={
                name: closed(summary, lambda s, name=name: s.structure_dice(name))  # type: ignore[misc]
                for name in ladder.label_names
            },
            test=_test(summary.method, reference),
            training_seconds=Spread.of(run.seconds.get("training") for run in summary.method.done),
        )
        for summary in plain.values()
    ]


def _plain(method: Method, label_names: list[str]) -> MethodSummary:
    summaries = [run.summary for run in method.done]
    return MethodSummary(
        method=method,
        mean={measure: Spread.of(s["mean_over_structures"][measure] for s in summaries) for measure in MEASURES},
        structures={
            name: {
                measure: Spread.of(s["structures"][name][measure]["mean"] for s in summaries) for measure in MEASURES
            }
            for name in label_names
        },
        missing=sum(s["structures"][name]["failures"] for s in summaries for name in label_names),
        counted=sum(s["structures"][name]["n"] for s in summaries for name in label_names),
    )


def _test(method: Method, reference: Method | None) -> PairedTest | None:
    if reference is None or method.name == reference.name:
        return None
    return paired_test(
        {run.seed: run.dice_of_case for run in method.done}, {run.seed: run.dice_of_case for run in reference.done}
    )
