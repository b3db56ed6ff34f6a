"""Checks and copies the weights of a packed bundle: a plain state dict of this task that fits the network."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.weights import check_metadata, load_weights, read_metadata

__all__ = ["LARGEST_FILE", "copy_weights", "read_metrics", "read_settings", "write_large_files"]

# Maximum file size in the repository of MONAI's Model Zoo, in bytes.
LARGEST_FILE = 25_000_000


def read_settings(weights: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Settings in the metadata of weights, by top-level key; empty without metadata.

    Args:
        weights: a plain state dict; its metadata have the same name with the suffix ``.json``.
        parts: ``grid`` and ``network``, with which they were trained, or ``inference``, which they recommend.

    Raises:
        InputError: the metadata are no JSON object.
    """
    metadata = read_metadata(weights)
    return {key: value for part in parts for key, value in metadata.get(part, {}).items()}


def copy_weights(weights: Path, task: str, folder: Path) -> None:
    """Copy weights and their metadata into a bundle as ``models/model.pt`` and ``models/model.json``.

    They are loaded strictly into the network of the packed configs, because MONAI Label ignores missing and unexpected
    parameters.

    Args:
        weights: a plain state dict.
        task: the task that is packed.
        folder: the bundle, which already contains its configs.

    Raises:
        InputError: a missing file, no plain state dict, or weights of another task or network.
    """
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    metadata = parser.get_parsed_content("weights_metadata") if "weights_metadata" in parser else {}
    check_metadata(read_metadata(weights), {"task": task}, weights)  # early weights name their task
    load_weights(str(weights), parser.get_parsed_content("network_def"), metadata)
    shutil.copyfile(weights, folder / "models" / "model.pt")
    metadata = read_metadata(weights)
    if metadata:
        # The Model Zoo's format of JSON files.
        (folder / "models" / "model.json").write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")


def read_metrics(summary: Path) -> dict[str, float]:
    """Mean Dice and surface distance from the ``summary.json`` of an evaluation, for the bundle's metadata.

    Args:
        summary: written by ``run evaluating`` for the packed weights.

    Raises:
        InputError: the file is missing or not a summary.
    """
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

    Args:
        folder: the bundle with its weights.
        url: download address of ``models/model.pt``.
    """
    weights = Path("models", "model.pt")
    digest = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    entry = {"path": weights.as_posix(), "url": url, "hash_val": digest, "hash_type": "sha256"}
    text = yaml.safe_dump({"large_files": [entry]}, sort_keys=False, width=math.inf)
    (folder / "large_files.yml").write_text(text, encoding="utf-8")
