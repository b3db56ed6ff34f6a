"""The whole sequence of ``adapt``, with trainings and inference replaced; ``test_docs.py`` runs it as it is."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import ROOT, refused
from scripts.data.case_names import case_name
from scripts.data.datalists import find_volumes
from scripts.lab.adapt import cost, steps
from scripts.lab.adapt.adapt_report import logged_warnings
from scripts.lab.adapt.request import AdaptRequest
from scripts.lab.adapt.run_adapt import run_adapt
from scripts.lab.adapt.timed_training import Timing
from scripts.lab.check import run_check
from scripts.lab.check.cases import ListedCase, MeasuredCase
from scripts.lab.cli import main
from scripts.lab.experiments import run_record
from test_bad_input import replace_volume

NAMES = "205=myocardium,420=left atrium,500=left ventricle,820=ascending aorta"


class Processes:
    """Replaces the processes: a segmentation is the case's own label map; nothing is translated."""

    def __init__(self, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.labels, self.commands, self.code, self.logged = labels, list[list[str]](), 0, ""
        for module in (steps, run_record):
            monkeypatch.setattr(module, "run_process", self.run)
        timing = Timing(
            iteration_s=0.5,
            preparation_s=1.0,
            start_s=1.0,
            slices=6.0,
            loaded_bytes=8 * 10**8,
            peak_bytes=10**9,
            case_bytes=[1e6, 2e6],
        )
        monkeypatch.setattr(cost, "time_training", lambda *_, **__: timing)

    def run(self, command: list[str], log: Path, **_: object) -> tuple[int, str]:
        self.commands.append(list(command))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(self.logged)
        if "inference" in command and not self.code and not translates(command):
            out = Path(command[command.index("--output_dir") + 1])
            out.mkdir(parents=True, exist_ok=True)
            for item in find_volumes(command[command.index("--dataset_dir") + 1]):
                name = case_name(item["image"])
                shutil.copy(self.labels / f"{name.replace('image', 'label')}.nii.gz", out / f"{name}_seg.nii.gz")
        return self.code, "error: it broke"

    def count(self, run_id: str) -> int:
        return sum(run_id in command and not translates(command) for command in self.commands)


def translates(command: list[str]) -> bool:
    """Whether a command is inference of the translator, which goes to its run's own folder."""
    return "inference" in command and "--output_dir" not in command


@pytest.fixture
def processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    monkeypatch.chdir(ROOT)
    return Processes(data, monkeypatch)


@pytest.fixture
def request_(data: Path, tmp_path: Path) -> AdaptRequest:
    """Two folders of images and one of labels; the target's labels lie elsewhere."""
    for index in range(3):
        for domain, kind in (("mr", "image"), ("mr", "label"), ("ct", "image")):
            folder = tmp_path / f"{domain}_{kind}s"
            folder.mkdir(exist_ok=True)
            (folder / f"{domain}_{index}_{kind}.nii.gz").symlink_to(data / f"{domain}_{index}_{kind}.nii.gz")
    return AdaptRequest(
        source_images=tmp_path / "mr_images",
        source_labels=tmp_path / "mr_labels",
        target_images=tmp_path / "ct_images",
        out=tmp_path / "mine",
        label_names=NAMES,
    )


def test_from_two_folders_to_label_maps(processes: Processes, request_: AdaptRequest, tmp_path: Path) -> None:
    assert run_adapt(request_) == request_.out / "report.html"
    task = yaml.safe_load(request_.task_file.read_text())
    assert (task["source_domain"], task["target_domain"], task["dataset_name"]) == ("mr", "ct", "mine")
    assert task["background_values"] == [600]
    assert (request_.out / "check" / "check.html").is_file()
    assert sorted(path.name for path in (request_.label_maps / "ct").glob("*.gz")) == [
        f"ct_{k}_image_seg.nii.gz" for k in range(3)
    ]
    with (request_.label_maps / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 4
    assert {row["structure"] for row in rows} == set(task["label_names"])
    assert all(float(row["ml"]) > 0 for row in rows)
    page = (request_.out / "report.html").read_text()
    assert "3 volumes segmented" in page
    assert "No label of the target was used" in page
    assert not (request_.out / "cost").exists()


def test_the_same_command_again_has_nothing_to_do(processes: Processes, request_: AdaptRequest) -> None:
    run_adapt(request_)
    before = len(processes.commands)
    run_adapt(request_)
    assert len(processes.commands) == before


def test_further_volumes_cost_their_segmentation_alone(
    processes: Processes, request_: AdaptRequest, data: Path
) -> None:
    run_adapt(request_)
    trainings = processes.count("training")
    new = request_.out.parent / "monday"
    new.mkdir()
    (new / "ct_2_image.nii.gz").symlink_to(data / "ct_2_image.nii.gz")
    run_adapt(replace(request_, segment=[new, data / "ct_1_image.nii.gz"]))
    assert (processes.count("training"), processes.count("inference")) == (trainings, 3)
    assert (request_.label_maps / "new_monday" / "ct_2_image_seg.nii.gz").is_file()
    assert (request_.label_maps / "new_ct_1_image" / "ct_1_image_seg.nii.gz").is_file()
    tuesday = data / "ct_0_image.nii.gz"
    run_adapt(replace(request_, segment=[tuesday]))
    assert (processes.count("training"), processes.count("inference")) == (trainings, 4)
    with (request_.label_maps / "summary.csv").open(newline="") as stream:
        assert {row["set"] for row in csv.DictReader(stream)} == {
            "ct",
            "new_monday",
            "new_ct_1_image",
            "new_ct_0_image",
        }


def test_the_plan_alone_and_an_edited_task_file(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_adapt(replace(request_, plan_only=True)) is None
    assert "Training volumes: 3 of mr, 3 of ct. The results on real volumes" in capsys.readouterr().out
    assert processes.commands == []
    edited = request_.task_file.read_text().replace("label_names: [myocardium,", "label_names: [muscle,")
    request_.task_file.write_text(edited)
    run_adapt(request_)
    assert request_.task_file.read_text() == edited
    assert "muscle" in (request_.label_maps / "summary.csv").read_text()


def test_a_task_file_given_by_hand_wins(processes: Processes, request_: AdaptRequest) -> None:
    run_adapt(replace(request_, task=ROOT / "configs" / "tasks" / "phantom_mr2ct.yaml"))
    assert yaml.safe_load(request_.task_file.read_text())["task"] == "phantom_mr2ct"


def test_a_bad_task_file_given_by_hand_is_refused_before_any_work(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    task = tmp_path / "mine.yaml"
    good = (ROOT / "configs" / "tasks" / "phantom_mr2ct.yaml").read_text()
    task.write_text(good.replace("slice_axis: 2", "slice_axis: 3"))
    error = refused(run_adapt, replace(request_, task=task))
    assert (error.file, error.found) == ("setting 'slice_axis'", "3")
    assert "Measuring" not in capsys.readouterr().out
    assert not request_.data.exists()


def test_an_interrupted_timing_repeats_neither_the_measuring_nor_what_was_timed(
    processes: Processes, request_: AdaptRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in the second of three timings; changed volumes are measured again."""
    timing, timed = cost.time_training([], Path()), list[Path]()

    def interrupted(command: list[str], log: Path, **_: object) -> Timing:
        timed.append(log)
        if len(timed) in (2, 3):
            raise KeyboardInterrupt
        return timing

    monkeypatch.setattr(cost, "time_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_adapt(request_)
    assert "Measuring 6 volumes" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        run_adapt(request_)
    out = capsys.readouterr().out
    assert "Measuring" not in out
    assert "measured and checked before" in out
    (request_.source_images / "mr_0_image.nii.gz").unlink()
    run_adapt(request_)
    assert "Measuring 5 volumes" in capsys.readouterr().out
    first, second, third = timed[-3:]
    assert timed == [first, second, second, first, second, third]  # with other volumes, all are timed again
    assert not (request_.out / "cost").exists()


def test_an_interrupted_training_is_continued(processes: Processes, request_: AdaptRequest) -> None:
    processes.code = 130
    with pytest.raises(SystemExit):
        run_adapt(request_)
    processes.code = 0
    run_adapt(request_)
    assert "--resume" in processes.commands[1]


def test_inference_that_fails_is_a_sentence(processes: Processes, request_: AdaptRequest) -> None:
    run_adapt(request_)
    shutil.rmtree(request_.label_maps)
    processes.code = 1
    assert "error: it broke" in refused(run_adapt, request_).found


def test_errors_of_the_check_stop_it(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label of another case: one label for two images, on its own grid or not."""
    wrong = request_.source_labels / "mr_1_label.nii.gz"
    wrong.unlink()
    wrong.symlink_to(request_.source_labels / "mr_0_label.nii.gz")
    error = refused(run_adapt, request_)
    assert "1 error" in error.found
    assert "one label for two images" in capsys.readouterr().out
    assert processes.commands == []
    run_adapt(replace(request_, despite_errors=True))
    assert processes.count("training") == 3


def test_a_folder_belongs_to_its_inputs(processes: Processes, request_: AdaptRequest) -> None:
    run_adapt(replace(request_, schedule="trial"))
    error = refused(run_adapt, replace(request_, source_images=request_.target_images))
    assert "--source_images" in error.found
    assert "schedule trial" in refused(run_adapt, replace(request_, schedule="day")).found
    assert "schedule trial" in refused(run_adapt, replace(request_, time_s=60.0)).found


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:50],
        lambda _: "[]",
        lambda _: '{"inputs": 3, "cases": [{"domain": "mr"}], "steps": {"training": 1}}',
    ],
)
def test_a_damaged_record_of_an_earlier_command_is_named(
    damage: Callable[[str], str], processes: Processes, request_: AdaptRequest
) -> None:
    run_adapt(request_)
    run_file = next(request_.out.rglob("run.json"))
    for file in (request_.out / "adapt.json", request_.out / "check" / "check.json", run_file):
        text = file.read_text()
        file.write_text(damage(text))
        assert refused(run_adapt, request_).file == str(file)
        file.write_text(text)
    run_adapt(request_)


@pytest.mark.parametrize(
    ("names", "said", "measured"),
    [("a,b", "5 or more different names", ["mr_0_image"]), ("a,b,c,d,e,f", "5 different names", ["mr_0_image"] * 3)],
)
def test_wrong_label_names_are_refused_before_the_target_is_measured(
    names: str,
    said: str,
    measured: list[str],
    processes: Processes,
    request_: AdaptRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every label map has all five values."""
    seen, measure = [], run_check.measure_case

    def noted(files: ListedCase, **settings: Any) -> MeasuredCase:
        seen.append(files.name)
        return measure(files, **settings)

    monkeypatch.setattr(run_check, "measure_case", noted)
    error = refused(run_adapt, replace(request_, label_names=names))
    assert (error.file, error.expected.startswith(said)) == ("--label_names", True)
    assert len(seen) == len(measured)
    assert {name[:2] for name in seen} == {"mr"}


def test_every_unusable_volume_is_named_by_one_plan(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {"mr_0_image": "truncated", "mr_1_image": "NaN", "ct_0_image": "4D", "ct_1_image": "text"}
    for name, kind in bad.items():
        file = request_.out.parent / f"{name[:2]}_images" / f"{name}.nii.gz"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        replace_volume(file, kind)
    error = refused(run_adapt, replace(request_, plan_only=True))
    assert error.found == "4 error(s) in the volumes"
    printed = capsys.readouterr().out
    assert [name for name in bad if f"{name}.nii.gz" not in printed] == []


def test_volumes_unlike_the_labelled_ones_are_flagged(
    processes: Processes, request_: AdaptRequest, data: Path, tmp_path: Path
) -> None:
    """A label map without its aorta, as a segmentation of ``ct_0``."""
    labels = tmp_path / "answers"
    shutil.copytree(data, labels)
    image = nib.load(data / "ct_0_label.nii.gz")
    voxels = np.asarray(image.dataobj).copy()
    voxels[voxels == 820] = 0
    nib.save(nib.Nifti1Image(voxels, image.affine), labels / "ct_0_label.nii.gz")
    processes.labels = labels
    run_adapt(request_)
    with (request_.label_maps / "summary.csv").open(newline="") as stream:
        warnings = {(row["case"], row["structure"]): row["warning"] for row in csv.DictReader(stream)}
    assert warnings["ct_0_image", "ascending aorta"] == "missing"
    assert warnings["ct_1_image", "ascending aorta"] != "missing"
    assert "ascending aorta missing" in (request_.out / "report.html").read_text()


def test_warnings_of_trainings_reach_the_screen_and_the_report(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.logged = "2026-11-30 10:00:00 - scripts.data.volumes - WARNING - mr: 63 % of liver is clipped.\n"
    run_adapt(request_)
    assert capsys.readouterr().out.count("warning: mr: 63 % of liver is clipped.") == 1
    assert "63 % of liver is clipped" in (request_.out / "report.html").read_text()


def test_warnings_in_logs(tmp_path: Path) -> None:
    """One line behind a progress bar, twice; others are a library's, or in the report's own words."""
    line = " - scripts.handlers.losses - WARNING - waits 30 % of its time for a core."
    lines = [f"1/9 [00:00<00:10]\r2/9 [00:01<00:09]{line}", line, " - monai.bundle - WARNING - Not all config files"]
    lines += [" - scripts.evaluation.segmentation_summary - WARNING - a: liver missing", " - scripts.a - INFO - b"]
    (tmp_path / "a.log").write_text("\n".join(lines))
    assert logged_warnings([tmp_path / "a.log", tmp_path / "no.log"]) == ["waits 30 % of its time for a core."]


def test_the_command_as_a_user_types_it(
    processes: Processes, request_: AdaptRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's command, with real processes, is in ``test_docs.py``."""
    folders = {name: str(path) for name, path in request_.inputs().items() if path}
    options = [word for name, path in folders.items() for word in (f"--{name}", path)]
    main(["adapt", *options, "--out", str(request_.out), "--label_names", NAMES, "--schedule", "trial"])
    assert len(list((request_.label_maps / "ct").glob("*_seg.nii.gz"))) == 3
    task = yaml.safe_load(request_.task_file.read_text())
    assert dict(zip(task["label_values"], task["label_names"], strict=True)) == {
        205: "myocardium",
        420: "left atrium",
        500: "left ventricle",
        820: "ascending aorta",
    }
    assert "Schedule trial" in capsys.readouterr().out
