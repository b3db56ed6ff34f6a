"""The rules that the MONAI Model Zoo verifies, for both bundles and without exceptions.

The zoo has lists of bundles that are exempt from preferred files, the shape check and TorchScript, among them nearly
every generative bundle. These two bundles need no exemption.

| rule of the zoo | where it is tested |
|---|---|
| ``LICENSE`` and ``configs/metadata.json`` by these names | ``test_the_directory`` |
| ``models/model.pt`` and one ``configs/inference.*`` ("preferred", in fact required) | ``test_the_directory`` |
| files above 25 MB are named in ``large_files.yml`` | ``test_large_weights_are_named_with_their_address`` |
| no other file is so large | ``test_nothing_but_weights_is_large`` |
| ``version`` and ``changelog``; the version is in the changelog | ``test_version_and_changelog`` |
| metadata follow the schema, for every task | ``test_metadata.test_every_task_packs`` |
| MONAI's own ``verify_metadata`` passes | ``test_packed_bundles.test_the_zoos_checks_pass`` |
| ``verify_net_in_out``: one config file, the image alone | ``test_packed_bundles.test_the_zoos_checks_pass`` |
| the same for every task | ``test_network_def_gives_what_the_metadata_declare`` |
| ``ckpt_export`` of ``network_def`` with ``models/model.pt`` | ``test_packed_bundles.test_the_zoos_checks_pass`` |
| the exported file loads and computes the same | ``test_export.test_an_engine_computes_what_pytorch_does`` |
| ``models/model.pt`` is the plain state dict of ``network_def`` | ``test_network_def_loads_the_weights`` |
| requirements are pip names with exact versions for Python 3.10 | ``test_requirements_are_the_pins_of_python_310`` |
| required keys of the configs; ``bundle_root`` is ``.`` | ``test_the_configs_have_the_zoos_keys`` |
| ``check_properties`` of each workflow finds nothing | ``test_the_workflow_has_every_property`` |
| training and inference run from the bundle's folder alone | ``test_packed_bundles.test_segmentation_is_evaluated`` |
| training runs under ``torchrun`` | ``test_multi_gpu.test_two_processes_train_as_one_with_twice_the_batch`` |
| no personal paths | ``test_packed_bundles.test_nothing_in_a_bundle_points_outside_it`` |
| ``docs/README.md`` with the zoo's headings and figures | ``test_the_readme_has_the_zoos_headings`` |
| its commands run | ``test_the_commands_of_the_readme`` |
| the name says task and job | ``test_the_name`` |
| isort, black, flake8 with the zoo's settings | ``test_the_zoos_linters_pass`` |
| the zoo's commit hooks: docstring first, JSON format, ends of lines and files | ``test_the_zoos_commit_hooks_pass`` |
| TensorRT, as far as can be without a GPU | ``test_export.test_tensorrts_settings_are_those_that_monai_knows`` |

Not reproduced: pytype; the zoo's ``model_info.json``, which its own workflow fills after a bundle has
been accepted; an installation of the requirements under Python 3.10.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from bundle.__main__ import main
from bundle.pack import BUNDLES, ROOT, pack_bundle
from bundle.packed_weights import LARGEST_FILE
from conftest import SMALL, SMALL_TRAINING, TASK, config_files, refused
from monai.apps.utils import HashCheckError
from monai.bundle import ConfigParser, ConfigWorkflow, download_large_files
from packaging.requirements import Requirement
from packed_configs import packed_configs, set_packed_values

TASKS = sorted(path.stem for path in (ROOT / "configs" / "tasks").glob("*.yaml"))

HEADINGS = ["Model Overview", "Data", "Training configuration", "Memory Consumption", "Input", "Output", "Performance"]
HEADINGS += ["MONAI Bundle Commands", "Limitations", "References", "License"]
"""Those of the zoo's bundles, in their order."""

INFERENCE_KEYS = ["bundle_root", "device", "network_def", "inferer", "output_dir", "preprocessing", "postprocessing"]
TRAINING_KEYS = ["bundle_root", "device", "dataset_dir", "train#trainer", "train#trainer#max_epochs"]
TRAINING_KEYS += ["train#dataset", "train#dataset#data", "train#handlers", "train#inferer"]

