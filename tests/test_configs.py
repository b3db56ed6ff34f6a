"""Rules for the config files: each loads, names only what exists, and fits the files it is combined with."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import BASES, CONFIGS, METHODS, config_files
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser
from monai.bundle.utils import merge_kv
from scripts.core.errors import InputError
from scripts.core.settings import Settings

FILES = sorted(set(CONFIGS.rglob("*.yaml")) - {CONFIGS / "comparison.yaml", CONFIGS / "adapt.yaml"})
"""All but the list of files that `compare` combines, which is no MONAI config."""

TASKS = sorted((CONFIGS / "tasks").glob("*.yaml"))
METHOD_FILES = [CONFIGS / "methods" / f"{method}.yaml" for method in METHODS]
TRANSLATORS = sorted((CONFIGS / "translators").glob("*.yaml"))
LOCATOR = ComponentLocator()


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@cache
def load(path: Path | str) -> dict[str, Any]:
    return dict(ConfigParser.load_config_file(str(path)))


def combine(*files: Path | str) -> dict[str, Any]:
    """Files merged as ``ConfigParser.load_config_files`` does, each read once for all tests."""
    parser = ConfigParser({})
    for file in files:
        for key, value in deepcopy(load(str(file))).items():
            merge_kv(parser, key, value)
    return dict(parser.get())


def load_base(base: str) -> dict[str, Any]:
    """A base config as it is run, without a task file; evaluation is merged over inference."""
    *files, _ = config_files(*base.split("/"))
    return combine(*files)


def parts(config: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a nested config with its value."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield key, value
            yield from parts(value)
    elif isinstance(config, list):
        for item in config:
            yield "", item
            yield from parts(item)


def refused_key(base: str, *overlays: Path, task: str = TASKS[0].stem, **changes: Any) -> list[str]:
    """The first key of a combination of files that a run refuses, with the combination's name; or nothing."""
    merged = combine(*config_files(*base.split("/"), *overlays, task=task)) | changes
    names = " + ".join([base, task, *map(name_of, overlays)])
    try:
        Settings(merged, load_base(base)).check()
    except InputError as error:
        return [f"{names}: {error}"]
    return []


def test_every_file_loads_without_duplicate_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    assert [name_of(path) for path in FILES if not ConfigParser.load_config_file(path)] == []


def test_every_target_can_be_imported() -> None:
    targets = {value for path in FILES for key, value in parts(load(path)) if key == "_target_"}
    names = {target: ConfigComponent({"_target_": target}, locator=LOCATOR).resolve_module_name() for target in targets}
    assert [target for target, name in names.items() if not callable(name) and not callable(pydoc.locate(name))] == []


def test_files_that_a_comment_names_exist() -> None:
    named = {
        (name_of(path), name)
        for path in CONFIGS.rglob("*.yaml")
        for name in re.findall(r"configs/([\w/]+\.yaml)", path.read_text())
    }
    assert [pair for pair in sorted(named) if not (CONFIGS / pair[1]).is_file()] == []


def test_nothing_that_breaks_a_packed_bundle() -> None:
    """No import of `scripts` before the bundle is on the path, no macro, and no id that MONAI takes for an import."""
    offenders = []
    for path in FILES:
        for key, value in parts(load(path)):
            is_bad_text = isinstance(value, str) and re.search(r"\b(import|from)\s+scripts|^%", value)
            if is_bad_text or ("import" in str(key) and key != "imports"):
                offenders.append(f"{name_of(path)}: {key}: {value}")
    assert offenders == []


def test_every_base_config_has_its_run_id_and_shows_its_command() -> None:
    for base, run_id in BASES.items():
        config, text = load_base(base), (CONFIGS / f"{base}.yaml").read_text()
        assert config["run"] == f"@{run_id}", base
        actions = [action for action in config[run_id] if isinstance(action, str)]  # before them, a check of the files
        assert actions[0] == "$@run_folder.open()", base
        assert re.search(rf"python -m monai.bundle run {run_id} (\\\n#\s+)?--config_file", text), base


