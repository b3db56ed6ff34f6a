"""A packed bundle in a real MONAI Deploy application: a series in, a DICOM Segmentation out.

Opt-in (``make test-monai-deploy``): it needs the environment of requirements-monai-deploy.txt.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bundle.pack import pack_bundle
from conftest import ROOT, Finished, ellipsoid
from dicom_series import FORMATS, TASK, labels_by_slice, retag, tiny_bundle, write_series
from scripts.inference.predictor import Predictor
from scripts.lab.prepare.dicom_folders import read_series

ENVIRONMENT = ROOT / ".venv-monai-deploy"
LIBRARIES = ENVIRONMENT / "lib" / "python3.11" / "site-packages" / "nvidia" / "cu13" / "lib"
SAMPLES = {"uncompressed": "chaos_ct_dicom/DICOM_anon", "JPEG 2000": "small_ct_mr/example_ct_dicom"}

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.slow,
    pytest.mark.skipif(not ENVIRONMENT.is_dir(), reason="no .venv-monai-deploy: make test-monai-deploy makes it"),
    pytest.mark.skipif(find_spec("pydicom") is None, reason="no pydicom: pip install -r requirements-dicom.txt"),
]
needs_samples = pytest.mark.skipif(not FORMATS.is_dir(), reason="no samples of public releases beside the checkout")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("deploy"))


def run_app(bundle: Path, study: Path, work: Path, rules: dict | None = None) -> Finished:
    """Run the app as a person would: copied somewhere, from there, with what the SDK's command line has."""
    (work / "app").mkdir()
    (work / "out").mkdir()
    app = shutil.copy(ROOT / "bundle" / "deploy_app.py", work / "app" / "app.py")
    if rules is not None:
        (work / "app" / "selection_rules.json").write_text(json.dumps(rules))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [ENVIRONMENT / "bin" / "python", app, "--input", study, "--output", work / "out", "--model", bundle],
        cwd=work / "app",
        env=environment | {"OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": str(LIBRARIES), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def assert_it_is_the_bundles_answer(bundle: Path, folder: Path, out: Path) -> None:
    (written,) = out.iterdir()
    series = read_series(folder)
    expected = Predictor(bundle, device="cpu")(series.image, series.affine)
    assert len(np.unique(expected)) > 1
    found = labels_by_slice(written, folder)
    for index, file in enumerate(series.order):
        np.testing.assert_array_equal(found[series.files[file].name], expected[..., index].T)


@needs_samples
@pytest.mark.parametrize("kind", SAMPLES)
def test_a_real_series_comes_back_as_a_segmentation(bundle: Path, kind: str, tmp_path: Path) -> None:
    study = FORMATS / SAMPLES[kind]
    if kind == "JPEG 2000":  # the SDK's loader takes no slice without UIDs (see below) and no series without number
        study = Path(shutil.copytree(study, tmp_path / "study"))
        uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.1", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}
        retag(study, **uids, SeriesNumber=1)
    done = run_app(bundle, study, tmp_path)
    assert done.code == 0, done.stderr[-3000:]
    assert_it_is_the_bundles_answer(bundle, study, tmp_path / "out")


@needs_samples
def test_a_series_without_uids_ends_with_one_message(bundle: Path, tmp_path: Path) -> None:
    done = run_app(bundle, FORMATS / SAMPLES["JPEG 2000"], tmp_path)
    assert done.code == 1
    assert "0 series to segment. Expected one, with UIDs of its study" in done.errors[-1]
    assert list((tmp_path / "out").iterdir()) == []


def body(shape: tuple[int, int, int]) -> np.ndarray:
    """Soft tissue with some grain, in air: (columns, rows, slices) in HU."""
    inside = ellipsoid(shape, (0.5, 0.5, 0.5), (0.4, 0.4, 5.0))
    return np.where(inside, np.random.default_rng(0).integers(20, 90, shape), -1000)


def study_of_two(folder: Path) -> Path:
    volume = body((40, 48, 4))
    for number in (1, 2):
        write_series(folder / f"series{number}", volume[..., ::number], series=number)
    return folder


def test_of_two_series_the_rules_choose_one(bundle: Path, tmp_path: Path) -> None:
    study = study_of_two(tmp_path / "study")
    rules = {"selections": [{"name": "second", "conditions": {"SeriesDescription": "number 2"}}]}
    done = run_app(bundle.parent, study, tmp_path, rules)  # the folder of the bundle, as a packaged application has it
    assert done.code == 0, done.stderr[-3000:]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["1.2.3.2_seg.dcm"]


def test_unusable_input_ends_with_one_message(bundle: Path, tmp_path: Path) -> None:
    study = study_of_two(tmp_path / "study")
    (tmp_path / "empty").mkdir()
    gap = write_series(tmp_path / "gap", body((40, 48, 6)))
    (gap / "4.dcm").unlink()  # the third of six
    without_weights = pack_bundle("segmentation", task=TASK, out=tmp_path / "dist").folder
    for name, served, folder, message in [
        ("two", bundle, study, "2 series to segment: 1.2.3."),
        ("none", bundle, tmp_path / "empty", "0 series to segment. Expected one"),
        ("gap", bundle, gap, "slices 6.00 mm apart"),
        ("weights", without_weights, study / "series1", "model.pt: no such file"),
    ]:
        work = tmp_path / "runs" / name
        work.mkdir(parents=True)
        done = run_app(served, folder, work)
        assert (done.code, message in done.errors[-1]) == (1, True), done.stderr[-2000:]
        assert list((work / "out").iterdir()) == []
