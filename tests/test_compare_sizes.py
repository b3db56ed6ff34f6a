"""Plans of tasks and methods: their configs parse at every size, recipes chain, and a bad task file is refused."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison_folders import request_for
from conftest import CONFIGS, ROOT
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.settings import Settings
from scripts.lab.experiments.compare import run_comparison
from scripts.lab.experiments.plan import ComparisonRequest, plan

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


@pytest.mark.parametrize(
    ("written", "becomes", "words"),
    [
        ("[205, 420, 500, 820]", "[205, 420, 500, 205]", "'label_values': 205 twice"),
        ("slice_axis: 2", "slice_axis: 3", "'slice_axis': 3"),
        ("target_domain: ct", "", "no target_domain"),
    ],
)
def test_a_bad_task_file_is_refused_before_any_work(written: str, becomes: str, words: str, tmp_path: Path) -> None:
    task = tmp_path / "mine.yaml"
    task.write_text((CONFIGS / "tasks" / "phantom_mr2ct.yaml").read_text().replace(written, becomes))
    with pytest.raises(InputError, match=words):
        run_comparison(ComparisonRequest(str(task), ["none"], [0], tmp_path / "comparison"))
    assert not (tmp_path / "comparison").exists()


def test_both_trainings_of_a_recipe_learn_from_translated_images(tmp_path: Path) -> None:
    translator, first, second = plan(request_for(tmp_path, ["recommended"], [0]))
    assert (translator.name, first.name) == ("style", "unet+recommended_start+style+with_original")
    assert (first.needs, second.needs) == ((translator.folder,), (translator.folder, first.folder))
    for run in (first, second):
        assert f"{translator.folder}/translated/datalist.json" in run.steps[0].command
        assert run.settings["labelled_intensity"] == "@translated_intensity"
        assert run.settings["target_datalist"] == (
            None if run is first else "$@dataset_dir + '/' + @target_domain + '.json'"
        )
