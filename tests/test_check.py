"""``python -m scripts check``: silent on a clean set, and each damage that would spoil a training is found in it.

The set is generated: bodies with four organs in two domains, each measured once; a damaged case is measured anew.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bodies import make_body
from conftest import run_command, write_volume
from scipy import ndimage

from scripts.check.cases import Case, Finding, find_cases, find_lone_labels
from scripts.check.command import TaskLabels, check_cases, judge_cases, read_task
from scripts.check.copies import find_copies
from scripts.check.measure import measure_case
from scripts.check.sizes import find_wrong_sizes
from scripts.cli import main
from scripts.errors import InputError

NAMES = {1.0: "liver", 2.0: "right kidney", 3.0: "left kidney", 4.0: "spleen"}
LABELS = TaskLabels(names=NAMES)


def body_case(folder: Path, domain: str, number: int) -> dict[str, str]:
    """Write a body; gives its entry of a datalist."""
    body = make_body(domain, number)
    names = {key: f"{domain}_{number:02}_{key}.nii.gz" for key in ("image", "label")}
    write_volume(folder / names["image"], body.image, body.affine)
    write_volume(folder / names["label"], body.label, body.affine)
    return names


@dataclass
class Set:
    """The clean set: its folder and its measured cases."""

    folder: Path
    cases: list[Case]

    def judged(self, *changed: Case) -> list[Finding]:
        """Findings when cases stand in for those of the same domain and name, or are added."""
        new = {(case.domain, case.name): case for case in changed}
        kept = [case for case in self.cases if (case.domain, case.name) not in new]
        return judge_cases([*kept, *changed], LABELS)

    def damaged(self, number: int, change: Callable[[np.ndarray, np.ndarray, np.ndarray], Any], out: Path) -> Case:
        """Case ``number``, measured after ``change(image, label, affine)`` gave others for them."""
        files = self.cases[number].files
        image, label = nib.load(files.image), nib.load(str(files.label))
        voxels, classes, affine = change(np.asarray(image.dataobj), np.asarray(label.dataobj), image.affine.copy())
        names = [str(write_volume(out / f"{key}.nii.gz", v, affine)) for key, v in (("i", voxels), ("l", classes))]
        return measure_case(replace(files, image=names[0], label=names[1]), {value: int(value) for value in NAMES})


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder = tmp_path_factory.mktemp("clean")
    for domain in ("ct", "mr"):
        entries = [body_case(folder, domain, number) for number in range(4)]
        content = {"name": domain, "modality": domain.upper(), "training": entries[:3], "validation": entries[3:]}
        labels = {"labels": {f"{value:g}": name for value, name in NAMES.items()}}
        (folder / f"{domain}.json").write_text(json.dumps(content | labels))
    cases, findings = check_cases(find_cases([str(folder)]), LABELS)
    assert findings == []
    return Set(folder, cases)


def kinds(findings: list[Finding]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(finding.severity, finding.kind, finding.cases) for finding in findings}


def flip_both(axis: int) -> Callable[..., Any]:
    return lambda image, label, affine: (np.flip(image, axis), np.flip(label, axis), affine)


def swap_kidneys(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Any:
    return image, np.select([label == 2, label == 3], [3, 2], label).astype(np.int16), affine


def stretch(factor: float) -> Callable[..., Any]:
    return lambda image, label, affine: (image, label, affine @ np.diag([1, 1, factor, 1]))


def linear(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Any:
    coarse = np.rint(ndimage.zoom(label.astype(float), (0.8, 0.8, 1), order=1)).astype(np.int16)
    thin = ndimage.zoom(image.astype(float), (0.8, 0.8, 1), order=1)
    return thin, coarse, affine @ np.diag([*np.divide(image.shape, thin.shape), 1])


@pytest.mark.parametrize("number", [1, 5])
@pytest.mark.parametrize(
    ("change", "kind", "found"),
    [
        (flip_both(1), "mirrored volume", "mirrored anterior/posterior"),
        (flip_both(0), "mirrored volume", "mirrored left/right"),
        (swap_kidneys, "swapped labels", "right kidney and left kidney exchanged"),
        (lambda i, lab, a: (i, np.roll(lab, 1, 0), a), "label off its image", r"\(-1\.\d, |\(-0\.[789], "),
        (lambda i, lab, a: (i, np.roll(lab, -1, 2), a), "label off its image", r", \+1\.\d\)|, \+0\.[789]\)"),
        (stretch(1.6), "wrong slice spacing", "1.[4-8]"),
        (stretch(1 / 1.6), "wrong slice spacing", "0.[567]"),
        (linear, "interpolated label", "thin rim"),
        (lambda i, lab, a: (i, np.flip(lab, 1), a), "label mirrored against its image", "second axis"),
    ],
)
def test_damage_is_found_in_its_case_alone(
    clean: Set, tmp_path: Path, number: int, change: Any, kind: str, found: str
) -> None:
    case = clean.damaged(number, change, tmp_path)
    findings = clean.judged(case)
    assert kinds(findings) == {("error", kind, (case.name,))}
    assert np.any([re.search(found, finding.found) for finding in findings])


def scale(factors: tuple[float, float, float]) -> Callable[..., Any]:
    return lambda image, label, affine: (image, label, affine @ np.diag([*factors, 1]))


@pytest.mark.parametrize("number", [1, 5])
def test_a_stale_header_that_shrinks_a_body_is_found(clean: Set, tmp_path: Path, number: int) -> None:
    case = clean.damaged(number, scale((0.6, 0.6, 0.6)), tmp_path)
    (finding,) = clean.judged(case)
    assert (finding.severity, finding.kind, finding.cases) == ("warning", "implausible size", (case.name,))
    assert (
        0.12 < float(re.search(r"structures (\S+) times", finding.found)[1]) < 0.35
    )  # 0.6 cubed is 0.22; MR 1 is tall


def test_a_slice_spacing_of_1_everywhere_is_found(clean: Set, tmp_path: Path) -> None:
    """Of both domains alike, so that no comparison can tell."""
    stale = []
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        spacing_mm = clean.cases[number].spacing_mm[2]
        stale.append(clean.damaged(number, scale((1, 1, 1 / spacing_mm)), tmp_path / str(number)))
    findings = clean.judged(*stale)
    assert {("warning", "implausible size", "ct"), ("warning", "implausible size", "mr")} <= {
        (finding.severity, finding.kind, finding.domain) for finding in findings if not finding.cases
    }
    assert any("medians of liver" in finding.found and "1000 to 2600" in finding.found for finding in findings)


def test_atrophic_kidneys_and_a_huge_spleen_are_people(clean: Set) -> None:
    def sized(case: Case, volumes_ml: dict[float, float]) -> Case:
        changed = {v: replace(one, volume_ml=volumes_ml.get(v, one.volume_ml)) for v, one in case.structures.items()}
        other = copy(case)
        other.structures = changed
        return other

    few = [sized(clean.cases[1], {2.0: 10.0, 3.0: 11.0}), sized(clean.cases[2], {4.0: 3000.0})]
    assert find_wrong_sizes([clean.cases[0], *few, clean.cases[3]], NAMES) == []


def test_where_no_spacing_is_known_nothing_is_said_of_sizes(clean: Set, tmp_path: Path) -> None:
    case = clean.damaged(1, scale((0.6, 0.6, 0.6)), tmp_path)
    case.files = replace(case.files, has_spacing=False)
    assert clean.judged(case) == []


def test_an_upside_down_ct_is_found_without_labels(clean: Set, tmp_path: Path) -> None:
    for number in range(4, 7):
        body_case(tmp_path, "ct", number)
    more = [replace(file, domain="ct") for file in find_cases([str(tmp_path)])]
    case = clean.damaged(2, flip_both(1), tmp_path)
    files = [*(one.files for one in clean.cases if one.domain == "ct" and one.name != case.name), *more, case.files]
    _, findings = check_cases([replace(one, label=None) for one in files], LABELS)
    assert kinds(findings) == {("error", "mirrored volume", (case.name,))}
    assert "anterior/posterior" in findings[0].found


def replace_label(case: Case) -> Case:
    """A case as if it had no label."""
    return measure_case(replace(case.files, label=None), {})


def test_a_wrong_spacing_is_found_without_labels(clean: Set, tmp_path: Path) -> None:
    case = replace_label(clean.damaged(6, stretch(1.6), tmp_path))
    assert kinds(clean.judged(case)) == {("error", "wrong slice spacing", (case.name,))}


def test_a_domain_that_is_all_upside_down_stands_against_the_other(clean: Set, tmp_path: Path) -> None:
    turned = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        turned.append(clean.damaged(number, flip_both(1), tmp_path / str(number)))
    findings = clean.judged(*turned)
    assert kinds(findings) == {("error", "mirrored volume", ())}
    assert set(findings[0].domain.split(", ")) == {"ct", "mr"}
    assert "anterior/posterior" in findings[0].found


def test_labels_that_are_all_shifted_are_one_finding(clean: Set, tmp_path: Path) -> None:
    moved = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        moved.append(clean.damaged(number, lambda i, lab, a: (i, np.roll(lab, 1, 2), a), tmp_path / str(number)))
    assert kinds(clean.judged(*moved)) == {("error", "label off its image", ())}


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v,
        lambda v: (v * 0.3 + 5).astype(np.float32),
        lambda v: np.clip(v / 8 + 100, 0, 255).astype(np.uint8),
        lambda v: v[3:-2, 2:, 1:],
    ],
    ids=["same", "scaled", "uint8", "cropped"],
)
def test_a_case_in_two_splits_is_found(clean: Set, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(clean.cases[5].files.image)
    copy = write_volume(tmp_path / "other.nii.gz", change(np.asarray(image.dataobj)), image.affine)
    files = replace(clean.cases[5].files, image=str(copy), label=None, name="other", section="validation")
    case = measure_case(files, {})
    assert kinds(clean.judged(case)) == {("error", "one case in two splits", (clean.cases[5].name, "other"))}
    case.files = replace(files, section="training")
    assert kinds(clean.judged(case)) == {("warning", "one case twice", (clean.cases[5].name, "other"))}


def test_one_label_of_two_images_is_found(clean: Set) -> None:
    files = clean.cases[0].files
    case = measure_case(replace(files, label=clean.cases[1].files.label), {})
    assert ("error", "one label for two images", (clean.cases[1].name, case.name)) in kinds(clean.judged(case))


def test_two_contrasts_of_one_scan_may_share_a_label(clean: Set) -> None:
    """As T1 in and out of phase do: another domain on the same grid is worth a warning, no more."""
    files = clean.cases[0].files
    case = measure_case(replace(files, domain="ct_other", label=clean.cases[1].files.label), {})
    found = find_copies([clean.cases[1], case])
    assert kinds(found) == {("warning", "one label for two images", (clean.cases[1].name, case.name))}


def test_label_values_are_compared_with_the_task(clean: Set, tmp_path: Path) -> None:
    def extra(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Any:
        return image, np.where(label == 4, 9, label).astype(np.int16), affine

    case = clean.damaged(2, extra, tmp_path)
    assert kinds(clean.judged(case)) == {
        ("error", "unknown label value", (case.name,)),
        ("warning", "missing structure", (case.name,)),
    }


def test_what_interpolation_leaves_between_whole_numbers_is_found(clean: Set, tmp_path: Path) -> None:
    case = clean.damaged(2, lambda i, lab, a: (i, ndimage.shift(lab.astype(np.float32), 0.4, order=1), a), tmp_path)
    assert ("error", "interpolated label", (case.name,)) in kinds(clean.judged(case))


def test_a_label_with_another_affine_is_found(clean: Set, tmp_path: Path) -> None:
    files = clean.cases[3].files
    label = nib.load(str(files.label))
    label.affine[0, 3] += 4
    case = measure_case(
        replace(files, label=str(write_volume(tmp_path / "l.nii.gz", np.asarray(label.dataobj), label.affine))), {}
    )
    assert case.affine_gap_mm == pytest.approx(4)
    assert kinds(clean.judged(case)) == {("error", "label on another grid", (case.name,))}


def test_the_command_reports_and_ends_with_zero(clean: Set, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        [
            "check",
            str(clean.folder / "ct.json"),
            str(clean.folder / "mr.json"),
            "--out",
            str(tmp_path),
            "--workers",
            "1",
        ]
    )
    shown = capsys.readouterr().out
    assert "8 cases, 0 errors, 0 warnings" in shown
    assert "ct_03_image  88x64x46" in shown
    content = json.loads((tmp_path / "check.json").read_text())
    assert [len(content["cases"]), content["findings"]] == [8, []]
    assert content["cases"][0]["volumes_ml"].keys() == {"1.0", "2.0", "3.0", "4.0"}
    page = (tmp_path / "check.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 * 8
    assert "Nothing found in 8 cases" in page
    assert 'src="http' not in page
    assert "right kidney" in page


@pytest.fixture
def few(clean: Set, tmp_path: Path) -> Path:
    """A folder with two cases, for a test to damage."""
    folder = tmp_path / "few"
    folder.mkdir()
    for number in (0, 1):
        for key in ("image", "label"):
            shutil.copy(clean.folder / f"ct_0{number}_{key}.nii.gz", folder)
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
    (finding,) = find_lone_labels([str(few)])
    assert (finding.severity, finding.kind, finding.domain) == ("warning", "label without image", "few")
    assert finding.found.startswith("1 label map(s) ")
    assert finding.found.endswith("looked at: liver_00_label.nii.gz")
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


def test_several_lists_of_one_name_are_several_domains(clean: Set, tmp_path: Path) -> None:
    for name in ("ct.json", "again.json"):
        (tmp_path / name).write_text((clean.folder / "ct.json").read_text())
    cases = find_cases([str(tmp_path / "ct.json"), str(tmp_path / "again.json")])
    assert {case.domain for case in cases} == {"ct", f"ct of {tmp_path / 'again.json'}"}


@pytest.mark.parametrize("content", ["{}", '{"training": []}', "[]", "{"])
def test_a_file_that_lists_nothing_gets_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=r"list\.json: found no"):
        find_cases([str(tmp_path / "list.json")])


def test_a_folder_without_volumes_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a datalist nor a NIfTI image"):
        find_cases([str(tmp_path)])


@pytest.mark.slow
def test_a_missing_folder_ends_the_command_with_a_sentence() -> None:
    done = run_command([sys.executable, "-m", "scripts", "check", "no/such/folder"])
    assert done.code == 1
    assert "error: no/such/folder: found no such file" in done.stderr


def test_a_task_file_names_the_structures(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("label_names: [a, b]\nlabel_values: [205, 500]\nbackground_values: [600]\norientation: null\n")
    assert read_task(str(task)) == TaskLabels(names={205: "a", 500: "b"}, background=(600,), keeps_stored_axes=True)


@pytest.mark.parametrize("content", [None, "label_names: [a]", "label_names: [a]\nlabel_values: [1, 2]", "- 1", "a: ["])
def test_a_file_that_is_no_task_gets_a_sentence(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "task.yaml").write_text(content)
    with pytest.raises(InputError, match="expected a task file with label_names and label_values"):
        read_task(str(tmp_path / "task.yaml"))
