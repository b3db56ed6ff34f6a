"""The planned task file: each value from small volumes whose right answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import refused, write_volume
from scripts.lab.adapt.folders import DomainFolder, check_not_exchanged, domain_names, write_domain
from scripts.lab.adapt.grid import Header, choose_grid, read_headers
from scripts.lab.adapt.task_file import check_intensities, choose_labels, choose_task
from scripts.lab.check.cases import ListedCase, MeasuredCase

AXIAL, TURNED = (0, 1, 2), (2, 0, 1)


def headers(
    shape: tuple[int, ...], spacing: tuple[float, ...], axes: tuple[int, ...] = AXIAL, n: int = 3
) -> list[Header]:
    return [Header(Path(f"case_{k}.nii.gz"), shape, spacing, axes) for k in range(n)]


def values(choices: tuple) -> dict:
    return {choice.key: choice.value for choice in choices}


def case(
    name: str, domain: str, lowest: float, highest: float, volumes: dict[float, float] | None = None
) -> MeasuredCase:
    files = ListedCase(domain=domain, section="training", name=name, image="", label=None, modality="")
    percentiles = {"0.5": lowest, "50.0": 0.0, "99.5": highest}
    return MeasuredCase(files=files, shape=(9, 9, 9), percentiles=percentiles, volumes_ml=volumes or {})


def test_the_window_shows_the_smaller_field() -> None:
    """CT: 400 pixels of 1 mm; MR: 320 pixels of 1 mm in 128 pixels are 2.5 mm. Slices are thicker: kept."""
    domains = {"ct": headers((400, 400, 90), (1.0, 1.0, 3.0)), "mr": headers((320, 300, 30), (1.0, 1.0, 8.0))}
    grid = choose_grid(domains, pixels=128)
    assert values(grid.choices) == {
        "orientation": "RAS",
        "spacing_mm": [2.5, 2.5, -1.0],
        "slice_axis": 2,
        "slice_size": [128, 128],
    }


def test_pixels_are_not_finer_than_the_coarser_domains() -> None:
    """60 pixels of 3 mm would be 1.4 mm in 128 pixels: they stay 3 mm, and 60 of them need a window of 64."""
    domains = {"ct": headers((300, 300, 90), (1.0, 1.0, 5.0)), "mr": headers((60, 60, 30), (3.0, 3.0, 8.0))}
    chosen = values(choose_grid(domains, pixels=128).choices)
    assert chosen["spacing_mm"] == [3.0, 3.0, -1.0]
    assert chosen["slice_size"] == [64, 64]


def test_slices_finer_than_pixels_are_resampled() -> None:
    domains = {"ct": headers((512, 512, 300), (0.5, 0.5, 0.6)), "mr": headers((256, 256, 200), (1.0, 1.0, 1.0))}
    assert values(choose_grid(domains, pixels=128).choices)["spacing_mm"] == [2.0, 2.0, 2.0]


def test_slices_along_the_thickest_spacing() -> None:
    """Coronal slices: the stored third axis runs from front to back."""
    coronal = headers((200, 200, 20), (1.0, 1.0, 6.0), axes=(0, 2, 1))
    chosen = values(choose_grid({"a": coronal, "b": coronal}, pixels=128).choices)
    assert (chosen["slice_axis"], chosen["spacing_mm"][1]) == (1, -1.0)


def test_short_axis_stacks_keep_their_stored_axes() -> None:
    """Headers that turn the same stored stack to different axes of the body would cut through it."""
    hearts = [*headers((192, 192, 9), (1.25, 1.25, 8.0), (0, 1, 2)), *headers((192, 192, 9), (1.25, 1.25, 8.0), TURNED)]
    chosen = values(choose_grid({"a": hearts, "b": hearts}, pixels=128).choices)
    assert (chosen["orientation"], chosen["slice_axis"]) == (None, 2)


def test_most_volumes_decide_on_the_slice_axis() -> None:
    odd = [Header(Path("odd.nii.gz"), (20, 200, 200), (6.0, 1.0, 1.0), AXIAL)]
    grid = choose_grid({"a": headers((200, 200, 20), (1.0, 1.0, 6.0)), "b": odd}, pixels=128)
    assert (grid.orientation, grid.slice_axis) == ("RAS", 2)


def test_headers_of_what_can_be_read(tmp_path: Path) -> None:
    """Stored as (left, head, front): axes 0, 2, 1; the damaged file is left to the check."""
    affine = np.array([[-2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])
    good = write_volume(tmp_path / "good.nii.gz", np.zeros((3, 4, 5), np.int16), affine)
    (tmp_path / "bad.nii.gz").write_bytes(b"no volume")
    (header,) = read_headers([str(good), str(tmp_path / "bad.nii.gz")])
    assert (header.shape, header.spacing_mm, header.axes) == ((3, 4, 5), (2.0, 4.0, 3.0), (0, 2, 1))
    assert header.along(2, "RAS") == (4.0, 16.0)
    assert header.along(2, None) == (3.0, 15.0)


@pytest.mark.parametrize(
    ("given", "names", "background"),
    [
        (None, {1: "label_1", 4: "label_4", 7: "label_7"}, []),
        ("liver, spleen,aorta", {1: "liver", 4: "spleen", 7: "aorta"}, []),
        ("4=spleen,1=liver", {1: "liver", 4: "spleen"}, [7]),
    ],
)
def test_names_of_label_values(given: str | None, names: dict[int, str], background: list[int]) -> None:
    cases = [case("a", "ct", 0, 1, {1.0: 1500.0, 7.0: 90.0}), case("b", "ct", 0, 1, {1.0: 1700.0, 4.0: 200.0})]
    chosen = values(choose_labels(cases, given))
    assert dict(zip(chosen["label_values"], chosen["label_names"], strict=True)) == names
    assert chosen["background_values"] == background


@pytest.mark.parametrize("given", ["liver", "liver,liver", "1=liver,5=spleen", "liver,"])
def test_names_that_do_not_fit(given: str) -> None:
    error = refused(choose_labels, [case("a", "ct", 0, 1, {1.0: 1500.0, 4.0: 200.0})], given)
    assert "1 (1500 ml), 4 (200 ml)" in error.expected


def planned(
    source: list[MeasuredCase], names: str = "liver,spleen", more: Sequence[Header] = ()
) -> tuple[dict, tuple[str, ...]]:
    """CT of 450 mm, with more of any length, and MR of 240 mm."""
    target = [case("c", "mr", 0.0, 800.0)]
    domains = {"ct": headers((300, 300, 150), (1.0, 1.0, 3.0)), "mr": headers((300, 300, 30), (1.0, 1.0, 8.0))}
    domains["ct"] = [*domains["ct"], *more]
    labels = choose_labels(source, names)
    plan = choose_task("mine", ("ct", "mr"), [*source, *target], domains, choose_grid(domains, 128), labels)
    return yaml.safe_load(plan.text), plan.warnings


def test_a_ct_has_a_window_and_an_mr_percentiles() -> None:
    """Raw HU from air to bone: -150 to 500; values stored up to 275 HU end there."""
    source = [case("a", "ct", -1000.0, 900.0, {1.0: 9.0, 2.0: 9.0})]
    task, warnings = planned(source)
    body, window = task["source_intensity"]["transforms"]
    assert (body["threshold"], window["a_min"], window["a_max"]) == (-135.0, -150.0, 500.0)
    assert task["target_intensity"]["_target_"] == "ScaleIntensityRangePercentilesd"
    assert task["source_section"] == {"_target_": "scripts.data.sections.BelowLungs", "threshold": -135.0}
    assert warnings == ()
    stored = [case("a", "ct", -125.0, 275.0, {1.0: 9.0, 2.0: 9.0})]
    assert planned(stored)[0]["source_intensity"]["transforms"][1]["a_max"] == 275.0
    assert planned(stored)[0]["source_section"]["threshold"] == -110.0


def test_lengths_of_the_body_that_differ_are_said() -> None:
    """Of a heart no section is known: 450 mm and 240 mm are a warning."""
    task, (warning,) = planned([case("a", "ct", -1000.0, 900.0, {1.0: 9.0, 2.0: 9.0})], "aorta,atrium")
    assert task["source_section"]["_target_"].endswith("NotBlank")
    assert "450 mm" in warning
    assert "240 mm" in warning


@pytest.mark.parametrize(("slices", "is_odd"), [(76, False), (74, True), (299, False), (301, True)])
def test_a_volume_of_another_length_than_its_domain_is_named(slices: int, is_odd: bool) -> None:
    """Half and twice the median of 450 mm are 75 and 300 slices of 3 mm."""
    (usual,) = headers((300, 300, 150), (1.0, 1.0, 3.0), n=1)
    odd = replace(usual, path=Path("lungs.nii.gz"), shape=(300, 300, slices))
    source = [case("a", "ct", -1000.0, 900.0, {1.0: 9.0, 2.0: 9.0})]
    _, warnings = planned(source, more=[usual, usual, odd])
    assert bool(warnings) == is_odd
    assert all(f"lungs ({3 * slices} mm)" in text and "median 450 mm" in text for text in warnings)


def test_two_modalities_in_a_folder() -> None:
    mixed = [
        case("a", "ct", -1000.0, 900.0, {1.0: 9.0, 2.0: 9.0}),
        case("b", "ct", -990.0, 900.0),
        case("odd", "ct", 0, 9),
    ]
    assert "odd" in refused(planned, mixed).found


def test_a_window_in_hu_for_an_mr() -> None:
    """A task file by hand whose source and target are exchanged."""
    task, _ = planned([case("a", "ct", -1000.0, 900.0, {1.0: 9.0, 2.0: 9.0})])
    cases = [case("a", "ct", -1000.0, 900.0), case("c", "mr", 0.0, 800.0)]
    check_intensities(Path("mine.yaml"), task, cases)
    exchanged = task | {"source_domain": "mr", "target_domain": "ct"}
    error = refused(check_intensities, Path("mine.yaml"), exchanged, cases)
    assert "source_intensity" in error.found
    assert "exchange" in error.remedy


@pytest.fixture
def hospital(data: Path, tmp_path: Path) -> Path:
    """One folder per patient; in the MR's all files have one name."""
    for index in range(3):
        for domain, names in {"mr": ("image", "seg"), "ct": (f"patient {index} CT", f"patient {index} seg")}.items():
            folder = tmp_path / f"{domain} scans" / f"patient {index}"
            folder.mkdir(parents=True)
            for kind, name in zip(("image", "label"), names, strict=True):
                (folder / f"{name}.nii.gz").symlink_to(data / f"{domain}_{index}_{kind}.nii.gz")
    return tmp_path


