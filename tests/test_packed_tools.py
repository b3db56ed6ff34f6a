"""Packed bundles in the programs that read MONAI bundles: the loader, workflows, the zoo's test, the federated client.

Each works on the packed folder alone, in a process whose path does not contain this project.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from bundle.pack import BUNDLES, ROOT, pack_bundle
from conftest import SMALL, TASK, write_weights

pytestmark = pytest.mark.slow

MOST_FILES = {"synthesis": 55, "segmentation": 75}
MOST_LINES = 8500
every_bundle = pytest.mark.parametrize("name", BUNDLES)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both bundles, packed with random weights of tiny networks."""
    work = tmp_path_factory.mktemp("packed")
    weights = {name: write_weights(TASK, work / name, stage=name) for name in BUNDLES}
    return {name: pack_bundle(name, task=TASK, out=work / "models", weights=weights[name]).folder for name in BUNDLES}


def run_python(code: str, *arguments: str | Path, bundle: Path, cwd: Path | None = None) -> str:
    """Run code with the packed folder as the first place for imports, and this project not among them."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_"))}
    environment |= {"PYTHONPATH": str(bundle), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd or bundle,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def segmented_shape(printed: str) -> tuple[int, ...]:
    """What the programs of these tests print once the label map equals the predictor's."""
    (line,) = [line for line in printed.splitlines() if line.startswith("segmented:")]
    return tuple(map(int, line.split()[1:]))


@every_bundle
def test_a_packed_bundle_is_small(bundles: dict[str, Path], name: str) -> None:
    files = list((bundles[name] / "scripts").rglob("*.py"))
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert len(files) <= MOST_FILES[name]
    assert lines <= MOST_LINES
    assert not (bundles[name] / "scripts" / "lab").exists()


IMPORT_ALL = """
import importlib, sys
from pathlib import Path

bundle = Path.cwd()
for file in sorted((bundle / "scripts").rglob("*.py")):
    place = file.relative_to(bundle).with_suffix("")
    module = importlib.import_module(".".join(place.parts).removesuffix(".__init__"))
    assert Path(module.__file__).is_relative_to(bundle), module.__file__
    print(module.__name__)
"""


@every_bundle
def test_every_packed_module_can_be_imported(bundles: dict[str, Path], name: str) -> None:
    imported = run_python(IMPORT_ALL, bundle=bundles[name]).split()
    assert len(imported) == len(list((bundles[name] / "scripts").rglob("*.py")))


LOAD = """
import sys, torch, monai.bundle
from pathlib import Path

bundle = Path.cwd()
for workflow_type in ("train", "inference"):
    network = monai.bundle.load(name=bundle.name, bundle_dir=bundle.parent, workflow_type=workflow_type, device="cpu")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert isinstance(network, torch.nn.Module), type(network)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    print("loaded for:", workflow_type)
"""

PROPERTIES = """
import sys
from pathlib import Path
from monai.bundle import create_workflow

configs, data = Path.cwd() / "configs", sys.argv[1]
for role, kind in (("train", "train"), ("inference", "infer"), ("evaluate", "infer")):
    if (configs / f"{role}.json").is_file():
        settings = {"dataset_dir": data, "device": "cpu"}
        if role == "train" and "segmentation" in Path.cwd().name:
            settings |= {"labelled_datalist": data + "/mr.json", "translator": "none"}
        workflow = create_workflow(config_file=str(configs / f"{role}.json"), workflow_type=kind, **settings)
        assert workflow.check_properties() == [], role
        assert workflow.network_def is not None
        print("has all properties:", role)
"""


@every_bundle
def test_monai_loads_the_network_with_its_weights(bundles: dict[str, Path], name: str) -> None:
    printed = run_python(LOAD, bundle=bundles[name])
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("loaded for:")] == [
        "train",
        "inference",
    ]


@every_bundle
def test_a_workflow_has_every_property(bundles: dict[str, Path], data: Path, name: str) -> None:
    printed = run_python(PROPERTIES, data, bundle=bundles[name])
    roles = ["train", "inference", *(["evaluate"] if name == "segmentation" else [])]
    assert [line.split()[-1] for line in printed.splitlines() if line.startswith("has all properties")] == roles


@every_bundle
def test_the_zoos_unit_test_passes(bundles: dict[str, Path], tmp_path: Path, name: str) -> None:
    """In a folder laid out as the zoo's repository, with its ``models`` and ``ci/unit_tests``."""
    bundle = tmp_path / "models" / bundles[name].name
    shutil.copytree(bundles[name], bundle)
    test = tmp_path / "ci" / "unit_tests" / f"test_{bundle.name}.py"
    test.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "bundle" / "zoo_unit_test.py", test)
    code = "import runpy, sys; sys.stderr = sys.stdout; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    printed = run_python(code, test, bundle=bundle, cwd=tmp_path)
    assert re.search(r"^Ran [1-9]\d* tests? in .*\n\nOK$", printed.strip(), re.MULTILINE), printed


