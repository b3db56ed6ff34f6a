"""Which label map belongs to which image when a folder is only looked at, and what a list says of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.core.errors import InputError
from scripts.data.case_names import pair_volumes
from scripts.data.datalists import all_sections


def paired(folder: Path, *names: str) -> list[tuple[str, str | None]]:
    """Image and label of each pair, relative to a folder in which such files lie."""
    items = pair_volumes(folder / name for name in names)
    return [
        tuple(str(Path(item[key]).relative_to(folder)) if key in item else None for key in ("image", "label"))  # type: ignore[misc]
        for item in items
    ]


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("case7_image.nii.gz", "case7_label.nii.gz"),
        ("img0007.nii.gz", "label0007.nii.gz"),
        ("ct_train_1001_image.nii.gz", "ct_train_1001_label.nii"),
        ("patient1_C0.nii.gz", "patient1_C0_manual.nii.gz"),
        ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz"),  # nnU-Net's channel
        ("images/case7.nii.gz", "labels/case7.nii.gz"),
        ("image_7.nii.gz", "masks/7.nii.gz"),
    ],
)
def test_a_label_is_known_by_its_name_or_its_folder(tmp_path: Path, image: str, label: str) -> None:
    assert paired(tmp_path, label, image) == [(image, label)]


def test_images_are_in_natural_order_and_may_lack_a_label(tmp_path: Path) -> None:
    found = paired(tmp_path, "c10_image.nii.gz", "c2_image.nii.gz", "c1_image.nii.gz", "c2_label.nii.gz")
    assert found == [("c1_image.nii.gz", None), ("c2_image.nii.gz", "c2_label.nii.gz"), ("c10_image.nii.gz", None)]


def test_the_label_beside_its_image_comes_before_one_elsewhere(tmp_path: Path) -> None:
    found = paired(tmp_path, "ct/1_image.nii", "ct/1_label.nii", "mr/1_image.nii", "mr/1_label.nii")
    assert sorted(found) == [("ct/1_image.nii", "ct/1_label.nii"), ("mr/1_image.nii", "mr/1_label.nii")]


def test_junk_and_other_files_are_no_volumes(tmp_path: Path) -> None:
    assert paired(tmp_path, "._1_image.nii.gz", "1_image.txt", "1_label.nii.gz") == []


def test_a_word_within_a_word_is_no_label(tmp_path: Path) -> None:
    assert paired(tmp_path, "masked_patient.nii", "labelled.nii") == [
        ("labelled.nii", None),
        ("masked_patient.nii", None),
    ]


def sections_of(folder: Path, content: Any) -> dict[str, dict[str, Any]]:
    file = folder / "lists.json"
    file.write_text(json.dumps(content))
    return all_sections(str(file))


def test_a_datalist_gives_every_section_and_label(tmp_path: Path) -> None:
    one, two = {"image": "a/1.nii", "label": "a/1_label.nii"}, {"image": "/elsewhere/2.nii"}
    content = {"name": "ct", "modality": "CT", "labels": {"1": "liver"}, "training": [one], "test_unlabelled": [two]}
    assert sections_of(tmp_path, content) == {
        "ct": {
            "name": "ct",
            "modality": "CT",
            "labels": {"1": "liver"},
            "training": [{"image": f"{tmp_path}/a/1.nii", "label": f"{tmp_path}/a/1_label.nii"}],
            "test_unlabelled": [two],
        }
    }


def test_a_list_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    (lists,) = sections_of(tmp_path, {"training": [{"image": "1.nii"}]}).items()
    assert lists[0] == "lists"
    assert lists[1]["modality"] == "lists"
    assert lists[1]["labels"] == {}


def test_domains_of_a_data_set_share_their_labels(tmp_path: Path) -> None:
    domains = {name: {"modality": name.upper(), "training": [{"image": f"{name}.nii"}]} for name in ("ct", "mr")}
    found = sections_of(tmp_path, {"labels": {"liver": 1}, "domains": domains})
    assert {name: (lists["modality"], lists["labels"]) for name, lists in found.items()} == {
        "ct": ("CT", {"liver": 1}),
        "mr": ("MR", {"liver": 1}),
    }
    assert found["mr"]["training"] == [{"image": f"{tmp_path}/mr.nii"}]


def test_decathlons_test_list_is_of_plain_strings(tmp_path: Path) -> None:
    content = {"training": [], "test": ["./imagesTs/1.nii.gz", {"label": "no image"}, 3, {"image": 4}]}
    lists = sections_of(tmp_path, content)["lists"]
    assert "training" not in lists  # an empty section is none
    assert lists["test"] == [{"image": f"{tmp_path}/imagesTs/1.nii.gz"}]


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_a_modality_may_be_named_by_channel(tmp_path: Path, key: str) -> None:
    """The Decathlon writes ``{"0": "CT"}`` where a word is enough, nnU-Net the same under another name."""
    content = {key: {"0": "CT"}, "training": [{"image": "1.nii"}]}
    assert sections_of(tmp_path, content)["lists"]["modality"] == "CT"
    assert sections_of(tmp_path, content | {key: {"0": "T1", "1": "T2"}})["lists"]["modality"] == "T1 T2"


@pytest.mark.parametrize("content", [{}, {"training": []}, {"training": [{}]}, {"domains": {"ct": {}}}, []])
def test_a_file_without_a_volume_gets_a_sentence(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match=r"lists.json: no (volume listed in it|JSON object but a list)\. Expected a d"):
        sections_of(tmp_path, content)


def test_a_missing_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: no such file\. Expected a datalist, or a dataset.json"):
        all_sections(str(tmp_path / "none.json"))
