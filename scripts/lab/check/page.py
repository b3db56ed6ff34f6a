"""What a person looks at: a table for the terminal, one HTML page with pictures inside, a JSON file with the same."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from scripts.core.files import atomic_path, write_json
from scripts.data.geometry import AFFINE_TOLERANCE_MM
from scripts.evaluation.montage import structure_colour
from scripts.lab.check.cases import REPORT, Case, Finding
from scripts.lab.check.limits import LIMITS

__all__ = ["Checked", "summary_table", "write_page"]

PAGE = Template("""<!doctype html><html lang="en"><meta charset="utf-8"><title>Data check: $headline</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:78rem;margin:2rem auto;padding:0 1.2rem;color:#222}
h1{font-size:1.7rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p{margin:.4rem 0}a{color:#0072b2}
table{border-collapse:collapse;width:100%}th,td{padding:.4rem .6rem;text-align:left;vertical-align:top;
border-bottom:1px solid #e3e3e3}th{font-size:.8rem;color:#777;font-weight:600}small,.pale{color:#777}
.tag{display:inline-block;border-radius:.25rem;padding:0 .45rem;font-size:.8rem;font-weight:600;white-space:nowrap}
.error{background:#d55e00;color:#fff}.warning{background:#f6d58c;color:#222}.fine{background:#009e73;color:#fff}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(25rem,1fr));gap:1rem}
.card{border:1px solid #e3e3e3;border-radius:.5rem;padding:.7rem .8rem;break-inside:avoid}
.card.has-error{border:2px solid #d55e00}.card.has-warning{border:2px solid #e6b94a}.card h3{font-size:.95rem;margin:0}
.views{display:grid;grid-template:1fr 1fr/3fr 2fr;gap:3px;margin:.5rem 0;height:15rem;background:#000;padding:3px;
border-radius:.3rem}.views img{width:100%;height:100%;min-height:0;object-fit:contain}
.views img:first-child{grid-row:span 2}
.chip{display:inline-block;margin-right:.8rem;white-space:nowrap;font-size:.85rem}
.dot{display:inline-block;width:.7rem;height:.7rem;border-radius:.15rem;margin-right:.3rem}
.numbers td,.numbers th{font-size:.82rem;padding:.25rem .5rem;white-space:nowrap}.wide{overflow-x:auto}
summary{cursor:pointer;color:#0072b2;margin-top:2rem}
</style><h1>$headline</h1><p class="pale">$sources</p>
<h2>Findings</h2>$findings
<h2>Cases</h2><p class="pale">Slices through most of the labels, in square millimetres: $views. Outlines are the labels.
Cases with findings stand first.</p><div class="cards">$cards</div>
<details><summary>All numbers</summary><div class="wide">$numbers</div></details>
<details><summary>Limits that were applied</summary><table class="numbers">$limits</table></details></html>
""")


_STORED = "third, the second and the first stored axis"

MOST_CHIPS = 10
"""Label values of a case that are listed one by one."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Everything to report.

    Attributes:
        cases: as measured.
        findings: errors first.
        names: of structures, by value.
        keeps_stored_axes: whether pictures are along the stored axes.
    """

    cases: Sequence[Case]
    findings: Sequence[Finding]
    names: Mapping[float, str]
    keeps_stored_axes: bool = False

    @property
    def headline(self) -> str:
        """Such as ``2 errors and 1 warning in 12 cases``."""
        errors = sum(finding.severity == "error" for finding in self.findings)
        counts = [(errors, "error"), (len(self.findings) - errors, "warning")]
        said = " and ".join(_count(number, word) for number, word in counts if number) or "Nothing found"
        return f"{said} in {_count(len(self.cases), 'case')}"

    def of(self, case: Case) -> list[Finding]:
        """The findings that name a case."""
        domains = [finding.domain.split(", ") for finding in self.findings]
        pairs = zip(self.findings, domains, strict=True)
        return [finding for finding, named in pairs if case.name in finding.cases and case.domain in named]


def summary_table(checked: Checked) -> str:
    """One line for each case, then the findings, as plain text."""
    heads, rows = _numbers(checked)
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]
    said = [
        f"{f.severity}: {_whom(f)}: {f.kind}: found {f.found}; expected {f.expected}; {f.remedy}."
        for f in checked.findings
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], "", *said])


def write_page(out: Path, checked: Checked, *, sources: Sequence[str], task: str | None) -> Path:
    """Write ``check.html`` and ``check.json`` into a folder: both of them, or neither.

    Returns:
        The page's path.

    Raises:
        InputError: the folder cannot be written.
    """
    heads, rows = _numbers(checked)
    limits = dataclasses.asdict(LIMITS)
    ranked = sorted(checked.cases, key=lambda case: min([f.severity != "error" for f in checked.of(case)], default=2))
    page = PAGE.substitute(
        headline=html.escape(checked.headline),
        sources=html.escape(", ".join([*sources, *([task] if task else [])])),
        findings=_findings(checked),
        views=f"across the {_STORED}" if checked.keeps_stored_axes else "axial, coronal, sagittal",
        cards="".join(_card(case, checked) for case in ranked),
        numbers=_table(heads, rows),
        limits="".join(
            f"<tr><td>{name.replace('_', ' ')}</td><td>{value:g}</td></tr>" for name, value in limits.items()
        ),
    )
    content = {
        "sources": list(sources),
        "task": task,
        "findings": [dataclasses.asdict(finding) for finding in checked.findings],
        "cases": [_as_json(case) for case in checked.cases],
        "limits": limits,
    }
    with atomic_path(Path(out) / "check.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
        write_json(Path(out) / REPORT, content)  # inside the block: if it fails, neither file appears
    return Path(out) / "check.html"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _whom(finding: Finding) -> str:
    return f"{finding.domain} {', '.join(finding.cases)}".strip()


def _numbers(checked: Checked) -> tuple[list[str], list[list[str]]]:
    heads = ["domain", "list", "case", "shape", "spacing [mm]", "axes", "0.5 / 50 / 99.5 %", "label: ml", "affines", ""]
    return heads, [_row(case, checked) for case in checked.cases]


def _row(case: Case, checked: Checked) -> list[str]:
    percentiles = " / ".join(f"{case.percentiles[key]:.4g}" for key in ("0.5", "50.0", "99.5") if case.percentiles)
    volumes = list(case.volumes_ml.items())
    shown = " ".join(f"{value:g}:{_ml(volume)}" for value, volume in volumes[:MOST_CHIPS]) + (
        " ..." if len(volumes) > MOST_CHIPS else ""
    )
    found = checked.of(case)
    return [
        case.domain,
        case.files.section,
        case.name,
        "x".join(map(str, case.shape)),
        " ".join(f"{edge:.3g}" for edge in case.spacing_mm),
        case.orientation,
        percentiles,
        shown or ("-" if not case.files.label else "none"),
        _affines(case),
        ", ".join(dict.fromkeys(f"{finding.severity}: {finding.kind}" for finding in found)),
    ]


def _affines(case: Case) -> str:
    if case.affine_gap_mm is None:
        return "-"
    return "agree" if case.affine_gap_mm <= AFFINE_TOLERANCE_MM else f"{case.affine_gap_mm:.3g} mm apart"


def _findings(checked: Checked) -> str:
    if not checked.findings:
        return '<p><span class="tag fine">nothing found</span> Look at the pictures all the same.</p>'
    rows = []
    for finding in checked.findings:
        links = [f'<a href="#{_anchor(finding.domain, name)}">{html.escape(name)}</a>' for name in finding.cases]
        cells = [
            f'<span class="tag {finding.severity}">{finding.severity}</span>',
            html.escape(finding.kind),
            f"{html.escape(finding.domain)} {'<br>'.join(links) or '<small>(all)</small>'}",
            *(html.escape(_sentence(text)) for text in (finding.found, finding.expected, finding.remedy)),
        ]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ["", "what", "where", "found", "expected", "what to do"]
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _anchor(domain: str, name: str) -> str:
    return html.escape(f"{domain.split(', ')[0]}-{name}", quote=True)


def _card(case: Case, checked: Checked) -> str:
    found = checked.of(case)
    worst = "error" if any(finding.severity == "error" for finding in found) else "warning" if found else ""
    tags = " ".join(
        f'<span class="tag {severity}">{html.escape(kind)}</span>'
        for severity, kind in dict.fromkeys((finding.severity, finding.kind) for finding in found)
    )
    views = "".join(f'<img src="{uri}" alt="{html.escape(case.name, quote=True)}">' for uri in case.pictures)
    chips = "".join(_chips(case, checked.names))
    facts = (
        f"{' x '.join(map(str, case.shape))}, {' x '.join(f'{e:.3g}' for e in case.spacing_mm)} mm, {case.orientation}"
    )
    return (
        f'<div class="card {f"has-{worst}" if worst else ""}" id="{_anchor(case.domain, case.name)}">'
        f'<h3>{html.escape(case.name)} <span class="pale">{html.escape(case.domain)}, '
        f"{html.escape(case.files.section)}</span></h3>{tags}"
        + (f'<div class="views">{views}</div>' if views else "")
        + f"<div>{chips}</div><small>{html.escape(facts if case.shape else case.files.image)}</small></div>"
    )


def _chips(case: Case, names: Mapping[float, str]) -> Iterable[str]:
    volumes = sorted(case.volumes_ml.items(), key=lambda item: (item[0] not in case.class_of, item[0]))
    for value, volume in volumes[:MOST_CHIPS]:
        class_id = case.class_of.get(value, 0)
        colour = structure_colour(class_id) if class_id else "#bbb"
        text = f"{html.escape(names.get(value, f'{value:g}'))} <b>{_ml(volume)}</b> ml"
        yield f'<span class="chip"><span class="dot" style="background:{colour}"></span>{text}</span>'
    if len(volumes) > MOST_CHIPS:
        yield f'<span class="chip pale">and {len(volumes) - MOST_CHIPS} more values</span>'


def _ml(volume: float) -> str:
    return f"{volume:.0f}" if volume >= 100 else f"{volume:.3g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [("th", heads), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in lines]
    return '<table class="numbers">' + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"


def _as_json(case: Case) -> dict[str, Any]:
    kept = ["shape", "spacing_mm", "orientation", "percentiles", "volumes_ml", "affine_gap_mm", "header_notes", "rims"]
    files = dataclasses.asdict(case.files)
    files.pop("label_names")
    structures = {f"{value:g}": dataclasses.asdict(structure) for value, structure in case.structures.items()}
    alignment = dataclasses.asdict(case.alignment) if case.alignment else None
    return files | {key: getattr(case, key) for key in kept} | {"structures": structures, "alignment": alignment}
