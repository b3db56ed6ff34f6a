"""The app's own tasks in the real MONAI Label: options, batches, the next volume, and a PACS.

Opt-in (``make test-deploy``): it needs the environment of requirements-deploy.txt.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from bundle.pack import pack_bundle, packed_name
from conftest import ROOT, write_volume, write_weights
from dicom_series import write_series
from label_server import ANSWER_SECONDS, ENVIRONMENT, LabelServer, wait_until
from pacs import Pacs
from scipy import ndimage
from test_bad_input import replace_volume

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="no .venv-deploy: make test-deploy makes it"),
]

TASK = "abdomen_ct2mr"
MODEL = packed_name(TASK, "segmentation")
CODES = {"liver": "10200004", "right kidney": "64033007", "left kidney": "64033007", "spleen": "78961009"}


def app_folder(work: Path) -> Path:
    """The app with a bundle for MR, whose random weights give one structure in several pieces."""
    weights = write_weights(TASK, work / "weights", seed=4)
    pack_bundle("segmentation", task=TASK, out=work / "app" / "model", weights=weights)
    return work / "app"


def volumes() -> dict[str, np.ndarray]:
    """Two cubes, and stripes, in noise."""
    cubes = np.random.default_rng(0).normal(100, 5, (64, 64, 6)).astype(np.float32)
    stripes = cubes.copy()
    cubes[5:20, 5:20] += 800
    cubes[40:60, 40:60] += 800
    stripes[(np.arange(64) // 10) % 2 == 0] += 700
    return {"a": cubes, "b": cubes, "c": stripes}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """A server with three volumes, of which the second is no NIfTI."""
    work = tmp_path_factory.mktemp("tasks")
    one = LabelServer(app_folder(work))
    try:
        one.wait()
        for case, voxels in volumes().items():
            volume = write_volume(work / f"{case}.nii.gz", voxels, np.diag([3.0, 3.0, 8.0, 1.0]))
            if case == "b":
                replace_volume(volume, "text")
            one.upload(case, volume)
        yield one
    finally:
        one.stop()


def components(label: nib.Nifti1Image) -> int:
    """The largest number of components of any structure."""
    voxels = np.asarray(label.dataobj)
    return max(ndimage.label(voxels == number, np.ones((3, 3, 3)))[1] for number in np.unique(voxels) if number)


def test_options_of_the_bundle_reach_the_viewer_and_take_effect(server: LabelServer) -> None:
    shown = server.info()["models"][MODEL]["config"]
    assert (shown["largest_component"], shown["flip_axes"], shown["scales"]) == (False, "[]", "[1.0]")
    plain, said = server.infer(MODEL, "a")
    assert components(plain) > 1
    largest, _ = server.infer(MODEL, "a", largest_component=True)
    assert components(largest) == 1
    averaged, _ = server.infer(MODEL, "a", flip_axes="[0, 1]", scales="[0.9, 1.0]")
    assert (np.asarray(averaged.dataobj) != np.asarray(plain.dataobj)).any()
    again, _ = server.infer(MODEL, "a")  # an option holds for its own request
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(plain.dataobj))
    assert [(entry["name"], entry["idx"]) for entry in said["label_info"]] == list(
        zip(CODES, [1, 2, 3, 4], strict=True)
    )


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"largest_componet": True},
            "option 'largest_componet': not an option of this model. Expected one of flip_axes",
        ),
        ({"scales": "[0.0]"}, "setting 'scales': [0.0]. Expected a list of numbers above 0"),
        ({"flip_axes": "left"}, "setting 'flip_axes': 'left'. Expected a list of 0 and 1"),
        ({"largest_component": "$__import__('os').abort()"}, "Expected a plain value"),
        ({"device": "$__import__('os').abort()"}, "Expected a plain value"),
    ],
)
def test_a_wrong_option_is_named(server: LabelServer, changed: dict, sentence: str) -> None:
    answer = server.ask_infer(MODEL, "a", **changed)
    assert (answer.status_code, sentence in answer.json()["detail"]) == (422, True), answer.text


def test_a_refused_volume_does_not_end_a_batch_and_the_least_certain_volume_comes_first(server: LabelServer) -> None:
    started = server.ask("POST", f"/batch/infer/{MODEL}", json={})
    assert started.ok, started.text
    assert wait_until(lambda: server.batch()["status"] not in {"SUBMITTED", "RUNNING"}, ANSWER_SECONDS)
    assert server.batch()["status"] == "DONE", server.batch()
    log = "\n".join(server.batch()["details"]) + (server.folder / "logs" / "app.log").read_text()
    assert "b: left out of the batch." in log
    query = {"json": {"model": MODEL}}
    chosen = [server.ask("POST", "/activelearning/uncertainty", **query).json() for _ in range(3)]
    # Each once, although none is labelled yet; the one that could not be segmented comes last.
    assert [one["scored"] for one in chosen] == [2, 2, 2]
    assert ({chosen[0]["id"], chosen[1]["id"]}, chosen[2]["id"]) == ({"a", "c"}, "b")
    assert 1 >= chosen[0]["score"] >= chosen[1]["score"] > 0
    assert chosen[2]["score"] is None


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A PACS with a series of MR and one of CT."""
    folder = tmp_path_factory.mktemp("pacs")
    volume = volumes()["a"].astype(np.int16)
    for number, modality in enumerate(["MR", "CT"], 1):
        patient = {"PatientID": "1", "PatientName": "A", "StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1"}
        write_series(folder / modality, volume, series=number, Modality=modality, **patient)
    with Pacs(folder).served() as running:
        yield running


