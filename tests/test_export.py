"""Other engines: the exported network computes what PyTorch's does, whole volumes too, and what is refused.

An engine whose package is absent is skipped; what needs none of them always runs.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle import export
from bundle.__main__ import main
from bundle.export import export_network
from bundle.pack import BUNDLES
from conftest import CONFIGS, ROOT, TASK, refused, run_config
from filelock import FileLock
from monai.bundle import ConfigParser
from scripts.core.weights import load_weights
from scripts.inference.exported_network import ENGINES, ExportedNetwork
from torch import Tensor, nn

pytestmark = pytest.mark.slow

PACKAGES = {"torchscript": [], "onnx": ["onnx", "onnxruntime"], "openvino": ["onnx", "onnxruntime", "openvino"]}


def needs(engine: str) -> Any:
    absent = [package for package in PACKAGES[engine] if find_spec(package) is None]
    reason = f"engine {engine}: no {', '.join(absent)}; pip install -r requirements-export.txt"
    return pytest.param(engine, marks=pytest.mark.skipif(bool(absent), reason=reason))


every_engine = pytest.mark.parametrize("engine", [needs(engine) for engine in ENGINES])
every_bundle = pytest.mark.parametrize("name", BUNDLES)


def weights_of(trained: Path, name: str) -> Path:
    return trained / name / "models" / "model.pt"


def network_of(name: str, weights: Path) -> nn.Module:
    """The network in PyTorch, built from the config and the metadata beside the weights."""
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name / "inference.yaml"), str(CONFIGS / "tasks" / f"{TASK}.yaml")])
    metadata = json.loads(weights.with_suffix(".json").read_text())
    parser.update({**metadata["grid"], **metadata["network"]})
    network = parser.get_parsed_content("network_def").eval()
    load_weights(str(weights), network)
    return network


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


@pytest.fixture(scope="module")
def exports(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that exports once per bundle and engine and gives the file."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def export_once(name: str, engine: str) -> Path:
        if (name, engine) not in made:
            out = folder / f"{name}{ENGINES[engine]}"
            made[name, engine] = export_network(
                name, task=TASK, weights=weights_of(trained, name), engine=engine, out=out
            )
        return made[name, engine]

    return export_once


@every_engine
@every_bundle
def test_an_engine_computes_what_pytorch_does(exports: Any, trained: Path, name: str, engine: str) -> None:
    network = network_of(name, weights_of(trained, name))
    exported = ExportedNetwork(engine=engine, path=exports(name, engine), precision="float32")
    # The size of training, the two slice sizes of the tasks in small, and odd batches: nothing is baked in.
    for shape in [(1, 1, 32, 32), (3, 1, 96, 96), (2, 1, 64, 128), (8, 1, 36, 44)]:
        images = noise(*shape)
        with torch.inference_mode():
            expected, found = network(images), exported(images)
        assert found.dtype == torch.float32
        assert ((found - expected).abs().max() / expected.abs().max()).item() < 1e-4, shape


@every_engine
def test_the_exported_network_contains_the_mask(exports: Any, trained: Path, engine: str) -> None:
    network = network_of("segmentation", weights_of(trained, "segmentation"))
    images = noise(2, 1, 32, 32)
    with torch.inference_mode():
        masked = network(images)
        unmasked = network.predict_unmasked(network.forward_features(images), [32, 32])
        found = ExportedNetwork(engine=engine, path=exports("segmentation", engine), precision="float32")(images)
    assert (masked - unmasked).abs().max() > 20 * (masked - found).abs().max()


@every_engine
@every_bundle
def test_inference_by_an_engine_writes_the_same_volumes(
    exports: Any, trained: Path, data: Path, tmp_path: Path, name: str, engine: str
) -> None:
    places = {"bundle_root": trained / name, "dataset_dir": data}
    if name == "segmentation":
        places["dataset_dir"] = data / "ct.json"
    run_config("inference", name, "inference", output_dir=tmp_path / "pytorch", **places)
    chosen = {"engine": engine, "checkpoint": exports(name, engine)}
    run_config("inference", name, "inference", output_dir=tmp_path / engine, **places, **chosen)
    volumes = sorted((tmp_path / "pytorch").glob("*.nii.gz"))
    assert len(volumes) == 3
    for volume in volumes:
        expected, found = nib.load(volume), nib.load(tmp_path / engine / volume.name)
        np.testing.assert_array_equal(expected.affine, found.affine)
        difference = np.asarray(expected.dataobj).astype(int) - np.asarray(found.dataobj)
        if name == "segmentation":
            assert (difference == 0).mean() >= 0.999
        else:
            assert np.abs(difference).max() <= 1  # of 1000, the range it is written in


@every_engine
def test_an_export_says_how_its_weights_were_chosen(exports: Any, trained: Path, engine: str) -> None:
    metadata = json.loads(weights_of(trained, "segmentation").with_suffix(".json").read_text())
    found = ExportedNetwork(engine=engine, path=exports("segmentation", engine)).metadata
    assert metadata["selection"]["rule"] == "last"
    assert (found["selection"], found["iterations"]) == (metadata["selection"], metadata["iterations"])


def test_an_evaluation_of_an_export_reports_its_own_selection(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, own = tmp_path / "model.pt", weights_of(trained, "segmentation")
    metadata = json.loads(own.with_suffix(".json").read_text())
    chosen = {"rule": "snapshot", "epoch": 7, "reads_target_labels": False}
    weights.write_bytes(own.read_bytes())
    weights.with_suffix(".json").write_text(json.dumps(metadata | {"selection": chosen}))
    export_network("segmentation", task=TASK, weights=weights, engine="torchscript")
    weights.with_suffix(".json").write_text(json.dumps(metadata))  # weights of a later training lie beside it now
    places = {"bundle_root": tmp_path, "dataset_dir": data, "checkpoint": weights, "output_dir": tmp_path / "eval"}
    run_config("evaluating", "segmentation", "evaluate", engine="torchscript", **places)
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["selection"] == chosen
    assert "weights: the snapshot of epoch 7" in capsys.readouterr().out


@pytest.mark.parametrize("engine", [needs("torchscript"), needs("openvino")])
def test_bf16_is_close_to_float32(exports: Any, trained: Path, engine: str) -> None:
    network = network_of("segmentation", weights_of(trained, "segmentation"))
    images = noise(2, 1, 64, 64)
    exported = ExportedNetwork(engine=engine, path=exports("segmentation", engine), precision="bf16")
    with torch.inference_mode():
        expected = network(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = exported(images).float()
    assert ((found - expected).square().mean().sqrt() / expected.std()).item() < 0.05


def test_the_command_line_exports_beside_the_weights(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "model.pt"
    for suffix in [".pt", ".json"]:
        weights.with_suffix(suffix).write_bytes(weights_of(trained, "synthesis").with_suffix(suffix).read_bytes())
    main(["export", "synthesis", "--task", TASK, "--weights", str(weights), "--engine", "torchscript"])
    assert f"Exported {tmp_path / 'model.ts'}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt", "model.ts"]


def test_torchscript_carries_what_monais_own_export_does(exports: Any) -> None:
    extra = {"metadata.json": "", "inference.json": ""}
    torch.jit.load(str(exports("segmentation", "torchscript")), _extra_files=extra)
    metadata = json.loads(extra["metadata.json"])
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32]
    assert metadata["weights_metadata"]["domains"] == ["mr", "ct"]
    assert json.loads(extra["inference.json"])["task"] == TASK


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    package = PACKAGES[engine][-1]
    monkeypatch.setitem(sys.modules, package, None)
    file = tmp_path / f"model{ENGINES[engine]}"
    file.touch()
    error = refused(ExportedNetwork, engine=engine, path=file)
    assert (error.file, error.remedy) == (package, "pip install -r requirements-export.txt")


def test_export_without_its_package_writes_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    out, weights = tmp_path / "model.onnx", weights_of(trained, "synthesis")
    error = refused(export_network, "synthesis", task=TASK, weights=weights, engine="onnx", out=out)
    assert (error.file, error.remedy) == ("onnx", "pip install -r requirements-export.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["torchscript", "onnx", "openvino"])
def test_a_file_that_is_not_there(tmp_path: Path, engine: str) -> None:
    error = refused(ExportedNetwork, engine=engine, path=tmp_path / "model.pt")
    assert error.file == str(tmp_path / f"model{ENGINES[engine]}")
    assert "python -m bundle export" in error.remedy


@every_engine
def test_a_file_that_is_no_network(tmp_path: Path, engine: str) -> None:
    file = tmp_path / f"model{ENGINES[engine]}"
    file.write_bytes(b"nothing of the kind")
    assert f"no network that {engine} can read" in refused(ExportedNetwork, engine=engine, path=file).found


@every_engine
def test_a_network_of_another_task(exports: Any, engine: str) -> None:
    metadata = {"domains": ["ct", "mr"]}
    error = refused(ExportedNetwork, engine=engine, path=exports("segmentation", engine), metadata=metadata)
    assert error.found == "weights made with domains: ['mr', 'ct']"


def test_an_unknown_engine() -> None:
    error = refused(ExportedNetwork, engine="tensorrt", path="x")
    assert error.expected == "one of pytorch, torchscript, onnx, openvino"


@pytest.mark.parametrize("engine", [needs("onnx")])
def test_a_precision_that_an_engine_does_not_have(exports: Any, engine: str) -> None:
    path = exports("synthesis", engine)
    assert refused(ExportedNetwork, engine=engine, path=path, precision="bf16").found == "bf16 with engine onnx"


def test_the_mask_beside_the_output(exports: Any, trained: Path, data: Path, tmp_path: Path) -> None:
    settings = {"engine": "torchscript", "checkpoint": exports("segmentation", "torchscript"), "write_mask": True}
    places = {"bundle_root": trained / "segmentation", "dataset_dir": data / "ct.json", "output_dir": tmp_path}
    error = refused(run_config, "inference", "segmentation", "inference", **places, **settings)
    assert error.file == "setting 'write_mask'"
    assert not list(tmp_path.glob("*.nii.gz"))


def test_another_suffix(trained: Path, tmp_path: Path) -> None:
    out, weights = tmp_path / "model.pt", weights_of(trained, "synthesis")
    error = refused(export_network, "synthesis", task=TASK, weights=weights, engine="torchscript", out=out)
    assert error.expected == "'.ts' for torchscript"


def test_an_engine_that_computes_something_else(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = ExportedNetwork.forward
    monkeypatch.setattr(ExportedNetwork, "forward", lambda self, image: forward(self, image) + 0.01)
    out, weights = tmp_path / "model.ts", weights_of(trained, "synthesis")
    error = refused(export_network, "synthesis", task=TASK, weights=weights, engine="torchscript", out=out)
    assert "outputs that differ from PyTorch's" in error.found
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick_export(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Exports with a writer that does next to nothing."""
    monkeypatch.setitem(export._WRITERS, "onnx", lambda made, **_: made.write_bytes(b"made"))
    monkeypatch.setattr(export, "_check_agreement", lambda *_: None)
    weights = weights_of(trained, "synthesis")
    return partial(export_network, "synthesis", task=TASK, weights=weights, engine="onnx", out=tmp_path / "m.onnx")


