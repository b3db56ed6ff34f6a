"""The settings of a run: a check of every key, and the subset that decides the result.

MONAI ignores top-level keys that it does not know, and gives components no access to the config they are part of. The
merged config is therefore rebuilt from what the workflow was started with: the command line of ``python -m
monai.bundle run``, or the arguments of :func:`run_bundle`. A program that starts MONAI's workflow classes itself has
neither; its settings are not checked.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pydoc import locate
from typing import Any

import monai.bundle
from monai.bundle import ConfigComponent, ConfigParser, update_kwargs
from scripts.core.errors import InputError, SettingError, innermost_message, show_input_errors_as_sentences
from scripts.core.schema import SCHEMA, check_values, read_yaml

__all__ = [
    "Settings",
    "common_settings",
    "current_settings",
    "deciding_settings",
    "is_bundle_command",
    "require_file",
    "run_bundle",
]

# Lists of actions, no settings.
RUN_IDS = {"run", "training", "inference", "evaluating", "initialize", "finalize"}

# Keys of MONAI's experiment tracking.
TRACKING_KEYS = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}

# Top-level keys that are known although a base config may lack them.
MONAI_KEYS = RUN_IDS | TRACKING_KEYS | {"imports"}

# Arguments of ``monai.bundle run`` and ``run_workflow`` that are no settings.
RUN_ARGUMENTS = {*inspect.signature(monai.bundle.run).parameters, "workflow_name", "workflow_type"}

REFERENCE = re.compile(r"[@%](\w+(?:(?:#|::)\w+)*)")

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """A config as it was written, without metadata."""

    merged: dict[str, Any]  # all config files and overrides in one mapping
    base: dict[str, Any]  # the first config file alone, which defines every setting

    @classmethod
    def read(cls, files: str | Sequence[str], overrides: Config) -> Settings:
        """Merge config files, base first, and overrides (``section#key``: nested) as ``monai.bundle.run`` does."""
        listed = [files] if isinstance(files, str) else list(files)
        for file in listed:
            read_yaml(Path(file), "a config file, such as those in configs", "correct it, or name another")
        parser = ConfigParser(globals=False)
        parser.read_config(listed)
        given = {key: value for key, value in overrides.items() if key not in RUN_ARGUMENTS}
        parser.update({key: value for key, value in given.items() if not key.startswith("_meta_")})
        merged = {key: value for key, value in parser.get().items() if key != "_meta_"}
        return cls(merged, ConfigParser.load_config_files(listed[:1]))

    def check(self) -> None:
        """Refuse a key that the base config does not define, an argument its component does not take, and wrong values.

        A key of an overlay is also known if a component refers to it, or if ``run_folder#ignored_keys`` lists it.
        """
        ignored = set(self.merged.get("run_folder", {}).get("ignored_keys", ()))
        for key, known in _unknown_keys(self.merged, self.base, "", _references(self.merged) | MONAI_KEYS | ignored):
            raise _refusal(key, "a key that the base config does not define", known, "a key of the base config")
        for key, known in _unknown_arguments(self.merged, ConfigParser(globals=False)):
            raise _refusal(key, "an argument that its component does not take", known, "one of its arguments")
        written = self.merged.keys() & SCHEMA.keys() - set(_expressions(self.merged))
        check_values({key: self.merged[key] for key in written})  # first: an expression may fail for their sake
        check_values(self._with_values())

    def _with_values(self) -> Config:
        """The merged config with the values of expressions and references, where no component is needed for them."""
        filled, parser = ConfigParser(deepcopy(self.merged), globals=False), ConfigParser(deepcopy(self.merged))
        paths = [path for path in _expressions(self.merged) if path.split("#")[-1] in SCHEMA]
        # What a value refers to comes before it, so that a message names the setting at fault.
        for path in sorted(paths, key=lambda path: len(_reached(filled, path))):
            if not _needs_component(filled, path):
                try:
                    filled.set(parser.get_parsed_content(path), path)
                except Exception as error:  # whatever the expression raises
                    found, remedy = f"an expression that fails ({innermost_message(error)})", "correct it"
                    raise SettingError(f"setting {path!r}", found, expected="a value", remedy=remedy) from error
        return filled.get()

    def evaluated(self) -> dict[str, Any]:
        """Values of the top-level settings, where they are plain: numbers, strings, None, lists and mappings of these.

        Expressions are evaluated unless they need a component, such as a network.
        """
        parser = ConfigParser(deepcopy(self.merged))  # parsing changes the config in place
        written = ConfigParser(self.merged, globals=False)
        keys = [key for key in self.merged if key not in RUN_IDS and not _needs_component(written, key)]
        values = {key: parser.get_parsed_content(key) for key in keys}
        return {key: value for key, value in values.items() if _is_plain(value)}


def current_settings() -> Settings | None:
    """The settings of the run in progress; None in a program that started MONAI's workflow itself."""
    return _given.get() or _from_command_line()


def run_bundle(run_id: str, config_file: str | Sequence[str], **overrides: Any) -> None:
    """``monai.bundle.run`` for Python programs: its settings are checked and recorded as on the command line."""
    token = _given.set(Settings.read(config_file, overrides))
    try:
        monai.bundle.run(run_id=run_id, config_file=config_file, **overrides)
    finally:
        _given.reset(token)


def require_file(*, key: str, file: str) -> None:
    """Refuse an overlay without the file below it, which defines ``key``; MONAI names the missing key only."""
    if is_bundle_command():
        show_input_errors_as_sentences()
    settings = current_settings()
    if settings is not None and key not in settings.merged:
        remedy = f"--config_file \"[{file!r},'<this file>','configs/tasks/<task>.yaml']\""
        raise SettingError("--config_file", f"no file that defines {key!r}", f"{file} before the others", remedy)


def is_bundle_command() -> bool:
    """Whether this process is ``python -m monai.bundle run``, not a server or another program."""
    place = Path(sys.argv[0]).parts[-3:] if sys.argv else ()
    return place == ("monai", "bundle", "__main__.py") and sys.argv[1:2] in (["run"], ["run_workflow"])


def deciding_settings(config: Config) -> dict[str, Any]:
    """Settings that decide the result, by path (``section#key``): all but those in ``run_folder#may_change``."""
    may_change = {path.replace("::", "#") for path in config.get("run_folder", {}).get("may_change", ())}
    free = RUN_IDS | TRACKING_KEYS | may_change
    return dict(_flatten(config, "", free))


def common_settings(config: Config) -> dict[str, Any]:
    """Settings by path that all processes of a run must share: all but devices, folders, lists and files."""
    own = [key for key in config if key.endswith(("_dir", "_datalist", "_root", "device", "checkpoint"))]
    return deciding_settings({**config, "run_folder": {"may_change": own}})


_given: ContextVar[Settings | None] = ContextVar("settings given to run_bundle", default=None)


def _from_command_line() -> Settings | None:
    return _parse_command_line(sys.argv[2:]) if is_bundle_command() else None


def _parse_command_line(words: list[str]) -> Settings:
    """Parse the words behind ``monai.bundle run`` with Fire, as MONAI does."""
    import fire

    given = fire.Fire(lambda *run_id, **flags: flags, command=words, serialize=lambda _: None)
    _check_words(words, given)
    arguments = update_kwargs(args=given.pop("args_file", None), **given)
    return Settings.read(arguments["config_file"], arguments)


def _check_words(words: Sequence[str], given: Config) -> None:
    """Refuse a word that Fire cuts: of ``run#7`` Python reads ``run`` and takes the rest for a comment."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, has_value, raw = word.removeprefix("--").partition("=")
        raw = raw if has_value else following
        value = given.get(name) if word.startswith("--") else None
        if name in given and value is None and raw == "None" and name not in RUN_ARGUMENTS:
            raise SettingError(f"--{name}", "None, which MONAI drops", "a value", "write null into a file of settings")
        is_macro, is_quoted = str(value).startswith("%"), raw.strip().startswith(("'", '"'))
        if is_macro or (isinstance(value, str) and value != raw and not is_quoted):
            found = f"{raw}, which is read as {'a part of another file' if is_macro else repr(value)}"
            remedy = "choose another name" if is_macro or "#" in raw else f'quote it twice, --{name} "{raw!r}"'
            raise SettingError(f"--{name}", found, expected="no '#', no quotes and no % at the start", remedy=remedy)


def _unknown_keys(section: Config, base: Config, prefix: str, known: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Paths of unknown keys, each with the keys that its section defines."""
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in known or key.startswith("_"):
            continue
        before = base.get(key)
        if _is_section(value) and (_is_section(before) or any(name.startswith(f"{path}#") for name in known)):
            yield from _unknown_keys(value, before if isinstance(before, Mapping) else {}, f"{path}#", known)
        elif key not in base:
            yield path, list(base)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" not in value


def _unknown_arguments(item: Any, parser: ConfigParser, path: str = "") -> Iterator[tuple[str, list[str]]]:
    """Arguments that their component does not take, each with those that it takes."""
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
    """Names of a target's parameters; None if it takes any keyword, or has no readable signature."""
    component = locate(target) if isinstance(target, str) else target
    if component is None:
        expected, remedy = "a class or function that can be imported", "correct its name or install its package"
        raise SettingError("_target_", f"{target!r}", expected=expected, remedy=remedy)
    try:
        parameters = inspect.signature(component).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if takes_any else [parameter.name for parameter in parameters]


def _refusal(key: str, found: str, known: Sequence[str], otherwise: str) -> InputError:
    near = difflib.get_close_matches(key.split("#")[-1], known, n=1)
    expected = f"{near[0]!r}, perhaps" if near else otherwise
    remedy = "correct its name in the task file, the method file or the command line"
    return SettingError(setting=f"key {key!r}", found=found, expected=expected, remedy=remedy)


def _flatten(section: Config, prefix: str, free: set[str]) -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        path = f"{prefix}{key}"
        if path in free:
            continue
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}#", free)
        else:
            yield path, value


