"""Checks of one case, or of a few by their numbers alone: units, grids, origins, volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bodies import body_case
from conftest import CONFIGS, write_volume
from scripts.lab.check import measure, run_check
from scripts.lab.check.across import find_wrong_spacing
from scripts.lab.check.case_search import find_cases
from scripts.lab.check.cases import Finding, ListedCase, MeasuredCase, Structure
from scripts.lab.check.copies import find_copies
from scripts.lab.check.measure import measure_case
from scripts.lab.check.run_check import TaskLabels, judge_cases, task_labels
from scripts.lab.check.single import find_unlabelled_structures, judge_case
from scripts.lab.check.sizes import find_wrong_sizes

HEART = {1.0: "myocardium", 2.0: "left ventricle", 3.0: "right ventricle"}


def files_of(name: str = "a", domain: str = "mr", modality: str = "MR", *, has_unit: bool = True) -> ListedCase:
    return ListedCase(
        domain=domain,
        section="training",
        name=name,
        image=f"{domain}/{name}.nii.gz",
        label=None,
        modality=modality,
        has_unit=has_unit,
    )


def case_of(low: float, high: float, modality: str, *, has_unit: bool = True) -> MeasuredCase:
    """A case with given percentiles 0.5 and 99.5."""
    percentiles = {"0.5": low, "50.0": (low + high) / 2, "99.5": high}
    files = files_of(modality=modality, has_unit=has_unit)
    return MeasuredCase(files=files, shape=(60, 60, 9), spacing_mm=(1.25, 1.25, 8.0), percentiles=percentiles)


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.severity, finding.kind) for finding in findings]


HU, MR_RAW, UNIT, BYTES, Z_SCORES = (-1000.0, 700.0), (0.0, 900.0), (-1.0, 1.0), (0.0, 255.0), (-1.8, 2.7)


@pytest.mark.parametrize(
    ("values", "modality", "kind"),
    [
        (HU, "CT", None),
        (UNIT, "CT", "not in Hounsfield units"),
        (BYTES, "CT", "not in Hounsfield units"),
        (Z_SCORES, "CT", "not in Hounsfield units"),
        (MR_RAW, "MR", None),
        (BYTES, "MR", None),  # an MR has no unit: 8 bits may be the scanner's own
        (UNIT, "MR", "already scaled"),
        ((0.0, 1.0), "MR", "already scaled"),
        (Z_SCORES, "MR", "already scaled"),
        (UNIT, "US", None),
    ],
)
def test_a_unit_that_the_modality_does_not_have_is_found(
    values: tuple[float, float], modality: str, kind: str | None
) -> None:
    """Releases have Hounsfield units, 8-bit windows, z-scores or [-1, 1], which headers do not state."""
    case = case_of(*values, modality)
    assert kinds(judge_case(case, {}, None)) == ([("warning", kind)] if kind else [])
    # Where the datalist says that a protocol scaled the volumes, there is nothing to find.
    assert judge_case(case_of(*values, modality, has_unit=False), {}, None) == []


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    ("values", "is_scaled"),
    [(UNIT, True), ((-1.25, 1.6), True), (HU, False), (MR_RAW, False), (BYTES, False), (Z_SCORES, False)],
)
def test_volumes_that_a_task_takes_as_they_are_must_be_scaled(
    values: tuple[float, float], is_scaled: bool, modality: str
) -> None:
    """The scaled tasks hand intensities to the network as they stand: anything else spoils the training."""
    labels = task_labels(str(CONFIGS / "tasks" / "cardiac_scaled_ct2mr.yaml"))
    findings = judge_cases([case_of(*values, modality)], labels)
    assert kinds(findings) == ([] if is_scaled else [("error", "not scaled")])
    if not is_scaled:
        assert "scaled to about -1 to 1" in findings[0].expected


def test_only_scaled_tasks_expect_scaled_volumes() -> None:
    """The task files decide."""
    for path in (CONFIGS / "tasks").glob("*.yaml"):
        assert (task_labels(str(path)).scaled_within == (-2.0, 2.0)) is ("scaled" in path.stem)


@pytest.mark.parametrize(("gap_mm", "kind"), [(9e-4, []), (1.1e-3, [("error", "label on another grid")])])
def test_grids_agree_within_a_thousandth_of_a_millimetre(gap_mm: float, kind: list[tuple[str, str]]) -> None:
    """What tools round differs less; what differs more is another grid."""
    case = case_of(*MR_RAW, "MR")
    case.label_shape, case.affine_gap_mm, case.volumes_ml = case.shape, gap_mm, {1.0: 100.0}
    assert kinds(judge_case(case, {1.0: "myocardium"}, None)) == kind


PSR_OBLIQUE = np.array([[0.30, 0.25, 0.92], [-0.82, 0.57, 0.11], [0.49, 0.78, -0.39]])
"""Directions of three axes as columns that run to posterior, superior and right, 20 to 40 degrees off."""


@pytest.mark.parametrize("keeps_stored_axes", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_stack_runs_along_the_axis_of_the_largest_spacing(
    axis: int, keeps_stored_axes: bool, tmp_path: Path
) -> None:
    """Short-axis hearts have axis codes P, S, R, so that no letter identifies the through-plane axis."""
    directions, spacing_mm, shape = PSR_OBLIQUE, [1.25] * 3, [40] * 3
    spacing_mm[axis], shape[axis] = 8.0, 9
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(directions)[0] * np.sign(np.diag(np.linalg.qr(directions)[1])) * spacing_mm
    voxels = np.random.default_rng(axis).uniform(0, 900, shape).astype(np.float32)
    path = write_volume(tmp_path / "a.nii.gz", voxels, affine)
    case = measure_case(replace(files_of(), image=str(path)), {}, keeps_stored_axes)
    assert (case.orientation, case.stack_axis) == ("PSR", axis)


def test_without_a_largest_spacing_the_stack_runs_along_the_body(tmp_path: Path) -> None:
    """Isotropic volumes have no through-plane axis; here the second one runs to superior."""
    affine = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).uniform(0, 900, (30, 30, 30)).astype(np.float32)
    path = write_volume(tmp_path / "a.nii.gz", voxels, affine)
    assert measure_case(replace(files_of(), image=str(path)), {}).stack_axis == 1


def test_origins_mean_nothing(tmp_path: Path) -> None:
    """Releases write (0, 0, 0), or place one patient's sequences centimetres apart: no finding may come of it."""
    names = {value: str(value) for value in (1.0, 2.0, 3.0, 4.0)}
    body_case(tmp_path, "ct", 0)
    (files,) = find_cases([str(tmp_path)])
    files = replace(files, modality="CT")
    here = measure_case(files, {})
    moved = {}
    for key, path in (("image", files.image), ("label", files.label)):
        volume = nib.load(str(path))
        affine = volume.affine.copy()
        affine[:3, 3] += (400.0, -250.0, 1700.0)
        moved[key] = str(write_volume(tmp_path / f"far_{key}.nii.gz", np.asarray(volume.dataobj), affine))
    there = measure_case(replace(files, **moved), {})
    assert there.structures == here.structures
    assert there.stack_axis == here.stack_axis
    assert judge_case(there, names, None) == judge_case(here, names, None) == []


