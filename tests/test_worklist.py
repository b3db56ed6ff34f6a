"""Volumes are shared among processes, each is processed once, and never again after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT, Finished, bundle_command, run_command, run_config, torchrun
from monai.data import MetaTensor
from scripts.inference.work_sharing import Worklist

pytestmark = pytest.mark.slow

CASES = ["ct_0", "ct_1", "ct_2"]

WRITTEN_DOWN = """\
import os, runpy, signal, sys, time
from pathlib import Path
from scripts.inference.work_sharing import Worklist

log, rank, noted = Path(os.environ["DONE_LOG"]), os.environ["RANK"], Worklist.note

def note(self, engine):
    noted(self, engine)
    with log.open("a") as file:
        file.write(f"{Path(engine.state.output[0]['image'].meta['filename_or_obj']).name[:4]} {rank}\\n")
    if os.environ.get("ENDS_AFTER_ONE_EACH"):
        while rank == "0" or len(log.read_text().splitlines()) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

Worklist.note = note
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""
"""A process that runs a bundle and writes down what it did; asked to, the second is killed when either has done one."""


def run_two(folder: Path, command: list[str], **environment: str) -> tuple[Finished, list[tuple[str, str]]]:
    """Run a bundle's command in two processes; gives how it ended, and each case that was done, with who did it."""
    script, log = folder / "written_down.py", folder / "done.log"
    script.write_text(WRITTEN_DOWN)
    log.write_text("")
    command = torchrun([command[0], str(script), *command[3:]])
    done = run_command(command, timeout_s=240, DONE_LOG=str(log), PYTHONPATH=str(ROOT), **environment)
    return done, sorted(tuple(line.split()) for line in log.read_text().splitlines())


