"""Data sets and protocols: published ids, label values that match the task files, effect of each protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import CONFIGS
from releases import (
    CENTRES,
    save,
    sections,
    true_image,
    true_label,
    world_of,
    write_btcv,
    write_chaos_ct,
    write_chaos_mr,
    write_mmwhs,
    write_mscmr,
)
from scripts.core.errors import InputError
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.run_check import measure_and_judge
from scripts.lab.prepare.crops import CropAroundLabeld
from scripts.lab.prepare.protocol_file import build_steps
from scripts.lab.prepare.rules import Rules, dataset_names, read_rules
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions, SourceCase

PROTOCOLS = sorted(path.stem for path in (CONFIGS / "protocols").glob("*.yaml"))


def known() -> list[tuple[str, str]]:
    return [
        (dataset, protocol)
        for protocol in PROTOCOLS
        for dataset in yaml.safe_load((CONFIGS / "protocols" / f"{protocol}.yaml").read_text())["datasets"]
    ]


def rules_of(pair: tuple[str, str]) -> Rules:
    return read_rules(*pair)


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize(
    ("dataset", "domain", "test"),
    [
        ("mmwhs", "ct", [1003, 1008, 1014, 1019]),
        ("mmwhs", "mr", [1007, 1009, 1018, 1019]),
        ("btcv", "ct", [1, 9, 30, 32, 33, 39]),
        ("chaos", "mr", [1, 13, 32, 38]),
    ],
)
def test_every_protocol_has_the_published_test_cases(dataset: str, domain: str, test: list[int]) -> None:
    for protocol in [protocol for name, protocol in known() if name == dataset]:
        assert read_rules(dataset, protocol).domains[domain].splits["test"] == test


@pytest.mark.parametrize("pair", known(), ids="-".join)
def test_a_protocol_speaks_of_domains_and_tasks_that_exist(pair: tuple[str, str]) -> None:
    rules = rules_of(pair)
    chosen = yaml.safe_load((CONFIGS / "protocols" / f"{pair[1]}.yaml").read_text())["datasets"][pair[0]]
    assert set(chosen["domains"]) <= set(rules.domains)
    assert set(chosen) <= {"tasks", "peeks", "chosen_here", "domains"}
    for domain in chosen["domains"].values():
        assert set(domain) <= {"labels", "splits", "grid", "crop", "intensity"}
        assert set(domain.get("splits", {})) <= {"validation", "test", "unlisted"}
    assert set(rules.metric) == {"grid", "distance", "missing_structure"}
    assert all((CONFIGS / "tasks" / f"{task}.yaml").is_file() for task in rules.tasks)


@pytest.mark.parametrize("pair", known(), ids="-".join)
def test_written_label_values_are_the_tasks_own(pair: tuple[str, str]) -> None:
    rules = rules_of(pair)
    for task in rules.tasks:
        config = yaml.safe_load((CONFIGS / "tasks" / f"{task}.yaml").read_text())
        named = {*config["label_values"], *config["background_values"]}
        for domain in rules.domains.values():
            assert set(domain.labels.written) <= named
            if domain.name in (config["source_domain"], config["target_domain"]):
                assert set(domain.labels.written) == named


@pytest.mark.parametrize(
    ("domain", "validation"), [("ct", [1005, 1011, 1015]), ("mr", [1012, 1015, 1016])], ids=["ct", "mr"]
)
def test_hearts_validate_on_published_cases_that_are_no_test_cases(domain: str, validation: list[int]) -> None:
    """Those of A&D and GenericSSL: SIFA's own are not known, and its users choose on the test cases."""
    splits = read_rules("mmwhs", None).domains[domain].splits
    assert splits["validation"] == validation
    assert not set(validation) & set(splits["test"])


@pytest.mark.parametrize(("domain", "low", "high"), [("ct", -2.8, 3.2), ("mr", -1.8, 4.4)])
def test_sifas_z_scores_are_scaled_by_its_present_constants(domain: str, low: float, high: float) -> None:
    """Not by -1.9 and 3.0, the values of its paper's CT model and of old copies of its code; nothing is clipped."""
    scale = build_steps(read_rules("sifa", None).domains[domain].steps)
    scaled = scale({"image": torch.tensor([[[[low, (low + high) / 2, high, high + (high - low)]]]])})["image"]
    assert scaled.flatten().tolist() == pytest.approx([-1, 0, 1, 3], abs=1e-6)


