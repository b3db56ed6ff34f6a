"""Metadata of weights with inner values of a wrong type, without a meaning, or that a config would execute."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle.pack import pack_bundle
from conftest import refused
from monai.data import MetaTensor
from scripts.core.errors import find_input_error
from scripts.core.schema import check_depth, check_values
from scripts.core.settings import Settings
from scripts.core.weights import fault_in_metadata, load_weights, metadata_file, read_metadata, read_state, save_weights
from scripts.data.datalists import read_datalist
from scripts.data.likeness import difference
from scripts.inference.exported_network import ExportedNetwork
from scripts.lab.experiments.plan import _trained_domains
from torch import nn

EXPECTED: dict[str, Any] = {
    "stage": "segmentation",
    "domains": ["mr", "ct"],
    "label_names": ["liver", "spleen"],
    "grid": {"orientation": "RAS", "spacing_mm": [1.0, 1.0, 5.0], "slice_axis": 2, "slice_size": [64, 64]},
    "network": {"network_def": {"_target_": "torch.nn.Linear", "in_features": 2}},
}
WRITTEN = EXPECTED | {
    "training_cases": {
        "labelled_cases": 20,
        "volumes_ml": {"liver": [900.0, 2000.0], "spleen": [0.0, 300.5]},
        "images": {"are_ct": False, "least_mm": [200, 300, 300], "greatest_mm": [250, 400, 400]},
    },
    "selection": {"rule": "label_free", "epoch": 3, "score": "labelled_dice", "value": -0.5},
}


def written(folder: Path, path: str, value: Any) -> Path:
    """Weights whose metadata have another value at a path, or no value."""
    file = folder / "model.pt"
    save_weights(file, nn.Linear(2, 1).state_dict(), WRITTEN)
    metadata = json.loads(metadata_file(file).read_text())
    *parents, last = path.split("#")
    inner = metadata
    for key in parents:
        inner = inner[key]
    inner[last] = value
    if value is ...:
        del inner[last]
    metadata_file(file).write_text(json.dumps(metadata))
    return file


def test_what_a_training_writes_is_accepted(tmp_path: Path) -> None:
    load_weights(str(written(tmp_path, "iterations", 7)), nn.Linear(2, 1), EXPECTED)
    early = {key: value for key, value in WRITTEN.items() if key in EXPECTED}
    assert fault_in_metadata(early) == fault_in_metadata({}) == ""


@pytest.mark.parametrize("value", ["liver", 5, None, [["liver"]], "a\nb", "x" * 10_000, [float("nan")] * 2])
@pytest.mark.parametrize("path", ["label_names", "stage", "domains", "grid#spacing_mm", "network#network_def"])
def test_values_that_the_config_knows(path: str, value: Any, tmp_path: Path) -> None:
    error = refused(load_weights, str(written(tmp_path, path, value)), nn.Linear(2, 1), EXPECTED)
    assert error.found.startswith(f"weights made with {path.split('#')[-1]}: ")
    assert len(error.found) < 300


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 64, 5, [], {}, True])
def test_digests_of_other_weights(digest: Any, tmp_path: Path) -> None:
    error = refused(load_weights, str(written(tmp_path, "weights_sha256", digest)), nn.Linear(2, 1), EXPECTED)
    assert error.found == "weights other than those that model.json describes"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *(("training_cases#labelled_cases", value) for value in ("20", None, 0, float("nan"), [20])),
        *(("training_cases#volumes_ml", value) for value in (5, [1], {"liver": 5}, {"liver": "10"}, {"liver": [1]})),
        *(("training_cases#volumes_ml#liver", [1.0, value]) for value in ("2", None, -1, float("nan"), 10**400, True)),
        *(("training_cases#images", value) for value in (5, "x", [1], {"a": 1})),
        *(("training_cases#images#least_mm", value) for value in (..., None, 5, [1, 2], [1, 2, "3"], [[1], [2], [3]])),
        *(("training_cases#images#are_ct", value) for value in ("yes", [], 2)),
        *(("selection#value", value) for value in ("high", None, [], float("inf"), 10**400)),
    ],
)
def test_values_that_no_config_knows(path: str, value: Any, tmp_path: Path) -> None:
    """They would end in a traceback at the first image, or after the last."""
    error = refused(load_weights, str(written(tmp_path, path, value)), nn.Linear(2, 1), EXPECTED)
    assert error.file == str(tmp_path / "model.json")
    assert (
        error.found == f"unusable values under {path.removesuffix('#least_mm').removesuffix('#liver').split('#')[-1]!r}"
    )


def test_a_description_without_the_modality_is_no_ct_and_no_other(tmp_path: Path) -> None:
    known = read_metadata(written(tmp_path, "training_cases#images#are_ct", ...))["training_cases"]["images"]
    image = MetaTensor(torch.zeros(200, 300, 300))
    assert difference(image, torch.eye(4), known)[0] == 1.0


@pytest.mark.parametrize("text", ["[", "[]", '{"weights_metadata": [1]}', '{"weights_metadata": {"selection": 5}}'])
def test_damaged_metadata_in_an_exported_network(text: str, tmp_path: Path) -> None:
    file = tmp_path / "model.ts"
    network = torch.jit.trace(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 4, 4))
    torch.jit.save(network, str(file), _extra_files={"metadata.json": text})
    error = refused(ExportedNetwork, engine="torchscript", path=file)
    assert (error.file, error.remedy) == (str(file), "export the weights again")


@pytest.mark.parametrize("domains", [..., "mr", None, [1, 2]])
def test_a_translators_domains(domains: Any, tmp_path: Path) -> None:
    found = refused(_trained_domains, written(tmp_path, "domains", domains)).found
    assert found == f"domains {None if domains is ... else domains!r}"


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("grid#slice_size", "$__import__('os').abort()", "code in slice_size, \"$__import__('os').abort()\""),
        ("grid#slice_size", [64, "@x"], "code in slice_size#1, '@x'"),
        ("grid#slice_size", {"_target_": "os.abort"}, "code in slice_size#_target_, 'os.abort'"),
        ("network#network_def", {"_target_": "os.abort"}, "code in network_def#_target_, 'os.abort'"),
        (
            "network#network_def",
            {"_target_": "torch.nn.Linear", "in_features": {"_target_": "os.abort"}},
            "code in network_def#in_features#_target_, 'os.abort'",
        ),
        (
            "network#network_def",
            {"_target_": "torch.nn.Linear", "_requires_": "$1"},
            "code in network_def#_requires_, '$1'",
        ),
        ("network#network_def", "Linear", "network_def 'Linear'"),
        ("grid#slice_size", "64", "'64'"),
        ("grid#slice_size", [64.5, 64], "[64.5, 64]"),
    ],
)
def test_packing_executes_nothing_in_metadata(
    path: str, value: Any, found: str, project: Path, weights: Path, tmp_path: Path
) -> None:
    """Weights and metadata of others are data; a packed config is code."""
    part, key = path.split("#")
    metadata_file(weights).write_text(json.dumps({part: {key: copy.deepcopy(value)}}))
    error = refused(pack_bundle, "segmentation", task="toy", out=tmp_path / "dist", weights=weights, root=project)
    assert error.found == found
    assert str(metadata_file(weights)) in f"{error.file} {error.remedy}"
    assert not (tmp_path / "dist").exists()


def test_a_network_that_cannot_be_built_from_its_metadata(project: Path, weights: Path, tmp_path: Path) -> None:
    network = {"_target_": "torch.nn.Linear", "in_features": "two", "out_features": 4}
    metadata_file(weights).write_text(json.dumps({"network": {"network_def": network}}))
    error = refused(pack_bundle, "synthesis", task="toy", out=tmp_path, weights=weights, root=project)
    assert error.file == str(metadata_file(weights))
    assert error.found.startswith("no settings of a network (")


def nested(levels: int) -> dict[str, Any]:
    """``{"a": {"a": ... {}}}``; one level is ``{}``."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def test_fifty_levels_are_read_and_no_more() -> None:
    itself: list[Any] = []
    itself.append({"again": itself})
    wide = [[[0] * 100] * 100] * 100  # few lists, a million entries to a reader that follows each
    assert check_depth(nested(50)) == nested(50)
    assert check_depth(wide) is wide
    assert check_depth("text") == "text"
    for value in (nested(51), itself):
        with pytest.raises(RecursionError, match="more than 50 levels of lists and mappings"):
            check_depth(value)


