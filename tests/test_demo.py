"""The demo: its commands, its summary and its page, without the minutes of training."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from comparison_folders import evaluated, everywhere
from conftest import ROOT
from scripts.core.files import write_json
from scripts.evaluation.summaries import write_evaluation
from scripts.lab.experiments import compare, run_record
from scripts.lab.experiments.demo import run_demo

NAMES = ["myocardium", "left atrium", "left ventricle", "ascending aorta"]
FIRST = "unet+recommended_start+style+with_original"
DICE = {"none_unet": 0.4, FIRST: 0.6, "recommended": 0.7}


class Processes:
    """Replaces the processes of the demo: keeps their commands and leaves what evaluations and the phantom leave."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.commands, self.code = out, list[list[str]](), 0
        for module in (compare, run_record):
            monkeypatch.setattr(module, "run_process", self.run)

    def run(self, command: list[str], log: Path, **_: object) -> tuple[int, str]:
        self.commands.append(list(command))
        if "phantom" in command:
            for domain in ("mr", "ct"):
                write_json(self.out / "data" / f"{domain}.json", {"validation": [{"image": "a.nii.gz", "label": "b"}]})
            for file in ("a.nii.gz", "b"):
                (self.out / "data" / file).touch()
        if "evaluating" in command:
            folder = Path(command[command.index("--bundle_root") + 1])
            dice = DICE[folder.name.removesuffix("_seed3")]
            cases = {case: evaluated(values, NAMES) for case, values in everywhere(dice, dice, dice, dice).items()}
            for name in ("eval", "eval_largest_component"):
                write_evaluation(folder / name, cases, NAMES, {"seed": 3})
        return self.code, ""

    def training(self, folder: str) -> list[str]:
        (command,) = (c for c in self.commands if "training" in c and any(word.endswith(folder) for word in c))
        return command


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.chdir(ROOT)
    return Processes(tmp_path, monkeypatch)


@pytest.fixture
def demo(processes: Processes, tmp_path: Path) -> Processes:
    run_demo(tmp_path, seed=3)
    return processes


def test_the_seed_is_that_of_phantom_and_trainings(demo: Processes, tmp_path: Path) -> None:
    phantom = ["-m", "scripts", "phantom", "--out", str(tmp_path / "data")]
    assert demo.commands[0] == [*phantom, "--seed", "3", "--cases", "12", "--validation", "0.25"]
    trainings = [command for command in demo.commands if "training" in command]
    assert [command[command.index("--seed") + 1] for command in trainings] == ["3"] * 4  # with the translator's


def test_every_command_names_files_that_exist(demo: Processes) -> None:
    for command in demo.commands[1:]:
        files = ast.literal_eval(command[command.index("--config_file") + 1])
        assert all((ROOT / file).is_file() for file in files), files


def test_self_training_starts_from_the_first_training(demo: Processes) -> None:
    training = demo.training("recommended_seed3")
    weights = Path(training[training.index("--initial_weights") + 1])
    assert weights.parts[-3:] == (f"{FIRST}_seed3", "models", "model.pt")
    for folder in ("none_unet_seed3", f"{FIRST}_seed3"):
        assert "--initial_weights" not in demo.training(folder)


def test_summary_and_page(demo: Processes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["gain_in_mean_dice"] == pytest.approx(30.0)
    assert set(content["methods"]) == {"none_unet", "recommended"}
    assert set(content["methods"]["recommended"]["structures"]) == set(NAMES)
    assert content["folders"]["recommended"] == "methods/recommended_seed3"
    assert content["seed"] == 3
    assert {"packages", "commit", "device", "time"} <= set(content)
    page = (tmp_path / "report.html").read_text()
    assert "+30.0 points" in page
    assert "(40.0 % to 70.0 %)" in page


def test_the_demo_starts_again_unless_it_is_resumed(demo: Processes, tmp_path: Path) -> None:
    count = len(demo.commands)
    run_demo(tmp_path, seed=3, resume=True)
    assert len(demo.commands) == count
    run_demo(tmp_path, seed=3)
    assert demo.commands[count:] == demo.commands[:count]


def test_a_failing_step_ends_the_demo(processes: Processes, tmp_path: Path) -> None:
    processes.code = 7
    with pytest.raises(SystemExit) as ended:
        run_demo(tmp_path, seed=3)
    assert ended.value.code == 7  # the phantom's