@pytest.mark.parametrize("pair", known(), ids="-".join)
def test_protocols_resample_labels_by_the_nearest_neighbour(pair: tuple[str, str]) -> None:
    """Anything else writes 312 between 205 and 420, or a class between two classes."""
    steps = [step for domain in rules_of(pair).domains.values() for step in domain.steps if "mode" in step]
    modes = [step["mode"] for step in steps if step["_target_"] in ("Spacingd", "Resized")]
    assert all(mode[1] == "nearest" for mode in modes)
    assert bool(modes) is (pair[1] in ("sifa", "dar") and pair[0] != "sifa")


def people(rules: Rules, domain: str, section: str) -> set[int]:
    """Ids of MS-CMRSeg's 45 patients that a section of a domain lists."""
    cases = [SourceCase(domain, f"{domain}_{number}", number, (), lambda: None) for number in range(1, 46)]
    return {case.number for case in cases if section in rules.domains[domain].sections_of(case)}


@pytest.mark.parametrize("protocol", ["clean", "disjoint"])
def test_test_patients_are_not_trained_on_in_another_sequence(protocol: str) -> None:
    """The same 45 people in every sequence: a test patient's other volume must not train either."""
    rules = read_rules("mscmr", protocol)
    trained = set().union(*(people(rules, domain, "training") for domain in rules.domains))
    for domain in rules.domains:
        assert people(rules, domain, "test") == set(range(31, 46))
        assert not trained & (people(rules, domain, "test") | people(rules, domain, "validation"))


def test_halves_of_the_people_train_in_source_and_target(tmp_path: Path) -> None:
    """Different patients in source and target; under ``clean`` the report states that they are the same."""
    rules = read_rules("mscmr", "disjoint")
    assert people(rules, "bssfp", "training") == set(range(6, 19))
    assert people(rules, "lge", "training") == set(range(19, 31))
    source = write_mscmr(tmp_path / "in", {"C0": [1, 6, 19], "LGE": [6, 19, 31]}, {})
    report = prepare(Preparation("mscmr", source, tmp_path / "out", "disjoint"))
    assert sections(tmp_path / "out", "bssfp") == {"training": ["bssfp_06"], "validation": ["bssfp_01"]}
    assert sections(tmp_path / "out", "lge") == {"training": ["lge_19"], "test": ["lge_31"]}
    assert report["domains_left_out"] == ["t2"]
    same = prepare(Preparation("mscmr", source, tmp_path / "same"))
    assert "The same patients were imaged in all sequences" in same["limits"][0]
    assert "--protocol disjoint" in same["limits"][0]


def test_clean_has_no_step_and_disjoint_lists() -> None:
    for pair in [pair for pair in known() if pair[1] in ("clean", "disjoint")]:
        for domain in rules_of(pair).domains.values():
            assert domain.steps == []
            assert not set(domain.splits.get("validation", [])) & set(domain.splits.get("test", []))


@pytest.mark.parametrize("pair", [pair for pair in known() if pair[1] in ("sifa", "dar")], ids="-".join)
def test_what_looks_at_labels_says_that_it_peeks(pair: tuple[str, str]) -> None:
    rules = rules_of(pair)
    assert rules.peeks
    looks = any(
        step.get("label_key") or step.get("source_key") == "label"
        for domain in rules.domains.values()
        for step in domain.steps
    )
    assert not looks or "label" in rules.peeks[0]


def test_every_data_set_has_a_home_and_a_default_protocol() -> None:
    for name in dataset_names():
        rules = read_rules(name, None)
        assert rules.home.startswith("https://") or (CONFIGS.parent / rules.home).is_file()
        assert rules.protocol == ("sifa" if name == "sifa" else "clean")


