"""Datalists: sections, pairing of images and labels, and every kind of invalid list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import refused, write_volume
from scripts.core.errors import InputError
from scripts.data.case_names import case_name, nifti_files
from scripts.data.datalists import find_volumes, read_datalist
from scripts.data.written_datalists import TranslatedDatalist, write_datalist
from scripts.lab.case_lists import all_sections, datalists_of_domains, folder_datalist
from scripts.lab.cli import main


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def names_of(entries: list[dict[str, str]], key: str = "image") -> list[str]:
    return [Path(entry[key]).name for entry in entries]


def write_list(path: Path, **sections: object) -> str:
    path.write_text(json.dumps({"name": "toy", **sections}))
    return str(path)


def test_a_section_is_read_with_paths_relative_to_the_list(data: Path) -> None:
    training = read_datalist(str(data / "mr.json"), "training", needs_label=True)
    assert [sorted(item) for item in training] == [["image", "label"]] * 2
    assert [item["image"] for item in training] == [str(data / f"mr_{index}_image.nii.gz") for index in (0, 1)]
    assert names_of(read_datalist(str(data / "mr.json"), "validation")) == ["mr_2_image.nii.gz"]


def test_paths_are_absolute_though_the_list_is_named_by_a_relative_path(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written to other lists, which lie elsewhere."""
    monkeypatch.chdir(data)
    training = read_datalist("mr.json", "training")
    assert [item["image"] for item in training] == [str(data / f"mr_{index}_image.nii.gz") for index in (0, 1)]


def test_labels_that_are_not_needed_are_dropped(data: Path) -> None:
    assert all("label" not in item for item in read_datalist(str(data / "ct.json"), "training"))


def test_no_list_means_no_cases() -> None:
    assert read_datalist(None, "training") == []


def test_absolute_paths_are_legal(data: Path, tmp_path: Path) -> None:
    image = str(data / "mr_0_image.nii.gz")
    listed = write_list(tmp_path / "list.json", training=[{"image": image}])
    assert read_datalist(listed, "training") == [{"image": image}]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"list.json: no such file\. Expected a decathlon datalist"),
        ("{", r"list.json: cannot be read \("),
        ("[]", r"list.json: no mapping"),
        ('{"training": []}', r"no case under 'training' \(there are: training\)"),
        ('{"validation": [{"image": "a.nii.gz"}]}', r"no case under 'training' \(there are: validation\)"),
        ('{"name": "toy"}', r"there are: no lists"),
        ('{"training": [{"image": "gone.nii", "label": "gone.nii"}]}', r"gone.nii: no such file.*list.json"),
        ('{"training": [{"image": "gone.nii.gz"}]}', r"no label for .*gone.nii.gz"),
        ('{"training": [{"image": "a/._x.nii.gz", "label": "a/x.nii.gz"}]}', r"list.json: a name .* dot, ._x.nii.gz"),
        ('{"training": ["a.nii.gz"]}', r"an entry under 'training' that names no image: \"a.nii.gz\"\. Expected ent"),
        ('{"training": [{"label": "a.nii.gz"}]}', r"that names no image: \{\"label\": \"a.nii.gz\"\}"),
    ],
)
def test_a_wrong_list_gets_a_sentence(tmp_path: Path, content: str | None, match: str) -> None:
    if content is not None:
        (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=match):
        read_datalist(str(tmp_path / "list.json"), "training", needs_label=True)


def test_one_volume_can_be_named(tmp_path: Path) -> None:
    file = touch(tmp_path, "a.nii.gz") / "a.nii.gz"
    assert find_volumes(str(file)) == [{"image": str(file)}]


def test_files_of_one_name_are_in_natural_order_of_their_folders(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        (tmp_path / f"patient {number}").mkdir()
        (tmp_path / f"patient {number}" / "CT.nii.gz").touch()
    assert [file.parent.name for file in nifti_files(tmp_path)] == ["patient 1", "patient 2", "patient 10"]


def test_a_folder_gives_its_volumes_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path, "c10.nii.gz", "c9.nii", "notes.txt", ".hidden.nii.gz")
    assert names_of(find_volumes(str(tmp_path))) == ["c9.nii", "c10.nii.gz"]


