"""The settings of the config that is being run: a check that every key is used, and the values as they were written.

MONAI ignores a key that it does not know, and gives components no handle to the config they stand in; both are mended
here.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pydoc import locate
from types import FrameType
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser

from scripts.core.errors import InputError

__all__ = [
    "check_keys",
    "config_of",
    "evaluated_settings",
    "is_replaced",
    "raw_setting",
    "raw_settings",
    "running_parser",
    "settings_of",
    "settings_of_result",
    "unused_keys",
]

RESERVED_KEYS = {
    "imports",
    "bundle_root",
    "dataset_dir",
    "ckpt_dir",  # without use where --checkpoint names the weights
    "initialize",
    "finalize",
    "run",
    "training",
    "inference",
    "evaluating",
}
TRACKING_KEYS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}

BUNDLE_PROPERTIES = {"train#inferer", "validate#inferer"}
"""Sections' keys that MONAI's bundle workflow looks up by name, whether or not the config refers to them."""

FREE_TO_CHANGE = re.compile(
    r"resume|device|bundle_root|is_not_rank0|run_name|selection(_score)?"
    r"|(?!snapshot_interval).+_(dir|datalist|interval|uri|name|config)"
    r"|card|run_folder|resume_point|validate|handlers|train#(handlers|dataset|target_dataset|scored_dataset)(#.+)?"
)
"""Settings that say where and how often, not what comes out; the data are compared by their content. Which of
the snapshots is chosen may change, not at which epochs they are taken."""


def check_keys(parser: ConfigParser, spare: Iterable[str] = ()) -> None:
    """Refuse a key that nothing in the config refers to, and an argument that its component does not take.

    Raises:
        InputError: naming the key and the nearest one in use.
    """
    config = config_of(parser)
    for key in unused_keys(config, spare):
        siblings = _siblings(config, key)
        raise _unknown(key, "that no part of this config uses it", siblings, "a key that the base config defines")
    for key, accepted in _unknown_arguments(config, parser):
        raise _unknown(key, "an argument that its component does not take", accepted, "one of its arguments")


def unused_keys(config: Mapping[str, Any], spare: Iterable[str] = ()) -> list[str]:
    """Keys that are neither reserved nor referred to (``@key``, ``%key``) anywhere in the config.

    Of a section (a mapping that is no component and is not referred to as a whole) each key must be referred to, as
    ``@section#key``; it is named in that form.
    """
    named: set[str] = set()
    for text in _strings(config):
        named |= {name.replace("::", "#") for name in re.findall(r"[@%](\w+(?:(?:#|::)\w+)*)", text)}
    used = RESERVED_KEYS | TRACKING_KEYS | BUNDLE_PROPERTIES | set(spare) | named
    return list(_unused(config, "", used))


def config_of(parser: ConfigParser) -> dict[str, Any]:
    """The merged config as it was written, without the metadata."""
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def evaluated_settings(parser: ConfigParser) -> dict[str, Any]:
    """Top-level settings by the values that their expressions have got so far, in the config's order.

    Those alone that are numbers, words, None, or lists and mappings of such: what is a component, or was not asked for
    yet, has no value that could be written down.
    """
    values = parser.ref_resolver.resolved_content
    return {key: values[key] for key in config_of(parser) if key in values and _is_plain(values[key])}


def raw_settings(keys: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Settings of the running config as they were written, under other names: for what has no value to compare.

    Args:
        keys: top-level keys, such as ``source_intensity``, which stands for a transform.
        names: the name to give to each.
    """
    config = config_of(running_parser())
    return {name: config[key] for name, key in zip(names, keys, strict=True)}


def raw_setting(key: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """A component of the running config as it was written, such as ``network_def``: what its weights must fit.

    Args:
        key: its top-level key.
        without: arguments to leave out, which have no effect on what weights fit.
    """
    return {name: value for name, value in config_of(running_parser())[key].items() if name not in without}


def is_replaced(key: str) -> bool:
    """Whether a value stands in the running config where the base config has a component that makes it.

    Args:
        key: path of the component, ``section#key``.
    """
    return not isinstance(running_parser().get(key), Mapping)


def settings_of_result() -> dict[str, Any]:
    """What of the running config decides the result of a training, each setting by its path, ``section#key``."""
    return settings_of(config_of(running_parser()))


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a merged config, such as the ``config.yaml`` that a training left in its folder."""
    return dict(_flat(config, ""))


def running_parser() -> ConfigParser:
    """The parser that is building the component which asks: it is among its callers.

    Raises:
        RuntimeError: there is none, so that no key could be checked.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    raise RuntimeError("no config is being parsed here: this component has to stand in a bundle's config")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(of_key) for key, of_key in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in RESERVED_KEYS or FREE_TO_CHANGE.fullmatch(path):
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}#")
        else:
            yield path, value


def _unused(section: Mapping[str, Any], prefix: str, used: set[str]) -> Iterator[str]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in used or key.startswith("_"):
            continue
        is_section = isinstance(value, Mapping) and "_target_" not in value
        if is_section and any(name.startswith(f"{path}#") for name in used):
            yield from _unused(value, f"{path}#", used)
        else:
            yield path


def _unknown_arguments(item: Any, parser: ConfigParser, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Arguments that no parameter of their component takes, each with those that there are."""
    if isinstance(item, Mapping):
        if isinstance(item.get("_target_"), str) and "_disabled_" not in item:
            accepted = _parameters(ConfigComponent(dict(item), locator=parser.locator).resolve_module_name())
            for key in item if accepted is not None else ():
                if key not in (accepted or ()) and not key.startswith("_"):
                    yield f"{path}{key}", accepted or []
        for key, value in item.items():
            yield from _unknown_arguments(value, parser, f"{path}{key}#")
    elif isinstance(item, list):
        for index, value in enumerate(item):
            yield from _unknown_arguments(value, parser, f"{path}{index}#")


def _parameters(target: Any) -> list[str] | None:
    """Names of a target's parameters; None where any name will do, or where they cannot be told."""
    component = locate(target) if isinstance(target, str) else target
    try:
        parameters = inspect.signature(component).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if takes_any else [parameter.name for parameter in parameters]


def _siblings(config: Mapping[str, Any], path: str) -> list[str]:
    """Paths of the keys that stand beside one."""
    *parents, own = path.split("#")
    section: Any = config
    for parent in parents:
        section = section[parent]
    return ["#".join([*parents, key]) for key in section if key != own]


def _unknown(key: str, found: str, known: Sequence[str], otherwise: str) -> InputError:
    own = key.split("#")[-1]
    near = difflib.get_close_matches(own, [name.split("#")[-1] for name in known], n=1)
    return InputError(
        file=f"key '{key}'",
        found=found,
        expected=f"'{near[0]}', perhaps" if near else otherwise,
        remedy="correct its name in the task file, the method file or the command line",
    )


def _strings(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        return [text for value in item.values() for text in _strings(value)]
    return [text for value in item for text in _strings(value)] if isinstance(item, Sequence) else []