@pytest.fixture(scope="module")
def three(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A datalist with all three cases of the target domain to evaluate."""
    content = json.loads((data / "ct.json").read_text())
    entries = [{key: str(data / file) for key, file in entry.items()} for entry in content["training"]]
    entries += [{key: str(data / file) for key, file in entry.items()} for entry in content["validation"]]
    path = tmp_path_factory.mktemp("list") / "ct.json"
    path.write_text(json.dumps({"training": entries[:1], "validation": entries}))
    return path


def settings(three: Path, trained: Path, out: Path, **more: Any) -> dict[str, Any]:
    checkpoint = trained / "segmentation" / "models" / "model.pt"
    return {"evaluation_datalist": three, "checkpoint": checkpoint, "output_dir": out, "bundle_root": out} | more


@pytest.fixture(scope="module")
def alone(three: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone") / "eval"
    run_config("evaluating", "segmentation", "evaluate", **settings(three, trained, out))
    return out


def predictions(out: Path) -> dict[str, tuple[int, bytes]]:
    """When each prediction was written, and what."""
    files = sorted((out / "predictions").iterdir())
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def assert_same_evaluation(out: Path, expected: Path) -> None:
    assert (out / "metrics.csv").read_text() == (expected / "metrics.csv").read_text()
    found, wanted = (json.loads((folder / "summary.json").read_text()) for folder in (out, expected))
    assert found.pop("provenance").keys() == wanted.pop("provenance").keys()
    assert found == wanted
    assert list(predictions(out)) == [f"{case}_image_seg.nii.gz" for case in CASES]
    for name in ("worst_case.png", "median_case.png"):
        assert (out / name).read_bytes() == (expected / name).read_bytes()


def test_two_processes_evaluate_as_one(three: Path, trained: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    command = bundle_command("evaluating", "segmentation", "evaluate", **settings(three, trained, out))
    done, cases = run_two(tmp_path, command)
    assert done.code == 0, done.stderr[-2000:]
    assert cases == [("ct_0", "0"), ("ct_1", "1"), ("ct_2", "0")]
    assert_same_evaluation(out, alone)
    assert json.loads((out / "summary.json").read_text())["provenance"]["processes"] == 2


def test_a_folder_is_segmented_by_two_processes_of_which_one_died(trained: Path, data: Path, tmp_path: Path) -> None:
    """Each volume once, together with the run that takes over; and what one process would have written."""
    volumes, out, expected = tmp_path / "volumes", tmp_path / "out", tmp_path / "expected"
    volumes.mkdir()
    for case in CASES:
        shutil.copy(data / f"{case}_image.nii.gz", volumes)
    places = {"bundle_root": trained / "segmentation", "dataset_dir": volumes}
    run_config("inference", "segmentation", "inference", output_dir=expected, **places)
    command = bundle_command("inference", "segmentation", "inference", output_dir=out, resume=True, **places)
    ended, first = run_two(tmp_path, command, ENDS_AFTER_ONE_EACH="yes")
    assert ended.code == 1
    assert "Signal 9 (SIGKILL) received by PID" in ended.stderr
    assert first == [("ct_0", "0"), ("ct_1", "1")]
    before = [(out / f"{case}_image_seg.nii.gz").stat().st_mtime_ns for case, _ in first]
    done, second = run_two(tmp_path, command)
    assert done.code == 0, done.stderr[-2000:]
    assert second == [("ct_2", "0")]
    assert [(out / f"{case}_image_seg.nii.gz").stat().st_mtime_ns for case, _ in first] == before
    assert sorted(file.name for file in out.glob("*.nii.gz")) == [f"{case}_image_seg.nii.gz" for case in CASES]
    for file in out.glob("*.nii.gz"):
        assert file.read_bytes() == (expected / file.name).read_bytes()


def test_an_interrupted_evaluation_continues_with_the_remaining_cases(
    three: Path, trained: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, noted = tmp_path / "eval", Worklist.note

    def note(self: Worklist, engine: Any) -> None:
        noted(self, engine)
        if len(self.done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Worklist, "note", note)
    with pytest.raises(KeyboardInterrupt):
        run_config("evaluating", "segmentation", "evaluate", **settings(three, trained, out))
    monkeypatch.setattr(Worklist, "note", noted)
    before = predictions(out)
    assert len(before) == 2
    (out / "done" / "ct_1_image.json").write_text("{")  # a note that was damaged is none
    run_config("evaluating", "segmentation", "evaluate", **settings(three, trained, out, resume=True))
    assert_same_evaluation(out, alone)
    after = predictions(out)
    assert [name for name in before if before[name] == after[name]] == ["ct_0_image_seg.nii.gz"]


def test_a_note_of_other_settings_or_of_a_result_that_is_gone_does_not_hold(
    three: Path, trained: Path, alone: Path
) -> None:
    run_config("evaluating", "segmentation", "evaluate", **settings(three, trained, alone, resume=True))
    first = predictions(alone)
    (alone / "predictions" / "ct_2_image_seg.nii.gz").unlink()
    run_config("evaluating", "segmentation", "evaluate", **settings(three, trained, alone, resume=True))
    second = predictions(alone)
    assert [name for name in first if first[name] != second[name]] == ["ct_2_image_seg.nii.gz"]
    changed = settings(three, trained, alone, resume=True, slice_batch_size=3)
    run_config("evaluating", "segmentation", "evaluate", **changed)
    third = predictions(alone)
    assert not [name for name in second if second[name][0] == third[name][0]]


@pytest.mark.parametrize(
    ("engine", "read"),
    [("pytorch", ["m.pt"]), ("torchscript", ["m.ts"]), ("onnx", ["m.onnx"]), ("openvino", ["m.xml", "m.bin"])],
)
def test_a_note_holds_while_the_files_that_the_engine_reads_stay_as_they_are(
    tmp_path: Path, engine: str, read: list[str]
) -> None:
    image, files = tmp_path / "case.nii.gz", ["m.pt", "m.ts", "m.onnx", "m.xml", "m.bin"]
    for file in [image, *(tmp_path / name for name in files)]:
        file.write_bytes(b"earlier")

    def work(resume: bool) -> Worklist:
        places = {"folder": str(tmp_path), "checkpoint": str(tmp_path / "m.pt")}
        return Worklist(items=[{"image": str(image)}], engine=engine, resume=resume, settings={}, **places)

    done = [{"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": str(image)})}]
    for name in files:
        work(resume=False).note(SimpleNamespace(state=SimpleNamespace(output=done)))
        assert work(resume=True).own == []
        (tmp_path / name).write_bytes(b"another")
        assert len(work(resume=True).own) == (name in read), name


def test_every_volume_has_one_process(tmp_path: Path, as_process: Callable[[int, int], None]) -> None:
    items = [{"image": f"case_{index}.nii.gz"} for index in range(7)]
    parts = []
    for place in range(3):
        as_process(place, 3)
        parts.append(Worklist(items=items, folder=str(tmp_path), checkpoint="none").own)
    assert [len(part) for part in parts] == [3, 2, 2]
    assert sorted(item["image"] for part in parts for item in part) == [item["image"] for item in items]