def test_a_datalist_gives_all_of_its_sections(data: Path) -> None:
    found = find_volumes(str(data / "ct.json"))
    assert names_of(found) == [f"ct_{index}_image.nii.gz" for index in range(3)]
    assert all("label" not in item for item in found)


@pytest.mark.parametrize(
    ("make", "match"),
    [(lambda folder: None, "no such folder"), (lambda folder: touch(folder, "notes.txt"), "no NIfTI file in it")],
)
def test_a_folder_without_volumes_gets_a_sentence(tmp_path: Path, make: object, match: str) -> None:
    make(tmp_path / "volumes")
    with pytest.raises(InputError, match=match):
        find_volumes(str(tmp_path / "volumes"))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_wrong_datalist_of_volumes_gets_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=r"list\.json: (no|cannot be read)"):
        find_volumes(str(tmp_path / "list.json"))


def test_two_images_of_one_name_are_refused_where_results_are_named_after_them(tmp_path: Path) -> None:
    entries = [{"image": str(touch(tmp_path / case, "image.nii.gz") / "image.nii.gz")} for case in ("case1", "case2")]
    listed = write_list(tmp_path / "list.json", training=entries[:1], validation=entries)
    message = r"list\.json: one case name for two images, .*case1.*image\.nii\.gz and .*case2.*rename one"
    with pytest.raises(InputError, match=message):
        find_volumes(listed)
    with pytest.raises(InputError, match=message):
        read_datalist(listed, "validation", distinct_names=True)
    # Training names nothing after its cases.
    assert read_datalist(listed, "validation") == entries


def test_an_image_that_is_listed_twice_is_one_case_with_one_label(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "a_label.nii.gz", "b_label.nii.gz")
    entry = {"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "a_label.nii.gz")}
    listed = write_list(tmp_path / "twice.json", training=[entry], validation=[entry, entry])
    assert find_volumes(listed) == [{"image": entry["image"]}]
    assert read_datalist(listed, "validation", needs_label=True, distinct_names=True) == [entry]
    assert len(read_datalist(listed, "validation")) == 2  # in training it counts twice
    other = entry | {"label": str(tmp_path / "b_label.nii.gz")}
    listed = write_list(tmp_path / "two.json", validation=[entry, other])
    with pytest.raises(InputError, match=r"two labels for .*a\.nii\.gz, .*a_label\.nii\.gz and .*b_label\.nii\.gz"):
        read_datalist(listed, "validation", needs_label=True, distinct_names=True)


def test_a_compressed_and_a_plain_image_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii and .*a\.nii\.gz"):
        find_volumes(str(tmp_path))


def test_label_maps_beside_the_images_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "ct_train_1001_image.nii.gz", "ct_train_1001_label.nii.gz", "case2.nii", "case2_seg.nii")
    assert names_of(find_volumes(str(tmp_path))) == ["case2.nii", "ct_train_1001_image.nii.gz"]


def test_links_keep_their_own_names(tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for case in ("case1", "case2"):
        (links / f"{case}.nii.gz").symlink_to(touch(tmp_path / case, "image.nii.gz") / "image.nii.gz")
    assert names_of(find_volumes(str(links))) == ["case1.nii.gz", "case2.nii.gz"]
    assert names_of(find_volumes(str(links / "case2.nii.gz"))) == ["case2.nii.gz"]


def test_images_and_labels_of_two_folders_are_paired_by_case(tmp_path: Path) -> None:
    images = touch(tmp_path / "images", "case_2.nii.gz", "case_10.nii.gz", "case_1.nii.gz", "case_3.nii.gz")
    labels = touch(tmp_path / "labels", *(f"case_{index}_label.nii.gz" for index in (1, 2, 3, 10)))
    found = folder_datalist(str(images), str(labels), name="mr", modality="MR", validation_fraction=0.25)
    # Natural order puts 10 last; a quarter of 4 cases is 1.
    assert names_of(found["training"]) == ["case_1.nii.gz", "case_2.nii.gz", "case_3.nii.gz"]
    assert names_of(found["training"], "label") == [f"case_{index}_label.nii.gz" for index in (1, 2, 3)]
    assert names_of(found["validation"], "label") == ["case_10_label.nii.gz"]
    assert (found["name"], found["modality"]) == ("mr", "MR")


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("mr_train_1001_image.nii.gz", "mr_train_1001_label.nii.gz"),  # MM-WHS
        ("img0001.nii.gz", "label0001.nii.gz"),  # BTCV
        ("patient1_LGE.nii.gz", "patient1_LGE_manual.nii.gz"),  # MS-CMRSeg
        ("Case-7.nii", "Case-7-seg.nii.gz"),
    ],
)
def test_one_folder_may_hold_images_and_labels(tmp_path: Path, image: str, label: str) -> None:
    folder = str(touch(tmp_path / "both", image, label))
    found = folder_datalist(folder, folder, name="a", modality="A", validation_fraction=0.0)
    assert (names_of(found["training"]), names_of(found["training"], "label")) == ([image], [label])
    assert found["validation"] == []


