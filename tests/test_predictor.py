"""A packed bundle from Python: the how-to page and the notebook run and equal inference."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle.pack import BUNDLES, pack_bundle
from conftest import ROOT, TASK, refused, run_config
from scripts.inference.predictor import Predictor

pytestmark = pytest.mark.slow

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def bundles(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both bundles, packed with weights of tiny networks, in a ``dist`` of their own."""
    dist = tmp_path_factory.mktemp("python") / "dist"
    weights = {name: trained / name / "models" / "model.pt" for name in BUNDLES}
    return {name: pack_bundle(name, task=TASK, out=dist, weights=weights[name]).folder for name in BUNDLES}


@pytest.mark.parametrize("name", BUNDLES)
def test_an_array_gives_what_inference_writes(
    bundles: dict[str, Path], trained: Path, data: Path, tmp_path: Path, name: str
) -> None:
    where = data / "ct.json" if name == "segmentation" else data
    run_config("inference", name, "inference", bundle_root=trained / name, dataset_dir=where, output_dir=tmp_path)
    postfix, case = {"segmentation": ("seg", "ct_2"), "synthesis": ("translated", "mr_2")}[name]
    image = nib.load(data / f"{case}_image.nii.gz")
    predict = Predictor(bundles[name], device="cpu", precision="float32")
    found = predict(image.get_fdata(), image.affine)
    written = nib.load(tmp_path / f"{case}_image_{postfix}.nii.gz")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.asarray(written.dataobj))
    assert predict.label_names[:2] == ["background", "myocardium"]


def test_values_that_do_not_fit_16_bits_are_not_wrapped(bundles: dict[str, Path], data: Path) -> None:
    """In 16 bits 40000 is -25536 and 70000 is 4464."""
    image = nib.load(data / "ct_2_image.nii.gz")
    values = [40000, 70000, 300, 2**24 - 1]
    settings = {"device": "cpu", "precision": "float32"}
    ids, found = (
        Predictor(bundles["segmentation"], **settings, **more)(image.get_fdata(), image.affine)
        for more in ({}, {"label_values": values, "write_file_values": True})
    )
    assert ids.any()
    np.testing.assert_array_equal(found, np.array([0, *values])[ids])


def test_slices_that_are_cropped_do_not_move_the_result(
    bundles: dict[str, Path], trained: Path, data: Path, tmp_path: Path
) -> None:
    """The first three slices are blank, so that preprocessing drops them."""
    image = nib.load(data / "ct_2_image.nii.gz")
    voxels = image.get_fdata(dtype=np.float32)
    voxels[..., :3] = -1000
    nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "blank.nii.gz")
    place = tmp_path / "out"
    where = {"bundle_root": trained / "segmentation", "dataset_dir": tmp_path / "blank.nii.gz", "output_dir": place}
    run_config("inference", "segmentation", "inference", **where)
    found = Predictor(bundles["segmentation"], device="cpu", precision="float32")(voxels, image.affine)
    np.testing.assert_array_equal(found, np.asarray(nib.load(place / "blank_seg.nii.gz").dataobj))
    assert not found[..., :3].any()
    assert found[..., 3:].any()


def run_in(folder: Path, code: str) -> str:
    """Run Python code in a process of its own, as an interpreter started in ``folder`` does."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_example_of_the_page(bundles: dict[str, Path], data: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= 10
    shutil.copytree(bundles["segmentation"].parent, tmp_path / "dist")
    volume = tmp_path / "data" / "phantom" / "ct_train" / "ct_train_1002_image.nii.gz"
    volume.parent.mkdir(parents=True)
    shutil.copy(data / "ct_2_image.nii.gz", volume)
    assert run_in(tmp_path, code).startswith("(36, 40, 7) ['background', 'myocardium'")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(bundles: dict[str, Path], tmp_path: Path, notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert not [line for cell in cells for line in cell.splitlines() if line.startswith(("%", "!"))]
    shutil.copytree(bundles["segmentation"].parent, tmp_path / "dist")
    folder = tmp_path / notebook.parent.relative_to(ROOT)
    folder.mkdir(parents=True)
    shown = run_in(folder, "\n\n".join(cells))
    assert re.search(r"^left ventricle +\d+\.\d ml$", shown, re.MULTILINE)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


def test_a_notebooks_links_lead_somewhere() -> None:
    for notebook in NOTEBOOKS:
        text = "".join(line for cell in json.loads(notebook.read_text())["cells"] for line in cell["source"])
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert (notebook.parent / target).exists(), target


def test_refused_inputs(bundles: dict[str, Path], tmp_path: Path) -> None:
    assert refused(Predictor, tmp_path).expected == "a packed bundle's config"
    assert (
        "'largest_component', perhaps" in refused(Predictor, bundles["segmentation"], largest_komponent=True).expected
    )
    empty = pack_bundle("segmentation", task=TASK, out=tmp_path).folder
    assert refused(Predictor, empty).found == "no such file"
    other = Path(shutil.copytree(bundles["segmentation"], tmp_path / "other"))
    metadata = json.loads((other / "models" / "model.json").read_text())
    (other / "models" / "model.json").write_text(json.dumps(metadata | {"dataset_name": "abdomen"}))
    assert refused(Predictor, other).found == "weights made with dataset_name: abdomen"
    shutil.copy(bundles["segmentation"] / "models" / "model.json", other / "models")
    weights = other / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value + 1 for name, value in state.items()}, weights)  # weights alone, the metadata stay
    assert refused(Predictor, other).found == "weights other than those that model.json describes"
    predict = Predictor(bundles["segmentation"], device="cpu")
    assert refused(predict, np.zeros((4, 4)), np.eye(4)).found == "2 dimensions (4, 4)"
    assert refused(predict, np.zeros((4, 4, 4)), np.eye(4)).found == "one value everywhere (0)"
    volume = np.arange(64.0).reshape(4, 4, 4)
    assert refused(predict, volume, np.diag([1, np.nan, 1, 1])).found == "NaN or infinite values in the affine"
    assert refused(predict, volume, np.diag([1, 0, 1, 1])).found == "voxels of 1 x 0 x 1 mm"
    assert refused(predict, volume, np.eye(3)).found == "an affine of shape (3, 3)"
