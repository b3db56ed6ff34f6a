"""Packed bundles in the real MONAI Label: the requests of a viewer over HTTP, and the answers to invalid ones.

Opt-in (``make test-deploy``): it needs the environment of requirements-deploy.txt.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle.pack import pack_bundle, packed_name
from conftest import FILE_VALUES, ROOT, SMALL, processes_of, write_volume, write_weights
from label_server import (
    ENDING_SECONDS,
    ENVIRONMENT,
    TRAINING_SECONDS,
    WRITES_ANYWHERE,
    LabelServer,
    processes_of_session,
    wait_until,
)
from packed_configs import set_packed_values
from test_bad_input import IMAGES, LABELS, replace_volume

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="no .venv-deploy: make test-deploy makes it"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc"),
]

PHANTOM, OTHER = "phantom_mr2ct", "abdomen_ct2mr"
CASE = {PHANTOM: "ct_0", OTHER: "mr_0"}
"""The tasks that are packed, and a volume of each one's target."""

NAMES = {
    "phantom_mr2ct": {"myocardium": 1, "left atrium": 2, "left ventricle": 3, "ascending aorta": 4},
    "abdomen_ct2mr": {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4},
}
SHORT = {
    "iterations_per_epoch": 4,
    "batch_size": 2,
    "learning_rate": 0.1,
    "learning_rate_warmup": 1,
    "adversarial_warmup": 1,
    "d2_def#channels": 4,
}
EMPTY = "cardiac_ct2mr"
"""A task packed without weights."""

COMMAND_SECONDS = 600
"""What the bundle's own command may take at most."""

BAR = re.compile(r"segmentation: +\d+%")
"""What a training shows once it runs."""


@dataclass(frozen=True)
class Served:
    """A running server, and what it was started with."""

    server: LabelServer
    data: Path

    def bundle(self, task: str) -> Path:
        return self.server.folder / "model" / packed_name(task, "segmentation")

    def volume(self, task: str) -> Path:
        return self.data / f"{CASE[task]}_image.nii.gz"


