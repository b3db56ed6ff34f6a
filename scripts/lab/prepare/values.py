"""Mapping of label values from a release to a task, and checks of intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError
from scripts.data.volumes import LABEL_TOLERANCE

__all__ = ["ValueMap", "ValueRange", "count_values", "smallest_dtype"]


@dataclass(frozen=True)
class ValueMap:
    """Mapping of label values; 0 stays 0, values that are not mapped are errors."""

    values: Mapping[int, int] = field(default_factory=dict)  # value in the files -> value written
    stray: Mapping[int, int] = field(default_factory=dict)  # erroneous value of some copies -> correct value
    ranges: Sequence[tuple[int, int, int]] = ()  # above the first, up to the second -> the third
    keep_all: bool = False  # for folders without a map

    @property
    def written(self) -> list[int]:
        """Every value other than 0 that a written label map may contain."""
        return sorted({*self.values.values(), *(value for _, _, value in self.ranges)} - {0})

    def apply(self, label: np.ndarray, file: object) -> tuple[np.ndarray, dict[int, int], list[str]]:
        """The mapped label map in the smallest type that holds its values, voxels per value, and notes."""
        whole = _whole_numbers(label, file)
        found = count_values(whole)
        table = {value: self._becomes(value) for value in found}
        unknown = sorted(value for value, written in table.items() if written is None)
        if unknown:
            self._raise_unknown(unknown, found, file)
        known = {value: int(written) for value, written in table.items() if written is not None}
        counts: dict[int, int] = {}
        for value, written in sorted(known.items()):
            counts[written] = counts.get(written, 0) + found[value]
        notes = [
            f"{found[value]} voxels of stray label value {value} were mapped to {self.stray[value]}"
            for value in sorted(set(found) & set(self.stray))
        ]
        notes += [f"no voxel of label value {value}" for value in self.written if value not in counts]
        written_map = _look_up(whole, known, smallest_dtype([0, *known.values(), *self.written]))
        return written_map, counts, notes

    def _becomes(self, value: int) -> int | None:
        if self.keep_all or value == 0:
            return value
        value = self.stray.get(value, value)
        if value == 0:
            return 0
        for above, up_to, written in self.ranges:
            if above < value <= up_to:
                return written
        return self.values.get(value)

    def _raise_unknown(self, unknown: list[int], found: Mapping[int, int], file: object) -> None:
        shown = ", ".join(f"{value} ({found[value]} voxels)" for value in unknown[:6])
        ranges = [f"above {above} up to {up_to}" for above, up_to, _ in self.ranges]
        known = ", ".join([*map(str, sorted({0, *self.values, *self.stray})), *ranges])
        raise InputError(
            file=file,
            found=f"label value(s) {shown}{' ...' if len(unknown) > 6 else ''}",
            expected=f"only {known}",
            remedy="check whether the label map was interpolated or belongs to another release; 'prepare folder' maps "
            "other values with --map",
        )


@dataclass(frozen=True)
class ValueRange:
    """Plausible intensities of a release, to detect another unit."""

    unit: str
    reaches: tuple[float, float] | None = None  # some voxel is at or below the first, some at or above the second
    within: tuple[float, float] | None = None  # of all voxels

    def check(self, image: np.ndarray, file: Path) -> None:
        """Refuse an image whose values have another unit."""
        lowest, highest = float(image.min()), float(image.max())
        narrow = self.reaches is not None and (lowest > self.reaches[0] or highest < self.reaches[1])
        wide = self.within is not None and (lowest < self.within[0] or highest > self.within[1])
        if not narrow and not wide:
            return
        limits = [f"from {self.reaches[0]:g} or less to {self.reaches[1]:g} or more"] if narrow and self.reaches else []
        limits += [f"within {self.within[0]:g} and {self.within[1]:g}"] if wide and self.within else []
        found = f"intensities from {lowest:g} to {highest:g}"
        remedy = "use the original release, not a copy whose intensities were scaled or windowed"
        raise InputError(file=file, found=found, expected=f"{self.unit}, {' and '.join(limits)}", remedy=remedy)


def smallest_dtype(values: Sequence[int]) -> np.dtype:
    """The smallest of uint8, int16 and int32 for the values; every NIfTI reader supports these types."""
    for dtype in (np.uint8, np.int16, np.int32):
        limits = np.iinfo(dtype)
        if limits.min <= min(values) and max(values) <= limits.max:
            return np.dtype(dtype)
    raise ValueError(f"values from {min(values)} to {max(values)} fit no label type")


def _whole_numbers(label: np.ndarray, file: object) -> np.ndarray:
    if label.dtype == bool:
        return label.astype(np.uint8)
    if np.issubdtype(label.dtype, np.integer):
        return label
    rounded = np.rint(label)
    is_whole = (np.abs(rounded - label) <= LABEL_TOLERANCE) & (np.abs(label) <= np.iinfo(np.int32).max)
    odd = label[~is_whole]  # NaN, too
    if odd.size:
        found = f"{odd.size} voxels whose label is not a 32-bit integer, such as {odd.flat[0]}"
        remedy = "use the original label map, or resample labels with nearest neighbour: this one was interpolated"
        raise InputError(file=file, found=found, expected="whole label values", remedy=remedy)
    return rounded.astype(np.int32)


def count_values(label: np.ndarray) -> dict[int, int]:
    """Voxels per value of a label map (X, Y, Z) of whole numbers."""
    # Most voxels are background, and numpy.unique copies what it counts.
    flat = label.ravel(order="K")
    foreground = flat[flat != 0]
    values, counts = np.unique(foreground, return_counts=True) if len(foreground) else ((), ())
    background = label.size - len(foreground)
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    return {0: background, **found} if background else found


def _look_up(label: np.ndarray, known: Mapping[int, int], dtype: np.dtype) -> np.ndarray:
    low, high = min(known), max(known)
    if all(value == written for value, written in known.items()):
        return label.astype(dtype, copy=False)
    table = np.zeros(high - low + 1, dtype)
    for value, written in known.items():
        table[value - low] = written
    return table[label.astype(np.intp) - low] if low else table[label]
