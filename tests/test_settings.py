"""Settings: which keys are refused, which are evaluated, which decide the result, and where they come from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, config_files, refused
from monai.bundle import ConfigParser
from monai.transforms import Compose, ScaleIntensityRanged
from scripts.core.descriptions import describe_component, describe_transform, records_arguments
from scripts.core.errors import InputError
from scripts.core.settings import (
    Settings,
    _parse_command_line,
    current_settings,
    deciding_settings,
    is_bundle_command,
    run_bundle,
)
from scripts.core.weights import check_metadata
from scripts.lab.cli import main
from scripts.lab.experiments.plan import bundle_command
from torch import Tensor, nn

BASE: dict[str, Any] = {
    "rate": 0.1,
    "spare": None,
    "noise": {"_target_": "RandGaussianNoised", "keys": "image", "std": "@rate"},
    "train": {"dataset": [1, 2], "inner": {"handlers": ["@noise"]}},
    "run_folder": {"may_change": ["resume", "train#dataset"]},
    "run": ["$print(@train#inner#handlers)"],
}


def merged(**changes: Any) -> Settings:
    return Settings({**BASE, **changes}, BASE)


def section(**changes: Any) -> dict[str, Any]:
    return {**BASE["train"], **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"spare": 1},  # defined by the base config, though nothing refers to it
        {"power": 2, "noise": {**BASE["noise"], "std": "$@rate ** @power"}},  # an overlay's own setting
        {"noise": {**BASE["noise"], "std": 0.2}},  # now nothing refers to `rate`
        {"train": section(extra=[1], inner={"handlers": ["@train#extra"]})},
        {"tracking_uri": "sqlite:///x.db", "_note": "a remark"},
        {"noise": {"_target_": "builtins.dict", "anything": "@rate"}},  # takes any keyword
        {"noise": {**BASE["noise"], "strd": 1, "_disabled_": True}},
    ],
)
def test_known_keys_pass(changes: dict[str, Any]) -> None:
    """With one unknown key beside them, that key alone is refused."""
    merged(**changes).check()
    with pytest.raises(InputError, match="key 'unknown': a key that the base config does not define"):
        merged(**changes, unknown=1).check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratte": 1}, "key 'ratte': a key that the base config does not define. Expected 'rate', perhaps"),
        ({"zzz": 1}, "key 'zzz': .* Expected a key of the base config"),
        ({"train": section(dataste=1)}, "key 'train#dataste': .* Expected 'dataset', perhaps"),
        ({"train": section(inner={"handlers": [], "handlres": 1})}, "key 'train#inner#handlres'"),
        ({"noise": {**BASE["noise"], "strd": 1}}, r"key 'noise#strd': an argument .* Expected 'std', perhaps"),
        ({"train": section(dataset=[{**BASE["noise"], "strd": 1}])}, "key 'train#dataset#0#strd'"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        merged(**changes).check()


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        ("inference", {"inferer#slice_batch_size": 3}),
        ("inference", {"network_def#width": 32}),
        ("train", {"train#trainer#max_epochs": 2}),
        ("train", {"train#dataset#data": [], "val_interval": 1}),
    ],
)
def test_nested_overrides_are_accepted(config: str, overrides: dict[str, Any]) -> None:
    """They leave the top-level setting of the same meaning unused, which is no mistake."""
    settings = Settings.read(config_files("segmentation", config), overrides)
    settings.check()
    parser = ConfigParser(settings.merged)
    assert {key: parser[key] for key in overrides} == overrides


def test_training_and_evaluation_merge() -> None:
    """The zoo's tests and MONAI's federated client evaluate with [train, evaluate]."""
    files = [config_files("segmentation", "train")[0], *config_files("segmentation", "evaluate")]
    settings = Settings.read(files, {})
    settings.check()
    assert settings.merged["run"] == "@evaluating"


def test_evaluated_settings_are_plain_values() -> None:
    settings = merged(
        double="$2 * @rate",
        sizes="$(@double, None)",
        made="$@noise",
        never="$@train#inner",
        device="$torch.device('cpu')",
    )
    found = settings.evaluated()
    # Neither a component, what refers to one, nor what cannot be written down.
    assert found.keys() == {"rate", "spare", "double", "sizes", "run_folder"}
    assert (found["rate"], found["spare"], found["double"], found["sizes"]) == (0.1, None, 0.2, (0.2, None))


def test_what_may_change_does_not_decide() -> None:
    config = merged(resume=True, experiment_name="x").merged
    assert deciding_settings(config) == {
        "rate": 0.1,
        "spare": None,
        "noise#_target_": "RandGaussianNoised",
        "noise#keys": "image",
        "noise#std": "@rate",
        "train#inner#handlers": ["@noise"],
        "run_folder#may_change": ["resume", "train#dataset"],
    }


def test_a_program_has_no_settings_unless_it_gives_them(tmp_path: Path) -> None:
    """Neither pytest nor a server is MONAI's command; ``run_bundle`` passes on what it was given."""
    assert (is_bundle_command(), current_settings()) == (False, None)
    config = tmp_path / "base.json"
    out = tmp_path / "out.json"
    probe = {"_target_": "test_settings.write_current", "path": "@path"}
    config.write_text(json.dumps({"rate": 1, "path": str(out), "probe": probe, "run": ["@probe"]}))
    run_bundle("run", [str(config)], rate=2)
    assert json.loads(out.read_text())["rate"] == 2
    assert current_settings() is None


