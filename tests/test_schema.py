"""The schema of the settings: every file in configs obeys it, and every wrong value gets one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import CONFIGS, ROOT, refused, run_base
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.schema import SCHEMA, check_values
from scripts.core.settings import Settings
from scripts.core.task_files import read_task
from scripts.lab.cli import main


def config_of(file: Path) -> Any:
    return ConfigParser.load_config_file(str(file))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_config_of_the_repository_obeys(file: Path) -> None:
    check_values(config_of(file))


@pytest.mark.parametrize(
    "role", ["synthesis/train", "synthesis/inference", "segmentation/train", "segmentation/inference"]
)
def test_every_plain_setting_of_the_base_configs_has_a_rule(role: str) -> None:
    """Words that a component checks itself, and paths within a run, are the exceptions."""
    elsewhere = {"precision", "engine", "mask_mode", "d1_kind", "d2_kind", "adversarial_kind", "window_blending"}
    elsewhere |= {"translator", "section", "output_postfix", "run", "imports", "trained_domains"}
    plain = {key for key, value in config_of(CONFIGS / f"{role}.yaml").items() if isinstance(value, int | float | list)}
    assert plain - SCHEMA.keys() - elsewhere - {"training", "inference", "handlers"} == set()


WRONG: list[tuple[dict[str, Any], str]] = [
    (
        {"label_values": [0, 1]},
        "'label_values': [0, 1]. Expected a list of whole numbers from -16777215 to 16777215 without 0",
    ),
    ({"label_values": [2**24]}, "'label_values': [16777216]. Expected a list of whole numbers from -16777215"),
    ({"background_values": [-(2**24)]}, "Expected a list of whole numbers from -16777215 to 16777215"),
    ({"label_names": [f"s{number}" for number in range(256)]}, "Expected a list of 1 to 255 printable names"),
    ({"label_values": [1, 1]}, "'label_values': 1 twice"),
    ({"label_values": [1.5]}, "'label_values': [1.5]. Expected a list of whole numbers"),
    ({"label_values": [1], "background_values": [1, 2]}, "1, which is also in background_values"),
    ({"label_names": ["liver", "liver"]}, "'label_names': 'liver' twice"),
    ({"label_names": ["Liver", "liver"]}, "'label_names': 'Liver' twice"),
    ({"label_names": ["liver", "liver "]}, "Expected a list of 1 to 255 printable names"),
    ({"label_names": ["left\nkidney"]}, "Expected a list of 1 to 255 printable names"),
    ({"label_names": ["background"]}, "Expected a list of 1 to 255 printable names"),
    ({"label_names": ["a", "b"], "label_values": [1]}, "1 values for 2 label_names"),
    ({"label_names": ["a"], "label_values": [1, 2]}, "2 values for 1 label_names"),
    ({"source_domain": "ct", "target_domain": "ct"}, "'target_domain': 'ct', as source_domain"),
    ({"target_domain": "../ct"}, "'target_domain': '../ct'. Expected a plain file name"),
    ({"slice_axis": 3}, "'slice_axis': 3. Expected 0, 1 or 2"),
    ({"orientation": "RAX"}, "'orientation': 'RAX'. Expected three letters"),
    ({"orientation": "RLS"}, "'orientation': 'RLS'. Expected three letters"),
    ({"slice_size": 32}, "'slice_size': 32. Expected multiples of 4 to 4096"),
    ({"slice_size": [30, 32]}, "'slice_size': [30, 32]. Expected multiples of 4 to 4096"),
    ({"slice_size": [32, 2**30]}, "'slice_size': [32, 1073741824]. Expected multiples of 4 to 4096"),
    (
        {"source_intensity": "ScaleIntensityd"},
        "'source_intensity': 'ScaleIntensityd'. Expected a component with its _target_",
    ),
    ({"target_section": None}, "'target_section': None. Expected a component with its _target_"),
    ({"spacing_mm": [0, 1.0, 1.0]}, "'spacing_mm': [0, 1.0, 1.0]. Expected three numbers above 0, or -1"),
    ({"spacing_mm": [1.0, 1.0]}, "'spacing_mm': [1.0, 1.0]. Expected three"),
    (yaml.safe_load("learning_rate: 1e-3"), "'learning_rate': '1e-3', a word in YAML: write 1.0e-3"),
    ({"learning_rate": -1}, "'learning_rate': -1. Expected a number above 0"),
    ({"learning_rate": float("nan")}, "'learning_rate': nan. Expected a number above 0"),
    ({"batch_size": 0}, "'batch_size': 0. Expected a whole number from 1"),
    ({"batch_size": 2.5}, "'batch_size': 2.5. Expected a whole number from 1"),
    ({"train": {"trainer": {"max_epochs": 0}}}, "'train#trainer#max_epochs': 0. Expected a whole number from 1"),
    ({"+train#trainer#max_epochs": 0}, "train#trainer#max_epochs': 0. Expected a whole number from 1"),
    ({"iterations_per_epoch": "many"}, "'iterations_per_epoch': 'many'. Expected a whole number from 1"),
    ({"max_epochs": 10**12}, "'max_epochs': 1000000000000. Expected a whole number from 1 to 1000000"),
    ({"slice_batch_size": 10**9}, "'slice_batch_size': 1000000000. Expected a whole number from 1 to 4096"),
    ({"generator_channels": 100_000}, "'generator_channels': 100000. Expected a whole number from 1 to 512"),
    ({"scales": [1.0, 1000.0]}, "'scales': [1.0, 1000.0]. Expected a list of numbers from 0.1 to 10"),
    ({"checkpoint_interval": 0}, "'checkpoint_interval': 0. Expected a whole number from 1"),
    ({"panel_interval": -1}, "'panel_interval': -1. Expected a whole number from 0"),
    ({"seed": -1}, "'seed': -1. Expected a whole number from 0"),
    ({"seed": True}, "'seed': True. Expected a whole number from 0"),
    ({"resume": "true"}, "'resume': 'true'. Expected True or False; true or false in a file"),
    ({"device": "banana"}, "'device': 'banana'. Expected a device of this machine"),
    ({"device": "meta"}, "'device': 'meta'. Expected a device of this machine"),
    ({"task": "a "}, "'task': 'a '. Expected a plain file name"),
    ({"device": "cuda:99"}, "'device': 'cuda:99'. Expected a device of this machine"),
    ({"ema_decay": 2.0}, "'ema_decay': 2.0. Expected a number of at least 0 and below 1"),
    (
        {"target_intensity": {"transforms": [{"a_min": 5.0, "a_max": 1.0}]}},
        "#0#a_min': 5. Expected a number below a_max",
    ),
    (
        {"target_intensity": {"lower": 0.5, "upper": 120}},
        "'target_intensity#upper': 120. Expected a number from 0 to 100",
    ),
    ({"output_dir": 20240115}, "'output_dir': 20240115. Expected a path"),
    ({"output_dir": ("a", "b")}, "'output_dir': ('a', 'b'). Expected a path"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=lambda part: str(part)[:30])
def test_a_wrong_value_gets_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        check_values(settings)
    assert sentence in str(caught.value)
    assert "Fix: correct it in the task file" in str(caught.value)


def test_references_expressions_and_other_keys_pass() -> None:
    check_values({"batch_size": "@more", "device": "$torch.device('cpu')", "loss": {"weight": -1}, "slice_axis": 0})
    check_values({"panel_interval": 0, "val_interval": 0, "orientation": None, "target_datalist": None})


EXPRESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": "$8 // 9"}, "'batch_size': 0. Expected a whole number from 1"),
    ({"max_epochs": "@seed", "seed": 0}, "'max_epochs': 0. Expected a whole number from 1"),
    ({"label_values": "$[0, 1, 2, 3]"}, "'label_values': [0, 1, 2, 3]. Expected a list of whole numbers"),
    ({"spacing_mm": ["$1 - 1", 1.0, 1.0]}, "'spacing_mm': [0, 1.0, 1.0]. Expected three numbers above 0"),
    ({"train#augmentation#rotation_degrees": "$2 * 100"}, "'train#augmentation#rotation_degrees': 200"),
    ({"translated_intensity#a_max": "$-1.0"}, "'translated_intensity#a_min': 0. Expected a number below a_max, -1"),
    ({"seed": "$undefined"}, "'seed': an expression that fails (NameError: name 'undefined' is not defined)"),
]


@pytest.mark.parametrize(("changes", "sentence"), EXPRESSIONS, ids=lambda part: str(part)[:30])
def test_the_value_of_an_expression_is_checked_as_a_written_one(changes: dict[str, Any], sentence: str) -> None:
    """8 // 9 is 0."""
    settings = Settings.read([str(CONFIGS / "segmentation" / "train.yaml")], changes)
    with pytest.raises(InputError) as caught:
        settings.check()
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "base", ["synthesis/train", "segmentation/train", "segmentation/inference", "segmentation/evaluate"]
)
def test_a_wrong_task_stops_a_run_before_it_writes(base: str, data: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("label_values: [0, 420, 500, 820]\n")
    error = refused(run_base, base, task, dataset_dir=data, bundle_root=tmp_path / "run")
    assert error.file == "setting 'label_values'"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("label_names: [a, b]\nlabel_values: [1]", "setting 'label_values': 1 values for 2 label_names"),
        ("label_names: [a", "cannot be read"),
        ("- a", "no mapping"),
        ("seed: 1", "no structures"),
        ('label_values: "$[1, 2]"', "setting 'label_values': the expression '$[1, 2]'. Expected a list of whole"),
    ],
)
def test_check_reads_a_task_through_the_same_rules(text: str, sentence: str, data: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(text)
    error = refused(main, ["check", str(data), "--task", str(task), "--out", str(tmp_path / "out")])
    assert sentence in str(error)
    assert str(task) in str(error)
    assert not (tmp_path / "out").exists()


def test_a_missing_task_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        read_task(tmp_path / "none.yaml")


def test_the_docs_state_the_schema() -> None:
    page = (ROOT / "docs" / "how-to" / "settings.md").read_text(encoding="utf-8")
    names: dict[str, list[str]] = {}
    for name, (expected, _) in SCHEMA.items():
        names.setdefault(expected, []).append(f"`{name}`")
    for expected, listed in names.items():
        assert f"| {', '.join(listed)} | {expected} |" in page