def test_a_folder_without_labels_makes_an_unlabelled_list(tmp_path: Path) -> None:
    folder = touch(tmp_path / "images", "a.nii.gz", "b.nii.gz")
    found = folder_datalist(str(folder), None, name="ct", modality="CT", validation_fraction=0.5)
    assert [sorted(item) for item in found["training"] + found["validation"]] == [["image"], ["image"]]


def test_an_image_without_its_label_gets_a_sentence(tmp_path: Path) -> None:
    folder = str(touch(tmp_path / "both", "a_image.nii.gz", "b_image.nii.gz", "a_label.nii.gz"))
    with pytest.raises(InputError, match=r"both: no label for b_image\.nii\.gz\. Expected one label"):
        folder_datalist(folder, folder, name="a", modality="A", validation_fraction=0.0)


def test_a_decathlons_own_file_is_read(data: Path, tmp_path: Path) -> None:
    """Test images are plain strings there, and paths begin at the file's folder, wherever the command is given."""
    folder = touch(tmp_path / "set" / "imagesTs", "a.nii.gz").parent
    (folder / "imagesTr").mkdir()
    (folder / "imagesTr" / "b.nii.gz").write_bytes((data / "mr_0_image.nii.gz").read_bytes())
    lists = {"training": [{"image": "./imagesTr/b.nii.gz"}], "test": ["./imagesTs/a.nii.gz"]}
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "numTest": 1, **lists}
    (folder / "dataset.json").write_text(json.dumps(content))
    listed = str(folder / "dataset.json")
    assert read_datalist(listed, "test") == [{"image": str(folder / "imagesTs" / "a.nii.gz")}]
    assert names_of(find_volumes(listed)) == ["b.nii.gz", "a.nii.gz"]
    (folder / "dataset.json").rename(tmp_path / "dataset.json")
    with pytest.raises(InputError, match=r"a.nii.gz: no such file\. Expected the volume that .*dataset.json lists"):
        read_datalist(str(tmp_path / "dataset.json"), "test")
    (tmp_path / "dataset.json").write_text(json.dumps({"domains": {"ct": content}}))
    found = datalists_of_domains(str(tmp_path / "dataset.json"))["ct"]
    assert (found["modality"], found["test"]) == ("CT", [{"image": str(tmp_path / "imagesTs" / "a.nii.gz")}])


def test_domains_of_a_dataset_become_datalists(tmp_path: Path) -> None:
    domain = {"modality": "CT", "training": [{"image": "ct/1.nii.gz", "label": "ct/1_seg.nii.gz"}], "validation": []}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"1": "liver"}, "domains": {"ct": domain, "mr": {}}}))
    found = datalists_of_domains(str(tmp_path / "dataset.json"))
    assert sorted(found) == ["ct", "mr"]
    assert found["ct"]["training"] == [
        {"image": str(tmp_path / "ct" / "1.nii.gz"), "label": str(tmp_path / "ct" / "1_seg.nii.gz")}
    ]
    assert (found["ct"]["modality"], found["ct"]["labels"]) == ("CT", {"1": "liver"})