def write_current(path: str) -> None:
    settings = current_settings()
    assert settings is not None
    Path(path).write_text(json.dumps(settings.merged))


@pytest.mark.slow
def test_the_command_line_is_read_as_monai_reads_it(tmp_path: Path) -> None:
    config, out, more = tmp_path / "base.json", tmp_path / "out.json", tmp_path / "args.json"
    probe = {"_target_": "test_settings.write_current", "path": "@path"}
    config.write_text(json.dumps({"rate": 1, "sizes": [1], "path": "", "probe": probe, "run": ["@probe"]}))
    more.write_text(json.dumps({"config_file": str(config), "path": str(out), "rate": 3}))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(more), "--rate=2", "--sizes", "[2, 3]"]
    subprocess.run(
        [*command, "--probe#path", str(out)],
        cwd=Path(__file__).parent,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    written = json.loads(out.read_text())
    assert (written["rate"], written["sizes"], written["probe"]["path"]) == (2, [2, 3], str(out))


def test_a_transform_is_described_by_its_class_and_arguments() -> None:
    window = ScaleIntensityRanged(keys="image", a_min=-200, a_max=500, b_min=-1.0, b_max=1.0, clip=True)
    found = describe_transform(Compose([window]))
    (described,) = found["transforms"]
    assert found["_target_"] == "Compose"
    assert list(described)[:3] == ["_target_", "a_min", "a_max"], "in one order: files of equal runs are equal"
    assert described == {
        "_target_": "ScaleIntensityRanged",
        "a_min": -200,
        "a_max": 500,
        "b_min": -1.0,
        "b_max": 1.0,
        "clip": True,
    }
    check_metadata({"ct": found}, {"ct": found}, Path("model.pt"))
    other = describe_transform(Compose([ScaleIntensityRanged(keys="image", a_min=0, a_max=500)]))
    with pytest.raises(InputError, match=r"weights made with ct|weights made with transforms"):
        check_metadata({"ct": found}, {"ct": other}, Path("model.pt"))


@pytest.mark.parametrize(
    ("found", "expected", "remedy"),
    [
        ({"width": 32}, {"width": 64}, "add configs/sizes/segmentation_small.yaml or "),
        (
            {"_target_": "scripts.networks.masked_unet.MaskedUNet"},
            {"_target_": "b"},
            "add configs/networks/unet.yaml to --",
        ),
        ({"width": 31}, {"width": 64}, "choose weights of this task, or "),
    ],
)
def test_a_mismatch_names_the_files_to_add(found: dict[str, Any], expected: dict[str, Any], remedy: str) -> None:
    error = refused(check_metadata, {"network": found}, {"network": expected}, Path("model.pt"))
    assert error.remedy.startswith(remedy)


@records_arguments
class Toy(nn.Module):
    def __init__(self, width: int, *, rates: tuple[int, ...] = (1, 2), start: str | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_network_is_described_by_its_constructor_arguments() -> None:
    toy = Toy(3, start="x.pt")
    assert describe_component(toy, without=["start"]) == {"_target_": "test_settings.Toy", "width": 3, "rates": [1, 2]}
    assert torch.jit.script(toy)(torch.zeros(1, 3)).shape == (1, 1), "a record does not prevent an export"


@pytest.mark.parametrize("word", ["run#7", "a # b"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_word_that_python_cuts_is_refused(word: str, joined: bool) -> None:
    files = f"{config_files('segmentation', 'inference')}"
    given = [f"--output_dir={word}"] if joined else ["--output_dir", word]
    with pytest.raises(InputError, match=rf"--output_dir: {word}, which is read as '(run|a)'"):
        _parse_command_line(["inference", "--config_file", files, *given])


@pytest.mark.parametrize("word", ["'run#7'", "/data/run#7", "runs/#1"])
def test_a_path_with_a_hash_is_refused_however_it_is_quoted(word: str) -> None:
    """MONAI would write to ``run::7``."""
    words = ["inference", "--config_file", f"{config_files('segmentation', 'inference')}", "--output_dir", word]
    with pytest.raises(InputError, match=r"setting 'output_dir': .* Expected a path without #, which MONAI turns"):
        _parse_command_line(words).check()


@pytest.mark.parametrize("command", ["adapt", "compare", "demo"])
def test_commands_that_train_refuse_a_path_with_a_hash_before_any_work(command: str, tmp_path: Path) -> None:
    needed = {
        "adapt": [f"--{name}={tmp_path}" for name in ("source_images", "source_labels", "target_images")],
        "compare": ["--task", "phantom_mr2ct", "--methods", "none"],
        "demo": [],
    }
    with pytest.raises(InputError, match=r"--out: .*run#7\. Expected a path without #"):
        main([command, *needed[command], "--out", str(tmp_path / "run#7")])
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "word"), [("bundle_root", "2024_01_15"), ("dataset_dir", "a,b"), ("output_dir", "1e3")]
)
def test_a_path_that_python_reads_as_something_else_is_refused(setting: str, word: str) -> None:
    """The setting that was given is named, not one that follows from it."""
    words = ["inference", "--config_file", f"{config_files('segmentation', 'inference')}", f"--{setting}"]
    with pytest.raises(
        InputError, match=rf"setting '{setting}': .*Expected a path without #.*; in two kinds of quotes"
    ):
        _parse_command_line([*words, word]).check()
    assert _parse_command_line([*words, f"'{word}'"]).merged[setting] == word


@pytest.mark.parametrize("setting", ["output_dir", "ckpt_dir", "bundle_root", "dataset_dir"])
@pytest.mark.parametrize("word", ["@runs", "$HOME/runs"])
def test_a_path_that_refers_to_nothing_is_refused(setting: str, word: str) -> None:
    """The setting that was given is named, not one that follows from it."""
    words = ["inference", "--config_file", f"{config_files('segmentation', 'inference')}", f"--{setting}", word]
    with pytest.raises(InputError, match=f"setting '{setting}': an expression that fails"):
        _parse_command_line(words).check()


def test_signs_of_references_within_a_path_are_letters() -> None:
    """MONAI takes ``%`` for a macro only at the start of a value."""
    words = ["inference", "--config_file", f"{config_files('segmentation', 'inference')}", "--output_dir"]
    for word in ("run%a", "run@a", "a$b", "100%"):
        settings = _parse_command_line([*words, word])
        settings.check()
        assert settings.merged["output_dir"] == word
    with pytest.raises(InputError, match=r"--output_dir: %a, which is read as a part of another file"):
        _parse_command_line([*words, "%a"])


def test_a_class_that_does_not_exist_is_named() -> None:
    changes = {"labelled_intensity": {"_target_": "ScaleIntensityRanges", "keys": "image"}}
    with pytest.raises(InputError, match=r"'_target_': 'ScaleIntensityRanges'\. Expected a class or function"):
        Settings.read(config_files("segmentation", "train"), changes).check()


@pytest.mark.parametrize("word", ["2024_01_15", "a,b", "/data/a,b", "/data/a", "it's", "None"])
def test_commands_of_a_comparison_keep_paths_as_they_are(word: str) -> None:
    options = ("--dataset_dir", word, "--seed", "3", "--largest_component", "True")
    command = bundle_command("inference", config_files("segmentation", "inference"), Path(word), *options)
    settings = _parse_command_line(command[3:]).merged
    given = [settings[name] for name in ("bundle_root", "dataset_dir", "seed", "largest_component")]
    assert given == [word, word, 3, True]


def test_none_on_the_command_line_is_refused_not_dropped() -> None:
    """MONAI takes it for a setting that was not given."""
    files = f"{config_files('segmentation', 'inference')}"
    with pytest.raises(InputError, match=r"--output_dir: None, which MONAI drops"):
        _parse_command_line(["inference", "--config_file", files, "--output_dir", "None"])