@pytest.mark.parametrize(("domain", "low", "high"), [("ct", -2.8, 3.2), ("mr", -1.8, 4.4)])
def test_sifa_crops_around_the_labels_and_scales_z_scores(domain: str, low: float, high: float, tmp_path: Path) -> None:
    source = write_mmwhs(tmp_path / "in", ct=[1001], mr=[1001])
    prepare(Preparation("mmwhs", source, tmp_path / "out", "sifa"))
    image, affine = read(tmp_path / "out" / domain / f"{domain}_1001_image.nii.gz")
    label, _ = read(tmp_path / "out" / domain / f"{domain}_1001_label.nii.gz")
    assert image.shape[:2] == (256, 256)
    assert nib.aff2axcodes(affine) == ("R", "S", "A")
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), 1.0)
    assert set(np.unique(label)) == {0, 1, 2, 3, 4}
    # Right atrium and ventricle and the pulmonary artery are background, but not before the crop is placed.
    for value, ball in ((1, 0), (2, 1), (3, 2), (4, 5)):
        world = np.argwhere(label == value).mean(0) @ affine[:3, :3].T + affine[:3, 3]
        assert np.linalg.norm(world - CENTRES[ball]) < 1.0  # mm, after two resamplings
    z = (image + 1) / 2 * (high - low) + low
    assert abs(z.mean()) < 1e-3
    assert z.std() == pytest.approx(1, abs=1e-3)


def test_the_crop_is_centred_on_the_mean_position() -> None:
    label = torch.zeros(1, 9, 8, 5)
    label[0, 1, 2, 3] = label[0, 3, 2, 0] = 1  # mean (2, 2, 1.5)
    image = torch.arange(9 * 8 * 5.0).view(1, 9, 8, 5)
    cropped = CropAroundLabeld(["image", "label"], "label", [4, 2, -1])({"image": image, "label": label})
    # Four voxels about 2 are 0 to 3, two about 2 are 1 and 2; the last axis stays.
    assert torch.equal(cropped["image"], image[:, 0:4, 1:3])
    assert torch.equal(cropped["label"], label[:, 0:4, 1:3])


def test_a_crop_larger_than_the_volume_is_padded() -> None:
    label = torch.zeros(1, 4, 4, 2)
    label[0, 0, 0, 0] = 1
    cropped = CropAroundLabeld(["label"], "label", [8, 8, -1])({"label": label})["label"]
    assert cropped.shape == (1, 8, 8, 2)
    assert cropped[0].nonzero().tolist() == [[4, 4, 0]]


def test_dar_keeps_two_slices_about_the_organs_and_windows_the_ct(tmp_path: Path) -> None:
    prepare(Preparation("btcv", write_btcv(tmp_path / "in", [2]), tmp_path / "out", "dar"))
    image, affine = read(tmp_path / "out" / "ct" / "ct_0002_image.nii.gz")
    label, _ = read(tmp_path / "out" / "ct" / "ct_0002_label.nii.gz")
    assert image.shape[:2] == (512, 512)
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (1, 1, 4))
    assert nib.aff2axcodes(affine) == ("R", "A", "S")
    # On the original 3 mm grid the four organs, and two slices more.
    world = world_of((20, 18, 15), np.array([[0, 2.25, 0, -24], [2.0, 0, 0, -22], [0, 0, -3.0, 21], [0, 0, 0, 1]]))
    slices = np.flatnonzero((true_label(world, [1, 2, 3, 4]) > 0).any((0, 1)))
    millimetres = 3 * (min(slices[-1] + 2, 14) - max(slices[0] - 2, 0) + 1)
    assert image.shape[2] * 4 == pytest.approx(millimetres, abs=4)
    assert (image.min(), image.max()) == (-1.0, 1.0)
    # HU -350 to 350 become -1 to 1.
    centre = tuple(np.argwhere(label == 1).mean(0).round().astype(int))
    at = np.asarray(centre) @ affine[:3, :3].T + affine[:3, 3]
    assert image[centre] == pytest.approx(np.clip(true_image(at[None], 2)[0] / 350, -1, 1), abs=0.05)


def test_dar_scales_mr_by_its_maximum(tmp_path: Path) -> None:
    prepare(Preparation("chaos", write_chaos_mr(tmp_path / "in", 2), tmp_path / "out", "dar"))
    image, affine = read(tmp_path / "out" / "mr" / "mr_02_image.nii.gz")
    assert image.shape[:2] == (512, 512)
    assert np.allclose(np.linalg.norm(affine[:3, :3], axis=0), (1, 1, 4))
    assert (image.min(), image.max()) == (-1.0, 1.0)


