"""Datalists, the report, and the summary on the screen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.run_folder import provenance
from scripts.core.task_files import read_task
from scripts.lab.prepare.rules import CONFIGS, DomainRules, Rules
from scripts.lab.prepare.source_case import SourceCase

__all__ = ["REPORT", "add_report", "print_report", "read_reports", "write_datalists"]

REPORT = "prepare.json"
DECODERS = ("pydicom", "python-gdcm", "scikit-image")
# Number of notes per domain on the screen; the report contains all.
SHOWN_NOTES = 8
SECTIONS = ("training", "validation", "test")
Records = Mapping[SourceCase, Mapping[str, Any]]


def write_datalists(out: Path, rules: Rules, records: Records) -> dict[str, dict[str, Any]]:
    """Write ``<out>/<domain>.json`` for each domain, with paths relative to ``out``; return them by domain.

    Unlabelled cases of a section with labelled cases are listed in ``<section>_unlabelled``, because source training
    and evaluation need a label in every entry.
    """
    datalists = {}
    for domain in sorted({case.domain for case in records}):
        lists: dict[str, list[dict[str, str]]] = {}
        cases = [case for case in records if case.domain == domain]
        for section in SECTIONS:
            members = [case for case in cases if section in rules.domains[domain].sections_of(case)]
            entries = [_entry(case, records[case]) for case in members]
            labelled = [entry for entry in entries if "label" in entry]
            lists[section] = labelled or entries
            if labelled and len(labelled) < len(entries):
                lists[f"{section}_unlabelled"] = [entry for entry in entries if "label" not in entry]
        datalists[domain] = {
            "name": domain,
            "modality": rules.domains[domain].modality,
            "dataset": rules.dataset,
            "protocol": rules.protocol,
            **({} if rules.has_spacing else {"has_spacing": False}),
            **({} if rules.domains[domain].has_unit else {"has_unit": False}),
            **_sharing(rules.domains[domain], cases),
            "labels": _label_names(rules),
            **{section: entries for section, entries in lists.items() if entries},
        }
        write_json(out / f"{domain}.json", datalists[domain])
    return datalists


def read_reports(out: Path) -> dict[str, Any]:
    """The reports of earlier calls, by data set."""
    path = out / REPORT
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))
        for report in reports.values():
            _ = report["domains"].keys(), report["protocol"]["name"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"no report of an earlier preparation ({type(error).__name__})"
        remedy = "remove the file, or choose another --out"
        raise InputError(file=path, found=found, expected="none, or one that 'prepare' wrote", remedy=remedy) from error
    return dict(reports)


def add_report(
    out: Path, rules: Rules, records: Records, datalists: Mapping[str, Mapping[str, Any]], *, skipped: int
) -> dict[str, Any]:
    """Add a data set's report to ``<out>/prepare.json``, beside those of other data sets; return the report."""
    reports = read_reports(out)
    report: dict[str, Any] = {
        "title": rules.title,
        "home": rules.home,
        "protocol": {"name": rules.protocol, "about": rules.about, "metric": dict(rules.metric)},
        "peeks": list(rules.peeks),
        "chosen_here": list(rules.chosen_here),
        "limits": list(rules.limits),
        "domains_left_out": list(rules.left_out),
        "tasks": list(rules.tasks),
        "missing_series": _missing_series(rules, records),
        "domains": {domain: _domain_report(rules, records, domain, lists) for domain, lists in datalists.items()},
        "cases": len(records),
        "kept_from_before": skipped,
        "made_with": _versions(),
    }
    before = reports.get(rules.dataset)
    same_protocol = before is not None and before["protocol"]["name"] == rules.protocol
    # Keep the part of domains that an earlier call prepared.
    domains = {**(before["domains"] if before and same_protocol else {}), **report["domains"]}
    write_json(out / REPORT, {**reports, rules.dataset: {**report, "domains": domains}})
    return report


