"""``python -m scripts check`` on generated bodies with four organs: silent if clean, and each damage is found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bodies import body_case
from conftest import write_volume
from scipy import ndimage
from scripts.lab.check.across import find_wrong_spacing
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.cases import Finding, MeasuredCase
from scripts.lab.check.copies import find_copies
from scripts.lab.check.measure import measure_case
from scripts.lab.check.run_check import TaskLabels, judge_cases, measure_and_judge
from scripts.lab.cli import main

NAMES = {1.0: "liver", 2.0: "right kidney", 3.0: "left kidney", 4.0: "spleen"}
LABELS = TaskLabels(names=NAMES)


@dataclass
class Set:
    """The clean set: its folder and its measured cases."""

    folder: Path
    cases: list[MeasuredCase]

    def judged(self, *changed: MeasuredCase) -> list[Finding]:
        """Findings when cases replace those of the same domain and name, or are added."""
        new = {(case.domain, case.name): case for case in changed}
        kept = [case for case in self.cases if (case.domain, case.name) not in new]
        return judge_cases([*kept, *changed], LABELS)

    def damaged(
        self, number: int, change: Callable[[np.ndarray, np.ndarray, np.ndarray], Any], out: Path
    ) -> MeasuredCase:
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
    cases, findings = measure_and_judge(find_cases([str(folder)]), LABELS)
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
    # Four cases of a domain are too few for a comparison to give an error.
    severity = "error" if kind in ("interpolated label", "label mirrored against its image") else "warning"
    assert kinds(findings) == {(severity, kind, (case.name,))}
    assert np.any([re.search(found, finding.found) for finding in findings])


def grown(clean: Set) -> list[MeasuredCase]:
    """Four people in place of each case, who differ by millimetres, as if measured; without images, to be quick."""
    rng = np.random.default_rng(0)
    people = []
    for case in clean.cases:
        for number in range(4):
            other = copy(case)
            other.files = replace(case.files, name=f"{case.name}_{number}")
            other.spectrum, other.detail, other.image_digest, other.label_digest = None, None, "", ""
            other.structures = {
                value: replace(one, centre_mm=tuple(np.add(one.centre_mm, rng.normal(0, 2, 3)).tolist()))
                for value, one in case.structures.items()
            }
            people.append(other)
    return people


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (flip_both(1), "mirrored volume"),
        (swap_kidneys, "swapped labels"),
        (lambda i, lab, a: (i, np.roll(lab, 1, 0), a), "label off its image"),
        (stretch(1.6), "wrong slice spacing"),
    ],
)
def test_among_sixteen_cases_of_a_domain_a_comparison_gives_an_error(
    clean: Set, tmp_path: Path, change: Any, kind: str
) -> None:
    people = grown(clean)
    assert judge_cases(people, LABELS) == []
    damaged = clean.damaged(1, change, tmp_path)
    assert kinds(judge_cases([*people[1:], damaged], LABELS)) == {("error", kind, (damaged.name,))}


@pytest.mark.parametrize(("factor", "severity"), [(1.25, None), (1.38, "warning"), (1.5, "error")])
def test_a_stretch_is_an_error_only_well_above_the_threshold(clean: Set, factor: float, severity: str | None) -> None:
    """All are alike but one, whose structures and grain both state the factor: from 1.3 on, and from 1.43 on."""
    people = [copy(clean.cases[0]) for _ in range(16)]
    longer, stack = people[0], people[0].stack_axis
    longer.grain -= 0.75 * math.log(factor)
    longer.structures = {
        value: replace(one, spread_mm=tuple(np.multiply(one.spread_mm, np.where(np.arange(3) == stack, factor, 1))))
        for value, one in longer.structures.items()
    }
    assert [one.severity for one in find_wrong_spacing(people)] == ([severity] if severity else [])


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
    """In both domains, so that no comparison can detect it."""
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
    _, findings = measure_and_judge([replace(one, label=None) for one in files], LABELS)
    assert kinds(findings) == {("warning", "mirrored volume", (case.name,))}
    assert "anterior/posterior" in findings[0].found


def replace_label(case: MeasuredCase) -> MeasuredCase:
    """A case as if it had no label."""
    return measure_case(replace(case.files, label=None), {})


def test_a_wrong_spacing_is_found_without_labels(clean: Set, tmp_path: Path) -> None:
    case = replace_label(clean.damaged(6, stretch(1.6), tmp_path))
    assert kinds(clean.judged(case)) == {("warning", "wrong slice spacing", (case.name,))}


def test_a_domain_that_is_all_upside_down_stands_against_the_other(clean: Set, tmp_path: Path) -> None:
    turned = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        turned.append(clean.damaged(number, flip_both(1), tmp_path / str(number)))
    findings = clean.judged(*turned)
    # Images and layouts say that one of the two is wrong, the names of the structures which one.
    assert kinds(findings) == {("warning", "mirrored volume", ()), ("error", "mirrored volume", ())}
    turned_domain, between = findings  # errors come first
    assert (turned_domain.domain, set(between.domain.split(", "))) == ("ct", {"ct", "mr"})
    assert "anterior/posterior" in between.found


def test_labels_that_are_all_shifted_are_one_finding(clean: Set, tmp_path: Path) -> None:
    moved = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        moved.append(clean.damaged(number, lambda i, lab, a: (i, np.roll(lab, 1, 2), a), tmp_path / str(number)))
    assert kinds(clean.judged(*moved)) == {("warning", "label off its image", ())}


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


def test_several_lists_of_one_name_are_several_domains(clean: Set, tmp_path: Path) -> None:
    for name in ("ct.json", "again.json"):
        (tmp_path / name).write_text((clean.folder / "ct.json").read_text())
    cases = find_cases([str(tmp_path / "ct.json"), str(tmp_path / "again.json")])
    assert {case.domain for case in cases} == {"ct", f"ct of {tmp_path / 'again.json'}"}


def test_a_header_with_two_positions_is_found(clean: Set, tmp_path: Path) -> None:
    """Readers differ in which they take: NiBabel the sform, ITK by its codes."""
    case = clean.cases[1]
    image = nib.load(case.files.image)
    moved = image.affine.copy()
    moved[0, 3] += 7.0
    image.set_qform(image.affine, code=1)
    image.set_sform(moved, code=1)
    nib.save(image, tmp_path / "i.nii.gz")
    measured = measure_case(
        replace(case.files, image=str(tmp_path / "i.nii.gz")), {value: int(value) for value in NAMES}
    )
    (found,) = [one for one in clean.judged(measured) if one.kind == "unclear header"]
    assert found.cases == (case.name,)
    assert "differ by up to 7 mm" in found.found


def test_names_may_stand_on_either_side_of_the_labels(clean: Set, tmp_path: Path) -> None:
    """The Decathlon writes value: name, nnU-Net name: value."""
    content = json.loads((clean.folder / "ct.json").read_text())
    for section in ("training", "validation"):
        content[section] = [
            {key: str(clean.folder / file) for key, file in entry.items()} for entry in content[section]
        ]
    names = []
    for name, labels in (
        ("a", content["labels"]),
        ("b", {value: int(key) for key, value in content["labels"].items()}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content | {"labels": labels}))
        names.append({case.label_names for case in find_cases([str(tmp_path / f"{name}.json")])})
    assert names[0] == names[1] == {tuple((value, name) for value, name in NAMES.items())}


def test_a_ct_that_was_scaled_is_not_in_hounsfield_units(clean: Set, tmp_path: Path) -> None:
    def scaled(image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> Any:
        return (image - image.min()) / np.ptp(image) * 2 - 1, label, affine

    findings = clean.judged(clean.damaged(1, scaled, tmp_path))
    assert ("warning", "not in Hounsfield units", (clean.cases[1].name,)) in kinds(findings)
