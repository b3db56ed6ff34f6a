"""Weights and their metadata: a JSON file beside them that names the task, and identifies the weights it describes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.files import atomic_path, load_tensors, tensor_bytes
from scripts.core.schema import check_depth, is_number
from torch import nn

__all__ = [
    "TRAINING_CASES",
    "WEIGHTS_SHA256",
    "check_finite",
    "check_metadata",
    "check_weights",
    "digest_of",
    "fault_in_metadata",
    "load_weights",
    "metadata_file",
    "network_mismatch",
    "not_finite",
    "read_metadata",
    "read_state",
    "save_weights",
    "selection_sentence",
]

WEIGHTS_SHA256 = "weights_sha256"  # key of the metadata for :func:`digest_of` the state dict
TRAINING_CASES = "training_cases"  # key of the metadata for what inference compares its images and volumes with

SEGMENT = "'python -m scripts segment RUN VOLUMES --out FOLDER' reads those of a segmentation training in RUN"

# Keys of the metadata whose values are mappings.
PARTS = (TRAINING_CASES, "grid", "network", "intensity", "inference", "selection")

logger = logging.getLogger(__name__)


def save_weights(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a plain state dict, and its metadata with the digest of these weights beside it.

    Earlier weights and metadata stay until the new ones are written. The earlier metadata are removed before the new
    weights take their place, so that no reader finds new weights with the metadata of others.
    """
    described = {**metadata, WEIGHTS_SHA256: digest_of(state)}
    with atomic_path(metadata_file(path)) as new_metadata:
        new_metadata.write_text(json.dumps(described, indent=4) + "\n", encoding="utf-8")
        with atomic_path(path) as new_weights:
            new_weights.write_bytes(tensor_bytes(state))
            metadata_file(path).unlink(missing_ok=True)


def metadata_file(weights: Path) -> Path:
    """The metadata file of some weights."""
    return weights.with_suffix(".json")


def read_metadata(weights: Path) -> dict[str, Any]:
    """The metadata of some weights; empty if there are none."""
    file = metadata_file(weights)
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        metadata = None
    if found := fault_in_metadata(metadata):
        remedy = "copy the file that was written with the weights, or remove it to load them unchecked"
        raise InputError(file=file, found=found, expected="metadata of weights", remedy=remedy)
    return dict(metadata)


def fault_in_metadata(metadata: Any) -> str:
    """What is wrong with metadata in the parts that are not compared with a config's; empty if nothing is."""
    if not isinstance(metadata, dict):
        return "no JSON object"
    try:
        check_depth(metadata)
    except RecursionError as error:
        return str(error)
    if wrong := [key for key in PARTS if not isinstance(metadata.get(key, {}), dict)]:
        return f"no JSON object under {wrong[0]!r}"
    cases, score = metadata.get(TRAINING_CASES, {}), metadata.get("selection", {}).get("value", 0)
    ranges, images, number = cases.get("volumes_ml", {}), cases.get("images"), cases.get("labelled_cases", 1)
    known = images if isinstance(images, dict) else {}
    is_usable = {
        "labelled_cases": is_number(number) and number >= 1,
        "volumes_ml": isinstance(ranges, dict) and all(_are_sizes(ends, 2) for ends in ranges.values()),
        "images": not images or all(_are_sizes(known.get(key), 3) for key in ("least_mm", "greatest_mm")),
        "are_ct": known.get("are_ct") in (None, True, False),
        "value": is_number(score),
    }
    return "".join([f"unusable values under {key!r}" for key in is_usable if not is_usable[key]][:1])


