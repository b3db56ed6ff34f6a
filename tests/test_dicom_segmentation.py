"""DICOM Segmentations, read back frame by frame, and what a series must have to get one."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundle.__main__ import main
from bundle.pack import pack_bundle
from conftest import CONFIGS, ROOT, refused, write_weights
from dicom_series import FORMATS, NAMES, OBLIQUE, TASK, labels_by_slice, retag, tiny_bundle, write_series
from scripts.core.files import PART
from scripts.data.dicom import dicom_files
from scripts.inference.dicom_segmentation import Maker, segment_series, source_slices, write_segmentation
from scripts.inference.predictor import Predictor
from scripts.inference.structure_codes import SNOMED, structure_code
from scripts.lab.prepare.dicom_folders import read_series

pytestmark = pytest.mark.skipif(
    find_spec("highdicom") is None, reason="no highdicom: pip install -r requirements-dicom.txt"
)
MAKER = Maker("a_bundle", "1.2.3", "0123456789abcdef")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("dicom"))


def volume_of(shape: tuple[int, int, int] = (6, 5, 4)) -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, shape)


def write_and_read(folder: Path, labels: np.ndarray, out: Path):
    import pydicom

    series = read_series(folder)
    slices = source_slices(series, folder)
    written = write_segmentation(out / "seg.dcm", labels, slices, label_names=NAMES, maker=MAKER)
    return pydicom.dcmread(written)


def test_every_voxel_lies_where_its_slice_lies(tmp_path: Path) -> None:
    volume = volume_of()
    labels = np.random.default_rng(1).integers(
        0, 5, volume.shape
    )  # as written: slice k of `volume` is a file of its own
    folder = write_series(tmp_path / "series", volume)
    series = read_series(folder)
    assert np.array_equal(series.image, volume)  # so labels are on the series' grid as they stand
    write_and_read(folder, labels, tmp_path)
    found = labels_by_slice(tmp_path / "seg.dcm", folder)
    for index in range(volume.shape[2]):
        np.testing.assert_array_equal(found[f"{(7 * index) % 10}.dcm"], labels[..., index].T)


def test_another_reader_finds_the_same_volume_at_the_same_place(tmp_path: Path) -> None:
    import highdicom

    labels = np.random.default_rng(2).integers(0, 5, (6, 5, 4))
    folder = write_series(tmp_path / "series", volume_of())
    write_and_read(folder, labels, tmp_path)
    read = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    # Its axes are (slice, row, column), in either direction; positions tell which voxel is which.
    for at, class_id in np.ndenumerate(read.array):
        lps = (read.affine @ [*at, 1.0])[:3]
        x, y, z = np.round((OBLIQUE @ (lps - [-31.0, 12.5, 7.25])) / [1.5, 2.0, 3.0]).astype(int)
        assert class_id == labels[x, y, z]


def test_the_file_says_what_made_it_and_of_whom(tmp_path: Path) -> None:
    labels = np.zeros((6, 5, 4), np.int16)
    labels[0, 0, 0] = 3  # three structures have no voxels, but are described
    folder = write_series(tmp_path / "series", volume_of(), PatientID="p1", SeriesNumber=7)
    read = write_and_read(folder, labels, tmp_path)
    assert (read.Modality, read.PatientID, read.StudyInstanceUID, read.SeriesNumber) == ("SEG", "p1", "1.2.3", 1007)
    assert read.SeriesInstanceUID not in {"1.2.3.1", read.SOPInstanceUID}
    assert (read.ManufacturerModelName, read.DeviceSerialNumber) == ("a_bundle", "0123456789abcdef")
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == NAMES
    algorithms = {
        segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion for segment in read.SegmentSequence
    }
    assert algorithms == {"1.2.3"}
    # Viewers show the colours of the project's pictures: Okabe and Ito's, the first an orange of L* 71.
    colours = [segment.RecommendedDisplayCIELabValue for segment in read.SegmentSequence]
    assert colours[0][0] == pytest.approx(0.71 * 65535, rel=0.02)
    assert len({tuple(colour) for colour in colours}) == 4
    left_kidney = read.SegmentSequence[2].SegmentedPropertyTypeCodeSequence[0]
    assert (left_kidney.CodeValue, left_kidney.CodeMeaning) == ("64033007", "Kidney")
    assert left_kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    measures = read.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (5.0, 3.0)  # the series says 5 and 5.5


def test_nothing_found_is_an_answer_too(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", volume_of())
    read = write_and_read(folder, np.zeros((6, 5, 4), np.int16), tmp_path)
    assert read.NumberOfFrames == len(NAMES)  # of 4 slices each segment has one, or a long series gives a giant file
    assert [segment.SegmentLabel for segment in read.SegmentSequence] == NAMES
    assert not any(voxels.any() for voxels in labels_by_slice(tmp_path / "seg.dcm", folder).values())


def test_missing_uids_are_found_or_made_the_same_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_series(tmp_path / "series", volume_of())
    retag(folder, SOPInstanceUID="", SOPClassUID="", StudyInstanceUID="", SeriesInstanceUID="", FrameOfReferenceUID="")
    series = read_series(folder)
    slices = source_slices(series, folder)
    # File i.dcm got the instance UID ending in its place among the sorted names, 0 1 4 7.
    assert [piece.SOPInstanceUID for piece in slices] == ["1.2.77.1", "1.2.77.4", "1.2.77.3", "1.2.77.2"]
    assert {piece.SOPClassUID.name for piece in slices} == {"CT Image Storage"}
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        (made,) = {getattr(piece, name) for piece in slices}
        assert made.startswith("2.25.")
        assert f"no {name}; the segmentation uses {made}" in caplog.text
        assert made == getattr(source_slices(series, folder)[0], name)


def test_axes_may_be_rounded_differently_from_slice_to_slice(tmp_path: Path) -> None:
    import pydicom

    folder = write_series(tmp_path / "series", volume_of())
    first = pydicom.dcmread(folder / "0.dcm")
    first.ImageOrientationPatient = [0.0001, 0.8, -0.6, 1, 0.0001, 0]
    first.save_as(folder / "0.dcm")
    read = write_and_read(folder, np.ones((6, 5, 4), np.int16), tmp_path)
    assert read.NumberOfFrames == 4


def test_codes_are_those_of_the_standard() -> None:
    """pydicom's dictionary, made from the standard's tables, has each code under the same words but myocardium's."""
    from pydicom.sr._concepts_dict import concepts
    from pydicom.sr.codedict import codes

    meanings: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            meanings.setdefault(value, set()).add(meaning.lower())
    unknown = {name for name, value in SNOMED.items() if name not in meanings.get(value, ())}
    assert unknown == {"myocardium"}
    kidney = structure_code("Left_kidney")
    assert (kidney.side.value, kidney.category.value) == (codes.SCT.Left.value, codes.SCT.AnatomicalStructure.value)
    assert structure_code("right kidney").side.value == codes.SCT.Right.value
    assert structure_code("left ventricle").side is None  # its own code says it
    lesion = structure_code("odd lesion")
    assert (lesion.kind.value, lesion.kind.scheme, lesion.kind.meaning) == ("ODD_LESION", "99GLUA", "odd lesion")
    assert lesion.category.value == codes.SCT.Tissue.value


