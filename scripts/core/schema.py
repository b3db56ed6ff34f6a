"""The settings that a user writes: their types and ranges, and how they must fit each other.

One table for training, inference, evaluation, ``check`` and packing. A setting is checked wherever its name occurs,
nested or not. Values of references and expressions are checked by :class:`scripts.core.settings.Settings`.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from scripts.core.errors import InputError, SettingError

__all__ = ["LARGEST_LABEL", "SCHEMA", "check_depth", "check_values", "is_number", "read_yaml"]

T = TypeVar("T")

# What a value must be, in words, and the test for it.
Rule = tuple[str, Callable[[Any], bool]]

# Largest label value: volumes are loaded in single precision, which is exact up to here.
LARGEST_LABEL = 2**24 - 1

# Levels of lists and mappings that a file may have: later steps walk through them recursively.
DEEPEST = 50

# Arguments of intensity transforms of which the first must be below the second.
RISING = (("a_min", "a_max"), ("b_min", "b_max"), ("lower", "upper"), ("minv", "maxv"))


def _is_whole(value: Any, least: float = -math.inf, most: float = 2**31 - 1) -> bool:
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether it is a finite number; a whole one may be too large for floating point."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _whole(least: int, most: int = 2**31 - 1) -> Rule:
    return f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most)


def _within(low: float, high: float) -> Rule:
    return f"a number from {low:g} to {high:g}", lambda value: is_number(value) and low <= value <= high


def _listed(words: str, accepts: Callable[[Any], bool], *, least: int = 0, most: int = 2**16) -> Rule:
    def test(value: Any) -> bool:
        return isinstance(value, list | tuple) and least <= len(value) <= most and all(map(accepts, value))

    return words, test


def _is_label(value: Any) -> bool:
    return _is_whole(value, -LARGEST_LABEL, LARGEST_LABEL)


def _is_plain_name(value: Any) -> bool:
    is_printed = isinstance(value, str) and value.isprintable() and value == value.strip(" .")
    return is_printed and re.search(r"^$|[/\\:#]", value) is None


def _is_structure(value: Any) -> bool:
    is_printed = isinstance(value, str) and value.isprintable() and "#" not in value
    return is_printed and value == value.strip() and value not in ("", "background")


def _is_orientation(value: Any) -> bool:
    ends = ("LR", "PA", "IS")
    letters = list(value) if isinstance(value, str) else []
    return value is None or (len(letters) == 3 and all(sum(end in axis for end in letters) == 1 for axis in ends))


def _is_device(value: Any) -> bool:
    try:
        device = torch.device(value)
        return bool((device.index or 0) < torch.get_device_module(device).device_count())
    except (RuntimeError, TypeError, AttributeError):
        return False


_SHARE: Rule = ("a number of at least 0 and below 1", lambda value: is_number(value) and 0 <= value < 1)
_NOT_NEGATIVE: Rule = ("a number of at least 0", lambda value: is_number(value) and value >= 0)
_POSITIVE: Rule = ("a number above 0", lambda value: is_number(value) and value > 0)
_SWITCH: Rule = ("True or False; true or false in a file", lambda value: isinstance(value, bool))
_COMPONENT: Rule = ("a component with its _target_", lambda value: isinstance(value, Mapping))
_PLAIN_NAME: Rule = ("a plain file name without #, in quotes if it is a number", _is_plain_name)
_PATH: Rule = (
    "a path without #, which MONAI turns into ::; in two kinds of quotes if it looks like a number or list",
    lambda v: isinstance(v, str | os.PathLike) and "#" not in str(v),
)
_LIST: Rule = ("a path, or null for none", lambda value: value is None or _PATH[1](value))

_GROUPS: Sequence[tuple[str, Rule]] = [
    ("task dataset_name source_domain target_domain", _PLAIN_NAME),
    ("label_names", _listed("a list of 1 to 255 printable names without #", _is_structure, least=1, most=255)),
    (
        "label_values",
        _listed("a list of whole numbers from -16777215 to 16777215 without 0", lambda v: _is_label(v) and v, least=1),
    ),
    ("background_values", _listed("a list of whole numbers from -16777215 to 16777215", _is_label)),
    ("orientation", ("three letters, one of L/R, of P/A and of I/S, such as RAS; or null", _is_orientation)),
    (
        "spacing_mm",
        _listed("three numbers above 0, or -1", lambda v: is_number(v) and (v > 0 or v == -1), least=3, most=3),
    ),
    ("slice_axis", ("0, 1 or 2", lambda value: _is_whole(value, 0, 2))),
    ("slice_size", _listed("multiples of 4 to 4096", lambda v: _is_whole(v, 4, 4096) and v % 4 == 0, least=2, most=2)),
    ("source_intensity target_intensity labelled_intensity translated_intensity image_intensity", _COMPONENT),
    ("source_section target_section labelled_section image_section", _COMPONENT),
    ("seed style_seed learning_rate_warmup adversarial_warmup panel_interval val_interval pool_size", _whole(0)),
    ("max_epochs iterations_per_epoch checkpoint_interval", _whole(1, 10**6)),
    ("pseudo_label_rounds pseudo_label_early_rounds", _whole(1, 10**6)),
    ("batch_size slice_batch_size", _whole(1, 4096)),
    ("generator_channels generator_blocks discriminator_channels", _whole(1, 512)),
    ("learning_rate discriminator_learning_rate", _POSITIVE),
    ("ema_decay window_overlap scale", _SHARE),
    ("translation intensity_curve target_intensity_curve structure_curves", _within(0, 1)),
    ("random_networks target_random_networks", _within(0, 1)),
    ("rotation_degrees", _within(0, 180)),
    ("reconstruction_weight cycle_weight content_weight adversarial_weight d1_weight d2_weight", _NOT_NEGATIVE),
    ("a_min a_max b_min b_max minv maxv threshold", ("a number", is_number)),
    ("lower upper", _within(0, 100)),
    ("margin_mm smoothing_mm", _NOT_NEGATIVE),
    ("scales pseudo_label_scales", _listed("a list of numbers from 0.1 to 10", _within(0.1, 10)[1], least=1)),
    ("flip_axes", _listed("a list of 0 and 1", lambda v: _is_whole(v, 0, 1))),
    ("resume adapt_batch_norm largest_component write_probabilities write_mask write_file_values", _SWITCH),
    ("device", ("a device of this machine, such as cpu or cuda:0", _is_device)),
    ("bundle_root dataset_dir ckpt_dir log_dir cache_dir output_dir prediction_dir checkpoint", _PATH),
    ("labelled_datalist source_datalist evaluation_datalist initial_weights", _PATH),
    ("target_datalist", _LIST),
]

# Every setting with its rule.
SCHEMA: dict[str, Rule] = {name: rule for names, rule in _GROUPS for name in names.split()}


def check_values(
    settings: Mapping[str, Any], origin: str = "the task file, the method file or the command line"
) -> None:
    """Check every value of a config or a task file against the schema, and settings against each other.

    Raises:
        InputError: naming the setting, its value and what was expected.
    """
    for setting, found, expected in [*_wrong_values(settings), *_conflicts(settings)]:
        raise SettingError(setting=setting, found=found, expected=expected, remedy=f"correct it in {origin}")


def _wrong_values(section: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    items = section.items() if isinstance(section, Mapping) else enumerate(section) if isinstance(section, list) else ()
    for key, value in items:
        expected, accepts = SCHEMA.get(str(key).split("#")[-1], ("", lambda _: True))
        is_reference = isinstance(value, str) and value[:1] in ("$", "@", "%")
        is_component = isinstance(value, Mapping) and "_target_" in value
        if not is_reference and not is_component and not accepts(value):
            hint = ", a word in YAML: write 1.0e-3, with a point" if _is_number_as_word(value) else ""
            yield f"{path}{key}", f"{value!r}{hint}", expected
        yield from _wrong_values(value, f"{path}{key}#")
    if isinstance(section, Mapping):
        for low, high in RISING:
            if is_number(section.get(low)) and is_number(section.get(high)) and section[low] >= section[high]:
                yield f"{path}{low}", f"{section[low]:g}", f"a number below {high}, {section[high]:g}"


def _is_number_as_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) is not None


def _conflicts(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    names, values, background = (
        found if isinstance(found := settings.get(key), list | tuple) else []
        for key in ("label_names", "label_values", "background_values")
    )
    for key, listed in (("label_names", names), ("label_values", values)):
        twice = [first for first, second in combinations(listed, 2) if str(first).lower() == str(second).lower()]
        if twice:
            yield key, f"{twice[0]!r} twice", "each once"
    if names and values and len(names) != len(values):
        yield "label_values", f"{len(values)} values for {len(names)} label_names", "one value for each name, in order"
    if both := [value for value in values if value in background]:
        yield "label_values", f"{both[0]!r}, which is also in background_values", "a value in one of the two lists"
    source = settings.get("source_domain")
    if source is not None and source == settings.get("target_domain"):
        yield "target_domain", f"{source!r}, as source_domain", "another domain than the labelled one"


def check_depth(value: T) -> T:
    """Return what was read; RecursionError if it has more than ``DEEPEST`` levels of lists and mappings, or itself."""
    level: dict[int, Any] = {0: [value]}
    for _ in range(DEEPEST + 1):
        parts = (part for item in level.values() for part in (item.values() if isinstance(item, dict) else item))
        level = {id(part): part for part in parts if isinstance(part, dict | list | tuple)}
    if level:
        raise RecursionError(f"more than {DEEPEST} levels of lists and mappings")
    return value


def read_yaml(path: Path, expected: str, remedy: str) -> dict[str, Any]:
    """The mapping in a YAML or JSON file; errors name file and line, what is ``expected``, and the remedy."""
    try:
        text = path.read_text(encoding="utf-8")
        values = check_depth(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = str(getattr(error, "strerror", None) or getattr(error, "problem", None) or error)
        if mark := getattr(error, "problem_mark", None):
            reason = f"line {mark.line + 1}: {reason}"
        is_missing = isinstance(error, FileNotFoundError)
        found = "no such file" if is_missing else f"cannot be read ({' '.join(reason.split())})"
        raise InputError(file=path, found=found, expected=expected, remedy=remedy) from error
    if not isinstance(values, dict):
        raise InputError(file=path, found="no mapping", expected=expected, remedy=remedy)
    return values
