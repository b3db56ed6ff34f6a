"""Pairing of label maps and images in folders, and the facts that a list states about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts.core.errors import InputError
from scripts.data.datalists import find_volumes, read_datalist
from scripts.lab.case_lists import all_sections, folder_datalist
from scripts.lab.pairing import match_labels, pair_volumes


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
        ("volume-12.nii", "segmentation-12.nii"),
        ("p1.nii.gz", "p1_masks.nii.gz"),
        ("p1.nii.gz", "p1_gt.NII.GZ"),
        ("patient 01 CT.nii.gz", "patient 01 seg.nii.gz"),
        ("Müller_01.nii", "Müller_01_ground_truth.nii"),
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


def test_a_label_serves_one_image_alone(tmp_path: Path) -> None:
    """Names that become equal when words are removed, and equal names in folders for training and test."""
    found = paired(tmp_path, "s11-img.nii", "s1-img-1.nii", "s1-label-1.nii")
    assert sorted(found) == [("s1-img-1.nii", "s1-label-1.nii"), ("s11-img.nii", None)]
    found = paired(tmp_path, "imagesTr/1.nii", "imagesTs/1.nii", "labelsTr/1.nii")
    assert sorted(found) == [("imagesTr/1.nii", "labelsTr/1.nii"), ("imagesTs/1.nii", None)]
    found = paired(tmp_path, "one/1.nii", "two/1.nii", "masks/1.nii")
    assert sorted(found) == [("one/1.nii", None), ("two/1.nii", None)]
    found = paired(tmp_path, "p1_ct.nii", "p1_t1.nii", "p1_seg.nii")
    assert sorted(found) == [("p1_ct.nii", None), ("p1_t1.nii", None)]


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (["s1-img-1", "s11-img"], ["s1-label-1"], r"no label for s11-img.nii\. Expected one label per image"),
        (["c1", "c1_img"], ["c1_seg"], r"two images for case 'c1', c1.nii and c1_img.nii"),
        (["m\u00fcl1", "mu\u0308l1_img"], [], r"two images for case 'm\u00fcl1'"),
        (["c1"], ["c1_seg", "c1_mask"], r"two labels for case 'c1', c1_seg.nii and c1_mask.nii"),
        (["p1_t1", "p1_t2"], ["p1_seg"], r"no label for p1_t1.nii, p1_t2.nii; labels of no image: p1_seg.nii"),
        ([f"c{n}" for n in range(10)], ["x"], r"no label for c0.nii, .*, c7.nii and 2 more; labels of no image: x.nii"),
    ],
)
def test_what_cannot_be_paired_is_refused_by_name(images: list[str], labels: list[str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        match_labels([Path(f"{name}.nii") for name in images], [Path(f"{name}.nii") for name in labels])


@pytest.mark.parametrize("word", ["SSFP", "portal venous", "cine 25 phases"])
def test_what_all_images_share_may_be_missing_from_the_labels(word: str) -> None:
    images = [Path(f"patient {n:02d} {word}.nii") for n in (1, 2, 10)]
    labels = [Path(f"patient {n:02d} seg.nii") for n in (10, 2, 1)]
    assert match_labels(images, labels) == dict(zip(images, reversed(labels), strict=True))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (["p1 followup", "p2 followup"], ["p1 baseline seg", "p2 baseline seg"]),  # labels of other images
        (["p1 followup"], ["p1 seg"]),  # one image: what is its case, and what is shared?
    ],
)
def test_words_that_may_tell_images_apart_are_kept(images: list[str], labels: list[str]) -> None:
    with pytest.raises(InputError, match=r"no label for p1 followup.nii"):
        match_labels([Path(f"{name}.nii") for name in images], [Path(f"{name}.nii") for name in labels])


def test_a_missing_label_names_the_folder_of_all_images() -> None:
    images = [Path(f"/scans/patient {n}/CT {n}.nii") for n in (1, 2)]
    with pytest.raises(InputError, match=r"^/scans: no label for CT 2.nii"):
        match_labels(images, [Path("/scans/patient 1/seg 1.nii")])


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_suffixes_in_upper_case_count_and_unused_files_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.NII.GZ", "b.Nii", "b_gt.nii", "c.hdr", "c.img", ".hidden.nii", "predictions/a_seg.nii.gz")
    assert [Path(item["image"]).name for item in find_volumes(str(tmp_path))] == ["a.NII.GZ", "b.Nii"]
    assert f"{tmp_path}: not used: b_gt.nii, c.hdr, c.img." in caplog.text
    caplog.clear()
    listed = folder_datalist(str(tmp_path), None, name="ct", modality="CT", validation_fraction=0)
    assert len(listed["training"]) == 2
    assert "not used: b_gt.nii, c.hdr, c.img." in caplog.text


def test_a_label_that_belongs_to_no_image_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, labels = touch(tmp_path / "images", "a.nii"), touch(tmp_path / "labels", "a.nii", "b.nii", "notes.txt")
    listed = folder_datalist(str(images), str(labels), name="ct", modality="CT", validation_fraction=0)
    assert listed["training"] == [{"image": str(images / "a.nii"), "label": str(labels / "a.nii")}]
    assert f"{labels}: not used: b.nii, notes.txt." in caplog.text


@pytest.mark.parametrize("name", ["p1_dseg", "p1-pred", "p1_predictions", "p1_truth", "P1_Mask", "p1 ROI", "p1_gt"])
def test_what_is_no_image_beside_the_images_is_left_out(name: str, tmp_path: Path) -> None:
    touch(tmp_path, "p1.nii.gz", f"{name}.nii.gz")
    assert [Path(item["image"]).name for item in find_volumes(str(tmp_path))] == ["p1.nii.gz"]


def test_accents_may_be_stored_apart_from_their_letters(tmp_path: Path) -> None:
    """macOS writes two characters, other systems one."""
    image, label = tmp_path / "m\u00fcl1.nii", tmp_path / "mu\u0308l1_label.nii"
    assert match_labels([image], [label]) == {image: label}


def test_a_folder_of_folders_is_searched_and_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "CT scans/patient 01/patient 01 CT.nii.gz", "CT scans/patient 02/patient 02 CT.nii.gz")
    touch(tmp_path, "labels/patient 02 seg.nii.gz", "labels/patient 01 seg.nii.gz")
    (tmp_path / "CT scans" / "patient 01" / "up").symlink_to(tmp_path / "CT scans")
    listed = folder_datalist(
        str(tmp_path / "CT scans"), str(tmp_path / "labels"), name="ct", modality="CT", validation_fraction=0
    )
    pairs = [(Path(entry["image"]).name, Path(entry["label"]).name) for entry in listed["training"]]
    assert pairs == [(f"patient 0{n} CT.nii.gz", f"patient 0{n} seg.nii.gz") for n in (1, 2)]


def test_a_name_that_is_not_utf8_is_refused_at_once(tmp_path: Path) -> None:
    """Such a name cannot be written to a datalist, which would fail after hours of work."""
    with open(bytes(tmp_path) + b"/M\xfcller.nii", "wb"):
        pass
    with pytest.raises(InputError, match=r"M.udcfcller.nii'?: a file name that is not UTF-8"):
        find_volumes(str(tmp_path))


def test_a_label_of_null_is_no_label(tmp_path: Path) -> None:
    touch(tmp_path, "1.nii")
    (tmp_path / "ct.json").write_text('{"training": [{"image": "1.nii", "label": null}]}')
    assert read_datalist(str(tmp_path / "ct.json"), "training") == [{"image": str(tmp_path / "1.nii")}]
    with pytest.raises(InputError, match=r"ct.json: no label for .*1.nii"):
        read_datalist(str(tmp_path / "ct.json"), "training", needs_label=True)


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
    with pytest.raises(InputError, match=r"lists.json: no (volume listed in it|mapping)\. Expected a d"):
        sections_of(tmp_path, content)


def test_a_missing_file_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: no such file\. Expected a datalist, or a dataset.json"):
        all_sections(str(tmp_path / "none.json"))
