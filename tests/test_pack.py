"""Packing: what goes into a bundle, the task's values in it, and what is rejected."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from bundle import pack
from bundle.__main__ import main
from bundle.install import RECORD
from bundle.pack import BUNDLES, ROOT, pack_bundle
from scripts.core.errors import InputError

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


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_what_the_rule_says(project: Path, tmp_path: Path, weights: Path, name: str) -> None:
    packed = pack_bundle(name, task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert packed.folder == tmp_path / "dist" / f"glua_toy_{name}"
    assert files_of(packed.folder) == {
        "LICENSE",
        "configs/logging.conf",
        "configs/metadata.json",
        "configs/train.json",
        "configs/inference.json",
        "configs/multi_gpu_train.json",
        "docs/README.md",
        "docs/figures/pipeline.png",
        "models/model.pt",
        "models/model.json",
        "scripts/__init__.py",
        "scripts/data/__init__.py",
        "scripts/data/slices.py",
        "scripts/inference/__init__.py",
        "scripts/inference/predictor.py",
    }
    assert packed.has_weights
    assert [path.name for path in (tmp_path / "dist").iterdir()] == [packed.folder.name], "nothing else is left"


def test_configs_are_json_with_the_tasks_values(project: Path, tmp_path: Path) -> None:
    folder = pack_bundle("segmentation", task="toy", out=tmp_path, root=project).folder
    assert config_of(folder, "train") == config_of(folder, "inference") == PACKED
    # An overlay for the command line gets the keys that it has and no others.
    assert config_of(folder, "multi_gpu_train") == {"slice_size": [32, 48], "device": "cuda"}
    for same in ["LICENSE", "configs/logging.conf", "scripts/data/slices.py"]:
        assert (folder / same).read_bytes() == (project / same).read_bytes()


def test_an_evaluation_that_changes_inference_is_packed_as_one_file(project: Path, tmp_path: Path) -> None:
    overlay = 'network_def#bias: false\nevaluating: ["$print(1)"]\n'
    (project / "configs" / "segmentation" / "evaluate.yaml").write_text(overlay)
    folder = pack_bundle("segmentation", task="toy", out=tmp_path, root=project).folder
    network = {**PACKED["network_def"], "bias": False}
    assert config_of(folder, "evaluate") == {**PACKED, "network_def": network, "evaluating": ["$print(1)"]}


def test_labels_and_sizes_reach_the_metadata(project: Path, tmp_path: Path) -> None:
    folder = pack_bundle("segmentation", task="toy", out=tmp_path, root=project).folder
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "left", "2": "right", "3": "top"}
    assert pred["num_channels"] == 4
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 48] == pred["spatial_shape"]
    assert metadata["description"].endswith("Packed for the task toy: ct to mr, structures left, right, top.")


def test_synthesis_has_no_labels(project: Path, tmp_path: Path) -> None:
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 1
    assert metadata["description"].endswith("Packed for the task toy: ct to mr.")


def test_packing_again_keeps_what_it_did_not_write(project: Path, tmp_path: Path) -> None:
    """Pack without weights, train in the packed folder, pack again: nothing of the training is lost."""
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    work = ["models/model.pt", "models/resume/checkpoint.pt", "logs/losses.csv", "pictures/a.png", "notes.txt"]
    work += ["configs/mine.yaml", "scripts/data/mine.py"]
    for file in work:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"mine: {file}")
    (project / "LICENSE").write_text("another licence")
    (project / "scripts" / "inference" / "predictor.py").write_text("")
    (project / "docs" / "synthesis" / "figures" / "pipeline.png").unlink()
    pack_bundle("synthesis", task="toy", out=tmp_path, root=project)
    assert {file: (folder / file).read_text() for file in work} == {file: f"mine: {file}" for file in work}
    assert (folder / "LICENSE").read_text() == "another licence"
    # What packing wrote and the bundle no longer needs goes, with folders that are empty then.
    assert not (folder / "scripts" / "data" / "slices.py").exists()
    assert not (folder / "docs" / "figures").exists()


def test_weights_of_the_last_pack_are_outdated_but_trained_ones_are_not_replaced(
    project: Path, tmp_path: Path, weights: Path
) -> None:
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, weights=weights, root=project).folder
    assert not pack_bundle("synthesis", task="toy", out=tmp_path, root=project).has_weights
    assert not (folder / "models" / "model.pt").exists()
    assert (folder / "models").is_dir()
    (folder / "models" / "model.pt").write_text("trained here")
    with pytest.raises(InputError, match=r"1 file\(s\) that packing did not write .*: models/model\.pt"):
        pack_bundle("synthesis", task="toy", out=tmp_path, weights=weights, root=project)
    assert (folder / "models" / "model.pt").read_text() == "trained here"


def test_a_packed_file_that_was_edited_is_not_replaced_by_another(project: Path, tmp_path: Path) -> None:
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    (folder / "docs" / "README.md").write_text("edited")
    with pytest.raises(InputError, match=r"were changed since: docs/README\.md"):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)
    assert (folder / "docs" / "README.md").read_text() == "edited"


def test_a_killed_pack_does_not_block_the_next(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between two replaced files leaves old and new ones, and a folder to build in."""
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    for file in ["LICENSE", "configs/logging.conf"]:
        (project / file).write_text("second")
    replace, count = os.replace, iter(range(100))

    def killed(source: Path, target: Path) -> None:
        if str(target).startswith(str(folder)) and Path(target).name != RECORD and next(count) == 1:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)
    monkeypatch.undo()
    (tmp_path / ".glua_toy_synthesis.building" / "half").mkdir(parents=True)
    for file in ["LICENSE", "configs/logging.conf"]:
        (project / file).write_text("third")
    pack_bundle("synthesis", task="toy", out=tmp_path, root=project)
    assert (folder / "LICENSE").read_text() == (folder / "configs" / "logging.conf").read_text() == "third"
    assert list(tmp_path.glob(".*")) == []


