"""Weights that may be packed: a plain state dict, of this task, that fits the packed network."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from scripts.errors import InputError
from scripts.handlers.checkpoints import load_weights

__all__ = ["copy_weights", "read_card", "read_settings"]


def read_settings(weights: Path) -> str:
    """The settings of grid and network on the card that a run left beside its weights, as a YAML mapping.

    Args:
        weights: a plain state dict; its card, if there is one, lies beside it with the suffix ``.json``.

    Returns:
        The ``grid`` and ``network`` parts of the card, one key a line; nothing without a card.

    Raises:
        InputError: the card is no JSON object.
    """
    card = read_card(weights)
    settings = {**card.get("grid", {}), **card.get("network", {})}
    return "".join(f"{key}: {_in_one_line(value)}\n" for key, value in settings.items())


def copy_weights(weights: Path, task: str, folder: Path) -> None:
    """Put weights and their card into a bundle as ``models/model.pt`` and ``models/model.json``, if they belong there.

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
    parser.read_config(str(folder / "configs" / "inference.yaml"))
    card = parser.get_parsed_content("card") if "card" in parser else {}
    load_weights(str(weights), parser.get_parsed_content("network_def"), {**card, "task": task})
    shutil.copyfile(weights, folder / "models" / "model.pt")
    if _card_of(weights).is_file():
        shutil.copyfile(_card_of(weights), folder / "models" / "model.json")


def _in_one_line(value: Any) -> str:
    """A value as YAML. As the only item of a list, because YAML ends a bare scalar with a mark of its own."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf).strip()[1:-1]


def _card_of(weights: Path) -> Path:
    return weights.with_suffix(".json")


def read_card(weights: Path) -> dict[str, Any]:
    """The card beside weights, empty if there is none.

    Raises:
        InputError: the card is no JSON object.
    """
    file = _card_of(weights)
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        card = None
    if not isinstance(card, dict):
        raise InputError(
            file=file,
            found="no JSON object",
            expected="the card of a run",
            remedy="restore it from the run or remove it",
        )
    return card