@pytest.fixture(scope="module")
def radiology(pacs: Pacs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelServer]:
    """A server whose store is the PACS."""
    one = LabelServer(app_folder(tmp_path_factory.mktemp("radiology")), pacs.address)
    try:
        one.wait()
        yield one
    finally:
        one.stop()


def test_series_of_the_bundles_modality_are_listed_not_ct(radiology: LabelServer) -> None:
    assert radiology.info()["datastore"]["total"] == 1
    chosen = radiology.ask("POST", "/activelearning/first", json={}).json()
    assert chosen["id"] == "1.2.3.1"  # the series of MR


def test_a_segmentation_saved_by_name_alone_has_each_structures_code_and_colour(
    radiology: LabelServer, pacs: Pacs, tmp_path: Path
) -> None:
    label, _ = radiology.infer(MODEL, "1.2.3.1")
    voxels = np.zeros(label.shape, np.uint8)
    voxels[:5], voxels[8:12] = 1, 3  # liver and left kidney; numbers 2 and 4 do not occur
    nib.save(nib.Nifti1Image(voxels, label.affine), tmp_path / "label.nii.gz")
    radiology.submit_label("1.2.3.1", tmp_path / "label.nii.gz", {name: number for number, name in enumerate(CODES, 1)})
    (stored,) = pacs.stored
    assert stored.Modality == "SEG"
    segments = {segment.SegmentLabel: segment for segment in stored.SegmentSequence}
    assert list(segments) == ["liver", "left kidney"]
    for name, segment in segments.items():
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == CODES[name]
    kidney = segments["left kidney"].SegmentedPropertyTypeCodeSequence[0]
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    # Okabe and Ito's orange #E69F00 has L* 71; 65535 stands for 100.
    assert segments["liver"].RecommendedDisplayCIELabValue[0] == pytest.approx(0.71 * 65535, rel=0.02)
    assert segments["left kidney"].RecommendedDisplayCIELabValue != segments["liver"].RecommendedDisplayCIELabValue
    pacs.stored.clear()


def test_an_inference_may_be_answered_as_a_segmentation(radiology: LabelServer, tmp_path: Path) -> None:
    answer = radiology.ask_infer(MODEL, "1.2.3.1", "dicom_seg", label_info=[{"name": name} for name in CODES])
    assert answer.ok, answer.text
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    read = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {segment.SegmentLabel for segment in read.SegmentSequence} <= CODES.keys()


def test_an_empty_label_map_is_not_stored(radiology: LabelServer, pacs: Pacs, tmp_path: Path) -> None:
    label, _ = radiology.infer(MODEL, "1.2.3.1")
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as content:
        query = {"image": "1.2.3.1", "tag": "final"}
        answer = radiology.ask(
            "PUT", "/datastore/label", params=query, data={"params": "{}"}, files={"label": ("label.nii.gz", content)}
        )
    assert (answer.status_code, "no labelled voxel" in answer.json()["detail"]) == (422, True), answer.text
    assert pacs.stored == []


def test_the_uncertainty_is_the_mean_entropy_of_plausible_voxels() -> None:
    """Three classes: 1/2, 1/4, 1/4 have 1.5 bits of the log2(3) = 1.585 possible; 1, 0, 0 is no plausible structure."""
    lines = [
        "import sys; sys.path.insert(0, 'bundle')",
        "import label_app; label_app._make_torchvision_importable()",
        "import torch; from label_tasks import uncertainty",
        "half, sure = [0.5, 0.25, 0.25], [0.0, 1.0, 0.0]",
        "volume = lambda *voxels: torch.tensor(voxels).T[:, :, None, None]",
        "none = [1.0, 0.0, 0.0]",
        "for voxels in [(half, none), (half, sure), (none,)]: print(uncertainty(volume(*voxels)))",
    ]
    command = [str(ENVIRONMENT / "bin" / "python"), "-c", "\n".join(lines)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [float(value) for value in shown[-3:]] == pytest.approx([0.946395, 0.946395 / 2, 1.0], abs=1e-5)
