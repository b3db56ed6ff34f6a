"""Packed bundles alone: the zoo's checks, training, inference and evaluation, each in a process started in ``/``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle.pack import BUNDLES, ROOT, pack_bundle

pytestmark = pytest.mark.slow

TASK = "phantom_mr2ct"
SHAPE = (40, 44, 5)
AFFINE = np.diag([-5.0, 5.0, 6.0, 1.0])
"""Left-to-right axis reversed against RAS, so that a forgotten inversion shows."""

SMALL = {
    "synthesis": ["--generator_channels", "4", "--generator_blocks", "1", "--discriminator_channels", "4"],
    "segmentation": [
        *["--network_def#layers", "[1,1,1,1]", "--network_def#width", "8", "--network_def#feature_channels", "8"],
        *["--network_def#atrous_rates", "[1,2]", "--d2_def#channels", "4"],
    ],
}
SHORT = ["--max_epochs", "1", "--iterations_per_epoch", "2", "--batch_size", "2", "--device", "cpu"]


@dataclass(frozen=True)
class Pipeline:
    """Results of the pipeline: data, one folder per run, one packed bundle with weights per name."""

    data: Path
    runs: dict[str, Path]
    bundles: dict[str, Path]


def start_in_root(*command: str, pythonpath: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a Python command in ``/``, with nothing of the project on its path."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "COVERAGE"))
    }
    environment |= {"MONAI_FAIL_ON_DUPLICATE_CONFIG": "1", "OMP_NUM_THREADS": "1"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = str(pythonpath)
    done = subprocess.run(
        [sys.executable, *command], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done


def run_bundle(bundle: Path, run_id: str, config: str, *settings: str) -> None:
    start_in_root("-m", "monai.bundle", "run", run_id, "--config_file", str(bundle / "configs" / config), *settings)


def write_volume(path: Path, seed: int, *, is_ct: bool) -> dict[str, str]:
    """Image and label of a body with four cuboids with the label values of MM-WHS."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.int16)
    for index, value in enumerate([205, 420, 500, 820]):
        label[10 + 5 * index : 14 + 5 * index, 15:25, 1:4] = value
    body = np.zeros(SHAPE, bool)
    body[4:36, 4:40] = True
    image = (
        np.where(body, 20.0, -1000.0) + label / 4
        if is_ct
        else np.where(body, 200.0, 5.0) + (1000 - label) / 5 * (label > 0)
    )
    image += rng.normal(0, 5, SHAPE)
    entry = {"image": f"{path.name}_image.nii.gz", "label": f"{path.name}_label.nii.gz"}
    for kind, voxels in [("image", image.astype(np.int16)), ("label", label)]:
        nib.save(nib.Nifti1Image(voxels, AFFINE), path.with_name(entry[kind]))
    return entry


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases of each modality, the last for validation, with their datalists."""
    folder = tmp_path_factory.mktemp("data")
    for modality in ["mr", "ct"]:
        cases = [write_volume(folder / f"{modality}_{index}", index, is_ct=modality == "ct") for index in range(3)]
        lists = {"name": modality, "modality": modality, "labels": {}, "training": cases[:2], "validation": cases[2:]}
        (folder / f"{modality}.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def pipeline(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """Pack, train two iterations, pack with the weights; first synthesis, then segmentation on its output."""
    work = tmp_path_factory.mktemp("pipeline")
    runs = {name: work / "runs" / name for name in BUNDLES}
    bundles = {}
    for name in BUNDLES:
        empty = pack_bundle(name, task=TASK, out=work / "empty").folder
        settings = ["--bundle_root", str(runs[name]), "--dataset_dir", str(data), *SHORT, *SMALL[name]]
        if name == "segmentation":
            settings += ["--labelled_datalist", str(runs["synthesis"] / "translated" / "datalist.json")]
        run_bundle(empty, "training", "train.json", *settings)
        weights = runs[name] / "models" / "model.pt"
        bundles[name] = pack_bundle(name, task=TASK, out=work / "dist", weights=weights).folder
        if name == "synthesis":
            places = _places(data, runs[name] / "translated")
            run_bundle(bundles[name], "inference", "inference.json", "--bundle_root", str(bundles[name]), *places)
    return Pipeline(data, runs, bundles)


def _places(data: Path, output: Path) -> list[str]:
    return ["--dataset_dir", str(data), "--output_dir", str(output), "--device", "cpu"]


def test_synthesis_renders_every_labelled_volume_on_its_own_grid(pipeline: Pipeline) -> None:
    folder = pipeline.runs["synthesis"] / "translated"
    listed = json.loads((folder / "datalist.json").read_text())
    assert [len(listed[section]) for section in ["training", "validation"]] == [2, 1]
    for entry in [*listed["training"], *listed["validation"]]:
        image, label = nib.load(folder / entry["image"]), nib.load(folder / entry["label"])
        assert image.shape == label.shape == SHAPE
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)


def test_segmentation_writes_label_maps_on_the_volumes_own_grid(pipeline: Pipeline, tmp_path: Path) -> None:
    bundle = pipeline.bundles["segmentation"]
    volume = pipeline.data / "ct_2_image.nii.gz"
    run_bundle(bundle, "inference", "inference.json", "--bundle_root", str(bundle), *_places(volume, tmp_path))
    (written,) = tmp_path.glob("*_seg.nii.gz")
    prediction = nib.load(written)
    assert prediction.shape == SHAPE
    np.testing.assert_allclose(prediction.affine, AFFINE, atol=1e-5)
    assert set(np.unique(np.asarray(prediction.dataobj))) <= set(range(5))


def test_segmentation_is_evaluated(pipeline: Pipeline, tmp_path: Path) -> None:
    bundle = pipeline.bundles["segmentation"]
    run_bundle(bundle, "evaluating", "evaluate.json", "--bundle_root", str(bundle), *_places(pipeline.data, tmp_path))
    assert (tmp_path / "metrics.csv").is_file()
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize("name", BUNDLES)
def test_the_zoos_checks_pass(pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    bundle = pipeline.bundles[name]
    meta, config = str(bundle / "configs" / "metadata.json"), str(bundle / "configs" / "inference.json")
    schema = str(ROOT / "tests" / "meta_schema.json")
    start_in_root("-m", "monai.bundle", "verify_metadata", "--meta_file", meta, "--filepath", schema)
    network = ["--net_id", "network_def", "--meta_file", meta, "--config_file", config]
    # These two never put the bundle on Python's path.
    start_in_root("-m", "monai.bundle", "verify_net_in_out", *network, "--device", "cpu", pythonpath=bundle)
    exported = tmp_path / "model.ts"
    weights = ["--filepath", str(exported), "--ckpt_file", str(bundle / "models" / "model.pt")]
    start_in_root("-m", "monai.bundle", "ckpt_export", *network, *weights, pythonpath=bundle)
    assert exported.stat().st_size > 0


LOAD_AS_MONAI_LABEL_DOES = """
import sys, torch
from pathlib import Path
from monai.bundle import ConfigParser

