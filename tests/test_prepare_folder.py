"""Own folders: NIfTI images or DICOM series, label maps by name, label values from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from dicom_files import stack
from releases import CT_AFFINE, MR_AFFINE, assert_is_truth, save, sections, true_image, true_label, world_of
from scripts.core.errors import InputError
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions

SHAPE = (22, 19, 11)
VALUES = [7, 9]


def write_images(folder: Path, count: int = 3) -> Path:
    world = world_of(SHAPE, MR_AFFINE)
    for index in range(count):
        save(folder / "images" / f"case{index}.nii.gz", true_image(world, index), MR_AFFINE)
        save(folder / "labels" / f"case{index}_seg.nii.gz", true_label(world, VALUES), MR_AFFINE)
    return folder


def run(source: Path, out: Path, label_map: str | None = None, **find: object) -> dict:
    given = {"domain": "mr", **find}
    return prepare(Preparation("folder", source, out, label_map=label_map, find=SearchOptions(**given), workers=1))


def test_images_labels_and_a_map(tmp_path: Path) -> None:
    source = write_images(tmp_path)
    run(source / "images", tmp_path / "out", "7:1,9:2", labels=source / "labels", validation=0.34)
    assert_is_truth(tmp_path / "out", "mr", "case1", 1, [1, 2])
    assert sections(tmp_path / "out", "mr") == {"training": ["case0", "case1"], "validation": ["case2"]}


def test_the_map_may_be_a_yaml_file(tmp_path: Path) -> None:
    source = write_images(tmp_path, 1)
    (tmp_path / "map.yaml").write_text("{7: 3, 9: 0}\n")
    run(source / "images", tmp_path / "out", str(tmp_path / "map.yaml"), labels=source / "labels", validation=0.0)
    assert_is_truth(tmp_path / "out", "mr", "case0", 0, [3, 0])


def test_without_a_map_values_stay(tmp_path: Path) -> None:
    source = write_images(tmp_path, 1)
    run(source / "images", tmp_path / "out", labels=source / "labels", validation=0.0)
    assert_is_truth(tmp_path / "out", "mr", "case0", 0, VALUES)


def test_a_second_domain_leaves_the_first_in_the_report(tmp_path: Path) -> None:
    source = write_images(tmp_path, 2)
    run(source / "images", tmp_path / "out", domain="mr")
    run(source / "images", tmp_path / "out", domain="t2")
    report = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert set(report["folder"]["domains"]) == {"mr", "t2"}
    assert sections(tmp_path / "out", "mr") == sections(tmp_path / "out", "t2")


def test_an_unlabelled_domain(tmp_path: Path) -> None:
    run(write_images(tmp_path) / "images", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*_label.nii.gz"))


def write_series(folder: Path, name: str, number: int) -> np.ndarray:
    """A DICOM series of the truth; gives its affine as dcm2niix would write it: rows flipped."""
    lps = {"origin": np.array([-22.0, -24.0, -20.0]), "axes": np.eye(3), "spacing": (2.0, 2.5, 4.0)}
    affine = np.array([[-2.0, 0, 0, 22], [0, -2.5, 0, 24], [0, 0, 4.0, -20], [0, 0, 0, 1]])
    volume = true_image(world_of(SHAPE, affine), number)
    names = [f"{index}.dcm" for index in range(SHAPE[2])]
    stack(folder / name, volume, **lps, names=names, intercept=-1000)
    flipped = affine.copy()
    flipped[1, 1], flipped[1, 3] = 2.5, 24 - 2.5 * (SHAPE[1] - 1)
    return flipped


def test_dicom_series_with_labels_drawn_on_their_conversion(tmp_path: Path) -> None:
    for number, name in enumerate(["p1", "p2"]):
        flipped = write_series(tmp_path / "dicom", name, number)
        label = true_label(world_of(SHAPE, flipped), VALUES)
        save(tmp_path / "labels" / f"{name}_label.nii.gz", label, flipped)
    report = run(tmp_path / "dicom", tmp_path / "out", "7:1,9:2", labels=tmp_path / "labels", validation=0.5)
    for number, name in enumerate(["p1", "p2"]):
        assert_is_truth(tmp_path / "out", "mr", name, number, [1, 2])
    assert "reoriented, no voxel changed" in report["domains"]["mr"]["notes"]["p1"][0]


def test_a_series_without_its_label(tmp_path: Path) -> None:
    flipped = write_series(tmp_path / "dicom", "p1", 0)
    save(tmp_path / "labels" / "p2.nii.gz", true_label(world_of(SHAPE, flipped), VALUES), flipped)
    with pytest.raises(InputError, match=r"dicom: no label for p1; labels of no image: p2\.nii\.gz"):
        run(tmp_path / "dicom", tmp_path / "out", labels=tmp_path / "labels")


def test_one_kind_of_image_at_a_time(tmp_path: Path) -> None:
    write_series(tmp_path / "in", "p1", 0)
    save(tmp_path / "in" / "case.nii.gz", true_image(world_of(SHAPE, CT_AFFINE), 0), CT_AFFINE)
    with pytest.raises(InputError, match=r"NIfTI files \(case.nii.gz\) and folders of DICOM slices \(p1\)"):
        run(tmp_path / "in", tmp_path / "out")


def test_two_images_with_one_id(tmp_path: Path) -> None:
    source = write_images(tmp_path, 1)
    nib.save(nib.load(source / "images" / "case0.nii.gz"), source / "images" / "case0.nii")
    with pytest.raises(InputError, match=r"images: two images for case 'case0', case0.nii and case0.nii.gz"):
        run(source / "images", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": None}, "--domain: no name of the domain"),
        ({"label_map": "7=1"}, r"--map 7=1: no label map \(ValueError\)\. Expected pairs such as 63:1"),
        ({"label_map": "7:1,7:2"}, r"--map 7:1,7:2: no label map .*each value once"),
        ({"label_map": "7:3000000000"}, r"--map 7:3000000000: no label map .*within 16777215 of 0"),
        ({"label_map": "none.yaml"}, r"none.yaml: no such file\. Expected pairs"),
    ],
)
def test_settings_that_are_wrong(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run(write_images(tmp_path) / "images", tmp_path / "out", **settings)


def test_a_value_that_the_map_does_not_name(tmp_path: Path) -> None:
    source = write_images(tmp_path, 1)
    with pytest.raises(InputError, match=r"case0_seg.nii.gz: label value\(s\) 9 \(\d+ voxels\)\. Expected only 0, 7"):
        run(source / "images", tmp_path / "out", "7:1", labels=source / "labels", validation=0.0)


def write_acdc_order(folder: Path, numbers: tuple[int, ...] = (1, 2), highest: int = 3) -> Path:
    """``subject1_DE.nii.gz`` and its label map in one folder, as CycleMix's copy of the late enhancements has them."""
    world = world_of(SHAPE, MR_AFFINE)
    for number in numbers:
        save(folder / f"subject{number}_DE.nii.gz", true_image(world, number), MR_AFFINE)
        save(folder / f"subject{number}_DE_manual.nii.gz", true_label(world, list(range(1, highest + 1))), MR_AFFINE)
    return folder


