"""Every task can be compared at every size: its configs parse and its slices fit the machine."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison_folders import request_for
from conftest import CONFIGS, ROOT
from monai.bundle import ConfigParser
from scripts.core.settings import Settings
from scripts.lab.experiments.plan import plan

TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_every_size_and_its_configs_parse(
    task: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    runs = plan(replace(request_for(tmp_path, ["glua"], [0]), task=task, size=size))
    commands = {
        tuple(ast.literal_eval(step.command[step.command.index("--config_file") + 1]))
        for run in runs
        for step in run.steps
    }
    assert len(commands) == 5  # training and inference of both stages, and evaluation
    for files in commands:
        parser = ConfigParser()
        parser.read_config(list(files))
        Settings.read(list(files), {}).check()
        if "labels_are_class_ids" in parser:
            parser["labels_are_class_ids"] = False  # its value comes from the datalist, which does not exist here
        grid = parser.get_parsed_content("weights_metadata")["grid"]
        assert len(grid["spacing_mm"]) == 3
        assert all(side % 4 == 0 and (size == "full" or side <= 128) for side in grid["slice_size"])
        if files[0].endswith("train.yaml"):
            assert parser.get_parsed_content("train#preprocessing").transforms
            assert parser.get_parsed_content("train#target_preprocessing").transforms
        else:
            assert parser.get_parsed_content("preprocessing").transforms
        if files[0].endswith("inference.yaml"):
            with torch.device("meta"):  # layers without their numbers
                assert list(parser.get_parsed_content("network_def").parameters())
