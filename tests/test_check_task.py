"""A task file against the volumes: the slices it cuts, and what its preprocessing leaves for the networks to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CONFIGS, TASK, write_volume
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.cases import ListedCase, MeasuredCase
from scripts.lab.check.measure import measure_case
from scripts.lab.check.preprocessed import find_lost_structures, find_preprocessing_faults, find_unused_area
from scripts.lab.check.run_check import measure_cases, task_labels
from scripts.lab.check.slicing import find_turned_volumes, find_wrong_slice_axis

AXIAL, CORONAL = ("RAS", 2), ("RSA", 2)
"""Axes as stored, and the stored axis of the thick slices: to the head, or to the front."""


def case(
    domain: str, name: str, stored: tuple[str, int] = AXIAL, spacing_mm: tuple[float, ...] = (1.0, 1.2, 6.0)
) -> MeasuredCase:
    files = ListedCase(domain=domain, section="training", name=name, image="", label=None, modality="MR")
    orientation, stack = stored
    return MeasuredCase(files=files, shape=(9, 9, 9), spacing_mm=spacing_mm, orientation=orientation, stack_axis=stack)


def test_slices_along_the_thickest_axis_of_both_domains() -> None:
    assert find_wrong_slice_axis([case("mr", "a"), case("ct", "b")], "RAS", 2) == []
    assert find_wrong_slice_axis([case("mr", "a", CORONAL), case("ct", "b", CORONAL)], "RAS", 1) == []


def test_a_target_that_is_stacked_along_another_axis_than_the_source() -> None:
    """Stored as right, head, front: the thick third axis is the frame's second one."""
    cases = [case("mr", "a"), case("mr", "b"), case("ct", "c", CORONAL), case("ct", "d", CORONAL)]
    (finding,) = find_wrong_slice_axis(cases, "RAS", 2)
    assert (finding.severity, finding.domain, finding.cases) == ("warning", "ct", ())
    assert finding.found == (
        "slices are cut along axis 2, but 2 of 2 volumes are stacked along axis 1 (coronal slices): 6 mm apart "
        "against 1.2 mm between pixels; the other domain's along axis 2 (axial slices)"
    )


def test_a_wrong_slice_axis_of_the_task_is_found_in_both_domains() -> None:
    findings = find_wrong_slice_axis([case("mr", "a"), case("ct", "b")], "RAS", 0)
    assert [finding.domain for finding in findings] == ["mr", "ct"]


def test_one_volume_of_another_plane_is_named() -> None:
    (finding,) = find_wrong_slice_axis([case("mr", "a"), case("mr", "b", CORONAL), case("mr", "c")], "RAS", 2)
    assert finding.cases == ("b",)
    assert "1 of 3 volumes" in finding.found


def test_stored_axes_are_compared_as_they_are() -> None:
    assert find_wrong_slice_axis([case("mr", "a"), case("ct", "b", CORONAL)], None, 2) == []
    (finding,) = find_wrong_slice_axis([case("mr", "a", ("RAS", 0), (6.0, 1.0, 1.0))], None, 2)
    assert "axis 0 as stored" in finding.found


@pytest.mark.parametrize(("spacing_mm", "axis"), [((1.0, 1.0, 1.1), 0), ((1.0, 1.0, 6.0), None)])
def test_nothing_is_said_without_a_thickest_axis_or_a_task(spacing_mm: tuple[float, ...], axis: int | None) -> None:
    assert find_wrong_slice_axis([case("mr", "a", spacing_mm=spacing_mm)], "RAS", axis) == []


def test_stored_axes_of_several_directions_turn_the_body() -> None:
    cases = [case("mr", "a"), case("ct", "b", ("LPS", 2)), case("ct", "c", ("LPS", 2))]
    assert find_turned_volumes(cases, "RAS") == []
    (finding,) = find_turned_volumes(cases, None)
    assert finding.found == "stored axes of several directions: 1 x RAS in mr, 2 x LPS in ct"
    oblique = [replace(one, oblique_degrees=35.0) for one in cases]
    assert find_turned_volumes(oblique, None) == []


