"""The result of a check as a table for the terminal, an HTML page with pictures, and a JSON file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from scripts.core.files import atomic_path, write_json
from scripts.data.geometry import AFFINE_TOLERANCE_MM
from scripts.evaluation.montage import structure_colour
from scripts.lab.check.cases import REPORT, Finding, MeasuredCase
from scripts.lab.check.limits import LIMITS
from scripts.lab.page import Card, Section, Table, write_page

__all__ = ["CheckResult", "as_ml", "case_card", "sentence", "summary_table", "write_check"]

# Sides of the axial, coronal and sagittal view of a case.
MARKS = (("R", "L"), ("R", "L"), ("A", "P"))

# Maximum number of label values listed for a case.
MOST_VALUES = 10

HEADS = ("domain", "list", "case", "shape", "spacing [mm]", "axes", "0.5 / 50 / 99.5 %", "label: ml", "affines", "")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Cases as measured, findings (errors first), and names of structures by value."""

    cases: Sequence[MeasuredCase]
    findings: Sequence[Finding]
    names: Mapping[float, str]
    keeps_stored_axes: bool = False

    @property
    def headline(self) -> str:
        """Such as ``2 errors and 1 warning in 12 cases``."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        counts = [(errors, "error"), (len(self.findings) - errors, "warning")]
        found = " and ".join(_count(number, word) for number, word in counts if number) or "Nothing found"
        return f"{found} in {_count(len(self.cases), 'case')}"

    def findings_on(self, case: MeasuredCase) -> list[Finding]:
        """The findings that name a case."""
        return [one for one in self.findings if case.name in one.cases and case.domain in one.domain.split(", ")]


def summary_table(result: CheckResult) -> str:
    """One line for each case, then the findings, as plain text."""
    table = Table(heads=HEADS, rows=[_row(case, result) for case in result.cases])
    return "\n".join([table.as_text(), "", *map(sentence, result.findings)])


def sentence(finding: Finding) -> str:
    """A finding in one line."""
    where = " ".join([finding.domain, ", ".join(finding.cases)]).rstrip()
    text = f"{finding.found}. Expected {finding.expected}. Fix: {finding.remedy}."
    return f"{finding.severity}: {where}: {finding.kind}: {text}"


def write_check(out: Path, result: CheckResult, *, sources: Sequence[str], task: str | None) -> Path:
    """Write the page ``check.html``, and ``check.json``, into a folder, both or neither."""
    limits = dataclasses.asdict(LIMITS)
    content = {
        "sources": list(sources),
        "task": task,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "cases": [_as_json(case) for case in result.cases],
        "limits": limits,
    }
    axes = "third, second and first stored axis" if result.keeps_stored_axes else "axial, coronal, sagittal"
    note = f"Slices through most of the labels, in square millimetres: {axes}. Outlines are the labels. "
    table = Table(heads=HEADS, rows=[_row(case, result) for case in result.cases], is_wide=True)
    ranked = sorted(
        result.cases, key=lambda case: min([f.severity != "error" for f in result.findings_on(case)], default=2)
    )
    rows = [[name.replace("_", " "), f"{value:g}"] for name, value in limits.items()]
    sections = [
        _findings_section(result.findings),
        Section(
            heading="Cases",
            text=[note + "Cases with findings come first."],
            cards=[case_card(case, result) for case in ranked],
        ),
        Section(heading="All numbers", tables=[table], is_folded=True),
        Section(heading="Applied limits", tables=[Table(heads=["limit", "value"], rows=rows)], is_folded=True),
    ]
    with atomic_path(Path(out) / REPORT) as temporary:
        write_json(temporary, content)
        # Inside the block: if the page fails, neither file is written.
        footer = ", ".join([*sources, *([task] if task else [])])
        title = f"Data check: {result.headline}"
        return write_page(Path(out) / "check.html", sections, heading=result.headline, title=title, footer=footer)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _findings_section(findings: Sequence[Finding]) -> Section:
    if not findings:
        return Section(heading="Findings", text=["Nothing found. Check the pictures nevertheless."])
    rows = []
    for finding in findings:
        link = Markup('<a href="#{}">{}</a>')
        where = Markup(" ").join([finding.domain, *(link.format(_anchor(finding.domain, c), c) for c in finding.cases)])
        tag = Markup('<span class="tag {0}">{0}</span>').format(finding.severity)
        words = [
            Markup('<div class="words">{}</div>').format(text[:1].upper() + text[1:])
            for text in (finding.found, finding.expected, finding.remedy)
        ]
        rows.append([tag, finding.kind, where if finding.cases else f"{finding.domain} (all)", *words])
    heads = ["", "what", "where", "found", "expected", "what to do"]
    return Section(heading="Findings", tables=[Table(heads=heads, rows=rows)])


def _row(case: MeasuredCase, result: CheckResult) -> list[str]:
    volumes = [f"{value:g}:{as_ml(volume)}" for value, volume in case.volumes_ml.items()]
    shown = " ".join(volumes[:MOST_VALUES]) + " ..." * (len(volumes) > MOST_VALUES)
    gap_mm = case.affine_gap_mm
    affines = "-" if gap_mm is None else "agree" if gap_mm <= AFFINE_TOLERANCE_MM else f"{gap_mm:.3g} mm apart"
    return [
        case.domain,
        case.files.section,
        case.name,
        "x".join(map(str, case.shape)),
        " ".join(f"{edge:.3g}" for edge in case.spacing_mm),
        case.orientation,
        " / ".join(f"{case.percentiles[key]:.4g}" for key in ("0.5", "50.0", "99.5") if case.percentiles),
        shown or ("none" if case.files.label else "-"),
        affines,
        ", ".join(dict.fromkeys(f"{finding.severity}: {finding.kind}" for finding in result.findings_on(case))),
    ]


def _anchor(domain: str, name: str) -> str:
    return f"{domain.split(', ')[0]}-{name}"


def case_card(case: MeasuredCase, result: CheckResult) -> Card:
    """The box of a case: pictures, volumes of its structures, and what was found."""
    found = result.findings_on(case)
    tags = tuple(dict.fromkeys((finding.severity, finding.kind) for finding in found))
    volumes = sorted(case.volumes_ml.items(), key=lambda item: (item[0] not in case.class_of, item[0]))
    legend = [
        (
            structure_colour(case.class_of[value]) if value in case.class_of else "#bbb",
            result.names.get(value, f"{value:g}"),
            f"{as_ml(volume)} ml",
        )
        for value, volume in volumes[:MOST_VALUES]
    ]
    if len(volumes) > MOST_VALUES:
        legend.append(("", f"and {len(volumes) - MOST_VALUES} more values", ""))
    facts = (
        f"{' x '.join(map(str, case.shape))}, {' x '.join(f'{e:.3g}' for e in case.spacing_mm)} mm, {case.orientation}"
    )
    return Card(
        title=case.name,
        anchor=_anchor(case.domain, case.name),
        subtitle=f"{case.domain}, {case.files.section}",
        severity=min((severity for severity, _ in tags), default=""),  # "error" before "warning"
        tags=tags,
        pictures=case.pictures,
        marks=() if result.keeps_stored_axes else MARKS,
        legend=legend,
        footer=facts if case.shape else case.files.image,
    )


def as_ml(volume: float) -> str:
    """A volume in ml with at most three digits, or as a whole number."""
    return f"{volume:.0f}" if volume >= 100 else f"{volume:.3g}"


def _as_json(case: MeasuredCase) -> dict[str, Any]:
    kept = ["shape", "spacing_mm", "orientation", "percentiles", "volumes_ml", "affine_gap_mm", "header_notes", "rims"]
    files = dataclasses.asdict(case.files)
    files.pop("label_names")
    structures = {f"{value:g}": dataclasses.asdict(structure) for value, structure in case.structures.items()}
    alignment = dataclasses.asdict(case.alignment) if case.alignment else None
    return files | {key: getattr(case, key) for key in kept} | {"structures": structures, "alignment": alignment}