@pytest.fixture(scope="module")
def served(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the bundles of both tasks; the phantom's task file names the unlabelled target volumes."""
    work = tmp_path_factory.mktemp("deploy")
    folder = work / "app"
    workshop = copied_workshop(work / "workshop")
    with (workshop / "configs" / "tasks" / "phantom_mr2ct.yaml").open("a") as task_file:
        task_file.write(f"dataset_dir: {data}\n")
    for seed, task in enumerate(CASE, 13):
        weights = write_weights(task, work / task, seed=seed)
        bundle = pack_bundle("segmentation", task=task, out=folder / "model", weights=weights, root=workshop).folder
        set_packed_values(bundle, SHORT)
    bundle = pack_bundle("segmentation", task=EMPTY, out=folder / "model").folder
    set_packed_values(bundle, SMALL["segmentation"])
    server = LabelServer(folder)
    try:
        server.wait()
        yield Served(server, data)
    finally:
        server.stop()
        assert processes_of_session(server.process.pid) == {}
        wait_until(lambda: not processes_of(folder), ENDING_SECONDS)
        assert processes_of(folder) == [], "in whatever session"


def copied_workshop(folder: Path) -> Path:
    for name in ["configs", "docs/segmentation", "scripts"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    return folder


def corrected_label(volume: Path, path: Path) -> Path:
    """What an annotator submits: class ids on the volume's grid."""
    label = nib.load(str(volume).replace("image", "label"))
    voxels = np.asarray(label.dataobj)
    ids = sum(np.where(voxels == value, index, 0) for index, value in enumerate(FILE_VALUES, 1))
    return write_volume(path, ids.astype(np.uint8), label.affine)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def answer_of_the_bundle(bundle: Path, volume: Path, output: Path) -> np.ndarray:
    """What the bundle's own command makes of a volume, here, in another environment than the server's."""
    command = [sys.executable, "-m", "monai.bundle", "run", "inference"]
    command += ["--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
    command += ["--dataset_dir", str(volume), "--output_dir", str(output), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=bundle, check=True, capture_output=True, env=environment, timeout=COMMAND_SECONDS)
    (written,) = output.glob("*_seg.nii.gz")
    return np.asarray(nib.load(written).dataobj)


def losses_of(bundle: Path) -> set[str]:
    with (bundle / "logs" / "losses.csv").open() as file:
        return set(next(csv.reader(file)))


def test_a_viewer_sees_the_models_that_have_weights(served: Served) -> None:
    info = served.server.info()
    assert set(info["models"]) == {packed_name(task, "segmentation") for task in CASE}
    for task, names in NAMES.items():
        model = info["models"][packed_name(task, "segmentation")]
        assert model["labels"] == names
        assert model["type"] == "segmentation"
        assert packed_name(task, "segmentation") in info["trainers"]


@pytest.mark.parametrize("task", CASE)
def test_from_a_volume_to_a_better_segmenter(served: Served, task: str, tmp_path: Path) -> None:
    server, bundle, volume, case = served.server, served.bundle(task), served.volume(task), CASE[task]
    model, weights = bundle.name, bundle / "models" / "model.pt"
    image, before = nib.load(volume), digest(weights)

    server.upload(case, volume)
    first, said = server.infer(model, case)
    assert said["label_names"] == NAMES[task]
    assert first.shape == image.shape
    np.testing.assert_allclose(first.affine, image.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(first.dataobj), answer_of_the_bundle(bundle, volume, tmp_path / "first"))

    server.submit_label(case, corrected_label(volume, tmp_path / f"{case}.nii.gz"), NAMES[task])
    server.start_training(model, max_epochs=2)
    ended = server.finished_training()
    assert ended["status"] == "DONE", ended["details"]

    assert digest(weights) != before
    second, _ = server.infer(model, case)
    expected = answer_of_the_bundle(bundle, volume, tmp_path / "second")
    np.testing.assert_array_equal(np.asarray(second.dataobj), expected)
    assert (np.asarray(second.dataobj) != np.asarray(first.dataobj)).any()
    # The phantom's task file names unlabelled target volumes; the abdomen's does not, and its data folder is empty.
    is_adapted = task == "phantom_mr2ct"
    assert losses_of(bundle) & {"d1", "d2"} == ({"d1", "d2"} if is_adapted else set())
    assert (f"{bundle / 'data' / 'mr.json'}: no such datalist" in server.log.read_text()) is not is_adapted
    server.remove(case)  # all trainings of a server learn from all that is annotated there


BAD_VOLUMES = ["text", "truncated", "4D", "NaN", "constant"]


@pytest.mark.parametrize("kind", BAD_VOLUMES)
def test_an_unusable_volume_is_answered_with_the_message(served: Served, kind: str, tmp_path: Path) -> None:
    volume = tmp_path / served.volume(PHANTOM).name
    shutil.copy(served.volume(PHANTOM), volume)
    replace_volume(volume, kind)
    served.server.upload(f"bad_{kind}", volume)
    assert IMAGES[kind] in refused(served, PHANTOM, f"bad_{kind}")
    assert_it_serves(served)


def test_missing_models_and_volumes_are_reported(served: Served) -> None:
    for model, case, said in [
        (packed_name(EMPTY, "segmentation"), "any", "model.pt: no such file. Expected the weights of a finished"),
        ("another_segmentation", "any", "another_segmentation: no such model on this server; it has glua_"),
        (packed_name(PHANTOM, "segmentation"), "nobody", "nobody: no such volume on this server"),
    ]:
        answer = served.server.ask_infer(model, case)
        assert (answer.status_code, said in answer.json()["detail"]) == (404, True), answer.text
    assert_it_serves(served)


def test_weights_copied_later_are_served(served: Served, tmp_path: Path) -> None:
    for file in write_weights(EMPTY, tmp_path / EMPTY).parent.iterdir():
        shutil.copy(file, served.bundle(EMPTY) / "models")
    label_map, _ = served.server.infer(packed_name(EMPTY, "segmentation"), given_volume(served))
    assert label_map.shape == nib.load(served.volume(PHANTOM)).shape
    assert packed_name(EMPTY, "segmentation") in served.server.info()["models"]


@pytest.fixture
def models(served: Served, tmp_path: Path) -> Iterator[Path]:
    """The phantom's folder of weights, for a test to damage."""
    folder = served.bundle(PHANTOM) / "models"
    shutil.copytree(folder, tmp_path / "kept")
    yield folder
    folder.chmod(0o755)
    shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)


def test_removed_weights_are_reported(served: Served, models: Path) -> None:
    case = given_volume(served)
    (models / "model.pt").unlink()
    assert "model.pt: no such file" in refused(served, PHANTOM, case)
    served.server.start_training(packed_name(PHANTOM, "segmentation"), max_epochs=1)
    assert error_of_training(served).startswith(f"error: {models / 'model.pt'}: no such file")
    assert_it_serves(served, OTHER)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["model.pt", "model.json"], "weights made with dataset_name: abdomen. Expected dataset_name: phantom"),
        (["model.pt"], "weights other than those that model.json describes"),
    ],
)
def test_weights_of_another_task_are_refused(
    served: Served, models: Path, files: list[str], found: str, tmp_path: Path
) -> None:
    """They have the sizes of the right ones: both tasks have four structures."""
    for name in files:
        shutil.copy(served.bundle(OTHER) / "models" / name, models)
    before = digest(models / "model.pt")
    assert found in refused(served, PHANTOM, given_volume(served))
    submit(served, tmp_path)
    served.server.start_training(packed_name(PHANTOM, "segmentation"), max_epochs=1)
    assert error_of_training(served).startswith(f"error: {models / 'model.pt'}: {found}")
    assert digest(models / "model.pt") == before
    assert_it_serves(served, OTHER)


