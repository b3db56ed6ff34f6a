"""Estimates of a wrong slice spacing from two measures that differ little between people.

The first is the ratio of height to width of labelled structures. The second, which needs no label, is the grain, the
ratio of gradients along the stack and in plane (:func:`scripts.lab.check.coarse.grain`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scripts.lab.check.cases import Structure, medians

__all__ = ["Proportions", "Stretch", "middle_proportions", "proportions_of", "stretch_of"]

# Change of the grain per unit of the spacing's logarithm: 0.70 to 0.85 on CT and MR of the abdomen.
GRAIN_RESPONSE = 0.75

# Minimum standard deviations (of logarithms), because a few cases may agree by chance.
LEAST_HEIGHT_DEVIATION, LEAST_GRAIN_DEVIATION = 0.08, 0.05


@dataclass(frozen=True)
class Proportions:
    """Logarithms of the measures that are compared; those of structures by value."""

    heights: Mapping[float, float]  # height over width
    volumes: Mapping[float, float]  # in ml
    grain: float  # of the image; NaN if unknown


@dataclass(frozen=True)
class Stretch:
    """The factor by which a case is longer than others along the stack."""

    factor: float  # both estimates combined, weighted by their precision
    deviations: float  # its logarithm in standard deviations
    height: float | None  # estimate from the structures
    grain: float | None  # estimate from the image
    volume: float | None  # ratio of the structures' volumes to the others'

    def agrees(self, least: float) -> bool:
        """Whether each available estimate is at least this factor, in the same direction."""
        logs = [math.log(estimate) for estimate in (self.height, self.grain) if estimate is not None]
        return all(log * math.log(self.factor) > 0 and abs(log) >= math.log(least) for log in logs)


def proportions_of(structures: Mapping[float, Structure], stack_axis: int, grain: float) -> Proportions:
    """The proportions of one case."""
    heights = {}
    for value, structure in structures.items():
        widths = [edge for axis, edge in enumerate(structure.spread_mm) if axis != stack_axis]
        heights[value] = math.log(structure.spread_mm[stack_axis]) - sum(map(math.log, widths)) / 2
    volumes = {value: math.log(structure.volume_ml) for value, structure in structures.items()}
    return Proportions(heights, volumes, grain)


def middle_proportions(cases: Sequence[Proportions]) -> Proportions:
    """Medians over the cases of a domain, without the grain, which depends on the modality."""
    heights, volumes = medians([case.heights for case in cases]), medians([case.volumes for case in cases])
    return Proportions(heights, volumes, math.nan)


def stretch_of(case: Proportions, others: Sequence[Proportions]) -> Stretch | None:
    """Compare a case, or the medians of a domain, with other cases; None without common measures."""
    height = _against(case.heights, [other.heights for other in others])
    spread = [_against(other.heights, [one.heights for one in others]) for other in others]
    heights = [value for value in spread if value is not None]
    grains = np.array([other.grain for other in others if not math.isnan(other.grain)])
    estimates = []
    if height is not None:
        estimates.append((height, max(_robust_deviation(heights), LEAST_HEIGHT_DEVIATION)))
    grain = None
    if len(grains) and not math.isnan(case.grain):
        grain = (float(np.median(grains)) - case.grain) / GRAIN_RESPONSE
        estimates.append((grain, max(_robust_deviation(grains) / GRAIN_RESPONSE, LEAST_GRAIN_DEVIATION)))
    if not estimates:
        return None
    weight = sum(1 / deviation**2 for _, deviation in estimates)
    factor = sum(value / deviation**2 for value, deviation in estimates) / weight
    volume = _against(case.volumes, [other.volumes for other in others])
    height_factor, grain_factor, volume_factor = (None if x is None else math.exp(x) for x in (height, grain, volume))
    return Stretch(math.exp(factor), factor * math.sqrt(weight), height_factor, grain_factor, volume_factor)


def _against(case: Mapping[float, float], others: Sequence[Mapping[float, float]]) -> float | None:
    """Median over structures of the difference from the others' median."""
    middle = medians(others)
    differences = [case[value] - middle[value] for value in case if value in middle]
    return float(np.median(differences)) if differences else None


def _robust_deviation(values: Sequence[float] | np.ndarray) -> float:
    return 1.4826 * float(np.median(np.abs(np.array(values) - np.median(values))))
