"""Export of a network with its weights to TorchScript, ONNX or OpenVINO."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from bundle.install import build_folder
from bundle.pack import ROOT, pack_bundle
from monai.bundle import ConfigParser, ckpt_export
from monai.networks import convert_to_onnx
from scripts.core.errors import InputError, SettingError, check_choice, import_optional
from scripts.core.files import make_folder
from scripts.core.weights import TRAINING_CASES, load_weights, read_metadata
from scripts.inference.exported_network import ENGINES, EXTRAS, METADATA_KEY, VALUES, ExportedNetwork, path_for_engine
from scripts.networks.translators import Translator
from torch import nn

__all__ = ["TOLERANCE", "export_network"]

# Largest difference of an engine's float32 output from PyTorch's, as a share of the largest output.
TOLERANCE = 1e-3

# Metadata of the weights that are not in the config: length of the training, selection, and the training cases.
HISTORY = ("iterations", "selection", TRAINING_CASES)

# Copies of the weights while exporting: packed, from ONNX, for the engine; and space for the rest of a bundle.
COPIES = 3
PACKED_BYTES = 2**24

DYNAMIC_AXES = {0: "batch", 2: "height", 3: "width"}


def export_network(
    name: str, *, task: str, weights: Path, engine: str, out: Path | None = None, root: Path = ROOT
) -> Path:
    """Write the packed network with its weights for an engine, if that engine reproduces PyTorch's output.

    The exported network accepts any batch and slice size, and contains the metadata of its weights. The segmenter
    includes its local mask.

    Args:
        name: ``synthesis`` or ``segmentation``.
        task: name of a file in ``configs/tasks``, without ``.yaml``.
        weights: plain state dict of the bundle's ``network_def``.
        engine: one of ``scripts.inference.exported_network.ENGINES``.
        out: the file; None for the path of the weights with the engine's suffix.
        root: the repository of the configs.

    Returns:
        The file.

    Raises:
        InputError: as for packing; a missing package, a suffix of another engine, or outputs that differ by more than
            ``TOLERANCE``.
    """
    check_choice("engine", engine, list(ENGINES))
    target = path_for_engine(weights, engine) if out is None else out
    if target.suffix != ENGINES[engine]:
        found, expected = f"the suffix {target.suffix or 'none'!r}", f"{ENGINES[engine]!r} for {engine}"
        raise InputError(file=target, found=found, expected=expected, remedy="give --out another name, or leave it out")
    _check_room(make_folder(target.parent), weights)
    with build_folder(target) as building:
        folder = pack_bundle(name, task=task, out=building, weights=weights, root=root).folder
        parser = ConfigParser()
        parser.read_config(str(folder / "configs" / "inference.json"))
        parser.read_meta(str(folder / "configs" / "metadata.json"))
        history = {key: value for key, value in read_metadata(weights).items() if key in HISTORY}
        metadata = {**parser.get_parsed_content("weights_metadata"), "task": task, **history}
        network = parser.get_parsed_content("network_def").eval()
        _check_slices_suffice(network, weights)
        load_weights(str(weights), network)
        made = folder / "models" / f"model{ENGINES[engine]}"
        size = parser.get_parsed_content("slice_size")
        _WRITERS[engine](made, folder=folder, network=network, metadata=metadata, size=size)
        _check_agreement(made, network, engine, size)
        _put_in_place(made, target)
    return target


def _check_room(folder: Path, weights: Path) -> None:
    """Refuse a disk without room to export, because the engines' writers report a full one as any other failure."""
    size = weights.stat().st_size if weights.is_file() else 0  # missing weights are reported by packing
    needed, free = COPIES * size + PACKED_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        found = f"{free / 2**20:.0f} MiB of free space"
        expected, remedy = f"{needed / 2**20:.0f} MiB to export in", "free some space, or choose another --out"
        raise InputError(file=folder, found=found, expected=expected, remedy=remedy)


def _check_slices_suffice(network: nn.Module, weights: Path) -> None:
    """Refuse a translator that draws a style per volume, because the export would use one style for all volumes."""
    if isinstance(network, Translator) and network.volume_arguments(torch.zeros(1, 1, 1, 1), 0):
        raise InputError(
            file=weights,
            found="a translator that draws a style for each volume",
            expected="a translator whose output depends only on the slices",
            remedy="translate with engine pytorch, or export the style transfer or CycleGAN",
        )


def _torchscript(made: Path, *, folder: Path, metadata: Mapping[str, Any], **_: Any) -> None:
    """MONAI's export, which stores metadata and config in the file for MONAI Deploy."""
    ckpt_export(
        net_id="network_def",
        filepath=str(made),
        ckpt_file=str(folder / "models" / "model.pt"),
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.json"),
        **{f"_meta_#{METADATA_KEY}": dict(metadata)},
    )


def _onnx(made: Path, *, network: nn.Module, metadata: Mapping[str, Any], size: list[int], **_: Any) -> None:
    onnx = import_optional("onnx", "engine onnx", EXTRAS)
    # Tracing, because the exporter based on torch.export needs another package and is twenty times slower.
    model = convert_to_onnx(
        network,
        [_noise(2, size)],
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": DYNAMIC_AXES, "pred": DYNAMIC_AXES},
        use_trace=True,
        dynamo=False,
    )
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata)})
    onnx.checker.check_model(model)
    onnx.save(model, str(made))


def _openvino(made: Path, *, network: nn.Module, metadata: Mapping[str, Any], size: list[int], **_: Any) -> None:
    openvino = import_optional("openvino", "engine openvino", EXTRAS)
    through = made.with_suffix(ENGINES["onnx"])
    _onnx(through, network=network, metadata=metadata, size=size)
    model = openvino.convert_model(str(through))
    model.set_rt_info(json.dumps(metadata), [METADATA_KEY])
    openvino.save_model(model, str(made), compress_to_fp16=False)


_WRITERS: dict[str, Callable[..., None]] = {"torchscript": _torchscript, "onnx": _onnx, "openvino": _openvino}


def _check_agreement(made: Path, network: nn.Module, engine: str, size: list[int]) -> None:
    """Compare with PyTorch on noise, for two slice sizes and two batch sizes."""
    exported = ExportedNetwork(engine=engine, path=made, precision="float32")
    for images in [_noise(2, size), _noise(1, [side + 32 for side in size])]:
        with torch.inference_mode():
            expected, found = network(images), exported(images)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if found.shape != expected.shape or not error <= TOLERANCE:
            raise SettingError(
                setting=f"engine {engine!r}",
                found=f"outputs that differ from PyTorch's by {error:.1e} of the largest",
                expected=f"at most {TOLERANCE:.0e}",
                remedy="choose another engine, or the package's version in requirements-export.txt",
            )


def _noise(batch: int, size: list[int]) -> torch.Tensor:
    return torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _put_in_place(made: Path, target: Path) -> None:
    """Move the export to its target; OpenVINO's weights first, so that no model file refers to older weights."""
    values = made.with_suffix(VALUES)
    for file in (values, made):
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())  # or a power cut may leave the new name with no content
    if values.is_file():
        target.unlink(missing_ok=True)
        values.replace(target.with_suffix(VALUES))
    made.replace(target)
