"""A small project to pack, and weights of its network, as fixtures that conftest.py imports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.install import RECORD
from bundle.pack import BUNDLES, ROOT

BASE = """\
bundle_root: .
# Inputs you may change
task: base   # the task's name
source_domain: mr
target_domain: ct
label_names: [left, right]  # in the order of the classes
slice_size:
  - 64  # rows
  - 64

source_intensity:  # how values become [-1, 1]
  _target_: ScaleIntensityRanged
  # the window
  a_min: 0

# Network
network_def:
  _target_: torch.nn.Linear
  in_features: 2
  out_features: "$len(@label_names) + 1"
training:   ["$print('odd   spacing stays')"]
"""

TASK = """\
# Three structures.
task: toy
source_domain: ct
target_domain: mr
label_names: [left, right, top]
slice_size: [32, 48]
source_intensity:
  _target_: ScaleIntensityRanged
  a_min: -125  # HU
"""

PACKED = {
    "bundle_root": ".",
    "task": "toy",
    "source_domain": "ct",
    "target_domain": "mr",
    "label_names": ["left", "right", "top"],
    "slice_size": [32, 48],
    "source_intensity": {"_target_": "ScaleIntensityRanged", "a_min": -125},
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": "$len(@label_names) + 1"},
    "training": ["$print('odd   spacing stays')"],
}

OVERLAY = "# on top of train.yaml\nslice_size: [64, 64]\ndevice: cuda\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project in small: both slices, two tasks, code with its caches."""
    root = tmp_path / "project"
    files = {
        "LICENSE": "licence",
        "configs/logging.conf": "[loggers]",
        "configs/tasks/toy.yaml": TASK,
        "configs/tasks/other.yaml": TASK.replace("toy", "other"),
        "scripts/__init__.py": "",
        "scripts/data/__init__.py": "",
        "scripts/data/slices.py": "x = 1",
        "scripts/inference/__init__.py": "",
        "scripts/inference/predictor.py": "from scripts.data import slices",
        "scripts/lab/__init__.py": "",
        "scripts/lab/cli.py": "not reached",
        "scripts/notes.txt": "not code",
        "scripts/__pycache__/slices.cpython-311.pyc": "",
        "tests/test_x.py": "",
    }
    for name in BUNDLES:
        files[f"configs/{name}/metadata.json"] = (ROOT / "configs" / name / "metadata.json").read_text()
        files[f"configs/{name}/train.yaml"] = files[f"configs/{name}/inference.yaml"] = BASE
        files[f"configs/{name}/multi_gpu_train.yaml"] = OVERLAY
        files[f"docs/{name}/README.md"] = f"# {name}"
        files[f"docs/{name}/figures/pipeline.png"] = "picture"
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of the project's network for task toy: Linear(2 -> 3 structures + background)."""
    path = tmp_path / "run" / "models" / "model.pt"
    path.parent.mkdir(parents=True)
    torch.save(torch.nn.Linear(2, 4).state_dict(), path)
    path.with_name("model.json").write_text('{"task": "toy"}')
    return path


def files_of(folder: Path) -> set[str]:
    """Every file but the record of what was packed."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return files - {RECORD}


def config_of(folder: Path, role: str) -> dict[str, Any]:
    return json.loads((folder / "configs" / f"{role}.json").read_text())
