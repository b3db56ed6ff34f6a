"""The fault campaign: what it counts as refused, harmless and missed."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import write_volume
from fault_campaign import Campaign
from fault_files import damaged_contents, reads_as
from fault_jobs import Job, contents, jobs, run_doubled, run_killed, run_on_bad_disk, run_undisturbed
from scripts.core.errors import InputError
from scripts.core.files import PART


def refuse() -> bool:
    raise InputError(file="a", found="b", expected="c", remedy="d")


def test_outcomes_are_counted_and_missed_faults_listed() -> None:
    campaign = Campaign()
    campaign.inject("file", "one", refuse)
    campaign.inject("file", "two", lambda: True)
    campaign.inject("file", "three", lambda: False)
    campaign.inject("file", "four", lambda: bool(1 / 0))
    assert campaign.counts["file"] == {"refused": 1, "harmless": 1, "missed": 2}
    assert campaign.missed == ["file: three", "file: four: ZeroDivisionError: division by zero"]
    assert campaign.table().splitlines()[1].split() == ["file", "1", "1", "2"]


def test_damage_is_the_same_for_a_seed_and_differs_from_the_file() -> None:
    content = gzip.compress(bytes(range(256)) * 8)
    first, second = (list(damaged_contents(bytes(348), content, random.Random(1), count=12)) for _ in range(2))
    assert first == second
    assert len({what for _, what in first}) == 12
    assert sum(changed == content for changed, _ in first) <= 1  # zeros may replace zeros


@pytest.mark.parametrize("number", range(12))
def test_no_damage_of_a_volume_passes_as_another_volume(number: int, tmp_path: Path) -> None:
    volume = tmp_path / "a.nii.gz"
    write_volume(volume, np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32))
    content = volume.read_bytes()
    changed, _ = list(damaged_contents(gzip.decompress(content)[:348], content, random.Random(5), count=12))[number]
    campaign = Campaign()
    campaign.inject("file", "", lambda: reads_as(tmp_path / "b.nii.gz", changed, volume))
    assert campaign.missed == []


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of a tenth of a second: Python's own tool that formats JSON."""
    (tmp_path / "in.json").write_text('{"a": 1}')
    return Job("format", ["json.tool", str(tmp_path / "in.json"), "{out}/out.json"], ["*.json"])


def folder(place: Path) -> Path:
    place.mkdir()
    return place


def test_a_job_that_is_killed_or_started_twice_gives_the_undisturbed_result(job: Job, tmp_path: Path) -> None:
    expected, seconds = run_undisturbed(job, folder(tmp_path / "whole"))
    assert list(expected) == ["out.json"]
    assert run_killed(job, folder(tmp_path / "killed"), expected, seconds, random.Random(0))
    assert run_doubled(job, folder(tmp_path / "twice"), expected)
    assert not run_doubled(job, folder(tmp_path / "other"), {"out.json": "another digest"})
    assert run_on_bad_disk(job, tmp_path / "disk", expected, 4096)  # 9 bytes fit


def test_a_job_that_fails_or_leaves_parts_is_missed(job: Job, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text("{")
    with pytest.raises(RuntimeError, match="exit 1: "):
        run_undisturbed(job, folder(tmp_path / "a"))
    (tmp_path / "a" / f".b{PART}c.json").write_text("")
    with pytest.raises(RuntimeError, match="incomplete files"):
        contents(tmp_path / "a", ["*"])


def test_a_job_that_does_not_go_on_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that refuses whatever it finds: on a full disk, and with room again."""
    (tmp_path / "refusing.py").write_text("import sys\nsys.exit('error: a setting')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="it does not go on: error: a setting"):
        run_on_bad_disk(Job("refusing", ["refusing"], ["*"]), tmp_path / "disk", {}, 4096)


@pytest.mark.slow
def test_a_killed_compare_goes_on_to_the_same_weights_and_metrics(data: Path, tmp_path: Path) -> None:
    """Killed after 81 % and 54 % of the time of an undisturbed run; its trainings end with it."""
    (compare,) = (job for job in jobs(data, tmp_path / "run" / "models" / "model.pt") if job.name == "compare")
    expected, seconds = run_undisturbed(compare, tmp_path / "whole")
    assert {Path(file).name for file in expected} == {"model.pt", "metrics.csv"}
    for seed in (0, 10):
        assert run_killed(compare, tmp_path / f"killed_{seed}", expected, seconds, random.Random(seed))