def _needs_component(config: ConfigParser, path: str) -> bool:
    """Whether a value contains a component or refers to one."""
    parts = (part for name in _reached(config, path) for part in _parts(config[name]))
    return any(isinstance(part, Mapping) and "_target_" in part for part in parts)


def _reached(config: ConfigParser, path: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The path of a value, and those that it refers to, directly or not."""
    reached = seen | {path}
    for name in _references(config[path]) - reached:
        reached |= _reached(config, name, reached) if name in config else frozenset()
    return reached


def _references(item: Any) -> set[str]:
    """Paths that the expressions and references of a config refer to; in any other text ``@`` and ``%`` are letters."""
    texts = [part for part in _parts(item) if isinstance(part, str) and part[:1] in ("$", "@", "%")]
    return {name.replace("::", "#") for text in texts for name in REFERENCE.findall(text)}


def _expressions(item: Any, prefix: str = "") -> Iterator[str]:
    """Paths of the values that MONAI evaluates: expressions, references, and lists of them."""
    parts = item.items() if isinstance(item, Mapping) else enumerate(item) if isinstance(item, list) else ()
    for key, value in parts:
        if any(isinstance(v, str) and v[:1] in ("$", "@") for v in (value if isinstance(value, list) else [value])):
            yield f"{prefix}{key}"
        yield from _expressions(value, f"{prefix}{key}#")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _parts(item: Any) -> Iterator[Any]:
    """A value and, recursively, everything in its mappings and lists."""
    yield item
    inner = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    for part in inner:
        yield from _parts(part)
