"""The label maps of a run, measured: volumes of structures against those of the labelled cases."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, innermost_message
from scripts.core.files import atomic_path
from scripts.core.schema import read_yaml
from scripts.data.case_names import case_name
from scripts.data.datalists import find_volumes
from scripts.evaluation.segmentation_summary import range_slack, volume_warning
from scripts.lab.check.anatomy import find_wrong_sides
from scripts.lab.check.cases import REPORT, Finding, ListedCase, MeasuredCase
from scripts.lab.check.check_report import as_ml
from scripts.lab.check.run_check import TaskLabels, measure_cases

__all__ = ["Segmentations", "SegmentedSet", "measure_label_maps", "write_summary"]


@dataclass(frozen=True)
class SegmentedSet:
    """Volumes that were segmented together: a volume, a folder or a datalist, and the folder of their label maps."""

    name: str
    where: Path
    folder: Path

    def label_maps(self) -> dict[str, Path]:
        """Image and label map of each volume."""
        images = [item["image"] for item in find_volumes(str(self.where))]
        return {image: self.folder / f"{case_name(image)}_seg.nii.gz" for image in images}


@dataclass(frozen=True)
class Segmentations:
    """Measured label maps, and warnings on them."""

    cases: Sequence[MeasuredCase]
    findings: Sequence[Finding]
    # Least and greatest ml in the labelled cases, by value; least is 0 if one lacks it.
    ranges: Mapping[float, tuple[float, float]]
    labelled: int  # number of the labelled cases

    def warning(self, case: MeasuredCase, value: float) -> str:
        """``missing``, ``too small``, ``too large``, or nothing."""
        return volume_warning(case.volumes_ml.get(value, 0.0), *self.ranges[value], range_slack(self.labelled))


def measure_label_maps(sets: Sequence[SegmentedSet], labels: TaskLabels, check: Path, source: str) -> Segmentations:
    """Measure label maps and compare them with plausible anatomy and with the labelled cases of the check."""
    listed = [
        ListedCase(
            domain=one.name, section="segmented", name=case_name(image), image=image, label=str(path), modality=""
        )
        for one in sets
        for image, path in one.label_maps().items()
    ]
    cases = measure_cases(listed, labels, workers=None, progress=True)
    known = _checked_cases(check, source)
    volumes = [{float(value): ml for value, ml in case["volumes_ml"].items()} for case in known]
    shown = {value: [ml.get(value, 0.0) for ml in volumes] for value in labels.names}
    ranges = {value: (min(seen), max(seen)) for value, seen in shown.items()}
    findings = [finding for case in cases for finding in case.findings]
    if not labels.keeps_stored_axes:
        # Label maps that a network made may simply be wrong.
        remedy = "look at the pictures: the label maps are wrong, or these volumes are mirrored"
        misplaced = find_wrong_sides(cases, labels.names)
        findings += [replace(finding, kind="implausible positions", remedy=remedy) for finding in misplaced]
    result = Segmentations(cases, (), ranges, len(known))
    findings += [finding for case in cases for finding in _against_labelled(case, labels.names, result)]
    return replace(result, findings=findings)


def _checked_cases(check: Path, domain: str) -> list[dict[str, Any]]:
    """What the check's file says of a domain's volumes; a damaged one is refused with the command that writes it."""
    out = check.parent
    remedy = f"check again: python -m scripts check {out / 'data'} --task {out / 'task.yaml'} --out {check}"
    content = read_yaml(check / REPORT, "the measurements of the check", remedy)
    try:
        cases = [case for case in content["cases"] if case["domain"] == domain]
        for case in cases:
            _ = [*map(float, [*case["volumes_ml"], *case["volumes_ml"].values(), *case["shape"], *case["spacing_mm"]])]
            _ = case["shape"] and float(case["percentiles"]["0.5"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"no measurements of volumes ({innermost_message(error)})"
        raise InputError(check / REPORT, found, "the measurements that the check wrote", remedy) from error
    return cases


def write_summary(path: Path, result: Segmentations, names: Mapping[float, str]) -> Path:
    """Write ``summary.csv``: set, case, structure, value, volume in ml, the range of the labelled cases, a warning."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["set", "case", "structure", "value", "ml", "labelled_least", "labelled_greatest", "warning"])
        for case in result.cases:
            for value, name in names.items():
                numbers = (f"{number:.1f}" for number in (case.volumes_ml.get(value, 0.0), *result.ranges[value]))
                writer.writerow([case.domain, case.name, name, f"{value:g}", *numbers, result.warning(case, value)])
    return path


def _against_labelled(case: MeasuredCase, names: Mapping[float, str], result: Segmentations) -> list[Finding]:
    """Structures that are missing, or far smaller or larger than in every labelled case."""
    odd = []
    for value, name in names.items():
        if warning := result.warning(case, value):
            low, high = map(as_ml, result.ranges[value])
            shown = as_ml(case.volumes_ml.get(value, 0.0))
            odd.append(f"{name} {warning}, {shown} ml (labelled: {low} to {high})")
    if not odd:
        return []
    slack = range_slack(result.labelled)
    expected = f"volumes within {slack:.2g} times the range of the {result.labelled} labelled cases"
    remedy = "look at the pictures, and do not use this label map unless they convince you"
    return [case.finding("warning", "unusual volume", "; ".join(odd), expected, remedy)]