def test_an_export_removes_what_a_killed_one_left(quick_export: Callable[[], Path], tmp_path: Path) -> None:
    left = tmp_path / ".m.onnx.building"
    left.mkdir()
    (left / "m.onnx").write_bytes(b"half")
    assert quick_export().read_bytes() == b"made"
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_two_processes_do_not_export_to_one_file(quick_export: Callable[[], Path], tmp_path: Path) -> None:
    with FileLock(tmp_path / ".m.onnx.lock"):
        assert refused(quick_export).found == "another process is writing it"


def test_a_disk_without_room_is_named_before_the_export(
    quick_export: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    error = refused(quick_export)
    assert (error.file, error.found) == (str(tmp_path), "1 MiB of free space")
    assert list(tmp_path.iterdir()) == []


# --- TensorRT --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="without a GPU TensorRT steps aside, which is what is seen here")
@every_bundle
def test_without_tensorrt_its_overlay_warns_and_pytorch_computes(
    trained: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    where = data / "ct.json" if name == "segmentation" else data
    places = {"bundle_root": trained / name, "dataset_dir": where}
    run_config("inference", name, "inference", output_dir=tmp_path / "plain", **places)
    logging.getLogger("monai.networks.trt_compiler").propagate = True
    with caplog.at_level(logging.WARNING):
        overlay = CONFIGS / name / "inference_trt.yaml"
        run_config("inference", name, "inference", overlay, output_dir=tmp_path / "overlaid", **places)
    assert "trt_compile() has no effect" in caplog.text
    for volume in (tmp_path / "plain").glob("*.nii.gz"):
        found = np.asarray(nib.load(tmp_path / "overlaid" / volume.name).dataobj)
        np.testing.assert_array_equal(found, np.asarray(nib.load(volume).dataobj))


@every_bundle
def test_tensorrts_settings_are_those_that_monai_knows(tmp_path: Path, name: str) -> None:
    """Built as far as can be without a GPU: MONAI's compiler takes every setting, and names its plan and input."""
    from monai.networks.trt_compiler import TrtCompiler

    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name / file) for file in ["inference.yaml", "inference_trt.yaml"]])
    parser.update({"checkpoint": str(tmp_path / "model.pt"), "slice_batch_size": 4})
    (handler,) = [item for item in parser["handlers"] if isinstance(item, dict) and item["_target_"] == "TrtHandler"]
    settings = parser.get_parsed_content(f"handlers#{parser['handlers'].index(handler)}#args")
    compiler = TrtCompiler(parser.get_parsed_content("network_def"), str(tmp_path / "model.pt.plan"), **settings)
    assert compiler.input_names == ["image"]
    assert compiler.dynamic_batchsize == [1, 4, 4]
    assert compiler.fallback


def test_the_extras_are_pinned() -> None:
    pins = [line for line in (ROOT / "requirements-export.txt").read_text().splitlines() if not line.startswith("#")]
    names = {line.split("==")[0] for line in pins}
    assert all("==" in line for line in pins)
    assert names == {package for packages in PACKAGES.values() for package in packages}
