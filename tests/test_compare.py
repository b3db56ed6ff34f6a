"""A comparison: which commands it plans, what it runs again and what not, and how it handles failures."""

from __future__ import annotations

import ast
import itertools
import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from comparison_folders import request_for
from conftest import CONFIGS, METHODS, ROOT
from filelock import FileLock
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.lab.experiments import run_record
from scripts.lab.experiments.compare import LOCK, changed_settings, run_comparison
from scripts.lab.experiments.comparison_record import read_comparison_record
from scripts.lab.experiments.plan import ComparisonRequest, PlannedRun, plan
from scripts.lab.experiments.run_record import RunRecord

TASKS = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def wanted(tmp_path: Path) -> ComparisonRequest:
    return request_for(tmp_path, ["none", "style", "glua"], [0, 1])


@pytest.fixture
def one(tmp_path: Path) -> ComparisonRequest:
    return request_for(tmp_path, ["none"], [0])


class Processes:
    """Replaces the processes: keeps each command and fails those that contain ``broken``; and the code's commit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.environments: list[dict[str, str]] = []
        self.broken, self.end = "nothing", (1, "error: the disk is full.")
        self.commit, self.uncommitted = FIRST, False
        monkeypatch.setattr(run_record, "run_process", self.run)
        monkeypatch.setattr(
            run_record, "provenance", lambda: {"commit": self.commit, "uncommitted_changes": self.uncommitted}
        )

    def run(self, command: list[str], log: Path, *, environment: dict, shown: str) -> tuple[int, str]:
        words = " ".join(command)
        self.commands.append(words)
        self.environments.append(environment)
        return self.end if self.broken in words else (0, "")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    return Processes(monkeypatch)


def files_of(command: list[str]) -> list[str]:
    return ast.literal_eval(command[command.index("--config_file") + 1])


def run_of(runs: list[PlannedRun], name: str, seed: int = 0) -> PlannedRun:
    (run,) = (run for run in runs if (run.kind, run.name, run.seed) == ("method", name, seed))
    return run


def record_of(request: ComparisonRequest, folder: str) -> RunRecord:
    return RunRecord(request.out / folder)


def test_methods_share_one_translator_per_seed(wanted: ComparisonRequest) -> None:
    runs = plan(wanted)
    assert [(run.kind, run.name, run.seed) for run in runs] == [
        (kind, name, seed)
        for seed in (0, 1)
        for kind, name in (("translator", "style"), ("method", "none"), ("method", "style"), ("method", "glua"))
    ]
    images = [str(wanted.out / "translators" / "style_seed1" / "translated" / "datalist.json")]
    for name, expected in (("none", []), ("style", images), ("glua", images)):
        (training, *_) = run_of(runs, name, 1).steps
        assert [word for word in training.command if word.endswith("datalist.json")] == expected


def test_the_other_direction_may_lend_its_translators(wanted: ComparisonRequest, tmp_path: Path) -> None:
    other = replace(wanted, task="phantom_ct2mr", translators=tmp_path / "mr2ct", seeds=[1])
    weights = tmp_path / "mr2ct" / "translators" / "style_seed1" / "models" / "model.pt"
    with pytest.raises(InputError, match=r"metadata of a trained translator\. Fix: run the other direction first"):
        plan(other)
    write_json(weights.with_suffix(".json"), {"domains": ["mr", "ct"]})
    (translation,) = plan(other)[0].steps
    words = " ".join(translation.command)
    assert f"--checkpoint {weights} --trained_domains ['mr', 'ct']" in words
    assert "configs/tasks/phantom_ct2mr.yaml" in words


def test_a_short_training_changes_every_translator_alike(wanted: ComparisonRequest) -> None:
    # The short schedule strengthens the adversary; a rival that kept weight 1 would be the weaker one.
    runs = plan(replace(wanted, task="abdomen_ct2mr", methods=["glua", "cyclegan", "starganv2"], seeds=[0]))
    trainings = [run.steps[0].command for run in runs if run.kind == "translator"]
    weights = [ConfigParser.load_config_files(files_of(list(command)))["adversarial_weight"] for command in trainings]
    assert weights == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("method", METHODS)
def test_evaluation_builds_the_network_that_was_trained(method: str, wanted: ComparisonRequest) -> None:
    training, *uses = run_of(plan(replace(wanted, methods=[method])), method).steps
    trained = ConfigParser.load_config_files(files_of(list(training.command)))
    for use in uses:
        command = list(use.command)
        used = ConfigParser.load_config_files(files_of(command))
        options = {word.removeprefix("--"): value for word, value in itertools.pairwise(command)}
        for key in trained["weights_metadata"]["network"]:
            assert str(options.get(key, used[key])) == str(trained[key])


def test_evaluation_with_and_without_post_processing_and_masks(wanted: ComparisonRequest) -> None:
    runs = plan(replace(wanted, methods=["glua", "glua_nomask"]))
    _, plain, largest, inference = run_of(runs, "glua").steps
    assert "--largest_component" not in plain.command
    assert " ".join(largest.command).endswith(
        f"--largest_component True --output_dir {wanted.out}/methods/glua_seed0/eval_largest_component"
    )
    assert list(inference.command[-2:]) == ["--write_mask", "True"]
    assert f"{wanted.out}/unseen.json" in inference.command
    names = [step.name for step in run_of(runs, "glua_nomask").steps]
    assert names == ["training", "evaluation", "evaluation_largest_component"]


def test_a_target_without_labels_is_segmented_instead_of_evaluated(wanted: ComparisonRequest) -> None:
    write_json(wanted.data / "ct.json", {"validation": [{"image": "a.nii.gz"}]})
    runs = plan(wanted)
    for name, mask in (("none", False), ("glua", True)):
        _, inference = run_of(runs, name).steps
        assert inference.name == "inference"
        assert ("--write_mask" in inference.command) == mask


@pytest.fixture
def two_trainings(tmp_path: Path) -> str:
    """A method of two trainings: ``style``, then one that starts from its weights."""
    second, method = tmp_path / "second.yaml", tmp_path / "mine.yaml"
    second.write_text("max_epochs: 3\n")
    method.write_text(yaml.safe_dump({"trainings": ["style", str(second)]}))
    return str(method)


def test_a_second_training_starts_from_the_weights_of_the_first(wanted: ComparisonRequest, two_trainings: str) -> None:
    runs = plan(replace(wanted, methods=["style", two_trainings], seeds=[0]))
    assert [run.name for run in runs] == ["style", "style", "mine"]  # translator, first and second training
    translator, first, second = runs
    assert "--initial_weights" not in first.steps[0].command
    words = " ".join(second.steps[0].command)
    assert f"--initial_weights {first.folder}/models/model.pt" in words
    assert [Path(file).name for file in files_of(list(second.steps[0].command))[-2:]] == ["style.yaml", "second.yaml"]
    assert second.settings["max_epochs"] == 3
    assert second.settings["d1_weight"] == 0.0  # of style.yaml
    assert second.needs == (translator.folder, first.folder)
    # The first training is planned even if nobody asked for it by name.
    assert plan(replace(wanted, methods=[two_trainings], seeds=[0])) == runs


def test_a_training_may_have_several_overlays(wanted: ComparisonRequest) -> None:
    first, second = plan(replace(wanted, methods=["recommended_untranslated"], seeds=[0]))
    assert (first.name, second.name) == ("unet+recommended_start", "recommended_untranslated")
    smoothed = [[step.name for step in run.steps if "--smoothing_mm" in step.command] for run in (first, second)]
    assert smoothed == [[], ["evaluation", "evaluation_largest_component"]], "only what learned from smoothed labels"
    names = [Path(file).name for file in files_of(list(second.steps[0].command))]
    assert names[-3:] == ["unet.yaml", "recommended_start.yaml", "self_train.yaml"]
    assert second.needs == (first.folder,)
    assert f"{first.folder}/models/model.pt" in second.steps[0].command


def test_without_its_first_training_the_second_does_not_start(
    wanted: ComparisonRequest, two_trainings: str, processes: Processes
) -> None:
    wanted = replace(wanted, methods=[two_trainings], seeds=[0])
    processes.broken = "methods/style_seed0"
    assert not run_comparison(wanted)
    assert record_of(wanted, "methods/mine_seed0").error == "its method, style, seed 0, is not done"
    processes.broken = "nothing"
    assert run_comparison(wanted)
    trained = [command for command in processes.commands if "run training" in command]
    assert ["methods/mine_seed0" in command for command in trained][-2:] == [False, True]


def test_finished_runs_are_kept_and_seeds_are_added(wanted: ComparisonRequest, processes: Processes) -> None:
    assert run_comparison(replace(wanted, seeds=[0]))
    steps_of_a_seed = 2 + 3 + 3 + 4
    assert len(processes.commands) == steps_of_a_seed
    assert run_comparison(wanted)
    assert len(processes.commands) == 2 * steps_of_a_seed
    content = read_comparison_record(wanted.out)
    assert (content["seeds"], content["methods"]) == ([0, 1], ["none", "style", "glua"])
    assert all(RunRecord(run.folder).status == "done" for run in plan(wanted))


def test_a_finished_run_keeps_its_commands_and_commit(one: ComparisonRequest, processes: Processes) -> None:
    assert run_comparison(one)
    before = record_of(one, "methods/none_seed0").content
    assert [step["commits"] for step in before["steps"].values()] == [[FIRST]] * 3
    processes.commit, processes.uncommitted = SECOND, True
    assert run_comparison(replace(one, methods=["none", "augment"], settings=one.settings))
    assert record_of(one, "methods/none_seed0").content == before
    step = record_of(one, "methods/augment_seed0").content["steps"]["training"]
    assert (step["commits"], step["uncommitted_changes"]) == ([SECOND], True)
    assert step["command"].startswith(
        "python -m monai.bundle run training --config_file \"['configs/segmentation/train.yaml',"
    )


def test_a_training_that_continued_with_other_code_names_both_commits(
    one: ComparisonRequest, processes: Processes
) -> None:
    processes.broken = "run training"
    assert not run_comparison(one)
    processes.broken, processes.commit = "nothing", SECOND
    assert run_comparison(one)
    assert record_of(one, "methods/none_seed0").content["steps"]["training"]["commits"] == [FIRST, SECOND]


def test_a_target_without_held_out_cases_is_segmented_as_a_whole(
    wanted: ComparisonRequest, processes: Processes
) -> None:
    """As `datalist --validation 0` writes it: there is nothing to evaluate, and all volumes are shown."""
    write_json(wanted.data / "ct.json", {"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}], "validation": []})
    assert run_comparison(wanted)
    (case,) = json.loads((wanted.out / "unseen.json").read_text())["validation"]
    assert case == {"image": str(wanted.data / "a.nii.gz")}
    assert not any("evaluating" in command for command in processes.commands)


def test_unseen_images_come_without_labels(wanted: ComparisonRequest, processes: Processes) -> None:
    run_comparison(wanted)
    (case,) = json.loads((wanted.out / "unseen.json").read_text())["validation"]
    assert case == {"image": str(wanted.data / "a.nii.gz")}


def test_a_failed_run_is_named_and_continued(wanted: ComparisonRequest, processes: Processes) -> None:
    processes.broken = "methods/none_seed0"
    assert not run_comparison(wanted)
    status = {run.title: RunRecord(run.folder).status for run in plan(wanted)}
    assert [title for title, value in status.items() if value != "done"] == ["none, seed 0"]
    failed = record_of(wanted, "methods/none_seed0")
    assert (failed.status, failed.error) == ("failed", "error: the disk is full. (exit code 1)")
    processes.commands, processes.broken = [], "nothing"
    assert run_comparison(wanted)
    assert [command.endswith("--resume True") for command in processes.commands] == [True, False, False]
    assert all("none_seed0" in command for command in processes.commands)
    assert record_of(wanted, "methods/none_seed0").error is None


@pytest.mark.parametrize("code", [-signal.SIGTERM, 128 + signal.SIGTERM], ids=["signal", "exit code"])
def test_a_run_that_a_signal_ended_is_missing(
    code: int, one: ComparisonRequest, processes: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    processes.broken, processes.end = "run training", (code, "")
    assert not run_comparison(one)
    record = record_of(one, "methods/none_seed0")
    assert (record.status, record.error) == ("missing", "interrupted by signal 15")
    assert "none, seed 0: training: interrupted by signal 15" in capfd.readouterr().err


def test_an_interruption_starts_no_further_run(wanted: ComparisonRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []

    def interrupted(self: RunRecord, run: PlannedRun, **_: object) -> None:
        started.append(run.title)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecord, "execute", interrupted)
    wanted = replace(wanted, methods=["none", "augment", "supervised"], seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        run_comparison(wanted)
    assert started == ["none, seed 0"]


def test_without_its_translator_a_method_fails_with_a_sentence(wanted: ComparisonRequest, processes: Processes) -> None:
    processes.broken = "translators/style_seed0"
    assert not run_comparison(wanted)
    assert record_of(wanted, "methods/glua_seed0").error == "its translator, style, seed 0, is not done"
    assert record_of(wanted, "methods/none_seed0").status == "done"
    assert record_of(wanted, "methods/glua_seed1").status == "done"


def test_a_run_of_another_process_is_left_to_it(one: ComparisonRequest, processes: Processes) -> None:
    (run,) = plan(one)
    run.folder.mkdir(parents=True)
    with FileLock(run.folder / LOCK):
        assert not run_comparison(one)
    assert processes.commands == []
    assert RunRecord(run.folder).status == "missing"


def test_parallel_runs_share_the_cores(
    wanted: ComparisonRequest, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run_comparison(wanted, jobs=2)
    assert processes.environments == [{"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "4"}] * 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["magic"]}, ["configs/methods/magic.yaml", "no such file", "glua"]),
        ({"task": "brain"}, ["configs/tasks/brain.yaml", "no such file", "phantom_mr2ct"]),
        ({"size": "huge"}, ["no size huge for the data set phantom", "one of small, demo, full"]),
        ({"task": "abdomen_ct2mr", "dataset_dir": None}, ["--dataset_dir", "mr.json"]),
    ],
)
def test_bad_requests_are_refused(change: dict, words: list[str], wanted: ComparisonRequest) -> None:
    with pytest.raises(InputError) as refused:
        run_comparison(replace(wanted, **change))
    assert all(word in str(refused.value) for word in words), refused.value


def test_settings_go_to_every_segmentation_training(wanted: ComparisonRequest) -> None:
    overlay = CONFIGS / "selection" / "snapshots.yaml"
    for run in plan(replace(wanted, settings={"selection#interval": "1"}, overlays=[overlay])):
        for step in run.steps:
            is_training = run.kind == "method" and step.name == "training"
            assert ("--selection#interval" in step.command) == (str(overlay) in " ".join(step.command)) == is_training


def test_a_setting_of_the_network_goes_to_its_evaluation_too(wanted: ComparisonRequest) -> None:
    steps = run_of(plan(replace(wanted, settings={"mask_mode": "off"})), "glua").steps
    assert len(steps) == 3
    assert all("--mask_mode off" in " ".join(step.command) for step in steps)


def test_a_method_may_be_a_file_of_ones_own(wanted: ComparisonRequest, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("d1_weight: 0.05\n")
    _, run = plan(replace(wanted, methods=[str(mine)], seeds=[0]))
    assert (run.name, run.translator) == ("mine", "style")
    assert run.folder == wanted.out / "methods" / "mine_seed0"


def test_a_folder_keeps_its_task(wanted: ComparisonRequest, processes: Processes) -> None:
    run_comparison(wanted)
    with pytest.raises(InputError, match=r"a comparison with task phantom_mr2ct\. Expected task phantom_ct2mr"):
        run_comparison(replace(wanted, task="phantom_ct2mr"))


def test_changed_settings_of_a_finished_run_are_named(
    one: ComparisonRequest, processes: Processes, capfd: pytest.CaptureFixture[str]
) -> None:
    def train_with(**changed: object) -> None:
        settings = {**run.settings, "bundle_root": "elsewhere", "cache_dir": "somewhere", **changed}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))

    assert run_comparison(one)
    (run,) = plan(one)
    train_with()
    assert changed_settings(run) == ""
    train_with(learning_rate=0.5, max_epochs=1, gone_since="a key")
    started, rate, epochs = len(processes.commands), run.settings["learning_rate"], run.settings["max_epochs"]
    assert run_comparison(one)
    assert len(processes.commands) == started  # the run is kept
    assert capfd.readouterr().err == (
        "none, seed 0: trained with settings that differ from today's files "
        f"(learning_rate: 0.5, now {rate}; max_epochs: 1, now {epochs}). "
        f"It is kept; to train it again, delete {run.folder}.\n"
    )


@pytest.mark.parametrize("text", ["{half of", "- a list", None])
def test_settings_that_cannot_be_read_are_no_change(
    text: str | None, one: ComparisonRequest, processes: Processes
) -> None:
    assert run_comparison(one)
    (run,) = plan(one)
    if text is not None:
        (run.folder / "config.yaml").write_text(text)
    assert changed_settings(run) == ""


def test_recorded_commands_can_be_pasted_into_a_shell(one: ComparisonRequest, processes: Processes) -> None:
    settings = {"a": "['b','c']", "d": "{'e': '$len(@f) + 1'}", "g": 'it\'s `h` \\ "i"', "j": "k l", "m": "it's!"}
    assert run_comparison(replace(one, settings=settings))
    command = record_of(one, "methods/none_seed0").content["steps"]["training"]["command"]
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines()[-10:] == [
        word for key, value in settings.items() for word in (f"--{key}", value)
    ]
