"""Fixtures: a tiny data set of two domains, tiny networks, and functions that run configs here or as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from scripts.core.errors import InputError, find_input_error
from scripts.core.settings import run_bundle
from scripts.core.weights import save_weights
from toy_project import project, weights  # noqa: F401  # fixtures of the tests of packing

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
TASK = "phantom_mr2ct"
METHODS = sorted(
    path.stem for path in (CONFIGS / "methods").glob("*.yaml") if "trainings" not in yaml.safe_load(path.read_text())
)
"""Methods that are one training; the others combine these."""

FILE_VALUES = [205, 420, 500, 820]
"""MM-WHS's values of classes 1 to 4; 600 (right ventricle) counts as background."""

MR_AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.5, 0, 40], [0, 0, 5.0, -20], [0, 0, 0, 1]])
"""Stored as LPS."""

CT_AFFINE = np.array([[0, 2.2, 0, -30], [2.2, 0, 0, -40], [0, 0, -4.0, 25], [0, 0, 0, 1]])
"""Stored as AR and downwards: axis 0 runs to anterior, axis 1 to the right, axis 2 to inferior."""

SMALL: dict[str, dict[str, Any]] = {
    "synthesis": {
        "slice_size": [32, 32],
        "spacing_mm": [-1.0, -1.0, -1.0],
        "generator_channels": 4,
        "generator_blocks": 1,
    },
    "segmentation": {
        "slice_size": [32, 32],
        "spacing_mm": [-1.0, -1.0, -1.0],
        "network_def#layers": [1, 1, 1, 1],
        "network_def#width": 4,
        "network_def#feature_channels": 16,
        "network_def#atrous_rates": [1, 2],
    },
}
"""Settings of tiny networks for every config of a stage."""

SMALL_TRAINING: dict[str, dict[str, Any]] = {
    "synthesis": {"discriminator_channels": 4, "pool_size": 6},
    "segmentation": {"d2_def#channels": 4, "learning_rate_warmup": 1, "adversarial_warmup": 1, "val_interval": 0}
    | {"translator": "none"},  # most tests learn from the source's images as they are
}
"""Further settings for training configs."""

