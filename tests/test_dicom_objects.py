"""Objects beside the slices of a series: plans, segmentations, reports and screenshots are left out by SOP class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from conftest import refused
from dicom_files import stack
from scripts.data.dicom import scan_folder
from scripts.lab.prepare.dicom_folders import read_series

VOLUME = np.arange(6 * 5 * 4).reshape(6, 5, 4)


def series(folder: Path, **tags: object) -> Path:
    names = [f"{index}.dcm" for index in range(4)]
    stack(folder, VOLUME, names=names, origin=np.zeros(3), axes=np.eye(3), spacing=(1.5, 2.0, 4.0), **tags)
    return folder


OTHERS = {
    "RTSTRUCT": "1.2.840.10008.5.1.4.1.1.481.3",
    "SEG": "1.2.840.10008.5.1.4.1.1.66.4",
    "SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "PR": "1.2.840.10008.5.1.4.1.1.11.1",
    "RTDOSE": "1.2.840.10008.5.1.4.1.1.481.2",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_objects_beside_the_slices_are_left_out_by_their_class(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = series(tmp_path)
    other = pydicom.dcmread(folder / "0.dcm")
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = OTHERS[kind]
    if kind in ("RTSTRUCT", "SR", "PR"):
        del other.PixelData, other.Rows, other.Columns
    other.save_as(folder / "IM9")
    (folder / "dicomdir").write_bytes((folder / "0.dcm").read_bytes())
    assert np.array_equal(read_series(folder).image, VOLUME)
    assert "not used, because they are not slices: IM9 (" in caplog.text
    (said,) = scan_folder(folder).left_out
    assert said == f"IM9 ({pydicom.uid.UID(OTHERS[kind]).name})"


def test_a_slice_without_rows_is_damaged_and_not_left_out(tmp_path: Path) -> None:
    """Without the first of four slices, the others would pass as a shorter series."""
    slice_ = pydicom.dcmread(series(tmp_path) / "0.dcm")
    del slice_.Rows
    slice_.save_as(tmp_path / "0.dcm")
    error = refused(read_series, tmp_path)
    assert error.file == str(tmp_path / "0.dcm")
    assert error.found.startswith("DICOM data that cannot be decoded")


def test_captures_alone_are_slices(tmp_path: Path) -> None:
    folder = series(tmp_path, SOPClassUID=OTHERS["SC"])
    assert np.array_equal(read_series(folder).image, VOLUME)


@pytest.mark.parametrize("value", ["1e39", "1e300", "-1e10"])
@pytest.mark.parametrize("name", ["RescaleIntercept", "RescaleSlope"])
def test_a_rescale_that_leaves_single_precision(name: str, value: str, tmp_path: Path) -> None:
    error = refused(read_series, series(tmp_path, **{name: value}))
    assert (error.file, error.found) == (str(tmp_path / "0.dcm"), f"{name} {value!r}")
    assert error.expected.startswith("1 number of -1e+09 to 1e+09")


def test_a_slope_that_makes_all_values_equal(tmp_path: Path) -> None:
    assert refused(read_series, series(tmp_path, RescaleSlope="1e-300")).found == "RescaleSlope '1e-300'"