def test_hearts_that_count_otherwise_are_mapped(tmp_path: Path) -> None:
    """1 right ventricle, 2 myocardium, 3 left ventricle there; 1 myocardium, 2 left, 3 right ventricle here."""
    source = write_acdc_order(tmp_path / "in")
    with pytest.raises(InputError, match=r"other files \(subject1_DE.nii.gz, .*patient1_C0.nii.gz"):
        prepare(Preparation("mscmr", source, tmp_path / "out"))
    run(source, tmp_path / "out", "1:3,2:1,3:2", labels=source, domain="lge", validation=0.0)
    assert_is_truth(tmp_path / "out", "lge", "subject1_de", 1, [3, 1, 2])


def test_the_unlabelled_voxels_of_scribbles_are_no_class(tmp_path: Path) -> None:
    """4 marks unlabelled voxels: neither a structure nor background."""
    source = write_acdc_order(tmp_path / "in", numbers=(1,), highest=4)
    with pytest.raises(InputError, match=r"label value\(s\) 4 \(\d+ voxels\)\. Expected only 0, 1, 2, 3"):
        run(source, tmp_path / "out", "1:3,2:1,3:2", labels=source, domain="lge", validation=0.0)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_cases_that_were_numbered_from_0_keep_their_names(tmp_path: Path) -> None:
    """As SABS numbers BTCV; with names of its own, ``image_0``, it is no BTCV, and here no split goes by numbers."""
    world = world_of(SHAPE, CT_AFFINE)
    for number in (0, 2, 10):
        save(tmp_path / "in" / f"image_{number}.nii.gz", true_image(world, number), CT_AFFINE)
        save(tmp_path / "in" / f"label_{number}.nii.gz", true_label(world, [6, 2, 3, 1]), CT_AFFINE)
    with pytest.raises(InputError, match=r"other files \(image_0.nii.gz, .*img0001.nii.gz and label0001"):
        prepare(Preparation("btcv", tmp_path / "in", tmp_path / "out"))
    mapping = "6:1,2:2,3:3,1:4"
    run(tmp_path / "in", tmp_path / "out", mapping, labels=tmp_path / "in", domain="ct", validation=0.0)
    assert sections(tmp_path / "out", "ct") == {"training": ["0", "2", "10"]}
    assert_is_truth(tmp_path / "out", "ct", "10", 10, [1, 2, 3, 4])


