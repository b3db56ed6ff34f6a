"""Statistics over seeds and cases: mean and spread, share of the domain gap closed, paired test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

__all__ = [
    "GapClosed",
    "PairedTest",
    "Spread",
    "gap_closed",
    "gap_closed_percent",
    "paired_test",
    "rank_correlation",
    "smallest_p",
]


@dataclass(frozen=True)
class Spread:
    """The values of one quantity, one per seed."""

    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """The values that are finite numbers."""
        return cls(tuple(value for value in values if value is not None and math.isfinite(value)))

    @property
    def mean(self) -> float | None:
        """The mean, or None without a value."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def sd(self) -> float | None:
        """The sample standard deviation (divisor n - 1), or None with fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class GapClosed:
    """A method compared with both bounds, over the seeds that all three have."""

    gain: Spread = field(default_factory=Spread)  # Dice minus that of the lower bound, in points
    percent: Spread = field(default_factory=Spread)  # share of the gap closed, of the seeds in which there is one


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method against the reference over n cases that differ (Wilcoxon's signed-rank test, exact, two-sided)."""

    n: int
    p: float
    mean_difference: float


def gap_closed_percent(value: float | None, lower: float | None, upper: float | None) -> float | None:
    """The share of the gap between the bounds that a method closes, in %; None without a number or a gap.

    Below 0 the method is worse than the lower bound, above 100 better than the upper bound.
    """
    if value is None or lower is None or upper is None or upper <= lower:
        return None
    return 100.0 * (value - lower) / (upper - lower)


def gap_closed(method: Mapping[int, float], lower: Mapping[int, float], upper: Mapping[int, float]) -> GapClosed:
    """The gap that a method closes, from Dice in % by seed: per seed, so that its effects on all three cancel."""
    seeds = sorted(method.keys() & lower.keys() & upper.keys())
    return GapClosed(
        gain=Spread.of(method[seed] - lower[seed] for seed in seeds),
        percent=Spread.of(gap_closed_percent(method[seed], lower[seed], upper[seed]) for seed in seeds),
    )


def smallest_p(n: int) -> float:
    """The smallest p-value of an exact two-sided signed-rank test with n cases: 2 of 2^n sign patterns."""
    return min(1.0, 2.0 ** (1 - n))


def paired_test(
    method: Mapping[int, Mapping[str, float]], reference: Mapping[int, Mapping[str, float]]
) -> PairedTest | None:
    """Compare two methods on the same cases, each case's Dice averaged over the seeds that both have.

    Both are given as mean Dice in % over the structures, by seed, then by case. None if they share no seed or no case.
    """
    seeds = sorted(method.keys() & reference.keys())
    runs = [side[seed] for seed in seeds for side in (method, reference)]
    cases = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not cases:
        return None
    differences = np.array([np.mean([method[seed][case] - reference[seed][case] for seed in seeds]) for case in cases])
    unequal = differences[differences != 0]
    p = float(stats.wilcoxon(unequal, method="exact").pvalue) if len(unequal) else 1.0
    return PairedTest(n=len(unequal), p=p, mean_difference=float(differences.mean()))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's correlation of two lists, or None if it is undefined; differences by rounding count as ties."""
    pair = np.round([first, second], 6)
    if len(first) < 3 or np.ptp(pair, axis=1).min() == 0:
        return None
    return float(stats.spearmanr(*pair).statistic)
