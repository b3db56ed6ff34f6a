"""One series in several folders is one case, whether it is split or there twice; two patients are two cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice
from scripts.core.errors import InputError
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions

VOLUME = np.arange(6 * 5 * 8).reshape(6, 5, 8)


def write_part(folder: Path, slices: range = range(8), uid: str = "1.2.5.{}", shift: int = 0, **tags: object) -> Path:
    """Slices of ``VOLUME``, 4 mm apart; their UIDs follow from ``uid`` and the number of the slice."""
    for index in slices:
        pixels = (VOLUME[..., index].T + shift).astype(np.uint16)
        position = (0.0, 0.0, 4.0 * index)
        write_slice(folder / f"{index}.dcm", pixels, position=position, SOPInstanceUID=uid.format(index), **tags)
    return folder


def prepared(folder: Path) -> dict:
    find = SearchOptions(domain="ct", validation=0.0)
    report = prepare(Preparation("folder", folder / "in", folder / "out", find=find))
    return report["domains"]["ct"]


def assert_one_case(folder: Path) -> list[str]:
    """The notes of the only case, whose volume is right."""
    report = prepared(folder)
    ((name,),) = report["sections"].values()
    written = np.asarray(nib.load(folder / "out" / "ct" / f"{name}_image.nii.gz").dataobj)
    assert np.array_equal(written, VOLUME)
    return report["notes"][name]


def test_cases_of_equal_folder_names_are_in_natural_order_of_the_patients_folders(tmp_path: Path) -> None:
    """Named after the folders, never after the patient that the files name."""
    for number in (10, 2, 1):
        uids = {"uid": f"1.2.{number}.{{}}", "SeriesInstanceUID": f"1.2.{number}", "PatientID": f"Miller {number}"}
        write_part(tmp_path / "in" / f"patient {number}" / "CT", **uids)
    assert prepared(tmp_path)["sections"]["training"] == ["patient_1_ct", "patient_2_ct", "patient_10_ct"]


def test_a_copy_of_a_series_is_no_second_case(tmp_path: Path) -> None:
    """Both folders are named; files without UIDs are recognised by their content."""
    first = write_part(tmp_path / "in" / "CT" / "thorax")
    shutil.copytree(first, tmp_path / "in" / "backup")
    notes = assert_one_case(tmp_path)
    assert notes[0] == f"{tmp_path}/in/backup: one series with the slices of {first}"
    assert notes[1] == f"{tmp_path}/in/backup: 8 slices are there again in {first}; each was read once"


@pytest.mark.parametrize("uid", ["", "1.2.3"])
def test_copies_without_uids_of_their_own_are_recognised_by_content(uid: str, tmp_path: Path) -> None:
    shutil.copytree(write_part(tmp_path / "in" / "a", uid=uid), tmp_path / "in" / "b")
    assert "8 slices are there again" in assert_one_case(tmp_path)[1]


def test_parts_that_overlap_are_one_series(tmp_path: Path) -> None:
    """Slices 3 to 5 lie in both folders; one of them has another name, and one folder a copy of a file of its own."""
    write_part(tmp_path / "in" / "a", range(6))
    write_part(tmp_path / "in" / "b", range(3, 8))
    (tmp_path / "in" / "b" / "3.dcm").rename(tmp_path / "in" / "b" / "first.dcm")
    shutil.copy(tmp_path / "in" / "b" / "7.dcm", tmp_path / "in" / "b" / "7 copy.dcm")
    assert "4 slices are there again" in assert_one_case(tmp_path)[1]


def test_a_copy_that_was_stored_otherwise_is_one(tmp_path: Path) -> None:
    """Other elements, or another name of the series, do not make other pixels."""
    write_part(tmp_path / "in" / "a")
    write_part(tmp_path / "in" / "b", EchoTime="", SeriesInstanceUID="1.2.77")
    assert "8 slices are there again" in assert_one_case(tmp_path)[1]


def test_two_slices_with_one_uid_are_refused(tmp_path: Path) -> None:
    """The other case of the release is prepared."""
    write_part(tmp_path / "in" / "a")
    write_part(tmp_path / "in" / "b")
    write_part(tmp_path / "in" / "b", range(2, 3), shift=1)
    write_part(tmp_path / "in" / "c", uid="1.2.6.{}", SeriesInstanceUID="1.2.6")
    with pytest.raises(InputError, match=r"b/2\.dcm: .*the SOPInstanceUID of .*a/2\.dcm, with other pixels") as caught:
        prepared(tmp_path)
    assert "different PatientIDs" in str(caught.value)
    assert [path.name for path in sorted((tmp_path / "out").rglob("*.nii.gz"))] == ["c_image.nii.gz"]


def test_two_patients_with_the_same_uids_are_two_cases(tmp_path: Path) -> None:
    """Some anonymisation tools give every patient the same UIDs, or every slice the same one."""
    write_part(tmp_path / "in" / "a", PatientID="p")
    write_part(tmp_path / "in" / "b", PatientID="q", shift=1)
    write_part(tmp_path / "in" / "c", uid="1.2.3", PatientID="r")
    write_part(tmp_path / "in" / "d", uid="1.2.3", PatientID="r", shift=1)
    assert prepared(tmp_path)["sections"] == {"training": ["a", "b", "c", "d"]}


def test_two_patients_in_one_folder_are_refused(tmp_path: Path) -> None:
    """The other case of the release is prepared."""
    write_part(tmp_path / "in" / "a", PatientID="p")
    write_part(tmp_path / "in" / "a", range(3, 5), PatientID="q")
    write_part(tmp_path / "in" / "c", uid="1.2.6.{}", SeriesInstanceUID="1.2.6", PatientID="q")
    with pytest.raises(InputError, match=r"in/a: .*different PatientIDs in 0\.dcm and 3\.dcm"):
        prepared(tmp_path)
    assert [path.name for path in (tmp_path / "out").rglob("*.nii.gz")] == ["c_image.nii.gz"]
