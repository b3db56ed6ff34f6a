"""Checks and copies the weights of a packed bundle: a plain state dict of this task that fits the network."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from scripts.core.errors import InputError, find_input_error, innermost_message
from scripts.core.schema import check_values
from scripts.core.weights import check_metadata, load_weights, metadata_file, read_metadata

__all__ = ["LARGEST_FILE", "copy_weights", "read_metrics", "read_settings", "write_large_files"]

# Maximum file size in the repository of MONAI's Model Zoo, in bytes.
LARGEST_FILE = 25_000_000


def read_settings(weights: Path, parts: Sequence[str], networks: Collection[str]) -> dict[str, Any]:
    """Settings in the metadata of weights, by top-level key; empty without metadata.

    They become part of a config, which executes expressions and components. Metadata come with weights of others, so
    that only plain values are accepted, and networks of this project.

    Args:
        weights: a plain state dict; its metadata have the same name with the suffix ``.json``.
        parts: ``grid`` and ``network``, with which they were trained, or ``inference``, which they recommend.
        networks: the classes that ``network_def`` may name.

    Raises:
        InputError: the metadata are no JSON object, or have a value that is wrong or would be executed.
    """
    metadata, file = read_metadata(weights), metadata_file(weights)
    settings = {key: value for part in parts for key, value in metadata.get(part, {}).items()}
    for path, text in _executed(settings):
        if path != "network_def#_target_" or text not in networks:
            remedy = "take the file that was written with the weights; if it is that file, do not use these weights"
            expected = f"plain values, and a network of {', '.join(sorted(networks))}"
            raise InputError(file=file, found=f"code in {path}, {text!r}", expected=expected, remedy=remedy)
    if "network_def" in settings and not isinstance(settings["network_def"], Mapping):
        found, remedy = f"network_def {settings['network_def']!r}", "take the file that was written with the weights"
        raise InputError(file=file, found=found, expected="a network with its _target_", remedy=remedy)
    check_values(settings, origin=str(file))
    return settings


def _executed(item: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """What a config executes: components, and texts that are expressions or references, each with its path."""
    if isinstance(item, str) and item[:1] in ("$", "@", "%"):
        yield path, item
    for key, part in item.items() if isinstance(item, Mapping) else enumerate(item) if isinstance(item, list) else ():
        inner = f"{path}#{key}".removeprefix("#")
        if str(key).startswith("_"):
            yield inner, str(part)
        else:
            yield from _executed(part, inner)


def copy_weights(weights: Path, task: str, folder: Path) -> None:
    """Copy weights and their metadata into a bundle as ``models/model.pt`` and ``models/model.json``.

    They are loaded strictly into the network of the packed configs, because MONAI Label ignores missing and unexpected
    parameters.

    Raises:
        InputError: a missing file, no plain state dict, or weights of another task or network.
    """
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    metadata = parser.get_parsed_content("weights_metadata") if "weights_metadata" in parser else {}
    check_metadata(read_metadata(weights), {"task": task}, weights)  # early weights name their task
    load_weights(str(weights), _network(parser, weights), metadata)
    shutil.copyfile(weights, folder / "models" / "model.pt")
    metadata = read_metadata(weights)
    if metadata:
        # The Model Zoo's format of JSON files.
        (folder / "models" / "model.json").write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")


def _network(parser: ConfigParser, weights: Path) -> Any:
    """The network of a packed config, with the settings in the metadata of the weights."""
    try:
        return parser.get_parsed_content("network_def")
    except Exception as error:  # whatever a network makes of values of the wrong kind
        if find_input_error(error) is not None:
            raise
        found, remedy = (
            f"no settings of a network ({innermost_message(error)})",
            "take the file that was written with the weights",
        )
        expected = "the settings with which the weights were trained"
        raise InputError(file=metadata_file(weights), found=found, expected=expected, remedy=remedy) from error


def read_metrics(summary: Path) -> dict[str, float]:
    """Mean Dice and surface distance from the ``summary.json`` of an evaluation, for the bundle's metadata."""
    try:
        means = json.loads(summary.read_text(encoding="utf-8"))["mean_over_structures"]
        return {"mean_dice": round(means["dice_percent"] / 100, 4), "mean_asd_mm": round(means["asd_mm"], 3)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"no summary of an evaluation ({type(error).__name__})"
        remedy = "evaluate the weights with 'run evaluating', or omit --evaluation"
        raise InputError(file=summary, found=found, expected="eval/summary.json of a run", remedy=remedy) from error


def write_large_files(folder: Path, url: str) -> None:
    """Write ``large_files.yml`` with the address and digest of a bundle's weights.

    The Model Zoo's repository contains no files above ``LARGEST_FILE``; ``python -m monai.bundle download_large_files``
    downloads them and verifies the digest.
    """
    weights = Path("models", "model.pt")
    digest = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    entry = {"path": weights.as_posix(), "url": url, "hash_val": digest, "hash_type": "sha256"}
    text = yaml.safe_dump({"large_files": [entry]}, sort_keys=False, width=math.inf)
    (folder / "large_files.yml").write_text(text, encoding="utf-8")
