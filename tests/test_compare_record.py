"""The record of a comparison: commands and commits, interrupted runs, changed settings, restarts."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from comparison_folders import request_for
from conftest import ROOT, refused
from filelock import FileLock

from scripts.core.files import write_json
from scripts.lab.experiments import record
from scripts.lab.experiments.changes import changed_settings
from scripts.lab.experiments.compare import run_comparison
from scripts.lab.experiments.plan import ComparisonRequest, plan
from scripts.lab.experiments.record import read_record, status_of, write_record
from scripts.lab.experiments.step_runner import StepFailed, StepRunner

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def requested(tmp_path: Path) -> ComparisonRequest:
    return request_for(tmp_path, ["none"], [0])


class Stage:
    """Stands in for the processes, which end as ``end`` says, and for the code's state."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.end, self.started = (0, ""), 0
        self.commit, self.uncommitted = FIRST, False
        patch.setattr(StepRunner, "_process", self._process)
        patch.setattr(record, "provenance", lambda: {"commit": self.commit, "uncommitted_changes": self.uncommitted})

    def _process(self, name: str, command: list[str]) -> tuple[int, str]:
        self.started += 1
        return self.end


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def entry_of(requested: ComparisonRequest, method: str = "none") -> dict:
    (entry,) = (
        entry for entry in read_record(requested.out)["runs"] if (entry["method"], entry["seed"]) == (method, 0)
    )
    return entry


