"""Faults of files, names and folders: one sentence each, before any work where that is possible."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT, refused, run_base, write_volume
from filelock import FileLock, Timeout
from ignite.engine import Engine
from monai.data import MetaTensor
from scripts.core.errors import InputError, find_input_error
from scripts.core.files import PART, atomic_path
from scripts.core.run_folder import RunFolder
from scripts.core.schema import read_yaml
from scripts.core.settings import Settings, common_settings, run_bundle
from scripts.core.weights import load_weights, read_metadata
from scripts.data.datalists import find_volumes, read_datalist
from scripts.data.nifti import read_nifti
from scripts.handlers.checkpoints import DIGEST, ResumePoint
from scripts.inference.inferers import SliceWiseInferer
from scripts.lab.check.run_check import run_check
from scripts.lab.cli import main
from scripts.lab.cores import exclusive
from scripts.networks.dilated_resnet import build_dilated_resnet
from torch import nn

DEEP = "[" * 100_000


def test_evaluation_without_the_file_that_it_is_laid_over(tmp_path: Path) -> None:
    """MONAI alone would end with ``query key: run_folder``."""
    error = refused(
        run_bundle, "evaluating", str(CONFIGS / "segmentation" / "evaluate.yaml"), bundle_root=str(tmp_path)
    )
    assert (error.file, error.found) == ("--config_file", "no file that defines 'run_folder'")
    assert "configs/segmentation/inference.yaml" in error.expected
    assert "configs/tasks/<task>.yaml" in error.remedy


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.yaml", "a: 1\n b: 2\n", "cannot be read (line 2: mapping values are not allowed here)"),
        ("a.yaml", "a: [1, 2\nb: 3\n", "cannot be read (line 2: "),
        ("a.yaml", "a: 'x\n", "cannot be read (line 2: found unexpected end of stream)"),
        ("a.yaml", "- 1\n", "no mapping"),
        ("a.yaml", "", "no mapping"),
        ("a.yaml", DEEP, "cannot be read ("),
        ("a.yaml", "a: \xe9", "cannot be read ("),
        ("a.json", '{"a": 1,\n"b" 2}', "cannot be read (Expecting ':' delimiter: line 2 column 5 (char 13))"),
        ("a.json", DEEP, "cannot be read ("),
        ("missing.yaml", None, "no such file"),
    ],
)
def test_files_of_settings_that_cannot_be_read(name: str, text: str | None, found: str, tmp_path: Path) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    base = str(CONFIGS / "synthesis" / "train.yaml")
    for error in (refused(Settings.read, [base, str(file)], {}), refused(read_yaml, file, "settings", "correct it")):
        assert error.file == str(file)
        assert error.found.startswith(found)


@pytest.mark.parametrize(
    ("base", "setting"),
    [
        ("synthesis/train", "log_dir"),
        ("synthesis/train", "ckpt_dir"),
        ("segmentation/train", "log_dir"),
        ("segmentation/train", "cache_dir"),
        ("segmentation/inference", "prediction_dir"),
        ("segmentation/evaluate", "output_dir"),
    ],
)
def test_a_folder_that_cannot_be_written_is_found_before_the_data(base: str, setting: str, tmp_path: Path) -> None:
    """The data are missing, too; what is reported comes first. TensorBoard writes to ``log_dir``."""
    (tmp_path / "file").write_text("in the way")
    wrong = tmp_path / "file" / "folder"
    error = refused(run_base, base, dataset_dir=tmp_path / "none", bundle_root=tmp_path / "run", **{setting: wrong})
    assert error.file == str(wrong)
    assert error.found == "a folder that cannot be written (Not a directory)"


def test_check_finds_such_a_folder_before_its_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    assert refused(run_check, [str(data)], out).file == str(out)


def checkpoint(folder: Path) -> tuple[ResumePoint, Path]:
    """A resumable checkpoint of a network with its optimiser, after one step."""
    network = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    items = {"network": network, "optimizer": optimizer}
    point = ResumePoint(path=str(folder / "c.pt"), save_dict=items, interval=1, resume=True, settings={"seed": 1})
    engine = Engine(lambda engine, batch: [{}])
    point.save_unproven(engine)
    engine.state.output = [{}]
    point.prove(engine)
    return point, folder / "c.pt"


def test_an_untouched_checkpoint_is_loaded(tmp_path: Path) -> None:
    point, file = checkpoint(tmp_path)
    point.load()
    torch.save(torch.load(file, weights_only=True), file)
    point.load()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("network", "weight"), torch.zeros(1, 2)),
        (("network", "bias"), "text"),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(7)),
        (("optimizer", "state", 0, "step"), -3.0),
        (("optimizer", "param_groups", 0, "lr"), "fast"),
        (("optimizer", "param_groups", 0, "params"), [0, 0]),
        (("optimizer", "state"), []),
        (("settings",), DEEP),
        (("settings",), torch.zeros(1)),
        (("metadata",), 5),
        (("further",), {}),
        (("network",), None),
    ],
)
def test_changed_fields_of_a_checkpoint(path: tuple[Any, ...], value: Any, tmp_path: Path) -> None:
    """The checksum of the file is right, as after ``torch.load`` and ``torch.save``."""
    point, file = checkpoint(tmp_path)
    states = inner = torch.load(file, weights_only=True)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    torch.save(states, file)
    error = refused(point.load)
    assert (error.file, error.found) == (str(file), "content other than what was saved")


def test_a_checkpoint_without_the_digest_of_its_content(tmp_path: Path) -> None:
    point, file = checkpoint(tmp_path)
    states = torch.load(file, weights_only=True)
    del states[DIGEST]
    torch.save(states, file)
    assert refused(point.load).found == "content other than what was saved"


def test_a_case_name_that_is_too_long_for_its_results(tmp_path: Path) -> None:
    """255 bytes is the limit of file systems; an umlaut has two."""
    image = write_volume(tmp_path / f"{'ä' * 120}.nii.gz", np.zeros((2, 2, 2), np.uint8))
    for where in (tmp_path, image):
        assert refused(find_volumes, str(where)).found.startswith("a case name of 240 bytes, ")
    image.rename(tmp_path / f"{'ä' * 115}.nii.gz")
    assert len(find_volumes(str(tmp_path))) == 1


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "ä" * 120 + ".csv"])
def test_file_names_that_are_almost_too_long(name: str, tmp_path: Path) -> None:
    """The temporary name is not longer than the system accepts, either."""
    with atomic_path(tmp_path / name) as temporary:
        temporary.write_text("content")
    assert (tmp_path / name).read_text() == "content"


def write_with_a_long_suffix(folder: Path) -> None:
    with atomic_path(folder / f"a.{'b' * 250}"):
        pass


def too_long(folder: Path) -> None:
    (folder / ("a" * 300)).is_file()


def link_loop(folder: Path) -> None:
    (folder / "a").symlink_to(folder / "b")
    (folder / "b").symlink_to(folder / "a")
    (folder / "a").resolve()
    (folder / "a").read_text()


@pytest.mark.parametrize(
    ("work", "reason"),
    [(too_long, errno.ENAMETOOLONG), (write_with_a_long_suffix, errno.ENAMETOOLONG), (link_loop, errno.ELOOP)],
)
def test_paths_that_the_system_refuses(work: Callable[[Path], None], reason: int, tmp_path: Path) -> None:
    error = refused(work, tmp_path)
    assert error.found == f"cannot be used ({os.strerror(reason)})"
    assert str(tmp_path) in error.file


def test_volumes_behind_a_link_loop(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "b.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to(tmp_path / "a.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "a.nii.gz"}]}))
    assert refused(read_datalist, str(tmp_path / "list.json"), "training").file == str(tmp_path / "a.nii.gz")
    assert len(find_volumes(str(tmp_path))) == 2  # each is reported when it is read


def test_a_name_in_latin_1_is_refused_before_it_is_used(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.nii.gz")
    file = write_volume(tmp_path / name, np.zeros((2, 2, 2), np.uint8))
    for where in (tmp_path, file):
        error = refused(find_volumes, str(where))
        assert error.found == "a file name that is not UTF-8"
        assert "caf\\udce9" in error.file


def test_a_name_in_latin_1_that_reaches_a_table(tmp_path: Path) -> None:
    def write() -> None:
        (tmp_path / "table.csv").write_text(f"case,{os.fsdecode(b'caf' + bytes([0xE9]))}", encoding="utf-8")

    error = refused(write)
    assert error.file == r"'case,caf\udce9'"
    assert error.found == "a name that is not UTF-8"


def test_datalists_that_are_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(DEEP)
    assert refused(read_datalist, str(tmp_path / "list.json"), "training").found.startswith("cannot be read (")


@pytest.mark.parametrize("key", ["training_cases", "grid", "network", "intensity", "inference"])
def test_metadata_with_parts_of_another_type(key: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({key: [1]}))
    assert refused(read_metadata, tmp_path / "model.pt").found == f"no JSON object under {key!r}"


def test_a_network_without_finite_output_is_refused() -> None:
    """Finite weights may overflow, and a negative variance gives NaN; the decision would be background."""
    inferer = SliceWiseInferer(window_size=None, precision="float32", decide=True)
    volume = MetaTensor(torch.ones(1, 1, 4, 4, 2), meta={"filename_or_obj": "a.nii.gz"})
    for factor in (float("nan"), 3e38):
        error = refused(inferer, volume, lambda image: image * factor * 2)  # noqa: B023
        assert error.found == "NaN or infinite values in the network's output for it"


def test_a_broken_quaternion_beside_an_sform(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.arange(8, dtype=np.int16).reshape(2, 2, 2), np.diag([1.0, 2.0, 5.0, 1.0]))
    image.header["qform_code"], image.header["quatern_b"] = 1, 2.0  # the others' squares sum to -3
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    found = read_nifti(tmp_path / "a.nii")
    assert np.array_equal(found.affine, image.affine)
    assert found.notes == ("qform and sform differ by up to inf mm; the sform was used",)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("weight", torch.ones(1, 2).to_sparse(), "weights 'weight' of type torch.sparse_coo"),
        (5, torch.zeros(1), "weights 5 of type torch.float32"),
    ],
)
def test_weights_that_no_network_has(name: Any, value: torch.Tensor, found: str, tmp_path: Path) -> None:
    torch.save({**nn.Linear(2, 1).state_dict(), name: value}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"stage": "a", "weights_sha256": "b"}')
    assert refused(load_weights, str(tmp_path / "model.pt"), nn.Linear(2, 1), {"stage": "a"}).found == found


def test_a_backbone_that_is_not_finite(tmp_path: Path) -> None:
    small = {"in_channels": 1, "layers": [1, 1, 1, 1], "width": 4, "output_stride": 8}
    state = build_dilated_resnet(**small).state_dict()
    state["conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "backbone.pt")
    assert refused(build_dilated_resnet, **small, weights=tmp_path / "backbone.pt").found == "nan in conv1.weight"


def test_processes_share_all_settings_but_places_and_devices() -> None:
    config = {"run_folder": {"may_change": ["resume"]}, "resume": True, "val_interval": 2, "device": "cuda:1"}
    config |= {"bundle_root": "a", "dataset_dir": "b", "target_datalist": "c", "checkpoint": "d", "run": []}
    assert sorted(common_settings(config)) == ["resume", "run_folder#may_change", "val_interval"]


def test_another_run_may_not_write_to_a_folder_of_this_one(tmp_path: Path) -> None:
    """As with one ``--ckpt_dir`` for two trainings; a cache may be shared."""
    (tmp_path / "models").mkdir()
    with FileLock(tmp_path / "models" / ".run.lock"):
        (tmp_path / "models" / ".running").write_text("process 7 on a")
        other = RunFolder(root=str(tmp_path / "b"), writes=[str(tmp_path / "models")])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(Timeout("a")))
            assert refused(other.open).found.startswith("in use by ")
    runs = [RunFolder(root=str(tmp_path / name), shares=[str(tmp_path / "cache"), None]).open() for name in "cd"]
    for run in runs:
        run.close()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["prepare", "phantom"])
def test_a_command_refuses_a_folder_that_another_one_uses(command: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = {
        "prepare": ["prepare", "folder", "--source", str(data), "--labels", str(data), "--domain", "ct", "--no_check"],
        "phantom": ["phantom", "--cases", "2"],
    }[command]
    code = "import sys, time; from pathlib import Path; from scripts.core.run_folder import lock_folder; "
    code += "lock = lock_folder(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "locked\n"
            error = refused(main, [*words, "--out", str(out)])
            assert error.found.startswith(f"in use by process {first.pid} on ")
        finally:
            first.kill()


def test_a_command_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    left, kept = tmp_path / "ct" / f".case{PART}x.nii.gz", tmp_path / "ct" / ".other"
    for file in (left, kept):
        file.write_text("")
    with exclusive(tmp_path):
        assert (tmp_path / ".running").is_file()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "ct", kept]


def test_memory_that_torch_does_not_get_is_a_sentence() -> None:
    """256 TiB, more than the system's address space."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**48, dtype=torch.uint8)
    error = find_input_error(caught.value)
    assert error is not None
    assert "281474976710656 bytes" in error.found
    assert "batch_size" in error.remedy


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    assert find_input_error(PermissionError(errno.EACCES, "Permission denied")) is None
    assert find_input_error(UnicodeEncodeError("latin-1", "€", 0, 1, "ordinal not in range")) is None
    error = InputError(file="a", found="b", expected="c", remedy="d")
    assert find_input_error(error) is error
