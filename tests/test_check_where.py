"""Inputs of ``python -m scripts check``: folders, lists and task files, and messages where there are none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bodies import body_case
from conftest import run_command
from scripts.core.errors import InputError
from scripts.lab.check.case_search import find_cases, find_files_left_out
from scripts.lab.check.run_check import TaskLabels, measure_and_judge, task_labels
from scripts.lab.cli import main


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """A folder with two cases, for a test to damage."""
    folder = tmp_path / "few"
    folder.mkdir()
    for number in (0, 1):
        body_case(folder, "ct", number)
    return folder


def test_an_unreadable_volume_is_a_finding_and_the_others_are_checked(few: Path, tmp_path: Path) -> None:
    (few / "ct_02_image.nii.gz").write_bytes(b"no volume")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), few / "ct_03_image.nii.gz")
    with pytest.raises(SystemExit) as ended:
        main(["check", str(few), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert ended.value.code == 1
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert [finding["kind"] for finding in content["findings"]] == ["unusable file"] * 2
    assert [bool(case["shape"]) for case in content["cases"]] == [True, True, False, False]


def test_a_folder_of_volumes_is_read_without_lists(few: Path) -> None:
    cases = find_cases([str(few)])
    assert [(case.domain, case.section, case.name, bool(case.label)) for case in cases] == [
        ("few", "training", "ct_00_image", True),
        ("few", "training", "ct_01_image", True),
    ]


def test_the_page_may_lie_in_the_folder_that_was_checked(few: Path) -> None:
    before = find_cases([str(few)])
    main(["check", str(few), "--out", str(few), "--workers", "1"])
    assert (few / "check.json").is_file()
    assert find_cases([str(few)]) == before


def test_labels_of_a_folder_that_no_image_is_named_after_are_listed(few: Path, tmp_path: Path) -> None:
    for old, new in (("ct_00_label", "liver_00_label"), ("ct_01_label", "ct_01_mask")):
        (few / f"{old}.nii.gz").rename(few / f"{new}.nii.gz")
    (finding,) = find_files_left_out([str(few)])
    assert (finding.severity, finding.kind, finding.domain) == ("warning", "label without image", "few")
    assert finding.found.startswith("1 label map(s) ")
    assert finding.found.endswith("not checked: liver_00_label.nii.gz")
    main(["check", str(few), "--out", str(tmp_path / "out"), "--workers", "1"])
    content = json.loads((tmp_path / "out" / "check.json").read_text())
    assert "label without image" in {finding["kind"] for finding in content["findings"]}


def test_folders_below_are_domains_and_sections(tmp_path: Path) -> None:
    for name in ["mr/imagesTr/a_0000.nii.gz", "mr/labelsTr/a.nii.gz", "mr/imagesTs/b_0000.nii.gz", "ct/c/image.nii.gz"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [(case.domain, case.section, case.name, bool(case.label)) for case in find_cases([str(tmp_path)])]
    assert found == [
        ("ct", "training", "image", False),
        ("mr", "training", "a_0000", True),
        ("mr", "test", "b_0000", False),
    ]


def test_junk_of_macos_is_left_out_of_folders_and_found_in_lists(few: Path) -> None:
    """Archives made on macOS contain a ``._`` file for each volume, which is not a volume."""
    for name in ("ct_00_image", "ct_00_label"):
        (few / f"._{name}.nii.gz").write_bytes(b"Mac OS X")
    assert [case.name for case in find_cases([str(few)])] == ["ct_00_image", "ct_01_image"]
    assert find_files_left_out([str(few)]) == []
    (few / "ct.json").write_text(json.dumps({"training": [{"image": "._ct_00_image.nii.gz"}]}))
    (case,) = measure_and_judge(find_cases([str(few / "ct.json")]))[0]
    assert [(finding.severity, finding.kind) for finding in case.findings] == [("error", "unusable file")]


def test_a_dataset_json_without_lists_is_read_by_its_folders(few: Path) -> None:
    """nnU-Net's second version lists nothing: names alone pair ``case_0000.nii.gz`` with ``case.nii.gz``."""
    for old, new in (("image", "imagesTr/ct_0{}_0000.nii.gz"), ("label", "labelsTr/ct_0{}.nii.gz")):
        for number in (0, 1):
            (few / new.format(number)).parent.mkdir(exist_ok=True)
            (few / f"ct_0{number}_{old}.nii.gz").rename(few / new.format(number))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (few / "dataset.json").write_text(json.dumps(content | {"numTraining": 2}))
    found = [(case.domain, case.name, Path(case.label or "").name) for case in find_cases([str(few)])]
    assert found == [("few", "ct_00_0000", "ct_00.nii.gz"), ("few", "ct_01_0000", "ct_01.nii.gz")]


@pytest.mark.parametrize("content", ["{}", '{"training": []}', "[]", "{"])
def test_a_file_that_lists_nothing_gets_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=r"list\.json: (no|cannot be read)"):
        find_cases([str(tmp_path / "list.json")])


def test_a_folder_without_volumes_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a datalist nor a NIfTI image"):
        find_cases([str(tmp_path)])


@pytest.mark.slow
def test_a_missing_folder_ends_the_command_with_a_sentence() -> None:
    done = run_command([sys.executable, "-m", "scripts", "check", "no/such/folder"])
    assert done.code == 1
    assert "error: no/such/folder: no such file" in done.stderr


def test_a_task_file_names_the_structures(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("label_names: [a, b]\nlabel_values: [205, 500]\nbackground_values: [600]\norientation: null\n")
    assert task_labels(str(task)) == TaskLabels(names={205: "a", 500: "b"}, background=(600,), orientation=None)


@pytest.mark.parametrize("content", [None, "label_names: [a]", "label_names: [a]\nlabel_values: [1, 2]", "- 1", "a: ["])
def test_a_file_that_is_no_task_gets_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "task.yaml").write_text(content)
    with pytest.raises(InputError, match=r"no structures|task file such as|1 label_names"):
        task_labels(str(tmp_path / "task.yaml"))