def test_a_done_run_keeps_its_commands_and_its_commit(
    requested: ComparisonRequest, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_comparison(requested)
    before = entry_of(requested)
    assert (before["commits"], before["uncommitted_changes"]) == ([FIRST], False)
    stage.commit, stage.uncommitted = SECOND, True
    monkeypatch.setattr(record, "_line", lambda step: f"another way to do the {step.name}")
    assert run_comparison(replace(requested, methods=["none", "augment"]))
    assert entry_of(requested) == before
    other = entry_of(requested, "augment")
    assert (other["commits"], other["uncommitted_changes"]) == ([SECOND], True)
    assert other["commands"] == ["another way to do the training", "another way to do the evaluation"]


def test_a_training_that_went_on_on_other_code_names_both(requested: ComparisonRequest, stage: Stage) -> None:
    stage.end = (1, "error: the disk is full.")
    assert not run_comparison(requested)
    stage.end, stage.commit = (0, ""), SECOND
    assert run_comparison(requested)
    assert entry_of(requested)["commits"] == [FIRST, SECOND]


def test_an_older_comparison_is_read_and_keeps_what_it_has(requested: ComparisonRequest, stage: Stage) -> None:
    """Its runs' folders have no commands.json: the commit is the training's own, the commands are comparison.json's."""
    assert run_comparison(requested)
    (run,) = plan(requested)
    (run.folder / "commands.json").unlink()
    content = json.loads((requested.out / "comparison.json").read_text())
    for key in ("commits", "uncommitted_changes"):
        del content["runs"][0][key]
    content["runs"][0]["commands"] = ["as it was typed", "and evaluated"]
    write_json(requested.out / "comparison.json", content)
    assert entry_of(requested)["commits"] == []
    write_json(run.folder / "provenance.json", {"commit": SECOND, "uncommitted_changes": True})
    assert (entry_of(requested)["commits"], entry_of(requested)["uncommitted_changes"]) == ([SECOND], True)
    assert run_comparison(requested)
    assert entry_of(requested)["commands"] == ["as it was typed", "and evaluated"]
    assert entry_of(requested)["commits"] == [SECOND]


def test_a_run_that_a_signal_ended_is_missing(
    requested: ComparisonRequest, stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    stage.end = (-signal.SIGTERM, "12%|█▏        | 300/2400 [06:17<44:01,  1.26s/it]")
    assert not run_comparison(requested)
    assert (entry_of(requested)["status"], entry_of(requested)["error"]) == ("missing", "interrupted by signal 15")
    assert "none, seed 0: training: interrupted by signal 15" in capfd.readouterr().err
    stage.end = (0, "")
    assert run_comparison(requested)
    assert (entry_of(requested)["status"], entry_of(requested)["error"]) == ("done", None)


@pytest.mark.parametrize(
    ("said", "code", "last_line"),
    [
        ("raise SystemExit('error: no labels.')", 1, "error: no labels."),
        # tqdm's line for 300 of 2400 stays the last one of a process that prints nothing at its end
        ("print('starts'); print('segmentation:  12%|#2 | 300/2400 [06:17<44:01]\\r', end=''); exit(3)", 3, "starts"),
        ("print('17it [00:03,  5.2it/s]\\n10%'); exit(3)", 3, ""),
        (f"import os; print('starts', flush=True); os.kill(os.getpid(), {int(signal.SIGTERM)})", -15, "starts"),
    ],
)
def test_the_last_line_is_no_progress_bar(said: str, code: int, last_line: str, tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as failed:
        StepRunner(tmp_path, resume=False, logs=tmp_path / "logs", quiet=True).run("one", ["-c", said])
    assert (failed.value.code, failed.value.last_line) == (code, last_line)


def test_a_failure_says_its_exit_code(requested: ComparisonRequest, stage: Stage) -> None:
    stage.end = (3, "")
    assert not run_comparison(requested)
    assert (entry_of(requested)["status"], entry_of(requested)["error"]) == ("failed", "exit code 3")


def test_a_late_write_turns_back_nothing(requested: ComparisonRequest, stage: Stage) -> None:
    """Two requests in one folder: each lists its own run, and both see what became of the other's."""
    other = replace(requested, methods=["augment"])
    stage.end = (1, "error: the disk is full.")
    assert not run_comparison(requested)
    assert not run_comparison(other)
    stage.end = (0, "")
    assert run_comparison(requested)
    # the other request's process read comparison.json long ago; now it writes
    path = requested.out / "comparison.json"
    content = json.loads(path.read_text())
    content["runs"][0] |= {"status": "failed", "error": "old news", "seconds": {}}
    write_json(path, content)
    write_record(other, plan(other))
    assert (entry_of(requested)["status"], entry_of(requested)["error"]) == ("done", None)
    assert set(entry_of(requested)["seconds"]) == {"training", "evaluation"}
    assert entry_of(requested, "augment")["status"] == "failed"


def test_comparison_json_is_written_by_one_at_a_time(requested: ComparisonRequest, stage: Stage) -> None:
    assert run_comparison(requested)
    (requested.out / "comparison.json").unlink()
    writer = threading.Thread(target=write_record, args=(requested, plan(requested)))
    with FileLock(requested.out / ".comparison.lock"):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive()
        assert not (requested.out / "comparison.json").exists()
    writer.join(30)
    assert entry_of(requested)["status"] == "done"


def settings_in(folder: Path, **changed: object) -> None:
    """As a training writes them, of the requested's one run."""
    (run,) = (run for run in plan(ComparisonRequest("phantom_mr2ct", ["none"], [0], folder)) if run.name == "none")
    settings = {**run.settings, "bundle_root": "elsewhere", "cache_dir": "/tmp", **changed}
    (run.folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))


def test_changed_settings_of_a_done_run_are_named(
    requested: ComparisonRequest, stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_comparison(requested)
    settings_in(requested.out)
    capfd.readouterr()
    assert run_comparison(requested)
    assert "other settings" not in capfd.readouterr().err
    settings_in(requested.out, learning_rate=0.5, max_epochs=1, gone_since="a key")
    (run,) = plan(requested)
    learning_rate, epochs = run.settings["learning_rate"], run.settings["max_epochs"]
    assert changed_settings(run) == {"learning_rate": (0.5, learning_rate), "max_epochs": (1, epochs)}
    started = stage.started
    assert run_comparison(requested)
    (sentence,) = (line for line in capfd.readouterr().err.splitlines() if "other settings" in line)
    assert f"learning_rate: 0.5, now {learning_rate}; max_epochs: 1, now {epochs}" in sentence
    assert sentence.startswith("none, seed 0: trained with other settings")
    assert "--restart methods/none_seed0 sets its folder aside" in sentence
    assert stage.started == started  # it is left as it is


@pytest.mark.parametrize("text", ["{half of", "- a list", None])
def test_settings_that_cannot_be_read_are_no_change(
    text: str | None, requested: ComparisonRequest, stage: Stage
) -> None:
    assert run_comparison(requested)
    (run,) = plan(requested)
    if text is not None:
        (run.folder / "config.yaml").write_text(text)
    assert changed_settings(run) == {}


def test_a_failed_run_says_how_to_start_anew(
    requested: ComparisonRequest, stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    stage.end = (1, "error: checkpoint.pt: found learning_rate 0.5; start without --resume.")
    assert not run_comparison(requested)
    assert "--restart methods/none_seed0 sets its folder aside and starts it anew" in capfd.readouterr().err


def test_a_restarted_run_loses_nothing(requested: ComparisonRequest, stage: Stage) -> None:
    assert run_comparison(requested)
    (run,) = plan(requested)
    stage.commit = SECOND
    for number in (1, 2):
        (run.folder / "mark").write_text(f"attempt {number}")
        assert run_comparison(requested, restart=["methods/none_seed0"])
        assert (requested.out / "methods" / f"none_seed0.old-{number}" / "mark").read_text() == f"attempt {number}"
        assert not (run.folder / "mark").exists()
    assert stage.started == 3 * 2
    assert entry_of(requested)["commits"] == [SECOND]
    assert [entry["folder"] for entry in read_record(requested.out)["runs"]] == ["methods/none_seed0"]


def test_with_a_translator_go_those_that_it_taught(requested: ComparisonRequest, stage: Stage) -> None:
    requested = replace(requested, methods=["none", "style"], seeds=[0, 1])
    assert run_comparison(requested)
    assert run_comparison(requested, restart=["translators/style_seed0"])
    assert sorted(path.relative_to(requested.out).as_posix() for path in requested.out.glob("*/*.old-*")) == [
        "methods/style_seed0.old-1",
        "translators/style_seed0.old-1",
    ]


def test_a_restart_of_what_is_not_there_or_in_use_is_refused(requested: ComparisonRequest, stage: Stage) -> None:
    assert run_comparison(requested)
    error = refused(run_comparison, requested, restart=["none"])
    assert (error.file, error.found) == ("--restart", "none")
    assert "methods/none_seed0" in error.expected
    (run,) = plan(requested)
    with FileLock(run.folder / ".lock"):
        assert "another process" in refused(run_comparison, requested, restart=["methods/none_seed0"]).found
    assert status_of(run) == "done"