def test_every_overlay_fits_the_configs_it_is_for() -> None:
    offenders = [found for base in BASES for path in TASKS for found in refused_key(base, task=path.stem)]
    offenders += [found for path in METHOD_FILES for found in refused_key("segmentation/train", path)]
    offenders += [found for path in TRANSLATORS for found in refused_key("synthesis/train", path)]
    networks, segmentation = (
        CONFIGS.glob("networks/*.yaml"),
        [base for base in BASES if base.startswith("segmentation")],
    )
    offenders += [found for path in networks for base in segmentation for found in refused_key(base, path)]
    for path in sorted((CONFIGS / "sizes").glob("*.yaml")):
        stage = path.stem.split("_")[0]
        for base in [base for base in BASES if base.startswith(stage)] or BASES:
            offenders += refused_key(base, path)
    for folder in {path.parent for path in FILES if path.stem in ("synthesis", "segmentation")} - {
        CONFIGS / "protocols"
    }:
        offenders += [found for path in folder.glob("s*.yaml") for found in refused_key(f"{path.stem}/train", path)]
    assert offenders == []


def test_weights_may_be_named_wherever_they_are() -> None:
    bases = [base for base in BASES if not base.endswith("train")]
    assert [found for base in bases for found in refused_key(base, checkpoint="elsewhere/epoch_003.pt")] == []


def test_every_base_config_starts_from_the_cardiac_task() -> None:
    """Without a task file, a config does what it does with ``configs/tasks/cardiac_mr2ct.yaml``."""
    task = load(CONFIGS / "tasks" / "cardiac_mr2ct.yaml")
    bases = {base: load_base(base) for base in BASES}
    assert [(base, key) for base, config in bases.items() for key in task if config[key] != task[key]] == []


def test_tasks_are_complete_and_reversible() -> None:
    """Each task is named after what it does, and the task in the other direction exchanges source and target only."""
    tasks = {path.stem: load(path) for path in TASKS}
    swap = {"source": "target", "target": "source"}
    for name, task in tasks.items():
        source, target = task["source_domain"], task["target_domain"]
        assert name == task["task"] == f"{task['dataset_name']}_{source}2{target}"
        assert len(task["label_names"]) == len(task["label_values"]) == len(set(task["label_values"])), name
        assert not {0, *task["label_values"]} & set(task["background_values"]), name
        assert all(size % 4 == 0 for size in task["slice_size"]), name
        reverse = {re.sub("source|target", lambda word: swap[word[0]], key): task[key] for key in task if key != "task"}
        other = tasks[f"{task['dataset_name']}_{target}2{source}"]
        assert {key: other[key] for key in other if key != "task"} == reverse, name


def test_one_network_in_every_config_of_a_stage() -> None:
    for stage in ("synthesis", "segmentation"):
        configs = {base: load_base(base) for base in BASES if base.startswith(stage)}
        values = [
            {key: config.get(str(value)[1:], value) for key, value in config["network_def"].items()}
            for config in configs.values()
        ]
        keys = set.union(*map(set, values)) - {"backbone_weights", "from_domain", "to_domain"}
        assert [key for key in sorted(keys) if any(other[key] != values[0][key] for other in values)] == []


def test_methods_train_on_source_labels_only_except_supervised() -> None:
    """The labelled list is the translated or the original source; the target's list goes where labels are dropped."""
    for path in METHOD_FILES:
        for task in ("phantom_mr2ct", "cmr_lge2bssfp"):
            parser = ConfigParser(combine(*config_files("segmentation", "train", path, task=task)))
            parser["dataset_dir"] = "data"
            lists = {domain: f"data/{parser[f'{domain}_domain']}.json" for domain in ("source", "target")}
            original = lists["target" if path.stem == "supervised" else "source"]
            labelled = original if parser["translator"] == "none" else "data/datalist.json"
            assert parser.get_parsed_content("labelled_datalist") == labelled, path.stem
            assert parser["train"]["dataset"]["data"]["path"] == "@labelled_datalist", path.stem
            assert parser.get_parsed_content("target_datalist") in (None, lists["target"]), path.stem
            target = parser["train"]["target_dataset"]["data"]
            assert (target["path"], target.get("needs_label", False)) == ("@target_datalist", False), path.stem


def test_methods_name_a_translator_that_exists() -> None:
    # with_original follows any method that translates.
    names = {path.stem: load(path)["translator"] for path in METHOD_FILES if path.stem != "with_original"}
    assert {
        name: word for name, word in names.items() if word not in {"none", *(path.stem for path in TRANSLATORS)}
    } == {}


def test_no_file_lets_target_labels_choose_the_weights() -> None:
    assert [name_of(path) for path in FILES if load(path).get("selection", {}).get("keep") == "oracle"] == []
