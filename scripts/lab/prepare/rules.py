"""What is known of a data set and what a protocol does with it: ``configs/datasets`` and ``configs/protocols``.

A data set's file holds facts of its release: file names, label values, the unit of the intensities. A protocol's file
holds choices: splits, grid, crop, intensity, and how its numbers are to be read. Both are YAML, so that a new one of
either kind is a file and no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from scripts.core.errors import InputError, SettingError
from scripts.lab.prepare.case import Case, FindOptions
from scripts.lab.prepare.protocol_file import STEPS, check_protocol
from scripts.lab.prepare.values import LabelMap, ValueRange

__all__ = ["DomainRules", "Layout", "Rules", "dataset_names", "read_label_map", "read_rules"]

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DEFAULT_PROTOCOL = "clean"


class Layout(Protocol):
    """How a release lies on disk."""

    def find(self, source: Path, options: FindOptions) -> list[Case]:
        """The cases below a folder; raises ``InputError`` if it is not this data set."""


@dataclass(frozen=True)
class DomainRules:
    """What holds for one domain of a data set under one protocol.

    Attributes:
        name: of the domain.
        modality: as written into the datalist.
        labels: value in the files -> value written.
        value_range: what intensities must look like; None if anything goes.
        splits: section -> published case ids, ``unlisted`` for cases of no list; every other case trains.
        steps: MONAI transforms of ``image`` and ``label`` as config dictionaries; empty to leave the volumes whole.
        has_unit: whether the written intensities are still in the scanner's unit: no step scales them.
    """

    name: str
    modality: str
    labels: LabelMap = field(default_factory=LabelMap)
    value_range: ValueRange | None = None
    splits: Mapping[str, Sequence[int]] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()
    has_unit: bool = True

    def sections_of(self, case: Case) -> list[str]:
        """The datalist's sections that a case belongs to; some published set-ups put a case into two."""
        if case.section is not None:
            return [case.section]
        return [section for section, ids in self.splits.items() if case.number in ids] or ["training"]


@dataclass(frozen=True)
class Rules:
    """A data set under a protocol.

    Attributes:
        dataset: its name on the command line.
        title: its name in print.
        home: where to ask for it.
        layout: how it lies on disk.
        protocol: the protocol's name.
        about: what the protocol is, in a sentence.
        metric: how numbers under this protocol are measured.
        tasks: task files that fit the written volumes.
        peeks: where the protocol looks at what a user without target labels could not see.
        chosen_here: what the publication leaves open and this project filled in.
        domains: rules per domain that the protocol names; no other is prepared.
        left_out: domains of the data set that it does not name.
        same_people: groups of domains that show the same patients under the same ids.
        has_spacing: whether the release stores a spacing; without one, volumes in ml mean nothing.
        limits: what the release itself cannot give.
    """

    dataset: str
    title: str
    home: str
    layout: Layout
    protocol: str
    about: str
    metric: Mapping[str, str]
    tasks: Sequence[str]
    peeks: Sequence[str]
    chosen_here: Sequence[str]
    limits: Sequence[str]
    domains: Mapping[str, DomainRules]
    left_out: Sequence[str] = ()
    same_people: Sequence[Sequence[str]] = ()
    has_spacing: bool = True

    def of(self, domain: str) -> DomainRules:
        """The rules of a domain; a plain folder's domain has whatever name its user gave."""
        return self.domains[domain]


def dataset_names() -> list[str]:
    """The data sets that are known."""
    return sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))


