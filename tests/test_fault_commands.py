"""Faults of whole commands: broken YAML, signals in the first moments, what a killed command left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from bundle.install import RECORD, install
from comparison_folders import write_comparison
from conftest import CONFIGS, ROOT, refused
from scripts.core.files import PART
from scripts.core.run_folder import RunFolder
from scripts.lab.adapt import run_adapt as adapt
from scripts.lab.adapt.request import AdaptRequest
from scripts.lab.cli import main
from scripts.lab.cores import exclusive
from scripts.lab.experiments import comparison_report
from scripts.lab.experiments.compare import _register
from scripts.lab.experiments.comparison_record import writing_alone
from scripts.lab.experiments.plan import PlannedRun

BROKEN = "a: 1\n b: 2\n"
COMPARE = ["compare", "--out", "{out}/runs", "--methods"]
ADAPT = ["adapt", "--source_images", "{out}", "--source_labels", "{out}", "--target_images", "{out}"]


@pytest.mark.parametrize(
    "words",
    [
        ["check", "{data}", "--task", "{file}", "--out", "{out}/check"],
        [*COMPARE, "none", "--task", "{file}"],
        [*COMPARE, "{file}", "--task", "phantom_mr2ct"],
        [*COMPARE, "none", "--task", "phantom_mr2ct", "--overlay", "{file}"],
        ["prepare", "folder", "--domain", "ct", "--source", "{data}", "--out", "{out}/a", "--map", "{file}"],
        ["prepare", "mmwhs", "--source", "{data}", "--out", "{out}/a", "--protocol", "{file}"],
        [*ADAPT, "--task", "{file}", "--out", "{out}/b"],
        ["run", "training", "--config_file", "{file}", "--bundle_root", "{out}/c"],
        ["run", "training", "--config_file=['configs/segmentation/train.yaml','{file}']"],
    ],
)
def test_broken_yaml_is_named_with_its_line(
    words: Sequence[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)  # which the command run replaces
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    error = refused(main, [word.format(file=file, out=tmp_path, data=data) for word in words])
    assert error.file == str(file)
    assert error.found == "cannot be read (line 2: mapping values are not allowed here)"


def test_a_run_without_a_file_of_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert refused(main, ["run", "training", "--seed", "1"]).file == "--config_file"


# Sends itself a signal when torch is about to be imported: in the first second of a command.
STOP_AT_TORCH = """
import os, sys

class Stop:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), int(sys.argv[1]))

sys.meta_path.insert(0, Stop)
from {module} import main
main({words})
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("scripts.lab.cli", ["phantom", "--out", "data"]),
        ("scripts.lab.cli", ["run", "training", "--config_file", "train.yaml"]),
        ("bundle.__main__", ["pack", "segmentation", "--task", "phantom_mr2ct"]),
    ],
)
def test_signals_while_libraries_are_imported(
    number: signal.Signals, module: str, words: Sequence[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOP_AT_TORCH.format(module=module, words=words), str(int(number))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 128 + number
    (line,) = done.stderr.split("\n")[1:-1]
    assert line.startswith(f"stopped by {number.name}. To resume, ")
    assert not any(tmp_path.iterdir())


def leave(folder: Path, *names: str) -> list[Path]:
    """Leftovers of killed commands, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in names]
    for file in files:
        file.write_text("incomplete")
    return files


def comparison(folder: Path) -> None:
    with writing_alone(folder):
        pass


def run_of_comparison(folder: Path) -> None:
    _register(PlannedRun("method", "none", 0, folder, []))


def training(folder: Path) -> None:
    RunFolder(root=str(folder / "run"), writes=[str(folder)]).open().close()


def command_with_one_folder(folder: Path) -> None:
    with exclusive(folder):
        pass


def pack(folder: Path) -> None:
    folder.joinpath(RECORD).write_text('{"files": {}}')
    built = folder.parent / "built"
    built.mkdir()
    install(built, folder)


@pytest.mark.parametrize(
    ("start", "own", "others"),
    [
        (comparison, [f".comparison{PART}1.json", f".report{PART}2.html"], []),
        (run_of_comparison, [f".run{PART}1.json"], [f".config{PART}1.yaml"]),  # of a training that may be running
        (training, [f".model{PART}1.pt"], []),  # with --ckpt_dir elsewhere
        (command_with_one_folder, [f".task{PART}1.yaml"], []),
        (pack, [f"..packed{PART}1.json"], [f".losses{PART}1.csv"]),  # of a training in the packed folder
    ],
)
def test_the_next_start_removes_what_the_job_left(
    start: Callable[[Path], None], own: Sequence[str], others: Sequence[str], tmp_path: Path
) -> None:
    files, kept = leave(tmp_path / "out", *own), leave(tmp_path / "out", *others, ".hidden", "file")
    start(tmp_path / "out")
    assert not any(file.exists() for file in files)
    assert all(file.exists() for file in kept)


def test_a_report_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_comparison(tmp_path)
    left = leave(tmp_path, f".report{PART}1.html") + leave(tmp_path / "plots", f".dice{PART}1.svg")
    monkeypatch.setattr(comparison_report, "_write_report", lambda comparison, folder: folder / "report.html")
    main(["report", str(tmp_path)])
    assert not any(file.exists() for file in left)


def test_adapt_removes_what_a_killed_one_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(tmp_path, f".task{PART}1.yaml") + leave(tmp_path / "check", f".check{PART}1.html")
    monkeypatch.setattr(adapt, "_adapt", lambda _: None)
    adapt.run_adapt(AdaptRequest(source_images=CONFIGS, source_labels=CONFIGS, target_images=CONFIGS, out=tmp_path))
    assert not any(file.exists() for file in left)