for bundle in map(Path, sys.argv[1:]):
    sys.path.insert(0, str(bundle))
    for module in [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]:
        del sys.modules[module]
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    for part in ["preprocessing", "postprocessing", "inferer"]:
        parser.get_parsed_content(part)
    loaded = [Path(module.__file__) for name, module in sys.modules.items() if name.startswith("scripts")]
    assert loaded and all(file.is_relative_to(bundle) for file in loaded), loaded
    sys.path.remove(str(bundle))
    print("loaded", bundle.name)
"""


def test_both_load_in_one_process_each_with_its_own_code(pipeline: Pipeline) -> None:
    done = start_in_root("-c", LOAD_AS_MONAI_LABEL_DOES, *map(str, pipeline.bundles.values()))
    assert [line for line in done.stdout.splitlines() if line.startswith("loaded")] == [
        f"loaded {bundle.name}" for bundle in pipeline.bundles.values()
    ]


@pytest.mark.parametrize("name", BUNDLES)
def test_nothing_in_a_bundle_points_outside_it(tmp_path: Path, name: str) -> None:
    bundle = pack_bundle(name, task=TASK, out=tmp_path).folder
    assert not [path for path in bundle.rglob("*") if path.is_symlink() or path.name in {"__pycache__", "tests"}]
    texts = [path.read_text() for path in bundle.rglob("*") if path.suffix in {".py", ".yaml", ".json", ".conf", ".md"}]
    assert not [text for text in texts if str(ROOT) in text]