every_bundle = pytest.mark.parametrize("name", BUNDLES)


@dataclass(frozen=True)
class Bundle:
    """A packed bundle with weights of tiny networks."""

    name: str
    folder: Path

    @property
    def metadata(self) -> dict:
        return json.loads((self.folder / "configs" / "metadata.json").read_text())

    def parser(self, config: str = "inference") -> ConfigParser:
        parser = ConfigParser()
        parser.read_config(str(self.folder / "configs" / f"{config}.json"))
        return parser


@pytest.fixture(scope="module", params=BUNDLES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Each bundle, packed with the weights of an untrained network, whose size is in their metadata."""
    name, work = request.param, tmp_path_factory.mktemp("zoo")
    parser = ConfigParser()
    parser.read_config(config_files(name, "inference"))
    parser.update(SMALL[name])
    weights = work / "weights" / "model.pt"
    weights.parent.mkdir()
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    weights.with_suffix(".json").write_text(
        json.dumps({"network": parser.get_parsed_content("weights_metadata")["network"]})
    )
    return Bundle(name, pack_bundle(name, task=TASK, out=work, weights=weights).folder)


def test_the_table_names_tests_that_exist() -> None:
    named = re.findall(r"``(?:(test_\w+)\.)?(test_\w+)`` \|$", __doc__ or "", re.MULTILINE)
    assert len(named) == (__doc__ or "").count("\n| ") - 1, "every rule has its test"
    for module, test in named:
        source = (ROOT / "tests" / f"{module or 'test_zoo_rules'}.py").read_text(encoding="utf-8")
        assert f"def {test}(" in source, test


def test_the_directory(bundle: Bundle) -> None:
    for file in ["LICENSE", "configs/metadata.json", "models/model.pt", "docs/README.md", "scripts/__init__.py"]:
        assert (bundle.folder / file).is_file(), file
    # The zoo takes the last of several, MONAI Label the first: there must be one.
    assert [path.name for path in (bundle.folder / "configs").glob("inference.*")] == ["inference.json"]
    assert not [path for path in (bundle.folder / "models").glob("*.pt") if path.name != "model.pt"]


def test_nothing_but_weights_is_large(bundle: Bundle) -> None:
    large = [path for path in bundle.folder.rglob("*") if path.is_file() and path.stat().st_size > LARGEST_FILE]
    assert [path for path in large if path.parent.name != "models"] == []


def test_large_weights_are_named_with_their_address(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MONAI's own downloader puts them in place again, and refuses others at that address."""
    weights = tmp_path / "host" / "model.pt"
    weights.parent.mkdir()
    shutil.copy(bundle.folder / "models" / "model.pt", weights)
    shutil.copy(bundle.folder / "models" / "model.json", weights.parent)
    monkeypatch.setattr("bundle.pack.LARGEST_FILE", weights.stat().st_size - 1)
    arguments = ["pack", bundle.name, "--task", TASK, "--weights", str(weights), "--out", str(tmp_path)]
    main(arguments)
    assert "too large for the Model Zoo's repository; for the zoo, pack with --weights_url" in capsys.readouterr().out
    main([*arguments, "--weights_url", weights.as_uri()])
    assert "too large" not in capsys.readouterr().out
    packed = tmp_path / bundle.folder.name / "models" / "model.pt"
    packed.unlink()
    download_large_files(bundle_path=str(tmp_path / bundle.folder.name))
    assert packed.read_bytes() == weights.read_bytes()
    packed.unlink()
    weights.write_bytes(b"others")
    with pytest.raises(HashCheckError, match="sha256 hash check of downloaded file failed"):
        download_large_files(bundle_path=str(tmp_path / bundle.folder.name))


def test_an_address_without_weights_is_refused(tmp_path: Path) -> None:
    error = refused(pack_bundle, "synthesis", task=TASK, out=tmp_path, weights_url="https://example.org/model.pt")
    assert (error.file, error.expected) == ("--weights_url", "the weights at this address")


ZOO_SETTINGS = """[flake8]
select = B,C,E,F,N,P,T4,W,B9
max_line_length = 120
ignore = E203,E501,E741,W503,W504,C408,N812,B023
per_file_ignores = __init__.py: F401, __main__.py: F401

[isort]
known_first_party = models
profile = black
line_length = 120
"""
"""The zoo's ``setup.cfg``; its black runs with a line length of 120 and without magic trailing commas."""

LINTERS = [
    ["isort", "--check", "--settings-path", "setup.cfg", "models"],
    ["black", "--check", "--quiet", "--line-length=120", "--skip-magic-trailing-comma", "models"],
    ["flake8", "--config", "setup.cfg", "models"],
]


@pytest.mark.slow
def test_the_zoos_linters_pass(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text(ZOO_SETTINGS)
    shutil.copytree(bundle.folder / "scripts", tmp_path / "models" / bundle.folder.name / "scripts")
    for command in LINTERS:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"


COMMIT_HOOKS = [
    ("check_docstring_first", "*.py", []),
    ("pretty_format_json", "*.json", ["--no-sort-keys", "--indent=4"]),
    ("end_of_file_fixer", "*.[jpmy]*", []),
    ("trailing_whitespace_fixer", "*.[jpmy]*", []),
]


@pytest.mark.parametrize(("hook", "pattern", "options"), COMMIT_HOOKS)
def test_the_zoos_commit_hooks_pass(
    bundle: Bundle, tmp_path: Path, hook: str, pattern: str, options: list[str]
) -> None:
    """Run on a copy, as the hooks rewrite files in place."""
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    binary = (".pt", ".png", ".pyc")
    files = [str(file) for file in (tmp_path / "bundle").rglob(pattern) if file.suffix not in binary and file.is_file()]
    assert files
    command = [sys.executable, "-m", f"pre_commit_hooks.{hook}", *options, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_version_and_changelog(bundle: Bundle) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", bundle.metadata["version"])
    assert bundle.metadata["version"] in bundle.metadata["changelog"]


def test_the_name(bundle: Bundle) -> None:
    assert re.fullmatch(rf"[a-z0-9]+(_[a-z0-9]+)*_{bundle.name}", bundle.folder.name)


@pytest.mark.parametrize("task", TASKS)
@every_bundle
def test_network_def_gives_what_the_metadata_declare(tmp_path: Path, name: str, task: str) -> None:
    """``verify_net_in_out`` for every task, with the true network but for its width."""
    folder = pack_bundle(name, task=task, out=tmp_path).folder
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.update({key: value for key, value in SMALL[name].items() if key not in ("slice_size", "spacing_mm")})
    ports = json.loads((folder / "configs" / "metadata.json").read_text())["network_data_format"]
    image, pred = ports["inputs"]["image"], ports["outputs"]["pred"]
    assert list(ports["inputs"]) == ["image"]
    assert list(ports["outputs"]) == ["pred"]
    with torch.inference_mode():
        slices = torch.rand(1, image["num_channels"], *image["spatial_shape"])
        output = parser.get_parsed_content("network_def").eval()(slices)
    assert isinstance(output, torch.Tensor)
    assert list(output.shape) == [1, pred["num_channels"], *pred["spatial_shape"]]
    assert str(output.dtype) == f"torch.{pred['dtype']}"
    assert len(pred["channel_def"]) == pred["num_channels"]


def test_network_def_loads_the_weights(bundle: Bundle) -> None:
    state = torch.load(bundle.folder / "models" / "model.pt", weights_only=True)
    missing, unexpected = bundle.parser().get_parsed_content("network_def").load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], [])


def test_requirements_are_the_pins_of_python_310(bundle: Bundle) -> None:
    """The zoo installs ``name==version`` of each on Python 3.10."""
    metadata = bundle.metadata
    assert "optional_packages_version" not in metadata, "its old name, which verify_metadata refuses"
    lines = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1] not in "#"]
    zoo = {"python_version": "3.10"}
    pins = {one.name: str(one.specifier)[2:] for one in lines if one.marker is None or one.marker.evaluate(zoo)}
    versions = {"monai": metadata["monai_version"], "torch": metadata["pytorch_version"]}
    versions["numpy"] = metadata["numpy_version"]
    assert metadata["required_packages_version"] | versions == {key: pins[key] for key in pins if key != "Jinja2"}


