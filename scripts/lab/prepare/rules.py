"""Rules of a data set under a protocol, read from ``configs/datasets`` and ``configs/protocols``.

A data set's file states facts about its release: file names, label values, intensity unit. A protocol's file states
choices: splits, grid, crop, intensity, metric. Both are YAML: a new data set or protocol needs no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from scripts.core.errors import InputError, SettingError
from scripts.core.schema import LARGEST_LABEL, read_yaml
from scripts.lab.prepare.protocol_file import STEPS, build, check_protocol
from scripts.lab.prepare.source_case import SearchOptions, SourceCase
from scripts.lab.prepare.values import ValueMap, ValueRange

__all__ = ["DomainRules", "Release", "Rules", "dataset_names", "read_label_map", "read_rules"]

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
DEFAULT_PROTOCOL = "clean"


class Release(Protocol):
    """Layout of a release on disk."""

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """The cases below a folder; raises ``InputError`` for another data set."""


@dataclass(frozen=True)
class DomainRules:
    """Rules for one domain of a data set under one protocol."""

    name: str
    modality: str
    labels: ValueMap = field(default_factory=ValueMap)
    value_range: ValueRange | None = None  # plausible intensities
    # Section -> case ids; ``unlisted`` cases are in no datalist, all others are training cases.
    splits: Mapping[str, Sequence[int]] = field(default_factory=dict)
    steps: Sequence[Mapping[str, Any]] = ()  # MONAI transforms of ``image`` and ``label`` as config dictionaries
    has_unit: bool = True  # written intensities are in the scanner's unit: no step scales them

    def sections_of(self, case: SourceCase) -> list[str]:
        """The sections of a case in the datalist; some published protocols put a case into two."""
        if case.section is not None:
            return [case.section]
        return [section for section, ids in self.splits.items() if case.number in ids] or ["training"]


@dataclass(frozen=True)
class Rules:
    """A data set under a protocol."""

    dataset: str
    title: str  # in print
    home: str  # where to get it
    layout: Release  # of the release on disk
    protocol: str
    about: str  # one sentence on the protocol
    metric: Mapping[str, str]  # how results under this protocol are measured
    tasks: Sequence[str]  # task files that fit the written volumes
    peeks: Sequence[str]  # uses of information that is not available without target labels
    chosen_here: Sequence[str]  # settings that are not in the publication
    limits: Sequence[str]  # of the release itself
    domains: Mapping[str, DomainRules]  # that the protocol names; others are not prepared
    left_out: Sequence[str] = ()  # domains of the data set that the protocol does not name
    same_people: Sequence[Sequence[str]] = ()  # groups of domains with the same patients under the same ids
    has_spacing: bool = True  # without a stored spacing, volumes in ml are meaningless


def dataset_names() -> list[str]:
    """Names of the known data sets."""
    return sorted(path.stem for path in (CONFIGS / "datasets").glob("*.yaml"))


def read_rules(dataset: str, protocol: str | None) -> Rules:
    """The rules of a data set under a protocol: a name in ``configs/protocols``, or the path of a YAML file.

    None is ``clean``, or the only protocol that knows the data set.

    Raises:
        InputError: a missing or invalid file, or a protocol without rules for the data set.
    """
    facts = _load(CONFIGS / "datasets" / f"{dataset}.yaml", f"one of {', '.join(dataset_names())}")
    file = _protocol_file(dataset, protocol)
    choices = _load(file, f"a protocol: {', '.join(_protocol_names())}, or a YAML file")
    files = sorted((CONFIGS / "datasets").glob("*.yaml"))
    sets = {file.stem: list(_load(file, "a data set")["domains"]) for file in files}
    check_protocol(file, choices, sets, {path.stem for path in (CONFIGS / "tasks").glob("*.yaml")})
    if dataset not in choices["datasets"]:
        knowing = ", ".join(name for name in _protocol_names() if dataset in _known_to(name))
        found = f"no rules for '{dataset}'"
        expected, remedy = f"a protocol with rules for it: {knowing}", f"give --protocol {knowing.split(', ')[0]}"
        raise InputError(file=f"protocol '{choices['protocol']}'", found=found, expected=expected, remedy=remedy)
    chosen = choices["datasets"][dataset]
    return Rules(
        dataset=dataset,
        title=facts["title"],
        home=facts["home"],
        layout=build(facts["layout"]),
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


def read_label_map(text: str) -> ValueMap:
    """A label map from the command line, ``63:1,126:2``, or a YAML file with ``{63: 1, 126: 2}``."""
    path = Path(text)
    expected = (
        "pairs such as 63:1,126:2 (value in the files : value written), or a YAML file of such pairs, each value "
        f"once, whole and within {LARGEST_LABEL} of 0"
    )
    pairs: list[Any] = [pair.split(":") for pair in text.split(",")]
    if path.suffix in (".yaml", ".yml"):
        pairs = list(read_yaml(path, expected, "correct it, or name another").items())
    try:
        values = {_label_value(value): _label_value(written) for value, written in pairs}
        if len(values) < len(pairs):
            raise ValueError("a value twice")
        return ValueMap(values=values)
    except (ValueError, TypeError, OverflowError) as error:
        found = f"no label map ({type(error).__name__})"
        raise SettingError(setting=f"--map {text}", found=found, expected=expected, remedy="correct it") from error


def _label_value(given: Any) -> int:
    number = int(given)
    if abs(number) > LARGEST_LABEL or (isinstance(given, float) and given != number):
        raise ValueError(f"{given} is no label value")
    return number


def _domain_rules(name: str, facts: Mapping[str, Any], chosen: Mapping[str, Any]) -> DomainRules:
    labels = {"values": facts.get("labels", {}), "stray": facts.get("stray_labels", {})}
    if "labels" in chosen:
        labels["values"] = chosen["labels"]
    ranges = tuple(tuple(limits) for limits in facts.get("label_ranges", ()))
    value_range = facts.get("value_range")
    return DomainRules(
        name=name,
        modality=facts["modality"],
        labels=ValueMap(**labels, ranges=ranges),
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


def _load(path: Path, expected: str) -> dict[str, Any]:
    return read_yaml(path, expected, "correct its name or content")
