"""DICOM series below a folder: a series may be split into several folders, or lie there several times."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.core.errors import InputError
from scripts.data.case_names import natural_order, visible_files
from scripts.data.dicom import FolderScan, Series, dicom_files, read_slices, scan_folder
from scripts.data.dicom_slice import read_slice

__all__ = ["StoredSeries", "read_series", "series_below"]


@dataclass(frozen=True)
class StoredSeries:
    """The files of one series."""

    folders: tuple[Path, ...]  # that contain slices of it
    files: tuple[Path, ...]  # its slices, each once
    copies: dict[Path, Path]  # further files of the same slices, each with the file that it repeats
    left_out: tuple[str, ...]  # DICOM files in the folders that are not slices

    def check_copies(self) -> None:
        """Refuse two slices with the same SOPInstanceUID that differ in pixels or geometry."""
        for copy, original in self.copies.items():
            if copy.read_bytes() != original.read_bytes() and not read_slice(copy).equals(read_slice(original)):
                raise InputError(
                    file=copy,
                    found=f"the SOPInstanceUID of {original}, with other pixels or another position",
                    expected="an identical slice, as a UID identifies one",
                    remedy="remove the wrong one; if they are two patients, give them different PatientIDs",
                )

    def notes(self) -> tuple[str, ...]:
        """What the report says about the series: its folders, copies and other files."""
        folder = self.folders[0]
        others = ", ".join(map(str, self.folders[1:]))
        notes = [f"{folder}: one series with the slices of {others}"] * bool(others)
        places = ", ".join(str(place) for place in dict.fromkeys(copy.parent for copy in self.copies))
        notes += [f"{folder}: {len(self.copies)} slices are there again in {places}; each was read once"] * bool(places)
        notes += [f"{folder}: not used, because they are not slices: {', '.join(self.left_out)}"] * bool(self.left_out)
        return tuple(notes)


def read_series(folder: Path) -> Series:
    """Read the one series in a folder."""
    return read_slices(dicom_files(folder), folder)


def series_below(source: Path) -> list[StoredSeries]:
    """The series below a folder, in natural order of their first folders, by their own and then their parents' names.

    Folders belong to one series if they contain the same slices, or if they share SeriesInstanceUID and PatientID and
    no slice positions: some anonymisation tools give different patients the same UIDs.
    """
    places = sorted({file.parent for file in visible_files(source)}) if source.is_dir() else []
    folders = sorted(places, key=lambda place: [natural_order(part) for part in (place, *place.parents)])
    groups: list[list[_Folder]] = []
    for scan in filter(lambda scan: scan.files, map(scan_folder, folders)):
        folder = _Folder(scan, _instances(scan))
        group = next((group for group in groups if all(map(folder.is_same_series, group))), None)
        if group is None:
            groups.append(group := [])
        group.append(folder)
    return list(map(_stored, groups))


@dataclass(frozen=True)
class _Folder:
    scan: FolderScan
    instances: dict[Path, tuple[str, str]]

    def is_same_series(self, other: _Folder) -> bool:
        if set(self.instances.values()) & set(other.instances.values()):
            return True
        return bool(self._series() & other._series()) and not self._positions() & other._positions()

    def _series(self) -> set[tuple[str, ...]]:
        return {elements[:2] for elements in self.scan.elements if elements[0]}

    def _positions(self) -> set[str]:
        return {elements[3] for elements in self.scan.elements}


def _instances(scan: FolderScan) -> dict[Path, tuple[str, str]]:
    """What identifies each slice: its UID and patient; its content where UIDs are missing or repeat among positions."""
    positions = defaultdict(set)
    for _, _, uid, position in scan.elements:
        positions[uid].add(position)
    return {
        file: (uid if uid and len(positions[uid]) == 1 else hashlib.sha256(file.read_bytes()).hexdigest(), patient)
        for file, (_, patient, uid, _) in zip(scan.files, scan.elements, strict=True)
    }


def _stored(group: Sequence[_Folder]) -> StoredSeries:
    originals: dict[tuple[str, str], Path] = {}
    copies = {}
    for file, instance in (pair for part in group for pair in part.instances.items()):
        original = originals.setdefault(instance, file)
        if original != file:
            copies[file] = original
    return StoredSeries(
        tuple(part.scan.files[0].parent for part in group),
        tuple(originals.values()),
        copies,
        tuple(text for part in group for text in part.scan.left_out),
    )
