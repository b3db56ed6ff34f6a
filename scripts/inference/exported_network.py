"""Runs a network that was exported for TorchScript, ONNX Runtime or OpenVINO."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from scripts.core.errors import InputError, SettingError, check_choice, import_optional
from scripts.core.weights import check_metadata, fault_in_metadata
from scripts.engines.precision import autocast, bf16_is_fast
from scripts.networks.layers import as_plain_tensor
from torch import Tensor, nn

__all__ = ["ENGINES", "EXTRAS", "METADATA_KEY", "VALUES", "ExportedNetwork", "files_of_engine", "path_for_engine"]

# Engines beside ``pytorch``, and the suffix of their files.
ENGINES = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml"}

# The file that pins the engines' packages.
EXTRAS = "requirements-export.txt"

# Suffix of OpenVINO's second file, which contains the weights.
VALUES = ".bin"

# Where an exported file stores the metadata of its weights, as JSON; see ``python -m bundle export``.
METADATA_KEY = "weights_metadata"

logger = logging.getLogger(__name__)

Runner = Callable[[Tensor], Tensor]


class ExportedNetwork(nn.Module):
    """A network exported by ``python -m bundle export``, the local mask included, with the ``metadata`` in its file.

    It accepts any batch and slice size that the PyTorch network accepts. The metadata in the file are compared with
    those that this config expects, as for weights. An InputError says what does not fit.

    Args:
        engine: one of ``ENGINES``: ``torchscript`` runs in PyTorch, ``onnx`` in ONNX Runtime, ``openvino`` in OpenVINO.
        path: the file, or the weights beside it with the same name.
        device: device of TorchScript; ONNX Runtime uses CUDA if its package supports it, OpenVINO runs on the CPU.
        precision: as for :class:`SliceWiseInferer`; ONNX Runtime computes in float32 and refuses ``bf16``.
        metadata: metadata that this config expects.
    """

    def __init__(
        self,
        *,
        engine: str,
        path: str | Path,
        device: torch.device | str = "cpu",
        precision: str = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("engine", engine, ["pytorch", *ENGINES])
        autocast("cpu", precision)  # refuse an invalid value now, not at the first volume
        file = path_for_engine(path, engine)
        if not file.is_file():
            remedy = "write it with python -m bundle export, or name it with --checkpoint"
            raise InputError(file=file, found="no such file", expected=f"a network for {engine}", remedy=remedy)
        load = {"torchscript": _torchscript, "onnx": _onnx, "openvino": _openvino}[engine]
        self.engine = engine
        self.runner, self.metadata = load(file, torch.device(device), precision)
        if found := fault_in_metadata(self.metadata):
            raise InputError(file, found, expected="metadata of weights in it", remedy="export the weights again")
        if metadata and not self.metadata:
            logger.warning("%s: no metadata in it; its task is not checked", file)
        check_metadata(self.metadata, metadata or {}, file)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) float32 to the network's output, (B, K, H, W), on the same device."""
        return self.runner(as_plain_tensor(image))

    def volume_arguments(self, volume: Tensor, seed: int) -> dict[str, Any]:
        """No further arguments: translators that need any are not exported."""
        return {}

    def forward_features(self, image: Tensor) -> Tensor:
        """Refuse, because an exported network has no access to features."""
        found = f"true with engine {self.engine}, whose network does not return a mask"
        raise SettingError("setting 'write_mask'", found, "false, or engine pytorch", "omit one of the two")


def path_for_engine(path: str | Path, engine: str) -> Path:
    """The exported file that belongs to some weights: the same path with the engine's suffix."""
    return Path(path).with_suffix(ENGINES[engine])


def files_of_engine(path: str | Path, engine: str) -> list[Path]:
    """The files that an engine reads instead of some weights; for ``pytorch`` the weights themselves."""
    if engine == "pytorch":
        return [Path(path)]
    file = path_for_engine(path, engine)
    return [file, file.with_suffix(VALUES)] if engine == "openvino" else [file]


def _torchscript(file: Path, device: torch.device, precision: str) -> tuple[Runner, dict[str, Any]]:
    """TorchScript as MONAI's ``ckpt_export`` writes it, with the weights' metadata in the bundle's metadata."""
    extra = {"metadata.json": ""}
    module = _read(lambda: torch.jit.load(str(file), map_location=device, _extra_files=extra), file, "torchscript")
    # Freezing folds batch norm into the convolutions; the caller's autocast still applies.
    frozen = torch.jit.freeze(module.eval().to(memory_format=torch.channels_last))
    return frozen, _read(lambda: json.loads(extra["metadata.json"] or "{}").get(METADATA_KEY, {}), file, "torchscript")


def _onnx(file: Path, device: torch.device, precision: str) -> tuple[Runner, dict[str, Any]]:
    runtime = import_optional("onnxruntime", "engine onnx", EXTRAS)
    if precision == "bf16":
        found, expected = "bf16 with engine onnx", "auto or float32, which ONNX Runtime computes in"
        remedy = "leave it out, or choose engine openvino or torchscript"
        raise SettingError(setting="setting 'precision'", found=found, expected=expected, remedy=remedy)
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    providers = [*(name for name in wanted if name in runtime.get_available_providers()), "CPUExecutionProvider"]
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = _read(lambda: runtime.InferenceSession(str(file), options, providers=providers), file, "onnx")
    name = session.get_inputs()[0].name

    def run(image: Tensor) -> Tensor:
        (output,) = session.run(None, {name: image.cpu().contiguous().numpy()})
        return torch.from_numpy(output).to(image.device)

    metadata = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "{}")
    return run, _read(lambda: json.loads(metadata), file, "onnx")


def _openvino(file: Path, device: torch.device, precision: str) -> tuple[Runner, dict[str, Any]]:
    openvino = import_optional("openvino", "engine openvino", EXTRAS)
    narrow = precision == "bf16" or (precision == "auto" and bf16_is_fast(torch.device("cpu")))
    core = openvino.Core()
    model = _read(lambda: core.read_model(file), file, "openvino")
    hints = {"INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", {**hints, "INFERENCE_NUM_THREADS": torch.get_num_threads()})

    def run(image: Tensor) -> Tensor:
        output = compiled(image.cpu().contiguous().numpy())[0]
        return torch.from_numpy(output.copy()).to(image.device)  # the engine reuses its output buffer

    metadata = model.get_rt_info([METADATA_KEY]).astype(str) if model.has_rt_info([METADATA_KEY]) else "{}"
    return run, _read(lambda: json.loads(metadata), file, "openvino")


def _read(load: Callable[[], Any], file: Path, engine: str) -> Any:
    try:
        return load()
    except Exception as error:  # each engine raises its own types
        found = f"no network that {engine} can read ({type(error).__name__})"
        expected = "a file written by python -m bundle export"
        raise InputError(file=file, found=found, expected=expected, remedy="export the weights again") from error
