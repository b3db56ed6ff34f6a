"""One task's values, written where single-file tools look for them: a YAML's own top-level keys and the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bundle.yaml_text import find_entries, replace_entry
from scripts.core.errors import InputError

__all__ = ["read_task", "write_metadata", "write_values"]


def read_task(folder: Path, task: str) -> tuple[str, dict[str, Any]]:
    """Read a task file.

    Args:
        folder: where the task files lie, ``configs/tasks``.
        task: name of one of them, without ``.yaml``.

    Returns:
        Its text, and its top-level keys with their values.

    Raises:
        InputError: there is no such task, or the file is no YAML mapping.
    """
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if task not in names:
        raise InputError(
            file=f"task {task!r}",
            found="no such task",
            expected=f"one of {', '.join(names)}",
            remedy=f"name one of them, or write a file of that name into {folder}",
        )
    file = folder / f"{task}.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            file=file, found=f"no YAML ({said})", expected="a mapping", remedy="correct the file"
        ) from error
    if not isinstance(values, dict):
        raise InputError(
            file=file, found="no mapping", expected="top-level keys with their values", remedy="correct the file"
        )
    return text, values


def write_values(config: Path, values: str, *, origin: Path, every_key: bool) -> None:
    """Give the config's own top-level keys other values, in place; every other byte stays as it is.

    Args:
        config: the YAML file to edit.
        values: a YAML mapping as text; its values are taken as they are written there.
        origin: the file they come from, for the message.
        every_key: whether the config must define every key; an overlay defines only some.

    Raises:
        InputError: the config lacks a key (MONAI would have ignored the value silently), or a value cannot stand alone.
    """
    base = text = config.read_text(encoding="utf-8")
    given, defined = find_entries(values), find_entries(base)
    unknown = [key for key in given if key not in defined]
    if unknown and every_key:
        raise InputError(
            file=origin,
            found=f"the key {unknown[0]!r}, which {config.name} does not define",
            expected="only top-level keys that every base config defines",
            remedy=f"correct the key, or define it with its default in {config.name}",
        )
    written = [key for key in defined if key in given]
    for key in reversed(written):
        text = replace_entry(text, defined[key], values, given[key])
    if not _is_faithful(text, base, values, written):
        raise InputError(
            file=origin,
            found=f"a value that cannot be written into {config.name} by itself",
            expected="plain values, without anchors, aliases or literal blocks",
            remedy="write the values out",
        )
    config.write_text(text, encoding="utf-8")


def write_metadata(file: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write what the task decides into a packed ``metadata.json``: slice size, labels, and a sentence on the task.

    Args:
        file: the metadata.
        name: ``synthesis`` or ``segmentation``; only the latter has labels.
        values: the task's keys and values.
    """
    metadata = json.loads(file.read_text(encoding="utf-8"))
    ports = metadata["network_data_format"]
    image, pred = ports["inputs"]["image"], ports["outputs"]["pred"]
    image["spatial_shape"] = pred["spatial_shape"] = [int(side) for side in values["slice_size"]]
    sentence = f"Packed for the task {values['task']}: {values['source_domain']} to {values['target_domain']}"
    if name == "segmentation":
        labels = [str(label) for label in values["label_names"]]
        pred["num_channels"] = len(labels) + 1
        pred["channel_def"] = {str(index): label for index, label in enumerate(["background", *labels])}
        sentence += f", structures {', '.join(labels)}"
    metadata["description"] = f"{metadata['description']} {sentence}."
    file.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_faithful(text: str, base: str, values: str, written: list[str]) -> bool:
    """Whether the edited text reads as the base with the written values, nothing more and nothing less."""
    given = yaml.safe_load(values)
    expected = {**yaml.safe_load(base), **{key: given[key] for key in written}}
    try:
        return bool(yaml.safe_load(text) == expected)
    except yaml.YAMLError:
        return False