def test_the_configs_have_the_zoos_keys(bundle: Bundle) -> None:
    for config, keys in [("inference", INFERENCE_KEYS), ("train", TRAINING_KEYS)]:
        parser = bundle.parser(config)
        assert [key for key in keys if key not in parser] == [], config
        assert parser["bundle_root"] == "."
    if bundle.name == "segmentation":
        training = bundle.parser("train")
        keys = ["validate#evaluator", "validate#handlers", "validate#dataset", "validate#dataset#data", "val_interval"]
        assert [key for key in keys if key not in training] == []


@pytest.mark.parametrize(("config", "kind"), [("train", "train"), ("inference", "infer"), ("evaluate", "infer")])
def test_the_workflow_has_every_property(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch, config: str, kind: str
) -> None:
    file = bundle.folder / "configs" / f"{config}.json"
    if not file.is_file():
        pytest.skip(f"{bundle.name} has no {config}.json")
    monkeypatch.chdir(bundle.folder)
    settings = {"dataset_dir": str(data), "device": "cpu"}
    if config == "train" and bundle.name == "segmentation":
        settings["labelled_datalist"] = str(data / "mr.json")
    if config == "train":
        settings |= SMALL_TRAINING[bundle.name]
    workflow = ConfigWorkflow(str(file), workflow_type=kind, **settings)
    workflow.initialize()
    assert workflow.check_properties() in (None, [])