def _are_sizes(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(is_number(v) and v >= 0 for v in values)


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, which loading and saving again do not change.

    Only tensors count: the network refuses a state dict with other entries.
    """
    digest = hashlib.sha256()
    tensors = {str(name): value for name, value in state.items() if _is_dense(value)}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights(path: Path, state: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> None:
    """Refuse weights of another task or with the metadata of others; warn if nothing identifies them."""
    metadata = read_metadata(path)
    check_metadata(metadata, expected, path)
    digest = metadata.get(WEIGHTS_SHA256)
    if digest is None or not expected.keys() <= metadata.keys():
        file = metadata_file(path).name
        what = "no metadata beside it" if not metadata else "incomplete metadata beside it"
        logger.warning("%s: UNVERIFIED WEIGHTS, %s (%s): task and content are not checked", path, what, file)
    if digest is not None and digest != digest_of(state):
        found = f"weights other than those that {metadata_file(path).name} describes"
        remedy = "copy both files together, or remove the metadata to load the weights unchecked"
        raise InputError(file=path, found=found, expected="weights and metadata of one training", remedy=remedy)


def check_metadata(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    """Refuse metadata of weights that differ from the expected ones at any depth; keys on one side only are ignored."""
    for key, value in expected.items():
        known = found.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            check_metadata(known, value, path)
        elif key in found and not _agree(known, value):
            remedy = f"choose weights of this task, or the task, size and network these were made with: {SEGMENT}"
            remedy, made = _files_that_set(key, known) + remedy, f"weights made with {key}: {shorten(str(known), 200)}"
            raise InputError(file=path, found=made, expected=f"{key}: {value}", remedy=remedy)


def _files_that_set(key: str, value: Any) -> str:
    """The advice to add one of the repository's files of sizes and networks, if any sets this key to this value."""
    configs = Path(__file__).parents[2] / "configs"
    found = []
    for file in (*configs.glob("sizes/*.yaml"), *configs.glob("networks/*.yaml")):
        settings = ConfigParser.load_config_file(file)
        settings |= settings.get("network_def", {})
        if any(name.split("#")[-1] == key and _agree(given, value) for name, given in settings.items()):
            found.append(file.relative_to(configs.parent).as_posix())
    return f"add {' or '.join(sorted(found))} to --config_file, or " if found else ""


def _agree(found: Any, expected: Any) -> bool:
    """Equality that ignores keys missing on either side, also in mappings within lists."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return all(_agree(found[key], expected[key]) for key in found.keys() & expected.keys())
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(_agree, found, expected))
    return bool(found == expected)


def load_weights(path: str, network: nn.Module, metadata: Mapping[str, Any] | None = None) -> nn.Module:
    """Load a plain state dict strictly, after checking its metadata, and return the network."""
    file = Path(path)
    state = read_state(file)
    _check_types(file, state, network.state_dict())
    if metadata:
        check_weights(file, state, metadata)
    check_finite(file, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        first = (str(error).splitlines()[1:2] or [str(error)])[0].strip()
        raise network_mismatch(file, f"other parameters ({first})", "those of this config's network_def") from error
    return network


def _check_types(path: Path, state: Mapping[str, Any], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuse what loading would convert: integers, double precision, complex numbers; and sparse tensors."""
    for name, value in state.items():
        found = value.dtype if _is_dense(value) else getattr(value, "layout", type(value).__name__)
        wanted = expected[name].dtype if name in expected else None
        if not isinstance(name, str) or wanted not in (None, found):
            kind, remedy = f"weights {name!r} of type {found}", "save network.state_dict() as it was trained"
            raise InputError(file=path, found=kind, expected=str(wanted or "names"), remedy=remedy)


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta


def check_finite(path: object, state: Mapping[str, Any]) -> None:
    """Refuse a state, nested ones included, with NaN or infinite values."""
    for name, value in not_finite(state):
        remedy = "take another checkpoint or train again; this one's values are lost"
        raise InputError(file=path, found=f"{value} in {name}", expected="finite weights", remedy=remedy)


def not_finite(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names of a state's tensors, nested ones included, with a value that is NaN or infinite, and that value."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor) and value.is_floating_point() and not bool(value.isfinite().all()):
            yield f"{prefix}{name}", float(value[~value.isfinite()].flatten()[0])


def read_state(path: Path, remedy: str = "train first, or name the weights with --checkpoint") -> dict[str, Any]:
    """Read a state dict without unpickling anything, and verify the checksums of its file.

    Raises:
        InputError: no such file, for which ``remedy`` says what to do, a damaged one, or no state dict.
    """
    try:
        content = load_tensors(path)
    except FileNotFoundError as error:
        raise InputError(path, "no such file", "the weights of a finished training", remedy) from error
    except Exception as error:
        found = f"no weights ({type(error).__name__})"
        remedy = "name another file; this one is damaged or holds more than tensors"
        raise InputError(file=path, found=found, expected="a PyTorch state dict", remedy=remedy) from error
    if not isinstance(content, dict):
        raise InputError(path, type(content).__name__, expected="a state dict", remedy="save network.state_dict()")
    return content


def network_mismatch(path: Path, found: str, expected: str) -> InputError:
    """The error for weights or a checkpoint that do not fit this config's networks."""
    remedy = f"use the task and network of the training ({SEGMENT}), or start a new run without --resume"
    return InputError(file=path, found=found, expected=expected, remedy=remedy)


def selection_sentence(selection: Mapping[str, Any] | None) -> str:
    """How the weights were selected, as a sentence to print with every number."""
    if selection is None:
        return "weights: selection unknown, their metadata do not name it"
    rule, epoch = selection.get("rule"), selection.get("epoch")
    if rule == "last":
        return f"weights: the last (epoch {epoch}); nothing was selected"
    if rule == "label_free":
        return (
            f"weights: epoch {epoch}, selected without target labels by {selection.get('score')} = "
            f"{selection.get('value'):.4f} (labelled Dice on {selection.get('labelled_cases')} cases)"
        )
    if rule == "oracle":
        return (
            f"weights: epoch {epoch}, SELECTED WITH TARGET LABELS (oracle): highest Dice on the target's held-out "
            f"cases, {selection.get('value'):.4f}; no unsupervised result"
        )
    return f"weights: the snapshot of epoch {epoch}; nothing was selected"
