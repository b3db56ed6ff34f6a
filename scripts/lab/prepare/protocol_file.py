"""Validation of a protocol file: every key, list and transform, before any data are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, innermost_message

__all__ = ["STEPS", "build", "build_steps", "check_protocol"]

# Kinds of steps; they are applied in the order of the file.
STEPS = ("grid", "crop", "intensity")

# Lists of ids in a protocol; ``unlisted`` cases are in no datalist, all others are training cases.
SECTIONS = ("validation", "test", "unlisted")

METRIC = ("grid", "distance", "missing_structure")


def build_steps(steps: Sequence[Mapping[str, Any]]) -> Any:
    """Compose the steps."""
    return build({"_target_": "Compose", "transforms": [dict(step) for step in steps]})


def build(component: Mapping[str, Any]) -> Any:
    """Instantiate a component; raises what MONAI raises for unknown targets or arguments."""
    from monai.bundle import ConfigParser

    return ConfigParser({"component": dict(component)}).get_parsed_content("component")


def check_protocol(
    file: Path, content: Mapping[str, Any], domains_of: Mapping[str, Collection[str]], tasks: Collection[str]
) -> None:
    """Validate every key, list and transform of a protocol file."""
    check = _Check(file)
    check.keys("the file", content, required=("protocol", "about", "metric", "datasets"))
    for key in ("protocol", "about"):
        check.that(isinstance(content[key], str), key, content[key], "words")
    check.keys("metric", content["metric"], required=METRIC)
    check.keys("datasets", content["datasets"], allowed=tuple(domains_of))
    for name, chosen in content["datasets"].items():
        check.keys(name, chosen, required=("domains",), allowed=("tasks", "peeks", "chosen_here"))
        for key in ("tasks", "peeks", "chosen_here"):
            words = chosen.get(key, [])
            is_list = isinstance(words, list) and all(isinstance(word, str) for word in words)
            check.that(is_list, f"{name}: {key}", words, "a list of sentences or names")
        for task in chosen.get("tasks", ()):
            check.that(task in tasks, f"{name}: tasks", task, f"task files: {', '.join(sorted(tasks))}")
        check.keys(f"{name}: domains", chosen["domains"], allowed=tuple(domains_of[name]))
        for domain, rules in chosen["domains"].items():
            _check_domain(check, f"{name}: {domain}", rules, may_share=bool(chosen.get("peeks")))


def _check_domain(check: _Check, where: str, rules: Any, *, may_share: bool) -> None:
    check.keys(where, rules, allowed=("labels", "splits", *STEPS))
    check.keys(f"{where}: splits", rules.get("splits", {}), allowed=SECTIONS)
    ids: list[int] = []
    for section, listed in rules.get("splits", {}).items():
        is_ids = isinstance(listed, list) and all(type(number) is int for number in listed)
        check.that(is_ids, f"{where}: splits: {section}", listed, "a list of case ids")
        twice = sorted(set(ids) & set(listed))
        expected = "each id in one list, or a reason under 'peeks'"
        check.that(may_share or not twice, f"{where}: splits", f"{twice} in two lists", expected)
        ids += listed
    labels = rules.get("labels", {})
    is_map = isinstance(labels, Mapping) and all(type(one) is int for pair in labels.items() for one in pair)
    check.that(is_map, f"{where}: labels", labels, "a mapping of the values in the files to the values written")
    for kind in STEPS:
        steps = rules.get(kind, [])
        is_steps = isinstance(steps, list) and all(isinstance(step, dict) and "_target_" in step for step in steps)
        check.that(is_steps, f"{where}: {kind}", steps, "a list of MONAI transforms, each with its _target_")
        for step in steps:
            check.builds(f"{where}: {kind}", step)


class _Check:
    """Raises errors that name the file and the place in it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def that(self, is_so: bool, where: str, found: object, expected: str) -> None:
        if not is_so:
            remedy = "correct the protocol; see configs/protocols/clean.yaml for an example"
            raise InputError(file=self.file, found=f"under '{where}': {found}", expected=expected, remedy=remedy)

    def keys(self, where: str, given: Any, *, required: Sequence[str] = (), allowed: Sequence[str] = ()) -> None:
        self.that(isinstance(given, Mapping), where, repr(given), "a mapping")
        known = (*required, *allowed)
        for key in given:
            self.that(key in known, where, f"the key '{key}'", f"only {', '.join(known)}")
        for key in required:
            self.that(key in given, where, f"no '{key}'", f"the keys {', '.join(required)}")

    def builds(self, where: str, step: Mapping[str, Any]) -> None:
        try:
            build_steps([step])
        except Exception as error:  # constructors of transforms raise many types
            reason = innermost_message(error)
            expected = "transforms of MONAI, or an importable path, with the arguments they take"
            self.that(False, where, f"{step['_target_']} that cannot be built ({reason})", expected)