def hearts(domain: str, volumes_ml: tuple[float, float, float], spacing_mm: float) -> list[MeasuredCase]:
    """Five hearts of one size more or less: a structure's spread grows with the cube root of its volume."""
    cases = []
    for number, factor in enumerate((0.8, 0.9, 1.0, 1.1, 1.25)):
        case = MeasuredCase(files=files_of(f"heart_{number}", domain), shape=(192, 192, 9))
        case.spacing_mm, case.image_digest = (1.25, 1.25, spacing_mm), f"{domain} {number}"
        for value, volume_ml in zip(HEART, volumes_ml, strict=True):
            spread = 3.0 * np.cbrt(volume_ml * factor)
            place = (30.0 * (value - 2), 0.0, 0.0)
            case.structures[value] = Structure(
                volume_ml=volume_ml * factor, centre_mm=place, spread_mm=(spread, spread, 1.2 * spread)
            )
        cases.append(case)
    return cases


def test_ventricles_that_are_smaller_in_one_sequence_are_no_error() -> None:
    """Late enhancement shows another phase and less of the base: a fifth less left, a third less right ventricle."""
    both = hearts("bssfp", (126, 152, 151), 8.0) + hearts("lge", (124, 120, 100), 4.99998)
    assert find_wrong_sizes(both, HEART) == []
    assert find_wrong_spacing(both) == []


def test_one_number_in_two_domains_is_no_leak() -> None:
    """Case 2 of a CT set and case 2 of an MR set are two people; in sequences of one patient, two images."""
    both = hearts("bssfp", (126, 152, 151), 8.0) + hearts("lge", (124, 120, 100), 5.0)
    assert [case.name for case in both[:5]] == [case.name for case in both[5:]]
    assert find_copies(both) == []


def test_a_label_that_lacks_a_class_or_has_a_further_one_is_found() -> None:
    """Scribbles mark unlabelled voxels with 4, and a class may be absent."""
    case = case_of(*MR_RAW, "MR")
    case.label_shape, case.affine_gap_mm, case.volumes_ml = case.shape, 0.0, {1.0: 100.0, 2.0: 90.0, 4.0: 800.0}
    findings = judge_case(case, HEART, TaskLabels(names=HEART).known)
    assert kinds(findings) == [("error", "unknown label value"), ("warning", "missing structure")]
    assert "label value(s) 4" in findings[0].found
    assert "only 0, 1, 2, 3" in findings[0].expected
    assert "no right ventricle" in findings[1].found


def test_any_failure_of_one_case_is_a_finding_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: str) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(measure, "read_nifti", failing)
    (finding,) = measure_case(files_of(), {}).findings
    assert (finding.severity, finding.kind, finding.found) == ("error", "unusable file", "MemoryError: no room")


def test_without_shared_memory_cases_are_measured_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Processes share semaphores in /dev/shm, which some containers mount read-only."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_check, "ProcessPoolExecutor", closed)
    assert list(run_check._mapped(str.upper, ["a", "b"], 2)) == ["A", "B"]
    assert "measured one at a time, because no process pool could be started ([Errno 13] Permission" in caplog.text


@pytest.mark.parametrize(
    ("domain", "maps", "found"),
    [
        ("mr", [{1.0: 90.0}, {2.0: 80.0, 3.0: 1.0}], None),  # no case has all structures, but each occurs
        ("mr", [{}, {}], "no voxel of myocardium, left ventricle, right ventricle in 2 label maps"),
        ("mr", [{1.0: 90.0, 3.0: 60.0}], "no voxel of left ventricle in 1 label maps"),
        ("ct", [{}], None),  # the target's labels are not trained on
        ("mr", [], None),
    ],
)
def test_a_structure_that_no_case_shows_cannot_be_learnt(domain: str, maps: list[dict], found: str | None) -> None:
    cases = [
        MeasuredCase(files=files_of(str(index), domain), shape=(9, 9, 9), label_shape=(9, 9, 9), volumes_ml=volumes)
        for index, volumes in enumerate(maps)
    ]
    findings = find_unlabelled_structures(cases, HEART, "mr")
    assert [finding.found for finding in findings] == ([found] if found else [])
    assert all(finding.severity == "error" for finding in findings)