@pytest.mark.parametrize("content", [None, "{", "[]", '{"training": []}', '{"domains": {}}'])
def test_a_dataset_without_domains_gets_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset\.json: (no |cannot be read).*Expected a dataset.json with 'domains"):
        datalists_of_domains(str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("domain", "found"),
    [
        (5, "a domain 'ct' that is no mapping"),
        (None, "a domain 'ct' that is no mapping"),
        ({"training": [5]}, "an entry under 'ct', 'training' that names no image"),
        ({"training": [{"image": None}]}, "an entry under 'ct', 'training' that names no image"),
    ],
)
def test_a_broken_domain_of_a_dataset(domain: object, found: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"domains": {"ct": domain}}))
    assert refused(datalists_of_domains, str(tmp_path / "dataset.json")).found == found


def test_a_broken_domain_is_named_by_the_check_too(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"domains": {"ct": None}}))
    assert refused(all_sections, str(tmp_path / "dataset.json")).found == "a domain 'ct' that is no mapping"


def test_a_case_of_a_dataset_may_lack_its_label(tmp_path: Path) -> None:
    domain = {"modality": "CT", "training": [{"image": "a.nii.gz", "label": None}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"domains": {"ct": domain}}))
    found = datalists_of_domains(str(tmp_path / "dataset.json"))
    assert found["ct"]["training"] == [{"image": str(tmp_path / "a.nii.gz")}]


def test_a_domain_without_a_training_case_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no training case"):
        write_datalist(tmp_path / "a.json", {"training": [], "validation": [{"image": "a.nii.gz"}]})
    assert list(tmp_path.iterdir()) == []


def test_the_translated_list_pairs_translations_with_the_sources_labels(data: Path, tmp_path: Path) -> None:
    for index in range(3):
        write_volume(tmp_path / f"mr_{index}_image_translated.nii.gz", np.zeros((2, 2, 2), np.int16))
    path = TranslatedDatalist(
        datalist=str(data / "mr.json"), folder=str(tmp_path), postfix="translated", domain="ct"
    ).write()
    assert path == tmp_path / "datalist.json"
    (case,) = read_datalist(str(path), "validation", needs_label=True)
    assert case == {"image": str(tmp_path / "mr_2_image_translated.nii.gz"), "label": str(data / "mr_2_label.nii.gz")}
    assert len(read_datalist(str(path), "training", needs_label=True)) == 2
    assert json.loads(path.read_text())["name"] == "mr"
    assert len(read_datalist(str(path), "training", needs_label=True, translated_to="ct")) == 2
    error = refused(read_datalist, str(path), "training", translated_to="mr")
    assert error.found == "images translated to ct"
    error = refused(read_datalist, str(data / "mr.json"), "training", translated_to="ct")
    assert error.found == "no translated images"
    assert "--translator none --labelled_intensity @source_intensity" in error.remedy


def test_the_translated_list_leaves_unlabelled_cases_out(data: Path, tmp_path: Path) -> None:
    labelled = {key: str(data / f"mr_0_{key}.nii.gz") for key in ("image", "label")}
    listed = write_list(tmp_path / "s.json", training=[labelled, {"image": str(data / "mr_1_image.nii.gz")}])
    path = TranslatedDatalist(datalist=listed, folder=str(tmp_path), postfix="t", domain="ct").write()
    assert [entry["label"] for entry in json.loads(path.read_text())["training"]] == [labelled["label"]]


def test_a_list_beside_its_files_can_be_moved_with_them(tmp_path: Path) -> None:
    inside, outside = touch(tmp_path / "set" / "images", "a.nii.gz"), touch(tmp_path / "labels", "a.nii.gz")
    datalist = folder_datalist(str(inside), str(outside), name="ct", modality="CT", validation_fraction=0.0)
    write_datalist(tmp_path / "set" / "ct.json", datalist)
    (entry,) = json.loads((tmp_path / "set" / "ct.json").read_text())["training"]
    assert entry == {"image": "images/a.nii.gz", "label": str(outside / "a.nii.gz")}
    (tmp_path / "set").rename(tmp_path / "moved")
    (item,) = read_datalist(str(tmp_path / "moved" / "ct.json"), "training", needs_label=True)
    assert item["image"] == str(tmp_path / "moved" / "images" / "a.nii.gz")


