"""Every config file: it loads, every name in it is known, and files laid over one another fit."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import CONFIGS, ROOT, config_files
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser

from scripts.core.settings import unused_keys

FILES = sorted(CONFIGS.rglob("*.yaml"))
BASES = {
    ("synthesis", "train"): "training",
    ("synthesis", "inference"): "inference",
    ("segmentation", "train"): "training",
    ("segmentation", "inference"): "inference",
    ("segmentation", "evaluate"): "evaluating",
}
"""Every base config, and the run id of its work."""

TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
LENGTHS = sorted(path for path in FILES if path.stem in ("synthesis", "segmentation"))
"""Overlays of a training config that are named after its stage: how long and how large."""

LOCATOR = ComponentLocator()


def name_of(path: Any) -> str:
    return path.relative_to(CONFIGS).as_posix() if isinstance(path, Path) else str(path)


def load(path: Path) -> dict[str, Any]:
    return dict(ConfigParser.load_config_file(str(path)))


def load_base(base: tuple[str, str]) -> dict[str, Any]:
    return load(CONFIGS / base[0] / f"{base[1]}.yaml")


def parts(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a nested config with its value."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from parts(value)
    elif isinstance(config, list):
        for item in config:
            yield from parts(item)


def texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict | list):
        for item in config.values() if isinstance(config, dict) else config:
            yield from texts(item)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_loads_and_gives_no_key_twice(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    assert load(path)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_target_exists(path: Path) -> None:
    for item in [load(path), *(value for _, value in parts(load(path)) if isinstance(value, dict))]:
        if "_target_" in item:
            module = ConfigComponent(config=item, id="", locator=LOCATOR).resolve_module_name()
            found = module if callable(module) else pydoc.locate(str(module))
            assert callable(found), item["_target_"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_that_breaks_a_bundle(path: Path) -> None:
    config = load(path)
    for text in texts(config):
        assert not re.search(r"\bimport\s+scripts|\bfrom\s+scripts", text), "scripts are named as targets only"
        assert not text.startswith("%"), "macros copy text that packing has changed"
    # MONAI takes any id with 'import' in it for a statement to run first.
    assert not [key for key, _ in parts(config) if "import" in str(key) and key != "imports"]


@pytest.mark.parametrize("base", BASES, ids="/".join)
def test_run_ids_and_titles(base: tuple[str, str]) -> None:
    config = load_base(base)
    assert config["run"] == f"@{BASES[base]}"
    assert config[BASES[base]][0] == "$@run_folder.open()"
    usage = (CONFIGS / base[0] / f"{base[1]}.yaml").read_text()
    assert f"python -m monai.bundle run {BASES[base]} --config_file" in usage


@pytest.mark.parametrize("base", BASES, ids="/".join)
@pytest.mark.parametrize("task", TASKS)
def test_a_task_fits_every_base(base: tuple[str, str], task: str) -> None:
    overlay = load(CONFIGS / "tasks" / f"{task}.yaml")
    assert set(overlay) <= set(load_base(base))
    assert overlay["task"] == task
    merged = ConfigParser.load_config_files(config_files(*base, task=task))
    assert unused_keys(merged, merged["run_folder"].get("spare_keys", ())) == []


@pytest.mark.parametrize("base", [base for base in BASES if base[1] != "train"], ids="/".join)
def test_weights_may_be_named_wherever_they_are(base: tuple[str, str]) -> None:
    merged = ConfigParser.load_config_files(config_files(*base)) | {"checkpoint": "elsewhere/epoch_003.pt"}
    assert unused_keys(merged, merged["run_folder"].get("spare_keys", ())) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_complete_and_named_after_what_it_does(task: str) -> None:
    config = load(CONFIGS / "tasks" / f"{task}.yaml")
    assert task == f"{config['dataset_name']}_{config['source_domain']}2{config['target_domain']}"
    assert len(config["label_names"]) == len(config["label_values"]) == len(set(config["label_values"]))
    assert not {0, *config["label_values"]} & set(config["background_values"])
    assert all(size % 4 == 0 for size in config["slice_size"])


@pytest.mark.parametrize("task", TASKS)
def test_the_way_back_is_the_same_task_turned_round(task: str) -> None:
    config = load(CONFIGS / "tasks" / f"{task}.yaml")
    name = f"{config['dataset_name']}_{config['target_domain']}2{config['source_domain']}"
    back = load(CONFIGS / "tasks" / f"{name}.yaml")
    turned = {
        key: config.get(key.replace("source", "-").replace("target", "source").replace("-", "target")) for key in config
    }
    assert {key: back[key] for key in back if key != "task"} == {key: turned[key] for key in turned if key != "task"}


@pytest.mark.parametrize("base", BASES, ids="/".join)
def test_bases_start_from_the_same_task(base: tuple[str, str]) -> None:
    keys = load(CONFIGS / "tasks" / f"{TASKS[0]}.yaml")
    ours, first = load_base(base), load_base(("synthesis", "train"))
    assert {key: ours[key] for key in keys} == {key: first[key] for key in keys}


@pytest.mark.parametrize("path", sorted((CONFIGS / "sizes").glob("*.yaml")), ids=name_of)
def test_a_size_fits_the_bases_it_is_for(path: Path) -> None:
    stage = path.stem.split("_")[0]
    bases = [base for base in BASES if base[0] == stage] or list(BASES)
    for base in bases:
        assert set(load(path)) <= set(load_base(base)), base


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=name_of)
def test_a_method_fits_the_segmenters_training(path: Path) -> None:
    assert set(load(path)) <= set(load_base(("segmentation", "train")))
    merged = ConfigParser.load_config_files(config_files("segmentation", "train", path))
    assert unused_keys(merged, merged["run_folder"]["spare_keys"]) == []


@pytest.mark.parametrize("path", sorted((CONFIGS / "translators").glob("*.yaml")), ids=name_of)
def test_a_translator_fits_the_translators_training(path: Path) -> None:
    assert set(load(path)) <= set(load_base(("synthesis", "train")))
    merged = ConfigParser.load_config_files(config_files("synthesis", "train", path))
    assert unused_keys(merged, merged["run_folder"]["spare_keys"]) == []


@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=name_of)
def test_a_method_names_its_translator(path: Path) -> None:
    method = load(path)
    own_images = "labelled_datalist" in method  # the source's or the target's as they are
    assert own_images == (method["translator"] == "none")
    assert own_images or (CONFIGS / "translators" / f"{method['translator']}.yaml").is_file()


@pytest.mark.parametrize("task", ["phantom_mr2ct", "cmr_lge2bssfp"])
@pytest.mark.parametrize("path", sorted((CONFIGS / "methods").glob("*.yaml")), ids=name_of)
def test_supervised_alone_learns_from_the_targets_labels(path: Path, task: str) -> None:
    parser = ConfigParser()
    parser.read_config(config_files("segmentation", "train", path, task=task))
    lists = {domain: f"data/{parser[f'{domain}_domain']}.json" for domain in ("source", "target")}
    parser["dataset_dir"] = "data"
    translated = parser["translator"] != "none"
    labelled = "data/datalist.json" if translated else lists["target" if path.stem == "supervised" else "source"]
    assert parser.get_parsed_content("labelled_datalist") == labelled
    assert parser["train"]["dataset"]["data"]["path"] == "@labelled_datalist"
    # The target's list, where a method has it, goes where labels are dropped unread.
    assert parser.get_parsed_content("target_datalist") in (None, lists["target"])
    target = parser["train"]["target_dataset"]["data"]
    assert (target["path"], target.get("needs_label", False)) == ("@target_datalist", False)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_has_target_labels_choose_the_weights(path: Path) -> None:
    assert load(path).get("selection", "last") in ("last", "label_free")


@pytest.mark.parametrize("path", LENGTHS, ids=name_of)
def test_a_length_fits_its_training(path: Path) -> None:
    assert set(load(path)) <= set(load_base((path.stem, "train")))


def test_methods_that_a_comment_names_exist() -> None:
    for path in FILES:
        for name in re.findall(r"configs/([\w/]+\.yaml)", path.read_text()):
            assert (CONFIGS / name).is_file(), f"{name_of(path)} speaks of {name}"


@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
def test_one_network_in_every_config_of_a_stage(stage: str) -> None:
    configs = [load_base(base) for base in BASES if base[0] == stage]
    own = {"backbone_weights", "from_domain", "to_domain"}
    networks = [{k: v for k, v in config["network_def"].items() if k not in own} for config in configs]
    assert all(network == networks[0] for network in networks)
    # The values behind the references agree too, and so do the cards that guard them.
    for config in configs:
        for value in networks[0].values():
            if isinstance(value, str) and value.startswith("@"):
                assert config[value[1:]] == configs[0][value[1:]], value
        assert config["card"]["network"] == configs[0]["card"]["network"]
    settings = {value[1:] for value in networks[0].values() if isinstance(value, str) and value.startswith("@")}
    assert set(configs[0]["card"]["network"]) == settings - {"mask_detach"}  # no effect on what weights fit


def test_configs_are_the_only_yaml_that_is_run() -> None:
    assert all(path.is_relative_to(ROOT / "configs") for path in FILES)
    assert len(FILES) >= len(BASES) + len(TASKS)