def test_nested_folders_and_repeated_names(hospital: Path) -> None:
    mr, ct = hospital / "mr scans", hospital / "ct scans"
    assert domain_names(mr, ct) == ("mr", "ct")
    content = yaml.safe_load(write_domain(DomainFolder("mr", mr, mr), hospital / "data").read_text())
    names = [(Path(entry["image"]).name, Path(entry["label"]).name) for entry in content["training"]]
    assert names == [(f"patient {k}_image.nii.gz", f"patient {k}_seg.nii.gz") for k in range(3)]
    content = yaml.safe_load(write_domain(DomainFolder("ct", ct), hospital / "data").read_text())
    assert [Path(entry["image"]).name for entry in content["training"]] == [f"patient {k} CT.nii.gz" for k in range(3)]
    assert content["modality"] == "CT"


def test_exchanged_folders(hospital: Path) -> None:
    mr, ct = hospital / "mr scans", hospital / "ct scans"
    labels = hospital / "labels"
    labels.mkdir()
    for index in range(3):
        (labels / f"patient {index} seg.nii.gz").symlink_to(ct / f"patient {index}" / f"patient {index} seg.nii.gz")
    check_not_exchanged(ct, labels, mr)
    assert "exchange --source_images and --target_images" in refused(check_not_exchanged, mr, labels, ct).remedy


def test_a_folder_without_volumes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no NIfTI file and no DICOM slice" in refused(domain_names, tmp_path, tmp_path).found