SHORT: dict[str, Any] = {"max_epochs": 1, "iterations_per_epoch": 2, "batch_size": 2, "panel_interval": 0}


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """Lines of standard error that report an input error."""
        return [line for line in self.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's own hook for exceptions does not outlive its test."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Makes this process one of several in torch.distributed; collectives return its own values."""

    def become(rank: int, count: int) -> None:
        for name, fake in {
            "is_initialized": lambda: True,
            "get_rank": lambda: rank,
            "get_world_size": lambda: count,
            "broadcast_object_list": lambda items, src: None,
            "all_gather_object": lambda items, own: items.__setitem__(slice(None), [own] * len(items)),
            "all_gather": lambda parts, own: [part.copy_(own) for part in parts],
        }.items():
            monkeypatch.setattr(torch.distributed, name, fake)

    return become


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``mr.json`` and ``ct.json``: two training cases and a validation case of each domain."""
    folder = tmp_path_factory.mktemp("data")
    for domain in ("mr", "ct"):
        cases = [write_case(folder, f"{domain}_{index}", is_ct=domain == "ct", seed=index) for index in range(3)]
        content = {"name": domain, "modality": domain.upper(), "training": cases[:2], "validation": cases[2:]}
        (folder / f"{domain}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def without_labels(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The data set, and copies of it with the target's labels deleted or scrambled, or those of both domains scrambled.

    The lists still name what is deleted.
    """
    folders = {"as they are": data}
    for state in ("deleted", "scrambled", "all scrambled"):
        folders[state] = tmp_path_factory.mktemp("labels")
        for file in data.iterdir():
            is_theirs = "label" in file.name and (file.name.startswith("ct") or state == "all scrambled")
            if is_theirs and state != "deleted":
                label = nib.load(file)
                voxels = np.random.default_rng(0).choice([0, *FILE_VALUES], label.shape).astype(np.int16)
                nib.save(nib.Nifti1Image(voxels, label.affine), folders[state] / file.name)
            elif not is_theirs:
                (folders[state] / file.name).write_bytes(file.read_bytes())
    return folders.__getitem__


@pytest.fixture
def bad_data(data: Path, tmp_path: Path) -> Path:
    """A copy of the data set for a test to damage."""
    folder = tmp_path / "bad_data"
    folder.mkdir()
    for file in data.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def write_volume(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    """Write voxels as NIfTI."""
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def write_case(folder: Path, name: str, *, is_ct: bool, seed: int) -> dict[str, str]:
    """A body with ellipsoid structures, as ``<name>_image.nii.gz`` and ``..._label...``; gives the datalist's entry."""
    shape = (36, 40, 7) if is_ct else (40, 34, 6)
    rng = np.random.default_rng([seed, is_ct])
    label = np.zeros(shape, np.int16)
    for value, centre in zip(
        [*FILE_VALUES, 600], [(0.35, 0.35), (0.35, 0.65), (0.65, 0.35), (0.65, 0.65), (0.5, 0.5)], strict=True
    ):
        label[ellipsoid(shape, (*(np.array(centre) + rng.uniform(-0.04, 0.04, 2)), 0.5), (0.11, 0.11, 0.4))] = value
    body = ellipsoid(shape, (0.5, 0.5, 0.5), (0.45, 0.45, 5.0))
    if is_ct:
        image = np.where(body, 40.0, -1000.0) + label / 3
    else:
        image = np.where(body, 200.0, 5.0) + np.where(label > 0, (1000 - label) / 4, 0.0)
    image += rng.normal(0, 6, shape)
    affine = CT_AFFINE if is_ct else MR_AFFINE
    write_volume(folder / f"{name}_image.nii.gz", image.astype(np.int16), affine)
    write_volume(folder / f"{name}_label.nii.gz", label, affine)
    return {"image": f"{name}_image.nii.gz", "label": f"{name}_label.nii.gz"}


def ellipsoid(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Mask of an ellipsoid; centre and radii in shares of the volume's size."""
    axes = np.meshgrid(*[(np.arange(size) + 0.5) / size for size in shape], indexing="ij")
    return sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True)) <= 1


def config_files(stage: str, config: str, *overlays: Path | str, task: str = TASK) -> list[str]:
    """A base config, its task file, and what is laid over them."""
    merged = ["inference", "evaluate"] if config == "evaluate" else [config]
    files = [*(CONFIGS / stage / f"{name}.yaml" for name in merged), CONFIGS / "tasks" / f"{task}.yaml", *overlays]
    return [str(file) for file in files]


def write_weights(
    task: str, folder: Path, *, stage: str = "segmentation", seed: int | None = None, **settings: Any
) -> Path:
    """Random weights of a tiny network with their metadata, for tests that do not depend on the result."""
    folder.mkdir()
    parser = ConfigParser()
    parser.read_config(config_files(stage, "train", task=task))
    parser.update(SMALL[stage] | settings)
    torch.manual_seed(len(task) if seed is None else seed)
    state, metadata = (
        parser.get_parsed_content("network_def").state_dict(),
        parser.get_parsed_content("weights_metadata"),
    )
    save_weights(folder / "model.pt", state, metadata)
    return folder / "model.pt"


def small_settings(stage: str, config: str, **more: Any) -> dict[str, Any]:
    """The settings of a tiny network on the CPU; of a training of two iterations, for a training config."""
    settings: dict[str, Any] = {"device": "cpu", "precision": "float32", **SMALL[stage]}
    if config == "train":
        settings |= SMALL_TRAINING[stage] | SHORT
    return settings | {key: str(value) if isinstance(value, Path) else value for key, value in more.items()}


def run_config(run_id: str, stage: str, config: str, *overlays: Path | str, **settings: Any) -> None:
    """Run a config in this process, as ``python -m monai.bundle run`` does."""
    run_bundle(run_id, config_files(stage, config, *overlays), **small_settings(stage, config, **settings))


def bundle_command(run_id: str, stage: str, config: str, *overlays: Path | str, **settings: Any) -> list[str]:
    """The command line equivalent of ``run_config``."""
    command = [sys.executable, "-m", "monai.bundle", "run", run_id]
    command += ["--config_file", str(config_files(stage, config, *overlays))]
    for key, value in small_settings(stage, config, **settings).items():
        command += [f"--{key}", str(value)]
    return command


def torchrun(command: list[str], *options: str, processes: int = 2) -> list[str]:
    """A Python command started with torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1"]
    return [*launcher, f"--nproc_per_node={processes}", *options, *command[1:]]


def run_command(command: list[str], timeout_s: float = 300, **environment: str) -> Finished:
    """Run a command in the project's folder."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=command_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def command_environment(**more: str) -> dict[str, str]:
    """Environment of a command: one thread; duplicate config keys are errors."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MONAI_FAIL_ON_DUPLICATE_CONFIG": "1"} | more


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [words] if str(folder) in words else []
    return found


BASES = {
    "synthesis/train": "training",
    "synthesis/inference": "inference",
    "segmentation/train": "training",
    "segmentation/inference": "inference",
    "segmentation/evaluate": "evaluating",
}
"""Every base config and its run id."""


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished trainings: ``synthesis/models`` and ``segmentation/models``."""
    root = tmp_path_factory.mktemp("trained")
    run_config("training", "synthesis", "train", bundle_root=root / "synthesis", dataset_dir=data)
    run_base("segmentation/train", bundle_root=root / "segmentation", dataset_dir=data)
    return root


def run_base(base: str, *overlays: Path, **settings: Any) -> None:
    stage, config = base.split("/")
    if base == "segmentation/train":
        settings = {"labelled_datalist": Path(settings["dataset_dir"]) / "mr.json"} | settings
    run_config(BASES[base], stage, config, *overlays, **settings)


def refused(work: Callable[..., Any], *arguments: Any, **settings: Any) -> InputError:
    """The input error that ends some work, with all four parts, on one line."""
    with pytest.raises(Exception, match=r"(?s).*") as caught:
        work(*arguments, **settings)
    error = find_input_error(caught.value)
    assert error is not None, repr(caught.value)
    assert all([error.file, error.found, error.expected, error.remedy])
    assert "\n" not in str(error)
    return error


def listed_files(folder: Path) -> Iterator[str]:
    """Every file below a folder, hidden ones too, relative to it."""
    return (str(file.relative_to(folder)) for file in sorted(folder.rglob("*")) if file.is_file())


def _weights(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(file, weights_only=True)
    return found


def assert_same_weights(first: Path, second: Path) -> None:
    """Every tensor of two state dicts is equal, bit by bit."""
    one, other = _weights(first), _weights(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