def test_two_processes_do_not_pack_one_bundle(project: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".glua_toy_synthesis.lock"), pytest.raises(InputError, match="another process is packing"):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)


def test_links_of_the_workshop_become_files(project: Path, tmp_path: Path) -> None:
    (project / "docs" / "synthesis" / "link.png").symlink_to(project / "LICENSE")
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert (folder / "docs" / "link.png").read_text() == "licence"


def test_the_archive_is_the_folder_and_always_the_same(project: Path, tmp_path: Path) -> None:
    first = pack_bundle("synthesis", task="toy", out=tmp_path / "a", archive=True, root=project)
    for path in project.rglob("*.py"):
        shutil.copy(path, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    second = pack_bundle("synthesis", task="toy", out=tmp_path / "b", archive=True, root=project)
    assert first.archive is not None
    assert second.archive is not None
    assert first.archive.name == "glua_toy_synthesis.zip"
    assert first.archive.read_bytes() == second.archive.read_bytes()
    (first.folder / "mine.txt").write_text("not packed")
    pack_bundle("synthesis", task="toy", out=tmp_path / "a", archive=True, root=project)
    assert first.archive.read_bytes() == second.archive.read_bytes()
    (first.folder / "mine.txt").unlink()
    with zipfile.ZipFile(first.archive) as archive:
        assert {f"glua_toy_synthesis/{name}" for name in files_of(first.folder)} == set(archive.namelist())
        assert archive.read("glua_toy_synthesis/LICENSE") == b"licence"


def test_a_key_that_a_config_lacks(project: Path, tmp_path: Path) -> None:
    with (project / "configs" / "tasks" / "toy.yaml").open("a") as file:
        file.write("slise_axis: 2\n")
    with pytest.raises(InputError, match=r"toy\.yaml: the key 'slise_axis', which inference\.yaml does not define"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", root=project)
    assert not (tmp_path / "dist").exists(), "nothing half-written"


@pytest.mark.parametrize("task", ["nope", "../synthesis/train", "", "toy.yaml"])
def test_an_unknown_task(project: Path, tmp_path: Path, task: str) -> None:
    with pytest.raises(InputError, match=r"no such task\. Expected one of other, toy\."):
        pack_bundle("synthesis", task=task, out=tmp_path, root=project)


@pytest.mark.parametrize(("text", "message"), [("a: [", "no YAML"), ("- 1\n", "no mapping"), ("", "no mapping")])
def test_a_task_file_that_is_no_mapping(project: Path, tmp_path: Path, text: str, message: str) -> None:
    (project / "configs" / "tasks" / "toy.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_ours_is_not_replaced(project: Path, tmp_path: Path, kind: str) -> None:
    foreign = tmp_path / "dist" / "glua_toy_synthesis"
    foreign.parent.mkdir()
    if kind == "file":
        foreign.write_text("precious")
    elif kind == "folder":
        (foreign / "precious").mkdir(parents=True)
    else:
        foreign.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="something that is no packed bundle"):
        pack_bundle("synthesis", task="toy", out=foreign.parent, root=project)
    assert list(foreign.parent.iterdir()) == [foreign]


def test_no_space_left(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", root=project).folder
    before = files_of(earlier)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack.shutil, "copyfile", full)
    with pytest.raises(InputError, match="No space left on device"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", root=project)
    assert list((tmp_path / "dist").iterdir()) == [earlier]
    assert files_of(earlier) == before


def test_a_place_that_cannot_be_written(project: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a folder that cannot be written"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "file" / "dist", root=project)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ('{"task": "toy"}', "weights made with task: toy. Expected task: other"),
        ('{"domains": ["mr", "ct"]}', r"weights made with domains: .*Expected domains: \['ct', 'mr'\]"),
    ],
)
def test_weights_of_another_task(project: Path, tmp_path: Path, weights: Path, card: str, message: str) -> None:
    with (project / "configs" / "synthesis" / "inference.yaml").open("a") as file:
        file.write('card: {domains: ["@source_domain", "@target_domain"]}\n')
    weights.with_name("model.json").write_text(card)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="other", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []


def test_network_settings_come_from_the_weights_metadata(project: Path, tmp_path: Path, weights: Path) -> None:
    torch.save(torch.nn.Linear(5, 4).state_dict(), weights)
    weights.with_name("model.json").write_text('{"network": {"width": 5, "rate": 1e-05, "mode": "off"}}')
    for config in ["train", "inference"]:
        text = BASE.replace("in_features: 2", 'in_features: "@width"') + "width: 2\nrate: 1\nmode: x\n"
        (project / "configs" / "synthesis" / f"{config}.yaml").write_text(text)
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    for config in ["train", "inference"]:
        packed = config_of(folder, config)
        assert (packed["width"], packed["rate"], packed["mode"]) == (5, 1e-05, "off")


def test_a_whole_network_comes_from_the_weights_metadata(project: Path, tmp_path: Path, weights: Path) -> None:
    """Arguments that refer to other settings go on referring to them; others take the trained value."""
    torch.save(torch.nn.Linear(5, 4).state_dict(), weights)
    trained = {"_target_": "torch.nn.Linear", "in_features": 5, "out_features": 4, "bias": True}
    weights.with_name("model.json").write_text(json.dumps({"network": {"network_def": trained}}))
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    expected = {**trained, "out_features": "$len(@label_names) + 1"}
    assert config_of(folder, "train")["network_def"] == config_of(folder, "inference")["network_def"] == expected


def test_the_grid_comes_from_the_weights_metadata_too(project: Path, tmp_path: Path, weights: Path) -> None:
    # Trained at a smaller size than the task's: the bundle has to do the same.
    weights.with_name("model.json").write_text('{"grid": {"slice_size": [16, 24]}}')
    folder = pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project).folder
    assert config_of(folder, "train")["slice_size"] == config_of(folder, "inference")["slice_size"] == [16, 24]
    ports = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]
    assert ports["inputs"]["image"]["spatial_shape"] == [16, 24] == ports["outputs"]["pred"]["spatial_shape"]


