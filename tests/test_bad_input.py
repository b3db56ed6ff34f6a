"""Bad input gives one message with finding, expectation and fix, and leaves no partial files."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import BASES, bundle_command, listed_files, refused, run_base, run_command, write_volume
from scripts.core.errors import InputError


def assert_nothing_half_written(folder: Path) -> None:
    """No temporary file, no weights of a training that did not finish, no volume that cannot be read.

    The lock and the mark of a run that did not finish may stay: they block nobody when its process has ended.
    """
    if folder.is_dir():
        for name in listed_files(folder):
            assert not Path(name).name.startswith(".") or Path(name).name in (".run.lock", ".running"), name
            assert Path(name).name != "model.pt", name
            if name.endswith(".nii.gz"):
                nib.load(folder / name).get_fdata()


def assert_reported_at_the_end(error: InputError, bad: Path, found: str, printed: str) -> None:
    """One volume of several: its own sentence at once, the others are processed, and an error that names it."""
    (sentence,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert str(bad) in sentence
    assert found in sentence
    assert error.found.startswith("1 of ")
    assert bad.name.replace("label", "image") in error.found


def replace_volume(path: Path, kind: str) -> None:
    """Put something that cannot be used in the place of a volume."""
    file = nib.load(path)
    voxels, affine = np.asarray(file.dataobj), file.affine
    with_nan, with_infinity, unknown = voxels.astype(np.float32), voxels.astype(np.float32), voxels.copy()
    with_nan[3, 4, 2], with_infinity[3, 4, 2], unknown[10, 10, 2] = np.nan, np.inf, 77
    if kind == "missing":
        path.unlink()
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        volumes = {
            "4D": (np.stack([voxels] * 2, -1), affine),
            "2D": (voxels[..., 3], affine),
            "NaN": (with_nan, affine),
            "infinite": (with_infinity, affine),
            "constant": (np.full_like(voxels, 3), affine),
            "other shape": (voxels[:-1], affine),
            "other place": (voxels, affine + np.eye(4) * [0, 0.5, 0, 0]),
            "unknown value": (unknown, affine),
        }
        write_volume(path, *volumes[kind])


IMAGES = {
    "missing": "no such file",
    "text": "no NIfTI",
    "truncated": "data that cannot be read",
    "4D": "4 dimensions (36, 40, 7, 2)",
    "2D": "2 dimensions (36, 40)",
    "NaN": "NaN or infinite values",
    "infinite": "NaN or infinite values",
    "constant": "one value everywhere (3)",
}
LABELS = {
    "missing": "no such file",
    "truncated": "data that cannot be read",
    "other shape": "voxels",
    "other place": "an affine that differs by up to 0.5 mm",
    "unknown value": "label value(s) 77",
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("base", ["synthesis/train", "segmentation/inference"])
def test_images_that_cannot_be_used(
    base: str, kind: str, bad_data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = bad_data / "ct_1_image.nii.gz"
    replace_volume(bad, kind)
    settings: dict[str, Any] = {"dataset_dir": bad_data, "bundle_root": tmp_path / "run"}
    if base == "segmentation/inference":
        settings |= {"dataset_dir": bad_data / "ct.json", "ckpt_dir": trained / "segmentation" / "models"}
    error = refused(run_base, base, **settings)
    if error.found.startswith("1 of "):
        assert_reported_at_the_end(error, bad, IMAGES[kind], capsys.readouterr().err)
    else:
        assert error.file == str(bad)
        assert IMAGES[kind] in error.found
    assert_nothing_half_written(tmp_path / "run")


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("base", ["segmentation/train", "segmentation/evaluate"])
def test_labels_that_cannot_be_used(
    base: str, kind: str, bad_data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain = "mr" if base == "segmentation/train" else "ct"
    bad = bad_data / f"{domain}_1_label.nii.gz"
    replace_volume(bad, kind)
    settings: dict[str, Any] = {"dataset_dir": bad_data, "bundle_root": tmp_path / "run"}
    if base == "segmentation/evaluate":
        settings |= {"ckpt_dir": trained / "segmentation" / "models", "section": "training"}
    error = refused(run_base, base, **settings)
    if error.found.startswith("1 of "):
        assert_reported_at_the_end(error, bad, LABELS[kind], capsys.readouterr().err)
        return
    assert str(bad) in error.file
    assert LABELS[kind] in error.found
    if kind == "unknown value":
        assert error.expected == "only 0, 205, 420, 500, 550, 600, 820, 850"
    assert_nothing_half_written(tmp_path / "run")


@pytest.mark.parametrize("base", BASES)
def test_data_that_are_not_there(base: str, trained: Path, tmp_path: Path) -> None:
    settings = {"bundle_root": tmp_path / "run", "ckpt_dir": trained / base.split("/")[0] / "models"}
    error = refused(run_base, base, dataset_dir=tmp_path / "nowhere", **settings)
    assert error.file.startswith(str(tmp_path / "nowhere"))
    assert error.found in ("no such file", "no such folder")
    assert_nothing_half_written(tmp_path / "run")


def test_an_empty_folder(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = {"bundle_root": tmp_path / "run", "ckpt_dir": trained / "segmentation" / "models"}
    error = refused(run_base, "segmentation/inference", dataset_dir=tmp_path / "empty", **settings)
    assert (error.file, error.found) == (str(tmp_path / "empty"), "no NIfTI file in it")


@pytest.mark.parametrize("domain", ["mr", "ct"])
def test_a_domain_without_a_training_case(domain: str, bad_data: Path, tmp_path: Path) -> None:
    (bad_data / f"{domain}.json").write_text(json.dumps({"training": [], "validation": []}))
    error = refused(run_base, "synthesis/train", dataset_dir=bad_data, bundle_root=tmp_path / "run")
    assert error.file == str(bad_data / f"{domain}.json")
    assert error.found == "no case under 'training' (there are: training, validation)"


def test_a_source_without_labels(bad_data: Path, tmp_path: Path) -> None:
    (bad_data / "mr.json").write_text(json.dumps({"training": [{"image": "mr_0_image.nii.gz"}]}))
    error = refused(run_base, "segmentation/train", dataset_dir=bad_data, bundle_root=tmp_path / "run")
    assert "no label for" in error.found


@pytest.mark.parametrize("base", ["synthesis/inference", "segmentation/inference", "segmentation/evaluate"])
def test_two_images_of_one_name(base: str, bad_data: Path, trained: Path, tmp_path: Path) -> None:
    domain = "mr" if base == "synthesis/inference" else "ct"
    listed = bad_data / f"{domain}.json"
    (bad_data / "again").mkdir()
    content = json.loads(listed.read_text())
    case = content["validation"][0]
    image = Path(case["image"])
    again = bad_data / "again" / image.name
    again.write_bytes((bad_data / image.name).read_bytes())
    content["validation"].append(case | {"image": str(again)})
    listed.write_text(json.dumps(content))
    settings = {"bundle_root": tmp_path / "run", "ckpt_dir": trained / base.split("/")[0] / "models"}
    where = listed if base == "segmentation/inference" else bad_data
    error = refused(run_base, base, dataset_dir=where, **settings)
    assert error.file == str(listed)
    assert error.found.startswith("one case name for two images, ")
    assert not list((tmp_path / "run").rglob("*.nii.gz"))


@pytest.mark.parametrize("base", BASES)
def test_a_folder_that_cannot_be_written(base: str, data: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = {"bundle_root": tmp_path / "file" / "run", "ckpt_dir": trained / base.split("/")[0] / "models"}
    error = refused(run_base, base, dataset_dir=data, **settings)
    assert error.file.startswith(str(tmp_path / "file" / "run"))
    assert "a folder that cannot be written (Not a directory)" in error.found
    assert "--bundle_root" in error.remedy
    assert list(listed_files(tmp_path)) == ["file"]


def full_disk(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("base", "function"),
    [
        ("synthesis/inference", "nibabel.save"),
        ("segmentation/inference", "nibabel.save"),
        ("segmentation/evaluate", "nibabel.save"),
        ("synthesis/train", "pathlib.Path.write_bytes"),
        ("segmentation/train", "pathlib.Path.write_bytes"),
        ("segmentation/train", "pathlib.Path.write_text"),
    ],
)
def test_no_space_left(
    base: str, function: str, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"dataset_dir": data, "bundle_root": tmp_path / "run"}
    if base.split("/")[1] != "train":
        settings["ckpt_dir"] = trained / base.split("/")[0] / "models"
    monkeypatch.setattr(function, full_disk)
    error = refused(run_base, base, **settings)
    assert error.found == "could not be written (No space left on device)"
    assert error.expected == "a folder with room for the file"
    assert_nothing_half_written(tmp_path / "run")


def test_no_space_left_for_the_log_of_losses(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.core.files.open", full_disk, raising=False)
    error = refused(run_base, "synthesis/train", dataset_dir=data, bundle_root=tmp_path)
    assert error.file == str(tmp_path / "logs" / "losses.csv")
    assert error.found == "could not be written (No space left on device)"
    assert "earlier lines are kept" in error.remedy


def test_no_space_left_keeps_the_last_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"dataset_dir": data, "bundle_root": tmp_path, "checkpoint_interval": 1}
    run_base("synthesis/train", **settings)
    checkpoint = tmp_path / "models" / "resume" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    error = refused(run_base, "synthesis/train", **settings, seed=1)
    assert error.file == str(checkpoint.with_name("unproven_checkpoint.pt"))
    # A new run sets what an earlier one left aside, whole.
    assert checkpoint.with_name("earlier_checkpoint.pt").read_bytes() == before
    assert not checkpoint.exists()


@pytest.mark.parametrize("base", ["synthesis/train", "segmentation/train"])
def test_a_loss_that_is_not_finite(base: str, data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dataset_dir": data, "bundle_root": tmp_path, "checkpoint_interval": 1}
    run_base(base, **settings)
    checkpoint = tmp_path / "models" / "resume" / "checkpoint.pt"
    before = checkpoint.read_bytes()
    # A rate at which anything blows up, a few iterations after the checkpoint.
    blow_up = {"iterations_per_epoch": 30, "learning_rate": 1e30, "resume": False, "learning_rate_warmup": 0}
    if base == "synthesis/train":
        del blow_up["learning_rate_warmup"]
    error = refused(run_base, base, **settings | blow_up)
    assert error.file.startswith("loss '")
    assert " at iteration " in error.file
    assert error.found in ("nan", "inf", "-inf")
    # That was a new run: the checkpoint of the first one stands beside it, whole.
    assert not checkpoint.exists()
    assert checkpoint.with_name("earlier_checkpoint.pt").read_bytes() == before


def test_a_batch_of_no_slices_gets_a_sentence(data: Path, tmp_path: Path) -> None:
    # An intensity range that no voxel lies in: everything is blank after preprocessing.
    window = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 9e5, "a_max": 1e6, "b_min": -1, "b_max": 1}
    error = refused(
        run_base, "synthesis/train", dataset_dir=data, bundle_root=tmp_path, target_intensity=window | {"clip": True}
    )
    assert "only constant slices" in error.found


@pytest.mark.slow
@pytest.mark.parametrize("case", ["truncated", "full"])
def test_the_command_ends_with_one_sentence_and_a_code(
    case: str, bad_data: Path, trained: Path, tmp_path: Path
) -> None:
    root, prefix = tmp_path / "run", []
    command = bundle_command("training", "synthesis", "train", dataset_dir=bad_data, bundle_root=root)
    if case == "truncated":
        replace_volume(bad_data / "ct_1_image.nii.gz", "truncated")
        models = trained / "segmentation" / "models"
        settings = {"dataset_dir": bad_data / "ct_1_image.nii.gz", "bundle_root": root, "ckpt_dir": models}
        command = bundle_command("inference", "segmentation", "inference", **settings)
        expected = f"{bad_data / 'ct_1_image.nii.gz'}: data that cannot be read"
    else:
        # The system itself ends every write beyond 40 kB: a cached volume is the first that large.
        prefix = ["bash", "-c", 'ulimit -f 40; exec "$@"', "bash"]
        expected = f"{root / 'cache'}"
    done = run_command([*prefix, *command])
    assert done.code == 1, done.stderr
    (sentence,) = done.errors
    assert sentence.startswith(f"error: {expected}")
    assert "Traceback" not in done.stderr
    assert_nothing_half_written(root)


@pytest.mark.slow
def test_our_own_commands_end_with_a_sentence_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = ["datalist", "--images", str(tmp_path / "empty"), "--domain", "ct", "--out", str(tmp_path / "out")]
    done = run_command([sys.executable, "-m", "scripts", *command])
    assert done.code == 1
    assert done.stderr == (
        f"error: {tmp_path / 'empty'}: no NIfTI file in it. Expected a folder with .nii or .nii.gz files. Fix: "
        "name the folder that holds the volumes.\n"
    )
    assert not (tmp_path / "out").exists()