@pytest.mark.parametrize("kind", ["other shape", "unknown value"])
def test_a_wrong_label_map_ends_the_next_training(served: Served, kind: str, tmp_path: Path) -> None:
    weights = served.bundle(PHANTOM) / "models" / "model.pt"
    before, label = digest(weights), corrected_label(served.volume(PHANTOM), tmp_path / "good.nii.gz")
    replace_volume(label, kind)
    served.server.submit_label(given_volume(served), label, NAMES[PHANTOM])
    served.server.start_training(packed_name(PHANTOM, "segmentation"), max_epochs=1)
    said = error_of_training(served)
    assert said.startswith("error: ")
    assert (LABELS[kind] in said, "good.nii.gz" in said) == (True, True), said
    assert digest(weights) == before
    assert_it_serves(served)
    submit(served, tmp_path)  # in its place


def test_an_annotated_volume_of_the_other_modality_ends_the_next_training(served: Served, tmp_path: Path) -> None:
    server, volume = served.server, served.volume(OTHER)
    server.upload("other", volume)
    server.submit_label("other", corrected_label(volume, tmp_path / "other.nii.gz"), NAMES[OTHER])
    server.start_training(packed_name(PHANTOM, "segmentation"), max_epochs=1)
    said = error_of_training(served)
    assert said.startswith("error: "), said
    assert ("other.nii.gz" in said, "Expected a CT in HU" in said) == (True, True), said
    server.remove("other")
    assert_it_serves(served)


def test_a_killed_training_is_reported_and_leaves_the_weights(served: Served, models: Path, tmp_path: Path) -> None:
    server, model, before = served.server, packed_name(PHANTOM, "segmentation"), digest(models / "model.pt")
    submit(served, tmp_path)
    server.start_training(model, max_epochs=100_000)
    assert wait_until(lambda: any(BAR.match(line) for line in server.training().get("details", [])), TRAINING_SECONDS)
    (process,) = server.training_processes()
    os.kill(process, signal.SIGKILL)
    ended = server.finished_training()
    assert ended["status"] == "ERROR"
    assert any("was killed before it finished" in line for line in ended["details"]), ended["details"]
    assert digest(models / "model.pt") == before
    assert_it_serves(served)


@pytest.mark.skipif(WRITES_ANYWHERE, reason="root writes anywhere, and there is no setpriv to run the server with less")
def test_a_model_folder_that_cannot_be_written_ends_a_training_at_once(
    served: Served, models: Path, tmp_path: Path
) -> None:
    submit(served, tmp_path)
    models.chmod(0o555)
    served.server.start_training(packed_name(PHANTOM, "segmentation"), max_epochs=1)
    said = error_of_training(served)
    assert said.startswith(f"error: {models}: a folder that cannot be written (Permission denied)"), said
    assert_it_serves(served)


def refused(served: Served, task: str, case: str) -> str:
    """The message in the answer."""
    answer = served.server.ask_infer(packed_name(task, "segmentation"), case)
    assert answer.status_code == 422, answer.text
    return answer.json()["detail"]


def error_of_training(served: Served) -> str:
    """The last line of a training that ends with an error."""
    ended = served.server.finished_training()
    assert ended["status"] == "ERROR", ended["details"]
    return ended["details"][-1]


def given_volume(served: Served) -> str:
    served.server.upload("good", served.volume(PHANTOM))
    return "good"


def submit(served: Served, folder: Path) -> None:
    case = given_volume(served)
    label = corrected_label(served.volume(PHANTOM), folder / f"{case}.nii.gz")
    served.server.submit_label(case, label, NAMES[PHANTOM])


def assert_it_serves(served: Served, task: str = PHANTOM) -> None:
    label_map, _ = served.server.infer(packed_name(task, "segmentation"), given_volume(served))
    assert label_map.shape == nib.load(served.volume(PHANTOM)).shape
