"""The configs of a packed bundle: one JSON file per role, with the task's values written in.

``monai.bundle.load``, MONAI's federated client, Slicer's bundle module and MONAI Deploy read JSON and a single file per
role. The commented YAML stays in the repository.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from scripts.core import task_files
from scripts.core.errors import InputError, SettingError

__all__ = [
    "is_base",
    "read_configs",
    "read_named_task",
    "read_networks",
    "write_configs",
    "write_metadata",
    "write_values",
]

# Roles whose file in the repository is an overlay of another role; packing writes the merged config.
LAID_OVER = {"evaluate": "inference"}

# The roles that a bundle's README documents. Other files of a stage are overlays for experiments in the repository.
PACKED_ROLES = ("train", "inference", "evaluate", "multi_gpu_train", "inference_trt")

Config = dict[str, Any]


def read_named_task(folder: Path, task: str) -> Config:
    """Top-level keys and values of a task of ``configs/tasks``, by its name without ``.yaml``."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if task not in names:
        found, remedy = "no such task", f"name one of them, or add a file of that name to {folder}"
        raise SettingError(setting=f"task {task!r}", found=found, expected=f"one of {', '.join(names)}", remedy=remedy)
    return task_files.read_task(folder / f"{task}.yaml")


def read_configs(folder: Path) -> dict[str, Config]:
    """The configs of a stage by role, as in ``PACKED_ROLES``, with those in ``LAID_OVER`` merged.

    A file without ``bundle_root`` is an overlay for the command line, such as ``multi_gpu_train``, and stays one.
    """
    files = {file.stem: str(file) for file in sorted(folder.glob("*.yaml")) if file.stem in PACKED_ROLES}
    configs = {role: ConfigParser.load_config_file(file) for role, file in files.items()}
    for role, base in LAID_OVER.items():
        if role in configs and not is_base(configs[role]):
            configs[role] = ConfigParser.load_config_files([files[base], files[role]])
    return configs


def is_base(config: Mapping[str, Any]) -> bool:
    """Whether a config is complete; an overlay only changes another one."""
    return "bundle_root" in config


def write_values(configs: Mapping[str, Config], values: Mapping[str, Any], *, origin: Path) -> None:
    """Replace values of existing top-level keys of the configs, in place.

    Arguments of a component that refer to other settings keep their references.

    Args:
        configs: by role.
        values: a task's values, or the settings with which weights were trained.
        origin: the file they come from, for the message.

    Raises:
        InputError: a base config lacks a key; MONAI would ignore its value.
    """
    for role, config in configs.items():
        unknown = [key for key in values if key not in config]
        if unknown and is_base(config):
            raise InputError(
                file=origin,
                found=f"the key {unknown[0]!r}, which {role}.yaml does not define",
                expected="only top-level keys that every base config defines",
                remedy=f"correct the key, or define it with its default in {role}.yaml",
            )
        for key in values.keys() & config.keys():
            config[key] = _replaced(config[key], deepcopy(values[key]))


def read_networks(configs: Mapping[str, Config], folder: Path) -> dict[str, Config]:
    """The networks of a stage by class: what their overlays in ``configs/networks`` set for training."""
    networks: dict[str, Config] = {configs["train"]["network_def"]["_target_"]: {}}
    for file in sorted(folder.glob("*.yaml")):
        overlay = ConfigParser.load_config_file(str(file))
        networks[overlay.pop("network_def")["_target_"]] = overlay
    return networks


def write_configs(configs: Mapping[str, Config], folder: Path) -> None:
    """Write ``<role>.json`` for each config."""
    for role, config in configs.items():
        (folder / f"{role}.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def write_metadata(file: Path, name: str, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Write a task's modality, slice size, labels, description and the weights' ``metrics`` into ``metadata.json``."""
    metadata = json.loads(file.read_text(encoding="utf-8"))
    ports = metadata["network_data_format"]
    image, pred = ports["inputs"]["image"], ports["outputs"]["pred"]
    image["spatial_shape"] = pred["spatial_shape"] = [int(side) for side in values["slice_size"]]
    image["modality"] = str(values["target_domain" if name == "segmentation" else "source_domain"]).upper()
    metadata["eval_metrics"] = dict(metrics)
    sentence = f"Packed for the task {values['task']}: {values['source_domain']} to {values['target_domain']}"
    if name == "segmentation":
        labels = [str(label) for label in values["label_names"]]
        pred["num_channels"] = len(labels) + 1
        pred["channel_def"] = {str(index): label for index, label in enumerate(["background", *labels])}
        sentence += f", structures {', '.join(labels)}"
    metadata["description"] = f"{metadata['description']} {sentence}."
    file.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")


def _replaced(old: Any, new: Any) -> Any:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("_target_") == new.get("_target_")):
        return new
    return {**new, **dict(_references(old, new))}


def _references(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in old.items():
        if key in new and isinstance(value, str) and value.startswith(("@", "$")):
            yield key, value