def test_the_angle_of_an_oblique_volume(tmp_path: Path) -> None:
    """Turned by 30 degrees about the first axis: the other two are 30 degrees off theirs."""
    angle = np.radians(30.0)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    voxels = np.random.default_rng(0).uniform(0, 900, (30, 30, 30)).astype(np.float32)
    path = write_volume(tmp_path / "a.nii.gz", voxels, affine)
    files = ListedCase(domain="mr", section="training", name="a", image=str(path), label=None, modality="MR")
    assert measure_case(files, {}).oblique_degrees == pytest.approx(30.0, abs=0.01)


def test_a_structure_outside_the_section() -> None:
    """Two cases with 10 + 30 voxels of the liver, of which 10 + 10 are left: half is lost; the spleen loses a tenth."""
    counts = [
        {"ResampleVolumed": torch.tensor([0, 10, 10]), "CropForegroundd": torch.tensor([0, 10, 9])},
        {"ResampleVolumed": torch.tensor([0, 30, 10]), "CropForegroundd": torch.tensor([0, 10, 9])},
    ]
    assert find_lost_structures(counts, ["liver", "spleen"], "source") == ["50 % of liver lies outside source_section"]
    assert find_lost_structures([{"reading": torch.tensor([0, 1])}], ["liver"], "source") == []


def slices_of(window: tuple[int, int], size: tuple[int, int], shown: int) -> Any:
    """One slice on a frame of 10 x 10, with some pixels above the lowest intensity."""
    images = torch.full((1, 1, 10, 10), -1.0)
    images.view(-1)[:shown] = 0.5
    return SimpleNamespace(images=images, window_size=window, sizes=torch.tensor([size]))


def test_windows_of_padding_and_slices_of_nothing() -> None:
    """4 x 5 pixels fill a fifth of a window of 10 x 10; 2 of 100 pixels show something."""
    assert find_unused_area(slices_of((10, 10), (10, 10), 50)) == []
    assert find_unused_area(slices_of((5, 5), (10, 10), 50)) == []
    assert find_unused_area(slices_of((10, 10), (4, 5), 20)) == [
        "80 % of the windows is padding: slices of 4 x 5 pixels in windows of 10 x 10"
    ]
    assert find_unused_area(slices_of((10, 10), (10, 10), 2)) == [
        "98 % of the slices' area is blank, at the lowest intensity"
    ]


HU = {"_target_": "ScaleIntensityRanged", "keys": "image", "b_min": -1.0, "b_max": 1.0, "clip": True}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, None),
        ({"target_intensity": HU | {"a_min": -200.0, "a_max": 500.0, "b_min": 0.0}}, "ct: no intensity between -1"),
        ({"target_intensity": HU | {"a_min": 3000.0, "a_max": 9000.0}}, "ct: only constant slices"),
        ({"slice_size": [256, 256]}, "of the windows is padding"),
    ],
    ids=["as it is", "b_min 0", "window above all", "windows too large"],
)
def test_a_task_file_is_judged_by_what_it_leaves(
    changes: dict[str, Any], found: str | None, data: Path, tmp_path: Path
) -> None:
    task = tmp_path / "task.yaml"
    settings = yaml.safe_load((CONFIGS / "tasks" / f"{TASK}.yaml").read_text()) | {"slice_size": [32, 32]} | changes
    task.write_text(yaml.safe_dump(settings))
    files = find_cases([str(data / "mr.json"), str(data / "ct.json")])
    cases = measure_cases(files, task_labels(str(task)))
    sentences = [f"{one.domain}: {one.found}" for one in find_preprocessing_faults(str(task), cases)]
    assert any(found in one for one in sentences) if found else sentences == [], sentences


def test_a_task_file_of_names_alone_is_not_judged(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("label_names: [liver]\nlabel_values: [1]\n")
    assert find_preprocessing_faults(str(tmp_path / "task.yaml"), []) == []