def print_report(out: Path, report: Mapping[str, Any]) -> None:
    """Print the report: lists, notes, where the protocol uses target labels, and what to do next."""
    kept = report["kept_from_before"]
    print(f"{report['title']}: {report['cases']} case(s) in {out}" + (f", {kept} of them from before" if kept else ""))
    for domain, content in report["domains"].items():
        counts = ", ".join(f"{len(names)} {section}" for section, names in content["sections"].items())
        print(f"  {domain}.json: {counts}")
        if content["absent"]:
            print(f"    in the splits, but not in the source: {', '.join(map(str, content['absent']))}")
        _print_notes([f"{case}: {note}" for case, notes in content["notes"].items() for note in notes])
    for domain, ids in report["missing_series"].items():
        print(f"  {domain}: no volume of {', '.join(map(str, ids))}, although other series of these patients exist")
    print(f"Protocol '{report['protocol']['name']}': {report['protocol']['about']}")
    for kind, word in (("peeks", "it uses target labels"), ("chosen_here", "chosen here"), ("limits", "limit")):
        print("".join(f"  {word}: {text}\n" for text in report[kind]), end="")
    if report["domains_left_out"]:
        print(f"  not prepared, because the protocol has no rules for them: {', '.join(report['domains_left_out'])}")
    if report["tasks"]:
        print(f"Task files that fit: {', '.join(f'configs/tasks/{task}.yaml' for task in report['tasks'])}")
    print(f"The full report is in {out / REPORT}.")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes[:SHOWN_NOTES]:
        print(f"    {note}")
    if len(notes) > SHOWN_NOTES:
        print(f"    ... and {len(notes) - SHOWN_NOTES} more notes in the report")


def _sharing(domain: DomainRules, cases: Sequence[SourceCase]) -> dict[str, str]:
    """``shared_sections``: lists that the protocol fills with the same cases, which is no leakage."""
    shared = {section for case in cases if len(domain.sections_of(case)) > 1 for section in domain.sections_of(case)}
    return {"shared_sections": " ".join(section for section in SECTIONS if section in shared)} if shared else {}


def _entry(case: SourceCase, record: Mapping[str, Any]) -> dict[str, str]:
    roles = {name.removesuffix(".nii.gz").rsplit("_", 1)[1]: name for name in record["files"]}
    return {role: f"{case.domain}/{name}" for role, name in roles.items()}


def _domain_report(rules: Rules, records: Records, domain: str, lists: Mapping[str, Any]) -> dict[str, Any]:
    cases = [case for case in records if case.domain == domain]
    published = {number for ids in rules.domains[domain].splits.values() for number in ids}
    return {
        "sections": {
            section: [Path(entry["image"]).name.removesuffix("_image.nii.gz") for entry in entries]
            for section, entries in lists.items()
            if isinstance(entries, list)
        },
        "absent": sorted(published - {case.number for case in cases if case.number is not None}),
        "notes": {case.name: records[case]["notes"] for case in cases if records[case]["notes"]},
    }


def _missing_series(rules: Rules, records: Records) -> dict[str, list[int]]:
    """Domain -> ids that are missing there and present in other domains of the same patients."""
    missing: dict[str, list[int]] = {}
    for group in rules.same_people:
        ids = {domain: {case.number for case in records if case.domain == domain} for domain in group}
        everyone = {number for numbers in ids.values() for number in numbers if number is not None}
        missing |= {domain: sorted(everyone - ids[domain]) for domain in group if domain in rules.domains}
    return {domain: numbers for domain, numbers in missing.items() if numbers}


def _versions() -> dict[str, Any]:
    """Versions, commit and time, with the versions of the decoders of DICOM and PNG."""
    made_with = provenance()
    for name in DECODERS:
        with suppress(PackageNotFoundError):
            made_with["packages"][name] = version(name)
    return made_with


def _label_names(rules: Rules) -> dict[str, str]:
    """Value in the written label maps -> structure, from the first task file that fits."""
    if not rules.tasks:
        return {}
    task = read_task(CONFIGS / "tasks" / f"{rules.tasks[0]}.yaml")
    names = dict(zip(task["label_values"], task["label_names"], strict=True))
    return {"0": "background", **{str(value): name for value, name in names.items()}}
