"""Layout of the structures compared with other cases: as stored, mirrored, and with two structures exchanged.

A layout is the position of each structure relative to the body's centre. It is described by the differences between
positions, one for each pair of structures and each axis. The body's centre is one more position, without a height,
because a volume may end anywhere along the body. Over the other cases each difference has a median and a spread. The
deviation of a case from the medians, in spreads, is compared with its deviation under each possible fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Explanation", "Layout", "Reference", "explain_layout", "middle_layout", "reference_of"]

# Centre of each structure in mm from the body's centre, by its value.
Layout = Mapping[int, tuple[float, float, float]]

BODY = 0
# Minimum spread between people, because a few cases may agree by chance.
LEAST_SPREAD_MM = 10.0

# The same as a share of the distance, because people differ in size.
SPREAD_OF_DISTANCE = 0.25

# Deviations of a pair are limited to this many spreads, so that no single pair dominates.
FARTHEST = 6.0

AXES = ("left/right", "anterior/posterior", "head/feet")


@dataclass(frozen=True)
class Reference:
    """Median and spread in mm of the differences (axes of the pair: 3) by pair of structures."""

    median: Mapping[tuple[int, int], NDArray[np.float64]]
    spread: Mapping[tuple[int, int], NDArray[np.float64]]


@dataclass(frozen=True)
class Explanation:
    """The best explanation of a deviating layout."""

    kind: str  # ``as it is``, ``flipped`` or ``swapped``
    what: tuple[int, ...]  # flipped axes (0, 1, 2), or the two swapped values
    deviation: float  # root mean square deviation from the reference, in spreads
    remaining: float  # the same after the correction
    rivals: tuple[tuple[str, tuple[int, ...]], ...] = ()  # equally good explanations


def reference_of(layouts: Sequence[Layout]) -> Reference:
    """Median and spread of layouts, without pairs that fewer than half of them have."""
    shown: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for layout in layouts:
        for pair, difference in _differences(layout).items():
            shown.setdefault(pair, []).append(difference)
    shown = {pair: seen for pair, seen in shown.items() if len(seen) >= len(layouts) / 2}
    median = {pair: np.median(seen, axis=0) for pair, seen in shown.items()}
    spread = {}
    for pair, seen in shown.items():
        measured = 1.4826 * np.median(np.abs(np.array(seen) - median[pair]), axis=0)
        distance = float(np.linalg.norm(median[pair]))
        spread[pair] = np.maximum(measured, max(LEAST_SPREAD_MM, SPREAD_OF_DISTANCE * distance))
    return Reference(median, spread)


def middle_layout(layouts: Sequence[Layout]) -> dict[int, tuple[float, float, float]]:
    """The median position of each structure that at least half of the layouts have."""
    values = sorted({value for layout in layouts for value in layout})
    seen = {value: [layout[value] for layout in layouts if value in layout] for value in values}
    return {
        value: tuple(np.median(places, axis=0).tolist())
        for value, places in seen.items()
        if len(places) >= len(layouts) / 2
    }


def explain_layout(layout: Layout, reference: Reference, margin: float = 1.0) -> Explanation:
    """The correction that brings a layout closest to a reference, or none if it fits best unchanged.

    Corrections are flips of one axis, two axes (a rotation by 180 degrees) or three, and exchanges of two structures.
    Explanations within ``margin`` of the best one are rivals if they reduce the deviation by more than half as much.
    """
    tried = [("as it is", ()), *(("flipped", axes) for n in (1, 2, 3) for axes in combinations(range(3), n))]
    tried += [("swapped", pair) for pair in combinations(sorted(layout), 2)]
    scored = [(_deviation(_damaged(layout, kind, what), reference), kind, what) for kind, what in tried]
    remaining, kind, what = min(scored, key=lambda score: score[0])
    as_good = min(remaining + margin, (remaining + scored[0][0]) / 2)
    rivals = tuple((other, how) for value, other, how in scored if (other, how) != (kind, what) and value <= as_good)
    return Explanation(kind, what, scored[0][0], remaining, rivals)


def _damaged(layout: Layout, kind: str, what: tuple[int, ...]) -> dict[int, tuple[float, float, float]]:
    if kind == "swapped":
        other = {what[0]: what[1], what[1]: what[0]}
        return {value: layout[other.get(value, value)] for value in layout}
    signs = [-1.0 if kind == "flipped" and axis in what else 1.0 for axis in range(3)]
    return {value: (signs[0] * x, signs[1] * y, signs[2] * z) for value, (x, y, z) in layout.items()}


def _differences(layout: Layout) -> dict[tuple[int, int], NDArray[np.float64]]:
    places = {BODY: (0.0, 0.0, 0.0), **layout}
    pairs = {(p, q): np.subtract(places[q], places[p]) for p, q in combinations(sorted(places), 2)}
    return {pair: difference[:2] if BODY in pair else difference for pair, difference in pairs.items()}


def _deviation(layout: Layout, reference: Reference) -> float:
    """Root mean square of the deviations in spreads over all pairs and axes that both know; 0 if there are none."""
    differences = _differences(layout)
    common = [pair for pair in differences if pair in reference.median]
    if not common:
        return 0.0
    deviations = np.concatenate(
        [(differences[pair] - reference.median[pair]) / reference.spread[pair] for pair in common]
    )
    return float(np.sqrt(np.mean(np.minimum(np.abs(deviations), FARTHEST) ** 2)))
