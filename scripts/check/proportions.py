"""Is the slice spacing right? By the shape of labelled structures: their height along the stack against their width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scripts.check.cases import Structure

__all__ = ["Proportions", "Stretch", "proportions_of", "stretch"]

Proportions = Mapping[float, tuple[float, float]]
"""By structure: logarithm of height over width, and logarithm of the volume in ml."""


@dataclass(frozen=True)
class Stretch:
    """How much higher and larger a case's structures are than others'.

    Attributes:
        height: factor of height over width, the median over structures.
        volume: factor of the volume, likewise.
        deviations: the logarithm of ``height`` in robust standard deviations of the others.
    """

    height: float
    volume: float
    deviations: float


def proportions_of(structures: Mapping[float, Structure], stack_axis: int) -> dict[float, tuple[float, float]]:
    """Height over width and volume of each structure, as logarithms.

    Args:
        structures: of one case.
        stack_axis: the stored axis that slices are stacked along.
    """
    result = {}
    for value, structure in structures.items():
        widths = [edge for axis, edge in enumerate(structure.spread_mm) if axis != stack_axis]
        height = math.log(structure.spread_mm[stack_axis]) - sum(map(math.log, widths)) / 2
        result[value] = (height, math.log(structure.volume_ml))
    return result


def stretch(case: Proportions, others: Sequence[Proportions], least_deviation: float) -> Stretch | None:
    """Compare one case's proportions with others'.

    Args:
        case: of one case, or the medians of a domain.
        others: of the cases to compare with.
        least_deviation: standard deviation that is assumed at least (of a logarithm), as few others may agree by chance.

    Returns:
        None where no structure is shown by both.
    """
    ratio = _against(case, others)
    if ratio is None:
        return None
    among = [_against(one, others) for one in others]
    heights = np.array([pair[0] for pair in among if pair is not None])
    deviation = max(1.4826 * float(np.median(np.abs(heights - np.median(heights)))), least_deviation)
    return Stretch(math.exp(ratio[0]), math.exp(ratio[1]), (ratio[0] - float(np.median(heights))) / deviation)


def _against(case: Proportions, others: Sequence[Proportions]) -> tuple[float, float] | None:
    """Median over structures of the differences from the others' medians."""
    differences = [
        np.subtract(case[value], np.median(seen, axis=0))
        for value in case
        if (seen := [other[value] for other in others if value in other])
    ]
    if not differences:
        return None
    height, volume = np.median(differences, axis=0)
    return float(height), float(volume)
