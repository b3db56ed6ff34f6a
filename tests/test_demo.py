"""The demo's steps and its report, without the minutes of training."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from conftest import ROOT

from scripts.core.files import write_json
from scripts.evaluation.figures import image_to_data_uri
from scripts.evaluation.montage import Panel, slice_montage
from scripts.lab.experiments import demo

NAMES = ["myocardium", "left atrium", "left ventricle", "ascending aorta"]


def summary(dice_percent: float) -> dict:
    structure = {
        "dice_percent": {"mean": dice_percent},
        "asd_mm": {"mean": 2.0},
        "asd_voxel": {"mean": 1.0},
        "failures": 1,
    }
    return {
        "mean_over_structures": {"dice_percent": dice_percent, "asd_mm": 2.0, "asd_voxel": 1.0},
        "structures": dict.fromkeys(NAMES, structure),
    }


def fake_outputs(out: Path) -> None:
    """What the steps would leave, with Dice 40 % without adaptation and 70 % with GLUA."""
    import numpy as np

    picture = [[Panel(image=np.eye(8))]]
    style, glua = out / "translators" / "style_seed3", out / "methods" / "glua_seed3"
    for folder, name in ((style, "translation_000002"), (glua, "segmentation_000002"), (glua, "losses")):
        slice_montage(picture, folder / "pictures" / f"{name}.png")
    for method, dice_percent in (("none", 40.0), ("glua", 70.0)):
        folder = out / "methods" / f"{method}_seed3" / "eval"
        write_json(folder / "summary.json", summary(dice_percent))
        for word in ("worst", "median"):
            slice_montage(picture, folder / f"{word}_case.png")


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The demo's commands by step; none of them is run."""
    recorded: dict[str, list[str]] = {}

    def run(self: demo.StepRunner, name: str, command: list[str], *resumed: str) -> None:
        recorded[name] = command
        self.seconds[name] = 1.0
        if name == "phantom":
            write_json(tmp_path / "data" / "ct.json", {"validation": [{"image": "a.nii.gz", "label": "b.nii.gz"}]})
            for file in ("a.nii.gz", "b.nii.gz"):
                (tmp_path / "data" / file).touch()
        if name == "GLUA: masks":
            fake_outputs(tmp_path)

    monkeypatch.setattr(demo.StepRunner, "run", run)
    monkeypatch.chdir(ROOT)
    demo.run_demo(tmp_path, seed=3)
    return recorded


def test_every_step_names_files_that_exist(commands: dict[str, list[str]]) -> None:
    for command in commands.values():
        if "--config_file" in command:
            files = ast.literal_eval("[" + command[command.index("--config_file") + 1].strip("[]") + "]")
            assert all((ROOT / file).is_file() for file in files), files


def test_only_glua_sees_translated_images_and_the_target(commands: dict[str, list[str]]) -> None:
    none, glua = (commands[f"{title}: training"] for title in ("no adaptation", "GLUA"))
    assert "--labelled_datalist" in glua
    assert "--labelled_datalist" not in none
    assert any("configs/methods/none.yaml" in word for word in none)


def test_unseen_volumes_come_without_labels(commands: dict[str, list[str]], tmp_path: Path) -> None:
    assert json.loads((tmp_path / "unseen.json").read_text())["validation"] == [
        {"image": str(tmp_path / "data" / "a.nii.gz")}
    ]


def test_summary_holds_methods_gain_seconds_and_provenance(commands: dict[str, list[str]], tmp_path: Path) -> None:
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["gain_in_mean_dice"] == 30.0
    assert set(content["methods"]) == {"none", "glua"}
    assert set(content["methods"]["glua"]["structures"]) == set(NAMES)
    assert content["seed"] == 3
    assert set(content["seconds"]) == set(commands)
    assert {"packages", "commit", "device", "time"} <= set(content)


def test_report_is_one_file_with_its_pictures(commands: dict[str, list[str]], tmp_path: Path) -> None:
    page = (tmp_path / "report.html").read_text()
    assert "+30.0 points" in page
    assert "40.0 % to 70.0 %" in page
    assert page.count("<img") == 6
    assert image_to_data_uri(tmp_path / "methods" / "glua_seed3" / "eval" / "worst_case.png") in page
    assert 'src="/' not in page


def test_a_failing_step_ends_the_demo_and_is_not_remembered(tmp_path: Path) -> None:
    steps = demo.StepRunner(tmp_path, resume=False)
    with pytest.raises(SystemExit) as ended:
        steps.run("bad", ["-c", "raise SystemExit(7)"])
    assert ended.value.code == 7
    steps.run("good", ["-c", "pass"])
    assert list(demo.StepRunner(tmp_path, resume=True).seconds) == ["good"]
    assert demo.StepRunner(tmp_path, resume=False).seconds == {}


def test_only_a_step_that_this_demo_began_is_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def start(resume: bool, code: int) -> str:
        steps = demo.StepRunner(tmp_path, resume=resume)
        step = ["-c", f"import sys; print('with', sys.argv[1:]); sys.exit({code})"]
        if code:
            with pytest.raises(SystemExit):
                steps.run("training", step, "--resume", "True")
        else:
            steps.run("training", step, "--resume", "True")
        return capfd.readouterr().out

    assert "with []" in start(resume=False, code=3)
    assert "with ['--resume', 'True']" in start(resume=True, code=3)
    # A new demo in the same folder: what an earlier one left is not continued, not even by its own resumption.
    demo.StepRunner(tmp_path, resume=False)
    assert "with []" in start(resume=True, code=0)
    assert "done before" in start(resume=True, code=0)