FEDERATED = """
import sys, torch
from pathlib import Path
from monai.bundle import ConfigWorkflow
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics
from monai.fl.utils.exchange_object import ExchangeObject

bundle, data = Path.cwd(), sys.argv[1]
who = {ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: sys.argv[2]}
settings = {"dataset_dir": data, "device": "cpu", "output_dir": sys.argv[2] + "/eval"}
weights = torch.load(bundle / "models" / "model.pt", weights_only=True)

evaluation = MonaiAlgo(
    str(bundle), config_train_filename=None, config_evaluate_filename="configs/evaluate.json", eval_kwargs=settings,
    eval_workflow_name="evaluation",
)
evaluation.initialize(who)
found = evaluation.evaluate(ExchangeObject(weights=weights))
assert "dice_percent" in found.metrics, found.metrics

settings |= {"labelled_datalist": data + "/mr.json", "translator": "none"}
del settings["output_dir"]
train = str(bundle / "configs" / "train.json")
statistics = MonaiAlgoStats(str(bundle), workflow=ConfigWorkflow(train, workflow_type="train", **settings))
statistics.initialize(who)
stats = statistics.get_data_stats({FlStatistics.HIST_BINS: 10, FlStatistics.HIST_RANGE: [-500, 500]})
assert stats.statistics["train"]["data_count"] == 2, stats.statistics

try:
    MonaiAlgo(str(bundle), train_kwargs=settings, config_evaluate_filename=None).initialize(who)
except ValueError as error:
    print(error)
"""


def test_the_federated_client_evaluates_and_counts_but_does_not_train(
    bundles: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    printed = run_python(FEDERATED, data, tmp_path, bundle=bundles["segmentation"])
    assert "trainer must be SupervisedTrainer" in printed
    page = (bundles["segmentation"] / "docs" / "README.md").read_text()
    assert "Federated training is not supported" in " ".join(page.split())


DEPLOY = """
import sys
from pathlib import Path
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scripts.inference.predictor import Predictor

bundle = Path.cwd()
parser = ConfigParser()
parser.read_config(str(bundle / "configs" / "inference.json"))
parser.read_meta(str(bundle / "configs" / "metadata.json"))
for name in ("preprocessing", "postprocessing"):
    compose = parser.get_parsed_content(name)
    kept = [t for t in compose.transforms if not any(word in type(t).__name__ for word in ("LoadImage", "SaveImage"))]
    assert len(kept) < len(compose.transforms), name
    assert isinstance(kept[0], MapTransform), type(kept[0])
    compose.transforms = tuple(kept)
network = parser.get_parsed_content("network_def").eval()
network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))

volume = nib.load(sys.argv[1])
voxels, affine = np.asarray(volume.dataobj).astype(np.float32), volume.affine
(key,) = parser["_meta_"]["network_data_format"]["inputs"]
meta = {"original_channel_dim": "no_channel", "affine": affine, "original_affine": affine}
inputs = parser.get_parsed_content("preprocessing")({key: MetaTensor(torch.from_numpy(voxels), meta=meta)})
with torch.no_grad():
    output = parser.get_parsed_content("inferer")(inputs=inputs[key][None], network=network)
found = parser.get_parsed_content("postprocessing")({"pred": output[0], **inputs})["pred"]
assert np.array_equal(np.asarray(found)[0], Predictor(bundle, device="cpu")(voxels, affine))
print("segmented:", *found[0].shape)
"""


def test_monai_deploys_standard_operator_can_run_the_bundle(bundles: dict[str, Path], data: Path) -> None:
    """What ``MonaiBundleInferenceOperator`` does: it drops loading and saving by class name and passes arrays."""
    image = data / "ct_0_image.nii.gz"
    assert segmented_shape(run_python(DEPLOY, image, bundle=bundles["segmentation"])) == nib.load(image).shape


SLICER = """
import shutil, sys
from pathlib import Path
import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from scripts.inference.predictor import Predictor

bundle, work = Path.cwd(), Path(sys.argv[2])
metadata = ConfigParser()
metadata.read_config(bundle / "configs" / "metadata.json")
config = ConfigParser()
config.read_config((bundle / "configs" / "inference.json").as_posix())
config["bundle_root"] = bundle.as_posix()
config["device"] = torch.device("cpu")
(work / "input").mkdir()
(work / "output").mkdir()
shutil.copy(sys.argv[1], work / "input" / "volume.nii.gz")
with torch.no_grad():
    config["dataset_dir"], config["output_dir"] = str(work / "input"), str(work / "output")
    config["datalist"] = [str(file) for file in (work / "input").glob("*.nii*")]
    config["window_device"] = "cpu"
    config["dataloader"]["num_workers"] = 0
    assert len(config.get_parsed_content("dataloader")) == 1
    config.get_parsed_content("evaluator").run()

volume = nib.load(sys.argv[1])
found = np.asarray(nib.load(next((work / "output").rglob("*.nii*"))).dataobj)
assert np.array_equal(found, Predictor(bundle, device="cpu")(np.asarray(volume.dataobj), volume.affine))
names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
assert set(map(str, np.unique(found))) <= names.keys(), names
print("segmented:", *found.shape)
"""


def test_slicers_bundle_module_can_run_the_bundle(bundles: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """The steps of ``MonaiBundleLogic`` of 3D Slicer's extension MonaiBundle, whose module needs Slicer itself."""
    image = data / "ct_0_image.nii.gz"
    assert segmented_shape(run_python(SLICER, image, tmp_path, bundle=bundles["segmentation"])) == nib.load(image).shape


def test_tiny_networks_are_those_of_the_weights(bundles: dict[str, Path]) -> None:
    """The packed configs build what was trained, not the base config's full size."""
    config = (bundles["synthesis"] / "configs" / "inference.json").read_text()
    assert f'"generator_channels": {SMALL["synthesis"]["generator_channels"]}' in config