@pytest.mark.parametrize("card", ["[1]", "[]", "{"])
def test_a_card_that_is_no_card(project: Path, tmp_path: Path, weights: Path, card: str) -> None:
    weights.with_name("model.json").write_text(card)
    with pytest.raises(InputError, match=r"model\.json: no JSON object\. Expected metadata of weights\. Fix: copy"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)


def test_weights_of_another_size(project: Path, tmp_path: Path, weights: Path) -> None:
    torch.save(torch.nn.Linear(2, 7).state_dict(), weights)
    with pytest.raises(InputError, match=r"model\.pt: other parameters \(size mismatch for weight"):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []


class Harmful:
    """Stands for anything that unpickling would have to execute."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "Expected a PyTorch state dict"),
        (b"not weights at all", "Expected a PyTorch state dict"),
        (Harmful(), r"no weights \(UnpicklingError\)"),
        ({"model": {"weight": torch.zeros(1)}, "iteration": 3}, "other parameters"),
        ({}, "other parameters"),
        (torch.zeros(2), "Tensor"),
    ],
)
def test_weights_that_are_no_state_dict(project: Path, tmp_path: Path, content: object, message: str) -> None:
    weights = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        weights.write_bytes(content)
    elif content is not None:
        torch.save(content, weights)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert list((tmp_path / "dist").iterdir()) == []


def test_the_command_line_packs_and_tells(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("bundle.__main__.pack_bundle", lambda name, **chosen: pack_bundle(name, **chosen, root=project))
    main(["pack", "segmentation", "--task", "toy", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"Packed {tmp_path / 'glua_toy_segmentation'}" in said
    assert re.search("no weights.*MONAI Label ignores it.*until models/model.pt exists", said)
    main(["pack", "segmentation", "--task", "toy", "--out", str(tmp_path), "--zip", "--weights", str(weights)])
    said = capsys.readouterr().out
    assert "glua_toy_segmentation.zip" in said
    assert "no weights" not in said
    with pytest.raises(SystemExit):
        main(["pack", "neither", "--task", "toy"])


@pytest.mark.slow
def test_an_input_error_is_one_sentence_and_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bundle", "pack", "segmentation", "--task", "nope", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: task 'nope': no such task. Expected one of")
    assert "Traceback" not in done.stderr