def test_sifa_resizes_abdominal_slices_and_tests_on_its_validation_list(tmp_path: Path) -> None:
    report = prepare(Preparation("btcv", write_btcv(tmp_path / "in", [1, 2]), tmp_path / "out", "sifa"))
    image, affine = read(tmp_path / "out" / "ct" / "ct_0002_image.nii.gz")
    assert image.shape == (256, 256, 15)
    assert np.linalg.norm(affine[:3, 2]) == pytest.approx(3.0)
    sections = {"training": ["ct_0002"], "validation": ["ct_0001"], "test": ["ct_0001"]}
    assert report["domains"]["ct"]["sections"] == sections
    assert "validation cases are the test cases" in report["peeks"][0]


def test_the_check_knows_that_the_published_lists_overlap(tmp_path: Path) -> None:
    """Validation is test there: a warning that names the protocol. The same in any other datalist is an error."""
    source, out = write_btcv(tmp_path / "in", [1]), tmp_path / "out"
    prepare(Preparation("btcv", source, out, "dar"))
    (finding,) = [f for f in measure_and_judge(find_cases([str(out)]))[1] if f.kind == "one case in two splits"]
    assert (finding.severity, finding.cases) == ("warning", ("ct_0001_image",))
    assert "the same file in ct/validation and ct/test, which protocol 'dar' prescribes" in finding.found
    content = json.loads((out / "ct.json").read_text())
    assert content.pop("shared_sections") == "validation test"
    (out / "ct.json").write_text(json.dumps(content))
    (finding,) = [f for f in measure_and_judge(find_cases([str(out)]))[1] if f.kind == "one case in two splits"]
    assert finding.severity == "error"
    prepare(Preparation("btcv", source, out, "clean"))
    assert "shared_sections" not in json.loads((out / "ct.json").read_text())