@pytest.mark.parametrize("task", sorted((CONFIGS / "tasks").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_task_names_structures_with_a_code(task: Path) -> None:
    names = yaml.safe_load(task.read_text())["label_names"]
    assert {structure_code(name).kind.scheme for name in names} == {"SCT"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chaos_ct_dicom/DICOM_anon", "small_ct_mr/example_ct_dicom"])
@pytest.mark.skipif(not FORMATS.is_dir(), reason="no samples of the public releases beside the checkout")
def test_a_real_series_from_the_command_line(
    bundle: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = FORMATS / name
    main(["dicom", "--bundle", str(bundle), "--source", str(folder), "--out", str(tmp_path), "--device", "cpu"])
    (written,) = tmp_path.iterdir()
    assert capsys.readouterr().out.strip() == f"Wrote {written}"
    series = read_series(folder)
    expected = Predictor(bundle, device="cpu")(series.image, series.affine)
    assert len(np.unique(expected)) > 1
    found = labels_by_slice(written, folder)
    for index, file in enumerate(series.order):
        np.testing.assert_array_equal(found[series.files[file].name], expected[..., index].T)


def segment(bundle: Path, folder: Path, out: Path) -> Path:
    return segment_series(bundle, dicom_files(folder), source=folder, out=out, device="cpu")


def test_the_next_series_removes_what_a_killed_command_left(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "__call__", lambda _, volume, affine: np.ones(volume.shape, np.uint8))
    folder, out = write_series(tmp_path / "series", volume_of()), tmp_path / "out"
    code = f"""import os, sys
from scripts.core.files import atomic_path
from scripts.core.run_folder import lock_folder, make_folder
from pathlib import Path
lock_folder(make_folder(Path(sys.argv[1])))
with atomic_path(Path(sys.argv[1], "1.2.3.1_seg.dcm")):
    os.kill(os.getpid(), {signal.SIGKILL:d})"""
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=False)
    left = sorted(file.name.partition(PART)[0] for file in out.iterdir())
    assert left == [".1.2.3", ".run.lock", ".running"]
    (out / "1.2.4_seg.dcm").touch()  # another series, segmented before
    assert segment(bundle, folder, out) == out / "1.2.3.1_seg.dcm"
    assert sorted(file.name for file in out.iterdir()) == ["1.2.3.1_seg.dcm", "1.2.4_seg.dcm"]


@pytest.mark.parametrize(
    ("tags", "found"), [({"SOPInstanceUID": "1.2.4"}, "1 UIDs for 4 slices"), ({"Modality": "MR"}, "modality MR")]
)
def test_a_series_that_cannot_be_used_is_refused(bundle: Path, tags: dict, found: str, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", volume_of(), **tags)
    assert refused(segment, bundle, folder, tmp_path / "out").found == found
    assert not list((tmp_path / "out").glob("*"))


def test_a_slice_that_is_there_twice_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    volume = volume_of()
    folder = write_series(tmp_path / "series", volume)
    (folder / "again.dcm").write_bytes((folder / "0.dcm").read_bytes())
    series = read_series(folder)
    assert "1 slices are there twice; read once, without again.dcm" in caplog.text
    assert np.array_equal(series.image, volume)
    assert [file.name for file in series.files] == ["0.dcm", "1.dcm", "4.dcm", "7.dcm"]
    assert len(write_and_read(folder, (volume > 0).astype(int), tmp_path).PerFrameFunctionalGroupsSequence) == 4


def test_one_uid_with_two_contents_is_no_copy(bundle: Path, tmp_path: Path) -> None:
    import pydicom

    folder = write_series(tmp_path / "series", volume_of())
    other = pydicom.dcmread(folder / "0.dcm")
    other.RescaleIntercept = -1001
    other.save_as(folder / "other.dcm")
    assert "at the same position" in refused(segment, bundle, folder, tmp_path / "out").found


def test_slices_of_two_studies_are_refused(bundle: Path, tmp_path: Path) -> None:
    import pydicom

    folder = write_series(tmp_path / "series", volume_of())
    first = pydicom.dcmread(folder / "0.dcm")
    first.StudyInstanceUID = "1.2.4"
    first.save_as(folder / "0.dcm")
    assert refused(segment, bundle, folder, tmp_path / "out").found == "2 values of StudyInstanceUID"


def test_slices_of_two_patients_are_refused(bundle: Path, tmp_path: Path) -> None:
    """Also a slice that repeats another one under another PatientID; the message names files, no ID."""
    import pydicom

    folder = write_series(tmp_path / "series", volume_of(), PatientID="p1")
    other = pydicom.dcmread(folder / "4.dcm")
    other.PatientID = "p2"
    for name in ("4.dcm", "again.dcm"):
        other.save_as(folder / name)
        found = refused(segment, bundle, folder, tmp_path / "out").found
        assert found == f"several series: different PatientIDs in 0.dcm and {name}"
        write_series(folder, volume_of(), PatientID="p1")
    assert not (tmp_path / "out").exists()


def test_two_series_in_a_folder_no_series_and_no_folder_are_refused(bundle: Path, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", volume_of())
    write_series(tmp_path / "other", volume_of(), series=2)
    for file in (tmp_path / "other").iterdir():
        file.rename(folder / f"other_{file.name}")
    assert "2 series UIDs" in refused(segment, bundle, folder, tmp_path / "out").found
    (tmp_path / "empty").mkdir()
    assert refused(segment, bundle, tmp_path / "empty", tmp_path / "out").found == "0 DICOM files"
    assert refused(dicom_files, tmp_path / "nowhere").found == "no such folder"


def test_a_bundle_that_cannot_segment_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", volume_of())
    empty = pack_bundle("segmentation", task=TASK, out=tmp_path / "dist").folder
    assert refused(segment, empty, folder, tmp_path / "out").file == str(empty / "models" / "model.pt")
    assert refused(segment, tmp_path, folder, tmp_path / "out").expected == "a packed bundle's config"
    weights = write_weights(TASK, tmp_path / "weights", stage="synthesis")
    translator = pack_bundle("synthesis", task=TASK, out=tmp_path / "dist", weights=weights).folder
    for file in write_weights("phantom_ct2mr", tmp_path / "other").parent.iterdir():
        shutil.copy(file, empty / "models")
    assert "weights made with " in refused(segment, empty, folder, tmp_path / "out").found
    assert refused(segment, translator, folder, tmp_path / "out").found == "a synthesis bundle"


def test_missing_packages_are_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    error = refused(segment, bundle, tmp_path, tmp_path / "out")
    assert (error.file, error.remedy) == ("highdicom", "pip install -r requirements-dicom.txt")