def test_nnunets_channel_is_no_part_of_a_cases_name(tmp_path: Path) -> None:
    images = touch(tmp_path / "imagesTr", "liver_007_0000.nii.gz", "liver_010_0000.nii.gz")
    labels = touch(tmp_path / "labelsTr", "liver_007.nii.gz", "liver_010.nii.gz")
    found = folder_datalist(str(images), str(labels), name="ct", modality="CT", validation_fraction=0.0)
    assert [Path(item["label"]).name for item in found["training"]] == ["liver_007.nii.gz", "liver_010.nii.gz"]


def test_only_an_images_name_loses_the_channel(tmp_path: Path) -> None:
    # A case whose own name ends in _0000.
    images = touch(tmp_path / "imagesTr", "liver_0000_0000.nii.gz")
    labels = touch(tmp_path / "labelsTr", "liver_0000.nii.gz")
    found = folder_datalist(str(images), str(labels), name="ct", modality="CT", validation_fraction=0.0)
    assert Path(found["training"][0]["label"]).name == "liver_0000.nii.gz"


def test_two_labels_of_one_case_get_a_sentence(tmp_path: Path) -> None:
    folder = touch(tmp_path / "all", "case1_image.nii.gz", "case1_label.nii.gz", "case1_seg.nii.gz")
    with pytest.raises(InputError, match=r"two labels for case 'case1', case1_label\.nii\.gz and case1_seg"):
        folder_datalist(str(folder), str(folder), name="ct", modality="CT", validation_fraction=0.0)


def test_a_phantom_that_leaves_no_training_case_is_not_written(tmp_path: Path) -> None:
    command = ["phantom", "--out", str(tmp_path / "out"), "--cases", "1", "--validation", "0.6"]
    with pytest.raises(InputError, match=r"--validation: 0\.6, which leaves none of 1 case"):
        main(command)
    assert not (tmp_path / "out").exists()


def test_a_missing_section_is_no_case_where_that_is_allowed(data: Path, tmp_path: Path) -> None:
    content = json.loads((data / "mr.json").read_text())
    for lacking in ({}, {"validation": []}):
        (tmp_path / "mr.json").write_text(json.dumps({"training": content["training"], **lacking}))
        assert read_datalist(str(tmp_path / "mr.json"), "validation", needs_label=True, may_be_empty=True) == []


def test_case_name() -> None:
    assert [case_name(name) for name in ("/a/b.c_image.nii.gz", "x.nii")] == ["b.c_image", "x"]


def test_the_command_writes_a_list_per_domain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = touch(tmp_path / "in", *(f"{i}_{kind}.nii.gz" for i in range(5) for kind in ("image", "label")))
    main(["datalist", "--images", str(folder), "--labels", str(folder), "--domain", "ct", "--out", str(tmp_path)])
    assert "4 training, 1 validation" in capsys.readouterr().out
    assert len(read_datalist(str(tmp_path / "ct.json"), "training", needs_label=True)) == 4
    dataset = tmp_path / "dataset.json"
    dataset.write_text(json.dumps({"domains": {"mr": {"training": [{"image": "in/0_image.nii.gz"}]}}}))
    main(["datalist", "--dataset", str(dataset), "--out", str(tmp_path / "lists")])
    assert read_datalist(str(tmp_path / "lists" / "mr.json"), "training") == [{"image": str(folder / "0_image.nii.gz")}]


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="give --dataset, or --images and --domain"):
        main(["datalist", "--images", str(tmp_path), "--out", str(tmp_path)])


def test_sections_may_have_any_name(data: Path) -> None:
    """Some lists keep both domains in one file, as ``source_training`` and ``target_training``."""
    content = json.loads((data / "mr.json").read_text())
    content |= {"source_training": content["training"], "target_training": content["validation"]}
    (data / "both.json").write_text(json.dumps(content))
    assert len(read_datalist(str(data / "both.json"), "source_training", needs_label=True)) == 2
    assert names_of(read_datalist(str(data / "both.json"), "target_training")) == ["mr_2_image.nii.gz"]