def test_a_protocol_of_your_own(tmp_path: Path) -> None:
    content = yaml.safe_load((CONFIGS / "protocols" / "clean.yaml").read_text())
    content["protocol"] = "mine"
    content["datasets"]["btcv"]["domains"]["ct"]["splits"] = {"test": [2]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    report = prepare(
        Preparation("btcv", write_btcv(tmp_path / "in", [1, 2]), tmp_path / "out", str(tmp_path / "mine.yaml"))
    )
    assert report["protocol"]["name"] == "mine"
    assert report["domains"]["ct"]["sections"] == {"training": ["ct_0001"], "test": ["ct_0002"]}


@pytest.mark.parametrize("protocol", ["sifa", "dar"])
def test_a_protocol_prepares_the_domains_that_it_names_and_no_other(protocol: str, tmp_path: Path) -> None:
    """T1 in both phases and the CT, for which SIFA and DAR-UNet have no rules, stay unprepared."""
    source = write_chaos_ct(write_chaos_mr(write_chaos_mr(tmp_path / "in", 1), 2), 5)
    report = prepare(Preparation("chaos", source, tmp_path / "out", protocol))
    assert report["domains_left_out"] == ["mr_t1_in", "mr_t1_out", "ct_liver"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mr", "mr.json", "prepare.json"}
    assert report["domains"]["mr"]["sections"]["training"] == ["mr_02"]  # 1 is a test case
    with pytest.raises(InputError, match=rf"--domain: 'ct_liver'\. Expected one of mr, .* '{protocol}'"):
        prepare(Preparation("chaos", source, tmp_path / "out", protocol, find=SearchOptions(domain="ct_liver")))


def test_a_tree_without_the_protocols_domains(tmp_path: Path) -> None:
    source = write_chaos_ct(tmp_path / "in", 5)
    with pytest.raises(InputError, match=r"Expected CHAOS: folders such as .*, of mr\."):
        prepare(Preparation("chaos", source, tmp_path / "out", "sifa"))


@pytest.mark.parametrize("pair", known(), ids="-".join)
def test_every_prepared_domain_has_rules_of_its_protocol(pair: tuple[str, str]) -> None:
    chosen = yaml.safe_load((CONFIGS / "protocols" / f"{pair[1]}.yaml").read_text())["datasets"][pair[0]]
    assert set(rules_of(pair).domains) == set(chosen["domains"])


def own(change: Callable[[dict], object], folder: Path) -> str:
    """The path of SIFA's protocol after a change."""
    content = yaml.safe_load((CONFIGS / "protocols" / "sifa.yaml").read_text())
    change(content)
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "mine.yaml")


def ct(content: dict) -> dict:
    return content["datasets"]["btcv"]["domains"]["ct"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: ct(c).update(split=ct(c).pop("splits")),
            r"under 'btcv: ct': the key 'split'\. Expected only labels, splits",
        ),
        (
            lambda c: ct(c)["splits"].update(train=[2]),
            r"'btcv: ct: splits': the key 'train'\. Expected only validation, test",
        ),
        (lambda c: ct(c)["splits"].update(test="1-9"), r"'btcv: ct: splits: test': 1-9\. Expected a list of case ids"),
        (
            lambda c: ct(c).update(labels={"liver": 1}),
            r"'btcv: ct: labels': \{'liver': 1\}\. Expected a mapping of the values in the files",
        ),
        (
            lambda c: ct(c).update(grid={"_target_": "Flipd"}),
            r"'btcv: ct: grid': .* Expected a list of MONAI transforms",
        ),
        (lambda c: ct(c).update(grid=[{"_target_": "Flippd", "keys": "image"}]), "Flippd that cannot be built"),
        (lambda c: ct(c).update(grid=[{"_target_": "Flipd", "kys": "image"}]), "Flipd that cannot be built .*kys"),
        (
            lambda c: c.pop("about"),
            r"under 'the file': no 'about'\. Expected the keys protocol, about, metric, datasets",
        ),
        (lambda c: c.pop("metric"), r"no 'metric'"),
        (lambda c: c.pop("datasets"), r"no 'datasets'"),
        (lambda c: c["metric"].pop("grid"), r"under 'metric': no 'grid'"),
        (lambda c: c["datasets"]["btcv"].pop("domains"), r"under 'btcv': no 'domains'"),
        (
            lambda c: c["datasets"]["btcv"]["domains"].update(mr={}),
            r"under 'btcv: domains': the key 'mr'\. Expected only ct",
        ),
        (lambda c: c["datasets"]["btcv"]["domains"].update(ct=None), r"under 'btcv: ct': None\. Expected a mapping"),
        (lambda c: c["datasets"]["btcv"].update(tasks=["none"]), r"'btcv: tasks': none\. Expected task files: abdomen"),
        (lambda c: c["datasets"]["btcv"].update(peeks="yes"), r"'btcv: peeks': yes\. Expected a list"),
        (
            lambda c: c["datasets"]["btcv"].pop("peeks"),
            r"splits': \[1, 9, .*\] in two lists\. Expected each id in one list",
        ),
        (lambda c: c["datasets"].update(bctv={}), r"under 'datasets': the key 'bctv'\. Expected only btcv, chaos"),
    ],
)
def test_a_protocol_with_a_slip_gets_a_sentence(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        prepare(Preparation("btcv", write_btcv(tmp_path / "in", [1]), tmp_path / "out", own(change, tmp_path)))
    assert caught.value.file.endswith("mine.yaml")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dataset", ["mmwhs", "btcv"])
def test_an_empty_label_is_named_by_its_file_and_the_others_are_done(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIFA's hearts and DAR-UNet's CT are cropped by their labels."""
    if dataset == "mmwhs":
        source, protocol, folder = write_mmwhs(tmp_path / "in", ct=[1001, 1002, 1004, 1005], mr=[]), "sifa", "ct_train"
        empty, other = (source / folder / f"ct_train_{number}_label.nii.gz" for number in (1001, 1002))
    else:
        source, protocol = write_btcv(tmp_path / "in", [2, 3, 4, 5]), "dar"
        empty, other = (source / "RawData/Training/label" / f"label000{number}.nii.gz" for number in (2, 3))
    for path in (empty, other):
        label = nib.load(path)
        save(path, np.zeros(label.shape, np.uint8), label.affine)
    with pytest.raises(InputError, match="2 of 4 cases that cannot be prepared, listed above"):
        prepare(Preparation(dataset, source, tmp_path / "out", protocol, workers=1))
    shown = capsys.readouterr().err
    assert f"error: {empty}: no labelled voxel. Expected a label to crop around" in shown
    assert f"error: {other}: no labelled voxel" in shown
    assert len(list((tmp_path / "out").rglob("*_image.nii.gz"))) == 2
