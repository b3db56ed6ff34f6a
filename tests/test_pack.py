"""Packing: what goes into a bundle, the task's values in it, and what is rejected."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from bundle import pack
from bundle.__main__ import main
from bundle.install import RECORD
from bundle.pack import BUNDLES, ROOT, pack_bundle
from filelock import FileLock
from scripts.core.errors import InputError
from toy_project import PACKED, config_of, files_of


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_contains_the_expected_files(project: Path, tmp_path: Path, weights: Path, name: str) -> None:
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


@pytest.mark.parametrize("place", ["../notes.txt", "{tmp_path}/notes.txt", "configs/../../notes.txt"])
def test_a_changed_record_removes_nothing_outside_the_folder(place: str, project: Path, tmp_path: Path) -> None:
    """A packed file that the project no longer has is removed, if its content is known."""
    folder = pack_bundle("synthesis", task="toy", out=tmp_path, root=project).folder
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    record = json.loads((folder / RECORD).read_text())
    record["files"][place.format(tmp_path=tmp_path)] = [hashlib.sha256(b"mine").hexdigest()]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match="not a packed bundle"):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)
    assert notes.read_text() == "mine"


def test_two_processes_do_not_pack_one_bundle(project: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".glua_toy_synthesis.lock"), pytest.raises(InputError, match="another process is writing"):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)


def test_links_of_the_repository_become_files(project: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("text", "message"), [("a: [", "cannot be read"), ("- 1\n", "no mapping"), ("", "no mapping")])
def test_a_task_file_that_is_no_mapping(project: Path, tmp_path: Path, text: str, message: str) -> None:
    (project / "configs" / "tasks" / "toy.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        pack_bundle("synthesis", task="toy", out=tmp_path, root=project)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_files_that_packing_did_not_write_are_kept(project: Path, tmp_path: Path, kind: str) -> None:
    foreign = tmp_path / "dist" / "glua_toy_synthesis"
    foreign.parent.mkdir()
    if kind == "file":
        foreign.write_text("precious")
    elif kind == "folder":
        (foreign / "precious").mkdir(parents=True)
    else:
        foreign.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="not a packed bundle"):
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


def test_the_command_line_packs_and_reports(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    monkeypatch.setattr("sys.excepthook", sys.excepthook)
    monkeypatch.setattr("bundle.pack.pack_bundle", lambda name, **chosen: pack_bundle(name, **chosen, root=project))
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
def test_an_input_error_is_one_message_and_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bundle", "pack", "segmentation", "--task", "nope", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: task 'nope': no such task. Expected one of")
    assert "Traceback" not in done.stderr