@pytest.mark.parametrize("name", ["case1_000.png", "case1.h5", "case1.npy"])
def test_pictures_and_arrays_are_no_volumes(name: str, tmp_path: Path) -> None:
    """Stacks of PNG were scaled slice by slice and their labels are binary; arrays have no spacing and no position."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"\x89PNG")
    message = rf"other files \({name} ...\)\. Expected a folder of images: NIfTI images, or folders of DICOM slices"
    with pytest.raises(InputError, match=message):
        run(tmp_path / "in", tmp_path / "out")


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_labels_that_lie_where_outputs_go_are_not_overwritten(tmp_path: Path) -> None:
    source = write_images(tmp_path, 2)
    (source / "labels").rename(tmp_path / "mr")
    for index in range(2):
        (tmp_path / "mr" / f"case{index}_seg.nii.gz").rename(tmp_path / "mr" / f"case{index}_label.nii.gz")
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"mr would be written into the source .*mr\. Expected an output folder"):
        run(source / "images", tmp_path, "7:1,9:2", labels=tmp_path / "mr", validation=0.5)
    assert state(tmp_path) == before


def test_files_that_links_lead_to_are_not_overwritten(tmp_path: Path) -> None:
    source = write_images(tmp_path, 2)
    (tmp_path / "mr").mkdir()
    (source / "labels" / "case0_seg.nii.gz").rename(tmp_path / "mr" / "case0_label.nii.gz")
    (source / "labels" / "case0_seg.nii.gz").symlink_to(tmp_path / "mr" / "case0_label.nii.gz")
    before = state(tmp_path)
    with pytest.raises(InputError, match=r"case0_label.nii.gz would overwrite the source .*case0_seg.nii.gz"):
        run(source / "images", tmp_path, "7:1,9:2", labels=source / "labels", validation=0.5)
    assert state(tmp_path) == before


def test_nor_is_the_label_maps_own_file(tmp_path: Path) -> None:
    source = write_images(tmp_path, 1)
    (tmp_path / "map.yaml").write_text("{7: 1, 9: 2}\n")
    (tmp_path / "mr.json").symlink_to(tmp_path / "map.yaml")
    with pytest.raises(InputError, match=r"mr.json would overwrite the source .*map.yaml"):
        run(source / "images", tmp_path, str(tmp_path / "map.yaml"), labels=source / "labels", validation=0.0)


def test_a_map_to_a_fraction_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("{7: 1.5}\n")
    with pytest.raises(InputError, match=r"map\.yaml: no label map .*whole"):
        run(tmp_path, tmp_path / "out", str(tmp_path / "map.yaml"))


def test_one_series_in_two_folders_is_one_case(tmp_path: Path) -> None:
    """The parts of one acquisition; the same UIDs of another patient, or at the same places, are another case."""
    volume = np.arange(6 * 5 * 8).reshape(6, 5, 8)
    axes, spacing = np.eye(3), (1.5, 2.0, 4.0)
    for name, part, patient in (("a/1", slice(0, 4), "p"), ("a/2", slice(4, 8), "p"), ("b", slice(0, 4), "q")):
        origin = np.array([0.0, 0.0, 4.0 * part.start])
        names = [f"{index}.dcm" for index in range(4)]
        folder = tmp_path / "in" / name
        stack(folder, volume[..., part], origin=origin, axes=axes, spacing=spacing, names=names)
        for file in folder.iterdir():
            slice_ = pydicom.dcmread(file)
            slice_.PatientID = patient
            slice_.save_as(file)
    (tmp_path / "in" / "a" / "1" / "plan").write_bytes((tmp_path / "in" / "b" / "0.dcm").read_bytes())
    plan = pydicom.dcmread(tmp_path / "in" / "a" / "1" / "plan")
    plan.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    plan.save_as(tmp_path / "in" / "a" / "1" / "plan")
    report = prepare(
        Preparation("folder", tmp_path / "in", tmp_path / "out", find=SearchOptions(domain="ct", validation=0.0))
    )
    assert report["domains"]["ct"]["sections"] == {"training": ["a_1", "b"]}
    notes = report["domains"]["ct"]["notes"]["a_1"]
    assert notes[0].endswith(f"one series with the slices of {tmp_path / 'in' / 'a' / '2'}")
    assert notes[1].endswith("not used, because they are not slices: plan (RT Structure Set Storage)")
    written = nib.load(tmp_path / "out" / "ct" / "a_1_image.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), volume)
