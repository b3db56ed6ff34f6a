"""Changing the configs of a packed bundle, for tests that need a short training or a tiny network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def packed_configs(folder: Path) -> dict[str, Path]:
    """The config files of a packed bundle by role; not its metadata."""
    return {file.stem: file for file in (folder / "configs").glob("*.json") if file.name != "metadata.json"}


def set_packed_values(folder: Path, values: Mapping[str, Any]) -> None:
    """Give every config other values for the top-level keys that it has; ``section#key`` addresses a nested one."""
    for file in packed_configs(folder).values():
        config = json.loads(file.read_text())
        for path, value in values.items():
            *sections, key = path.split("#")
            place = config
            for section in sections:
                place = place.get(section, {})
            if key in place:
                place[key] = value
        file.write_text(json.dumps(config, indent=4) + "\n")
