"""Weights that may be packed: a plain state dict, of this task, that fits the packed network."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.weights import load_weights, read_metadata

__all__ = ["LARGEST_FILE", "copy_weights", "read_metrics", "read_settings", "write_large_files"]

# Bytes of the largest file that MONAI's Model Zoo takes into its repository.
LARGEST_FILE = 25_000_000


def read_settings(weights: Path) -> dict[str, Any]:
    """The settings of grid and network that weights were trained with, by top-level key; empty without metadata.

    Args:
        weights: a plain state dict; its metadata lie beside it with the suffix ``.json``.

    Raises:
        InputError: the metadata are no JSON object.
    """
    metadata = read_metadata(weights)
    return {**metadata.get("grid", {}), **metadata.get("network", {})}


def copy_weights(weights: Path, task: str, folder: Path) -> None:
    """Copy weights and their metadata into a bundle as ``models/model.pt`` and ``models/model.json``.

    They are loaded strictly into the network that the packed configs build: MONAI Label loads leniently, so what does
    not fit would stay random without an error.

    Args:
        weights: a plain state dict.
        task: the task that is packed.
        folder: the bundle, its configs written already.

    Raises:
        InputError: no file, no plain state dict, weights of another task, or of a network of another size.
    """
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    metadata = parser.get_parsed_content("weights_metadata") if "weights_metadata" in parser else {}
    load_weights(str(weights), parser.get_parsed_content("network_def"), {**metadata, "task": task})
    shutil.copyfile(weights, folder / "models" / "model.pt")
    metadata = read_metadata(weights)
    if metadata:
        # The Model Zoo's format of JSON files.
        (folder / "models" / "model.json").write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")


def read_metrics(summary: Path) -> dict[str, float]:
    """Mean Dice and surface distance from the ``summary.json`` of an evaluation, for the bundle's metadata.

    Args:
        summary: what ``run evaluating`` wrote for the weights that are packed.

    Raises:
        InputError: no such file, or not a summary.
    """
    try:
        means = json.loads(summary.read_text(encoding="utf-8"))["mean_over_structures"]
        return {"mean_dice": round(means["dice_percent"] / 100, 4), "mean_asd_mm": round(means["asd_mm"], 3)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            file=summary,
            found=f"no summary of an evaluation ({type(error).__name__})",
            expected="eval/summary.json of a run",
            remedy="evaluate the weights with 'run evaluating', or leave --evaluation out",
        ) from error


def write_large_files(folder: Path, url: str) -> None:
    """Write ``large_files.yml``, which names the address of a packed bundle's weights and their digest.

    Models that travel through git leave files above ``LARGEST_FILE`` out; ``python -m monai.bundle
    download_large_files`` puts them in place again and refuses other content.

    Args:
        folder: the bundle, its weights in place already.
        url: where ``models/model.pt`` can be, or will be, downloaded.
    """
    weights = Path("models", "model.pt")
    digest = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    entry = {"path": weights.as_posix(), "url": url, "hash_val": digest, "hash_type": "sha256"}
    text = yaml.safe_dump({"large_files": [entry]}, sort_keys=False, width=math.inf)
    (folder / "large_files.yml").write_text(text, encoding="utf-8")
