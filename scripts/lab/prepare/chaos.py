"""CHAOS: DICOM series of MR (T1 in and out of phase, T2-SPIR) and CT, each with a folder of PNG masks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError, innermost_message
from scripts.data.case_names import natural_order, visible_files
from scripts.data.dicom import Series
from scripts.data.volumes import check_values
from scripts.lab.prepare.dicom_folders import read_series
from scripts.lab.prepare.source_case import Reading, SearchOptions, SourceCase, not_this_data_set
from skimage.io import imread

__all__ = ["ChaosTree"]

IMAGES, MASKS = "DICOM_anon", "Ground"


class ChaosTree:
    """Folders of DICOM files, each with its masks in ``Ground`` beside ``DICOM_anon``.

    Args:
        series: name of a domain -> regular expression for the end of its folders' paths, with the case's id as group 1.
    """

    def __init__(self, *, series: Mapping[str, str]) -> None:
        self.series = {domain: re.compile(rf"(?:^|.*/){pattern}") for domain, pattern in series.items()}

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """The cases below ``source``, sorted by domain and id."""
        source = source.absolute()
        found: dict[tuple[str, int], Path] = {}
        for folder in sorted({file.parent for file in visible_files(source)}):
            key = self._key(folder)
            if key is None or not options.wants(key[0]):
                continue
            if key in found:
                raise InputError(
                    file=folder,
                    found=f"a second series of {key[0]} case {key[1]}, beside {found[key]}",
                    expected="one folder per id",
                    remedy="remove one of them, or name a folder with one copy",
                )
            found[key] = folder
        if not found:
            wanted = ", ".join(domain for domain in self.series if options.wants(domain))
            expected = f"folders such as MR/1/T2SPIR/DICOM_anon or CT/1/DICOM_anon, of {wanted}"
            raise not_this_data_set(source, expected, "CHAOS")
        return [self._case(*key, folder) for key, folder in sorted(found.items())]

    def _key(self, folder: Path) -> tuple[str, int] | None:
        for domain, pattern in self.series.items():
            match = pattern.fullmatch(folder.as_posix())
            if match and "Test_Sets" not in folder.parts:  # they have no masks
                return domain, int(match[1])
        return None

    def _case(self, domain: str, number: int, folder: Path) -> SourceCase:
        masks = next(part for part in (folder, *folder.parents) if part.name == IMAGES).parent / MASKS
        sources = (*visible_files(folder), *_mask_files(masks))
        return SourceCase(domain, f"{domain}_{number:02d}", number, sources, partial(_read, folder, masks))


def _read(folder: Path, masks: Path) -> Reading:
    """The series and its masks on one grid."""
    series = read_series(folder)
    check_values(series.image, str(folder), is_label=False)
    return Reading(series.image, series.affine, _read_masks(masks, series), masks)


def _read_masks(folder: Path, series: Series) -> np.ndarray:
    """(X, Y, Z) of grey values; masks and slices are paired by the order of their file names."""
    files = _mask_files(folder)
    if len(files) != len(series.files):
        raise InputError(
            file=folder,
            found=f"{len(files)} PNG masks" if folder.is_dir() else "no such folder",
            expected=f"{len(series.files)}, one per DICOM file beside it",
            remedy="download the case again: masks are assigned to slices by their order",
        )
    # (slice, row, column) is (z, y, x).
    return np.stack([_read_mask(files[index], series.image.shape[:2]) for index in series.order]).T


def _read_mask(file: Path, size: tuple[int, ...]) -> np.ndarray:
    try:
        mask = np.asarray(imread(file))
    except Exception as error:
        found = f"a picture that cannot be read ({innermost_message(error)})"
        raise InputError(file=file, found=found, expected="a complete PNG", remedy="download the file again") from error
    if mask.shape != tuple(size[::-1]):
        expected = f"{tuple(size[::-1])} (rows, columns) and one channel, as its DICOM slice"
        remedy = "use the masks of the release, not resized or coloured copies"
        raise InputError(file=file, found=f"a mask of shape {mask.shape}", expected=expected, remedy=remedy)
    return mask


def _mask_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.png"), key=natural_order) if folder.is_dir() else []
    return [file for file in files if not file.name.startswith(".")]