@every_bundle
def test_the_readme_has_the_zoos_headings(name: str) -> None:
    text = (ROOT / "docs" / name / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^#{1,2} (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    assert found == HEADINGS
    for figure in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (ROOT / "docs" / name / figure).is_file(), figure
        assert not figure.startswith("http"), "figures travel with the bundle"
    assert re.search(r"!\[", text), "the READMEs of the zoo show what the model does"


README_COMMANDS = re.compile(r"```\n((?:python|torchrun) .*?)```", re.DOTALL)

COMMAND_SECONDS = 600
"""What one of them may take at most, on a core that many processes share."""


@pytest.mark.slow
def test_the_commands_of_the_readme(bundle: Bundle, data: Path, tmp_path: Path) -> None:
    """Every command of the README as written, in the bundle's folder, one after the other."""
    text = (bundle.folder / "docs" / "README.md").read_text(encoding="utf-8")
    found = [block.strip() for block in README_COMMANDS.findall(text)]
    assert len(found) == text.count("```") // 2, "every block of the README is a command"
    folder = _shortened(bundle, data, tmp_path)
    for command in found:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
        )
        if "onnx_export" in command and "No module named 'onnx'" in done.stderr:
            continue  # an optional package; test_export says so too
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    results = {"synthesis": ["translated/datalist.json"], "segmentation": ["predictions", "eval/summary.json"]}
    missing = [name for name in [*results[bundle.name], "models/model.ts"] if not (folder / name).exists()]
    assert missing == []


def _shortened(bundle: Bundle, data: Path, tmp_path: Path) -> Path:
    """The bundle with data in place, and short trainings written into its configs: the commands stay as they are."""
    folder = tmp_path / bundle.folder.name
    for file in bundle.folder.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            target = folder / file.relative_to(bundle.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    # The source's volumes lie apart: inference takes all volumes of `data`, and a CT's window refuses an MR.
    (folder / "data" / "mr").mkdir(parents=True)
    for file in data.glob("*.nii.gz"):
        place = folder / "data" / "mr" if file.name.startswith("mr_") else folder / "data"
        (place / file.name).write_bytes(file.read_bytes())
    for name, listed in (("ct", "ct"), ("mr", "mr"), ("datalist", "mr")):
        text = (data / f"{listed}.json").read_text(encoding="utf-8").replace('"mr_', '"mr/mr_')
        (folder / "data" / f"{name}.json").write_text(text, encoding="utf-8")
    short = {"max_epochs": 1, "iterations_per_epoch": 2, "batch_size": 2, **SMALL_TRAINING[bundle.name]}
    short |= {key: SMALL[bundle.name][key] for key in ("slice_size", "spacing_mm")}
    set_packed_values(folder, short)
    assert {"multi_gpu_train", "inference_trt"} <= packed_configs(folder).keys()
    return folder