@pytest.mark.parametrize("levels", [51, 800])  # Python itself stops at about 1,000 calls, those of the tests included
def test_values_that_are_nested_too_deeply(levels: int, tmp_path: Path) -> None:
    found = "more than 50 levels of lists and mappings"
    error = refused(load_weights, str(written(tmp_path, "grid", nested(levels - 1))), nn.Linear(2, 1), EXPECTED)
    assert (error.file, error.found) == (str(tmp_path / "model.json"), found)
    text = json.dumps({"training": nested(levels - 1)})
    (tmp_path / "list.json").write_text(text)
    assert refused(read_datalist, str(tmp_path / "list.json"), "training").found == f"cannot be read ({found})"
    assert refused(Settings.read, [str(tmp_path / "list.json")], {}).found == f"cannot be read ({found})"
    torch.save(nested(min(levels, 200)), tmp_path / "deep.pt")
    assert refused(read_state, tmp_path / "deep.pt").found == "no weights (RecursionError)"


def test_other_values_that_are_nested_too_deeply() -> None:
    """Such as those of a command line: whatever walks through them, a command ends with a sentence."""
    with pytest.raises(RecursionError) as caught:
        check_values({"a": nested(5000)})
    error = find_input_error(caught.value)
    assert error is not None
    assert error.found.startswith("nested too deeply (maximum recursion depth exceeded")
