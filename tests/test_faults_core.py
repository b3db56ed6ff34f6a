"""Damage that must not pass: weights, checkpoints, run folders used twice, killed processes, labels that vanish."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, refused, write_volume
from monai.data import DataLoader, Dataset
from monai.engines import Evaluator
from monai.transforms import Compose, EnsureChannelFirstd
from scripts.core.errors import InputError, find_input_error
from scripts.core.files import PART, load_tensors, remove_parts, save_tensors
from scripts.core.run_folder import RunFolder
from scripts.core.weights import load_weights, read_metadata, save_weights
from scripts.data.slices import SliceSet
from scripts.data.volumes import CheckedLoadImaged, LabelsToClassesd, check_preprocessed
from scripts.inference.work_sharing import Worklist
from torch import nn

METADATA = {"stage": "segmentation"}


def saved(folder: Path, **changes: Any) -> Path:
    file = folder / "model.pt"
    save_weights(file, {**nn.Linear(2, 1).state_dict(), **changes}, METADATA)
    return file


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"bias": torch.tensor([float("nan")])}, "nan in bias"),
        ({"bias": torch.tensor([float("inf")])}, "inf in bias"),
        ({"bias": torch.tensor([1])}, "weights 'bias' of type torch.int64"),
        ({"bias": torch.tensor([1.0], dtype=torch.float64)}, "weights 'bias' of type torch.float64"),
        ({"bias": torch.tensor([1j])}, "weights 'bias' of type torch.complex64"),
        ({"bias": 1.0}, "weights 'bias' of type float"),
    ],
)
def test_weights_that_are_no_numbers_of_the_network(changes: dict[str, Any], found: str, tmp_path: Path) -> None:
    """Loading would convert them, and give empty maps."""
    error = refused(load_weights, str(saved(tmp_path, **changes)), nn.Linear(2, 1), METADATA)
    assert error.found == found


@pytest.mark.parametrize("metadata", [None, {}, {"stage": "segmentation"}, {"weights_sha256": None}])
def test_weights_that_nothing_identifies_are_named_once(
    metadata: dict[str, Any] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved(tmp_path)
    file.with_suffix(".json").unlink()
    if metadata is not None:
        file.with_suffix(".json").write_text(json.dumps(metadata))
    load_weights(str(file), nn.Linear(2, 1), METADATA)
    assert [record.message.count("UNVERIFIED WEIGHTS") for record in caplog.records] == [1]


def test_deeply_nested_metadata_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("[" * 100_000)
    assert refused(read_metadata, tmp_path / "model.pt").found == "no JSON object"


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    """In the middle of the values, where the numbers stay finite and the zip archive can be opened."""
    file = tmp_path / "checkpoint.pt"
    save_tensors(file, {"a": torch.ones(1000)})
    content = bytearray(file.read_bytes())
    place = content.index(np.ones(4, np.float32).tobytes()) + 400
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match="wrong checksum of"):
        load_tensors(file)


def test_writing_onto_a_full_disk_keeps_the_earlier_weights_and_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path)
    before = [file.read_bytes(), file.with_suffix(".json").read_bytes()]

    def full(self: Path, _: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        saved(tmp_path, bias=torch.tensor([5.0]))
    assert [file.read_bytes(), file.with_suffix(".json").read_bytes()] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_incomplete_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f".losses{PART}x1.csv").write_text("1")
    (tmp_path / ".kept").write_text("1")
    (tmp_path / "eval").mkdir()
    for name in (".run.lock", f".summary{PART}x2.json"):
        (tmp_path / "eval" / name).write_text("another run's")
    remove_parts(tmp_path)
    found = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert found == [".kept", ".run.lock", f".summary{PART}x2.json"]


HOLD = """
import sys, time
from scripts.core.run_folder import RunFolder
folder = RunFolder(root=sys.argv[1]).open()
print("open", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_serves_one_run_until_its_process_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        error = refused(RunFolder(root=str(tmp_path)).open)
        assert error.found.startswith(f"in use by process {first.pid} on ")
        first.kill()  # leaves its lock file
    folder = RunFolder(root=str(tmp_path)).open()
    folder.close()
    assert list(tmp_path.iterdir()) == []


STOP = """
import os, signal, sys
from scripts.core.errors import show_input_errors_as_sentences
from scripts.core.files import atomic_path
show_input_errors_as_sentences()
with atomic_path(sys.argv[1] + "/file.txt"):
    os.kill(os.getpid(), int(sys.argv[2]))
    print("not reached")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_tells_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOP, str(tmp_path), str(int(number))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1].startswith(f"stopped by {number.name}. To resume, ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


class RefusingEvaluator(Evaluator):
    """MONAI's evaluator over the volumes of a list; it refuses those called bad."""

    def __init__(self, work: Worklist) -> None:
        self.work = work
        super().__init__("cpu", DataLoader(Dataset(work.own), batch_size=1, collate_fn=list))

    def _iteration(self, engine: Any, batchdata: Any) -> dict[str, Any]:
        (item,) = batchdata
        if "bad" in item["image"]:
            raise InputError(file=item["image"], found="no NIfTI", expected="a volume", remedy="export it again")
        self.work.done[item["image"]] = {}
        return {}


@pytest.mark.parametrize(
    "names", [["a", "bad", "c", "d"], ["bad1", "bad2", "c"], ["a", "b", "bad1", "c", "bad2", "d"], ["a", "bad"]]
)
def test_a_bad_volume_does_not_end_the_others(
    names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Worklist(items=[{"image": name} for name in names], folder=str(tmp_path / "out"), checkpoint="none")
    error = refused(work.run, RefusingEvaluator(work))
    bad = [name for name in names if "bad" in name]
    assert error.found == f"{len(bad)} of {len(names)} volumes without a result: {', '.join(bad)}"
    assert sorted(work.done) == [name for name in names if "bad" not in name]
    assert capsys.readouterr().err.count("error: bad") == len(bad)


def test_a_single_volume_has_its_own_error_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = Worklist(items=[{"image": "bad"}], folder=str(tmp_path / "out"), checkpoint="none")
    assert refused(work.run, RefusingEvaluator(work)).found == "no NIfTI"
    assert capsys.readouterr().err == ""


CHILD = """
import time
from scripts.core.processes import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys, time
with subprocess.Popen([sys.executable, "-c", {CHILD!r}]) as child:
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
def test_a_worker_ends_with_its_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        killed = time.monotonic()
        parent.kill()
        assert parent.stdout.read() == ""  # at its end: the child, which shares it, is gone too
        assert time.monotonic() - killed < 30


def labelled_slices(folder: Path, *steps: Any) -> SliceSet:
    """A case of 8 x 8 x 2 voxels with 4 voxels of class 1 and none of class 2."""
    image = np.arange(128, dtype=np.float32).reshape(8, 8, 2)
    label = np.zeros((8, 8, 2), np.int16)
    label[:2, :2, 0] = 1
    files = {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}
    write_volume(folder / "image.nii.gz", image)
    write_volume(folder / "label.nii.gz", label)
    keys = ["image", "label"]
    load = [CheckedLoadImaged(keys), EnsureChannelFirstd(keys, channel_dim="no_channel")]
    structures = ["liver"] if steps else ["liver", "spleen"]
    return SliceSet([files], Compose([*load, LabelsToClassesd("label", [1, 2]), *steps]), structures=structures)


def test_a_class_without_a_voxel_stops_the_run(tmp_path: Path) -> None:
    error = refused(labelled_slices, tmp_path)
    assert error.found == "no labelled voxel of spleen to learn from: 0 after reading"


class CropAway:
    """Cut the labelled corner off."""

    def __call__(self, data: Any) -> Any:
        return {**data, "image": data["image"][:, 4:], "label": data["label"][:, 4:]}


def test_a_step_that_loses_all_voxels_of_a_class_is_named(tmp_path: Path) -> None:
    error = refused(labelled_slices, tmp_path, CropAway())
    assert error.found == "no labelled voxel of liver to learn from: 4 after reading, 0 after CropAway"


def test_values_that_preprocessing_made_nan_are_refused() -> None:
    slices = torch.zeros(3, 1, 2, 2)
    slices[1, 0, 0, 0] = float("nan")
    error = refused(check_preprocessed, slices, "a.nii.gz")
    assert (error.file, error.found) == ("a.nii.gz", "NaN or infinite values in slice 1 after preprocessing")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG])
def test_a_full_disk_is_a_sentence_whichever_library_meets_it(number: int) -> None:
    """As TensorBoard's writer, whose error MONAI wraps."""
    wrapped = RuntimeError("Failed to instantiate component")
    wrapped.__cause__ = OSError(number, os.strerror(number), "logs/events")
    found = find_input_error(wrapped)
    assert str(found).startswith(f"logs/events: could not be written ({os.strerror(number)}). Expected a folder")
    wrapped.__cause__ = OSError(errno.ECONNREFUSED, "Connection refused")
    assert find_input_error(wrapped) is None