def read_rules(dataset: str, protocol: str | None) -> Rules:
    """The rules of a data set under a protocol.

    Args:
        dataset: one of :func:`dataset_names`.
        protocol: name of a file in ``configs/protocols`` or path of a YAML file; None for ``clean``, or for the only
            protocol that knows the data set.

    Raises:
        InputError: no such file, the protocol's file is not as it should be, or does not know the data set.
    """
    facts = _load(CONFIGS / "datasets" / f"{dataset}.yaml", f"one of {', '.join(dataset_names())}")
    file = _protocol_file(dataset, protocol)
    choices = _load(file, f"a protocol: {', '.join(_protocol_names())}, or a YAML file")
    check_protocol(file, choices, _domains_of_all(), {path.stem for path in (CONFIGS / "tasks").glob("*.yaml")})
    if dataset not in choices["datasets"]:
        knowing = ", ".join(name for name in _protocol_names() if dataset in _known_to(name))
        raise InputError(
            file=f"protocol '{choices['protocol']}'",
            found=f"nothing about '{dataset}'",
            expected=f"a protocol that knows it: {knowing}",
            remedy=f"give --protocol {knowing.split(', ')[0]}",
        )
    chosen = choices["datasets"][dataset]
    return Rules(
        dataset=dataset,
        title=facts["title"],
        home=facts["home"],
        layout=_build(facts["layout"]),
        protocol=choices["protocol"],
        about=choices["about"],
        metric=choices["metric"],
        tasks=chosen.get("tasks", ()),
        peeks=chosen.get("peeks", ()),
        chosen_here=chosen.get("chosen_here", ()),
        limits=facts.get("limits", ()),
        domains={
            name: _domain_rules(name, domain, chosen["domains"][name])
            for name, domain in facts["domains"].items()
            if name in chosen["domains"]
        },
        left_out=[name for name in facts["domains"] if name not in chosen["domains"]],
        same_people=facts.get("same_people", ()),
        has_spacing=facts.get("has_spacing", True),
    )


def read_label_map(text: str) -> LabelMap:
    """A label map from the command line, ``63:1,126:2``, or a YAML file with ``{63: 1, 126: 2}``.

    Raises:
        InputError: it is neither.
    """
    path = Path(text)
    try:
        if path.suffix in (".yaml", ".yml"):
            pairs = yaml.safe_load(path.read_text(encoding="utf-8"))
        else:
            pairs = dict(pair.split(":") for pair in text.split(","))
        return LabelMap(values={int(value): int(written) for value, written in pairs.items()})
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise SettingError(
            setting=f"--map {text}",
            found=f"no label map ({type(error).__name__})",
            expected="pairs such as 63:1,126:2 (value in the files : value written), or a YAML file of such pairs",
            remedy="correct it",
        ) from error


def _domain_rules(name: str, facts: Mapping[str, Any], chosen: Mapping[str, Any]) -> DomainRules:
    labels = {"values": facts.get("labels", {}), "stray": facts.get("stray_labels", {})}
    if "labels" in chosen:
        labels["values"] = chosen["labels"]
    ranges = tuple(tuple(limits) for limits in facts.get("label_ranges", ()))
    value_range = facts.get("value_range")
    return DomainRules(
        name=name,
        modality=facts["modality"],
        labels=LabelMap(**labels, ranges=ranges),
        value_range=ValueRange(**value_range) if value_range else None,
        splits=chosen.get("splits", {}),
        steps=[step for kind, steps in chosen.items() if kind in STEPS for step in steps],
        has_unit=not chosen.get("intensity"),
    )


def _protocol_file(dataset: str, protocol: str | None) -> Path:
    if protocol is None:
        knowing = [name for name in _protocol_names() if dataset in _known_to(name)]
        protocol = DEFAULT_PROTOCOL if DEFAULT_PROTOCOL in knowing or not knowing else knowing[0]
    return Path(protocol) if protocol.endswith((".yaml", ".yml")) else CONFIGS / "protocols" / f"{protocol}.yaml"


def _protocol_names() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "protocols").glob("*.yaml"))


def _known_to(protocol: str) -> list[str]:
    return list(_load(CONFIGS / "protocols" / f"{protocol}.yaml", "a protocol")["datasets"])


def _domains_of_all() -> dict[str, list[str]]:
    files = {name: CONFIGS / "datasets" / f"{name}.yaml" for name in dataset_names()}
    return {name: list(_load(file, "a data set")["domains"]) for name, file in files.items()}


def _load(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"no YAML ({type(error).__name__})"
        raise InputError(file=path, found=found, expected=expected, remedy="correct the name") from error
    if not isinstance(content, dict):
        raise InputError(file=path, found="no mapping in it", expected=expected, remedy="correct the file")
    return content


def _build(component: Mapping[str, Any]) -> Any:
    from monai.bundle import ConfigParser

    return ConfigParser({"component": dict(component)}).get_parsed_content("component")
