"""The comparison: which commands it plans, what it runs again and what not, and how it lives with failures."""

from __future__ import annotations

import ast
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from comparison_folders import request_for
from conftest import CONFIGS, ROOT
from filelock import FileLock
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.settings import unused_keys
from scripts.lab.experiments.compare import run_comparison
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun, plan
from scripts.lab.experiments.record import read_record, status_of
from scripts.lab.experiments.step_runner import StepFailed, StepRunner

METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))
TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def requested(tmp_path: Path) -> ComparisonRequest:
    return request_for(tmp_path, ["none", "style", "glua"], [0, 1])


class Recorder:
    """Stands in for the processes: remembers each command, and fails those in whose words ``broken`` occurs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.broken, self.end = "nothing", (1, "error: the disk is full.")
        monkeypatch.setattr(StepRunner, "_process", self.process)

    def process(self, name: str, command: list[str]) -> tuple[int, str]:
        words = " ".join(command)
        self.commands.append(words)
        return self.end if self.broken in words else (0, "")


def files_of(command: list[str]) -> list[str]:
    return ast.literal_eval(command[command.index("--config_file") + 1])


def run_of(runs: list[PlannedRun], name: str, seed: int = 0) -> PlannedRun:
    (run,) = (run for run in runs if (run.kind, run.name, run.seed) == ("method", name, seed))
    return run


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_every_size_and_its_configs_parse(task: str, size: str, requested: ComparisonRequest) -> None:
    runs = plan(replace(requested, task=task, size=size, methods=["glua"], seeds=[0]))
    commands = {tuple(files_of(list(step.command))) for run in runs for step in run.steps}
    assert len(commands) == 5  # training and inference of both stages, and evaluation
    for files in commands:
        parser = ConfigParser()
        parser.read_config(list(files))
        assert unused_keys(parser.get(), parser["run_folder"].get("spare_keys", ())) == []
        grid = parser.get_parsed_content("card")["grid"]
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


def test_methods_share_one_translator_for_each_seed(requested: ComparisonRequest) -> None:
    runs = plan(requested)
    assert [(run.kind, run.name, run.seed) for run in runs] == [
        (kind, name, seed)
        for seed in (0, 1)
        for kind, name in (("translator", "style"), ("method", "none"), ("method", "style"), ("method", "glua"))
    ]
    images = [str(requested.out / "translators" / "style_seed1" / "translated" / "datalist.json")]
    for name, expected in (("none", []), ("style", images), ("glua", images)):
        (training, *_) = run_of(runs, name, 1).steps
        assert [word for word in training.command if word.endswith("datalist.json")] == expected


def test_the_other_direction_may_lend_its_translators(requested: ComparisonRequest, tmp_path: Path) -> None:
    other = replace(requested, task="phantom_ct2mr", translators=tmp_path / "mr2ct", seeds=[1])
    weights = tmp_path / "mr2ct" / "translators" / "style_seed1" / "models" / "model.pt"
    with pytest.raises(InputError, match="the card of a trained translator; run the other direction first"):
        plan(other)
    write_json(weights.with_suffix(".json"), {"domains": ["mr", "ct"]})
    (translation,) = plan(other)[0].steps
    words = " ".join(translation.command)
    assert f"--checkpoint {weights} --trained_domains ['mr', 'ct']" in words
    assert "configs/tasks/phantom_ct2mr.yaml" in words


def test_a_short_training_asks_the_same_of_every_translator(requested: ComparisonRequest) -> None:
    # For want of iterations its schedule strengthens the adversary; a rival that kept weight 1 would be the weaker.
    runs = plan(replace(requested, task="abdomen_ct2mr", methods=["glua", "cyclegan", "starganv2"], seeds=[0]))
    trainings = [run.steps[0].command for run in runs if run.kind == "translator"]
    weights = [ConfigParser.load_config_files(files_of(list(command)))["adversarial_weight"] for command in trainings]
    assert weights == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_builds_the_network_that_was_trained(method: str, requested: ComparisonRequest) -> None:
    training, *uses = run_of(plan(replace(requested, methods=[method])), method).steps
    trained = ConfigParser.load_config_files(files_of(list(training.command)))
    for use in uses:
        command = list(use.command)
        used = ConfigParser.load_config_files(files_of(command))
        options = {word.removeprefix("--"): value for word, value in itertools.pairwise(command)}
        for reference in trained["card"]["network"].values():
            key = reference.removeprefix("@")
            assert str(options.get(key, used[key])) == str(trained[key])


def test_masks_are_written_where_there_is_a_mask(requested: ComparisonRequest) -> None:
    runs = plan(replace(requested, methods=["glua", "glua_nomask"]))
    assert [step.name for step in run_of(runs, "glua").steps] == ["training", "evaluation", "masks"]
    assert [step.name for step in run_of(runs, "glua_nomask").steps] == ["training", "evaluation"]


def test_what_is_done_is_not_run_again_and_more_seeds_join(
    requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    assert run_comparison(replace(requested, seeds=[0]))
    steps_of_a_seed = 2 + 2 + 2 + 3
    assert len(recorder.commands) == steps_of_a_seed
    assert run_comparison(requested)
    assert len(recorder.commands) == 2 * steps_of_a_seed
    content = read_record(requested.out)
    assert content["seeds"] == [0, 1]
    assert [(run["method"], run["seed"], run["status"]) for run in content["runs"]] == [
        (method, seed, "done") for seed in (0, 1) for method in ("none", "style", "glua")
    ]
    assert set(content["runs"][0]["seconds"]) == {"training", "evaluation"}


def test_unseen_images_come_without_labels(requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)
    run_comparison(requested)
    (case,) = json.loads((requested.out / "unseen.json").read_text())["validation"]
    assert case == {"image": str(requested.data / "a.nii.gz")}


def test_a_failed_run_is_named_passed_by_and_tried_again(
    requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    recorder.broken = "methods/none_seed0"
    assert not run_comparison(requested)
    status = {(run["method"], run["seed"]): run["status"] for run in read_record(requested.out)["runs"]}
    assert [key for key, value in status.items() if value != "done"] == [("none", 0)]
    failed = read_record(requested.out)["runs"][0]
    assert (failed["status"], failed["error"]) == ("failed", "error: the disk is full. (exit code 1)")
    recorder.commands, recorder.broken = [], "nothing"
    assert run_comparison(requested)
    assert [command.endswith("--resume True") for command in recorder.commands] == [True, False]
    assert all("none_seed0" in command for command in recorder.commands)


def test_without_its_translator_a_method_fails_with_a_sentence(
    requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    recorder.broken = "translators/style_seed0"
    assert not run_comparison(requested)
    errors = {(run["method"], run["seed"]): run["error"] for run in read_record(requested.out)["runs"]}
    assert errors["glua", 0] == "its translator, style, seed 0, is not done"
    assert errors["none", 0] is None
    assert errors["glua", 1] is None


def test_a_run_that_another_process_has_is_left_to_it(
    requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    requested = replace(requested, methods=["none"], seeds=[0])
    (run,) = plan(requested)
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / ".lock"):
        assert not run_comparison(requested)
    assert recorder.commands == []
    assert status_of(run) == "missing"


def test_runs_side_by_side_share_the_cores(requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(StepRunner, "_process", lambda self, *_: environments.append(self.environment) or (0, ""))
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert run_comparison(requested, jobs=2)
    assert environments == [{"OMP_NUM_THREADS": "4"}] * 18


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["magic"]}, ["configs/methods/magic.yaml", "no such file", "glua"]),
        ({"task": "brain"}, ["configs/tasks/brain.yaml", "no such file", "phantom_mr2ct"]),
        ({"size": "huge"}, ["no size huge for the data set phantom", "one of small, full"]),
        ({"task": "abdomen_ct2mr", "dataset_dir": None}, ["--dataset_dir", "mr.json"]),
    ],
)
def test_bad_requests_are_refused(change: dict, words: list[str], requested: ComparisonRequest) -> None:
    with pytest.raises(InputError) as refused:
        run_comparison(replace(requested, **change))
    assert all(word in str(refused.value) for word in words), refused.value


def test_further_settings_go_to_every_segmentation_training(requested: ComparisonRequest) -> None:
    for run in plan(replace(requested, settings={"snapshot_interval": "1"})):
        for step in run.steps:
            assert ("--snapshot_interval" in step.command) == (run.kind == "method" and step.name == "training")


def test_a_setting_of_the_network_goes_to_its_evaluation_too(requested: ComparisonRequest) -> None:
    training, evaluation = run_of(plan(replace(requested, settings={"mask_mode": "off"})), "glua").steps
    for step in (training, evaluation):
        assert "--mask_mode off" in " ".join(step.command)


def test_a_method_may_be_a_file_of_ones_own(requested: ComparisonRequest, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("d1_weight: 0.05\n")
    _, run = plan(replace(requested, methods=[str(mine)], seeds=[0]))
    assert (run.name, run.translator) == ("mine", "style")
    assert run.folder == requested.out / "methods" / "mine_seed0"


def test_a_folder_keeps_to_its_task(requested: ComparisonRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch)
    run_comparison(requested)
    with pytest.raises(
        InputError, match="a comparison with task phantom_mr2ct, expected task phantom_ct2mr; choose another"
    ):
        run_comparison(replace(requested, task="phantom_ct2mr"))


def test_a_step_keeps_what_it_prints_and_gives_its_last_line(tmp_path: Path) -> None:
    steps = StepRunner(tmp_path, resume=False, logs=tmp_path / "logs", quiet=True)
    with pytest.raises(StepFailed) as failed:
        steps.run("bad one", ["-c", "print('10%\\r20%'); raise SystemExit('error: no labels.')"])
    assert (failed.value.code, failed.value.last_line) == (1, "error: no labels.")
    assert (tmp_path / "logs" / "bad_one.log").read_bytes() == b"10%\r20%\nerror: no labels.\n"
