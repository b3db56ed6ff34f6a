"""``prepare``: resumable, atomic, parallel, and its source is never modified."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import run_command
from releases import CT_AFFINE, save, sections, write_btcv, write_chaos_mr, write_mmwhs
from scripts.core.errors import InputError
from scripts.lab.cli import main
from scripts.lab.prepare import run as run_module
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions

CASES = [1, 2, 3]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_btcv(tmp_path / "in", CASES)


def run(source: Path, out: Path, workers: int = 1, protocol: str | None = None) -> dict:
    return prepare(Preparation("btcv", source, out, protocol, find=SearchOptions(), workers=workers))


def digests(folder: Path) -> dict[str, str]:
    """Digest of every volume and datalist below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "prepare.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that are prepared from here on."""
    names: list[str] = []
    original = run_module.prepare_case

    def noted(out: Path, case, rules, key: str) -> dict:
        names.append(case.name)
        return original(out, case, rules, key)

    monkeypatch.setattr(run_module, "prepare_case", noted)
    return names


def test_a_second_call_makes_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert run(source, out)["kept_from_before"] == 0
    before, when = digests(out), times(out)
    names = made(monkeypatch)
    assert run(source, out)["kept_from_before"] == 3
    assert names == []
    assert (digests(out), times(out)) == (before, when)


def test_any_failure_of_one_case_is_its_own(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any exception of a library, the case is named, and the others are prepared."""
    original = run_module.prepare_case

    def failing(out: Path, case, rules, key: str) -> dict:
        if case.number == 2:
            raise MemoryError("no room")
        return original(out, case, rules, key)

    monkeypatch.setattr(run_module, "prepare_case", failing)
    with pytest.raises(InputError, match=r"img0002.nii.gz: an error while it was prepared \(MemoryError: no room"):
        run(source, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("ct_*.json"))) == 2


def change_source(source: Path, out: Path) -> None:
    save(source / "RawData/Training/label/label0002.nii.gz", np.full((20, 18, 15), 6, np.uint8), CT_AFFINE)


def remove_output(source: Path, out: Path) -> None:
    (out / "ct" / "ct_0002_label.nii.gz").unlink()


def cut_output(source: Path, out: Path) -> None:
    path = out / "ct" / "ct_0002_image.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])


def break_record(source: Path, out: Path) -> None:
    (out / "ct" / "ct_0002.json").write_text("{")


@pytest.mark.parametrize("event", [change_source, remove_output, cut_output, break_record])
def test_only_incomplete_cases_are_prepared_again(
    event, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(source, out)
    before = digests(out)
    event(source, out)
    names = made(monkeypatch)
    run(source, out)
    assert names == ["ct_0002"]
    changed = {name for name, digest in digests(out).items() if digest != before[name]}
    expected = {"ct/ct_0002_label.nii.gz", "ct/ct_0002.json"} if event is change_source else set()
    assert changed == expected


def test_another_protocol_makes_all_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(source, tmp_path / "out")
    names = made(monkeypatch)
    run(source, tmp_path / "out", protocol="dar")
    assert sorted(names) == ["ct_0001", "ct_0002", "ct_0003"]


def test_a_kill_loses_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between two cases, and in one, it goes on to what an uninterrupted run gives."""
    run(source, tmp_path / "whole")
    out = tmp_path / "out"
    original = os.replace

    def kill(old: str, new: str) -> None:
        if "ct_0002_label" in str(new):
            raise KeyboardInterrupt
        original(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    left = set(digests(out))
    assert "ct.json" not in left
    assert "ct/ct_0002.json" not in left
    assert not [name for name in left if Path(name).name.startswith(".")]  # no temporary file
    run(source, out)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_case_that_is_made_again_has_no_datalist_meanwhile(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    path = source / "RawData/Training/label/label0002.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match="label0002"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "ct.json").exists()
    assert (tmp_path / "out" / "ct" / "ct_0002_label.nii.gz").is_file()  # the old pair, whole


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def full(old: str, new: str) -> None:
        if Path(new).name != ".running":  # written at the start
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="3 of 3 cases that cannot be prepared"):
        run(source, tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_side_by_side_gives_the_same_files(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", workers=1)
    run(source, tmp_path / "four", workers=4)
    assert digests(tmp_path / "one") == digests(tmp_path / "four")


def test_the_source_is_not_touched(source: Path, tmp_path: Path) -> None:
    def state() -> dict[str, tuple[str, int]]:
        files = digests(source)
        return {name: (digest, (source / name).stat().st_mtime_ns) for name, digest in files.items()}

    before = state()
    run(source, tmp_path / "out")
    run(source, tmp_path / "out", protocol="sifa")
    assert state() == before


@pytest.mark.parametrize("out", ["in", "in/prepared"])
def test_it_does_not_write_into_its_source(out: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be written into the source"):
        run(source, tmp_path / out)


def test_a_source_in_the_folder_of_a_domain_is_refused(tmp_path: Path) -> None:
    source = write_btcv(tmp_path / "data" / "ct", [2])
    with pytest.raises(InputError, match="would be written into the source"):
        run(source, tmp_path / "data")
    run(source, tmp_path / "data" / "prepared" / ".." / ".." / "beside")


def test_every_failing_case_is_named(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in (1, 3):
        (source / f"RawData/Training/img/img000{number}.nii.gz").write_bytes(b"cut")
    with pytest.raises(InputError, match="2 of 3 cases that cannot be prepared, listed above"):
        run(source, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert [name in "".join(lines) for name in ("img0001", "img0002", "img0003")] == [True, False, True]


def test_two_data_sets_share_a_folder(source: Path, tmp_path: Path) -> None:
    """BTCV's CT and CHAOS's MR are one task's two domains."""
    run(source, tmp_path / "out")
    mr = write_chaos_mr(tmp_path / "chaos", 2)
    prepare(Preparation("chaos", mr, tmp_path / "out", find=SearchOptions(domain="mr")))
    assert set(json.loads((tmp_path / "out" / "prepare.json").read_text())) == {"btcv", "chaos"}
    assert sections(tmp_path / "out", "ct") == {"training": ["ct_0002", "ct_0003"], "test": ["ct_0001"]}
    assert sections(tmp_path / "out", "mr") == {"training": ["mr_02"]}


def test_a_domain_of_another_data_set_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    hearts = write_mmwhs(tmp_path / "hearts", ct=[1001], mr=[])
    with pytest.raises(InputError, match=r"ct.json: a datalist of 'btcv'\. Expected none, or"):
        prepare(Preparation("mmwhs", hearts, tmp_path / "out"))
    (tmp_path / "out" / "ct.json").write_text('{"training": []}')
    with pytest.raises(InputError, match="a datalist of something else"):
        run(source, tmp_path / "out")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"btcv": {}}', '{"btcv": {"domains": [], "protocol": {"name": "clean"}}}']
)
def test_a_report_that_is_none_is_found_before_the_work(content: str, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "prepare.json").write_text(content)
    with pytest.raises(InputError, match=r"prepare.json: no report of an earlier preparation .* remove the file"):
        run(source, out)
    assert [path.name for path in out.iterdir()] == ["prepare.json"]
    assert (out / "prepare.json").read_text() == content


def test_labels_do_not_change_images_or_grids(source: Path, tmp_path: Path) -> None:
    """`clean` cannot peek: other labels, the same images."""
    run(source, tmp_path / "out")
    for path in (source / "RawData/Training/label").iterdir():
        label = np.asarray(nib.load(path).dataobj)
        save(path, np.roll(label, 5, axis=0)[::-1].copy(), CT_AFFINE)
    run(source, tmp_path / "other")
    images = {name: digest for name, digest in digests(tmp_path / "out").items() if "image" in name}
    assert images.items() <= digests(tmp_path / "other").items()
    assert len(images) == 3


def test_the_report_has_what_a_reader_needs(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "prepare.json").read_text())["btcv"]
    assert report["tasks"] == ["abdomen_ct2mr", "abdomen_mr2ct"]
    assert report["peeks"] == []
    assert report["domains"]["ct"]["sections"] == {"training": ["ct_0002", "ct_0003"], "test": ["ct_0001"]}
    assert report["domains"]["ct"]["absent"] == [9, 30, 32, 33, 36, 37, 38, 39, 40]
    assert {"monai", "nibabel", "pydicom"} <= set(report["made_with"]["packages"])
    record = json.loads((tmp_path / "out" / "ct" / "ct_0002.json").read_text())
    assert record["spacing_mm"] == [2.0, 2.25, 3.0]
    assert record["orientation"] == "ARI"
    label = np.asarray(nib.load(tmp_path / "out" / "ct" / "ct_0002_label.nii.gz").dataobj)
    assert record["label_voxels"] == {str(value): int((label == value).sum()) for value in (1, 2, 3, 4)}


def test_the_command_says_what_it_did(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(
        ["prepare", "btcv", "--source", str(source), "--out", str(tmp_path / "out"), "--protocol", "dar", "--no_check"]
    )
    shown = capsys.readouterr()
    assert "ct.json: 2 training, 1 validation, 1 test" in shown.out
    assert "it uses target labels: CT slices from two below the first" in shown.out
    assert "configs/tasks/abdomen_scaled_ct2mr.yaml" in shown.out
    assert "btcv: 100%" in shown.err  # progress


def test_the_one_command_ends_with_a_page_that_shows_the_data(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["prepare", "btcv", "--source", str(write_btcv(tmp_path / "in", [2])), "--out", str(out)]
    main([*command, "--no_check"])
    assert not (out / "check" / "check.html").exists()
    for _ in range(2):  # the second finds its own page there
        with pytest.raises(SystemExit):  # the generator's liver lies beside its kidneys, not above them
            main(command)
        assert "ct_0002" in (out / "check" / "check.html").read_text()


def test_data_that_would_spoil_a_training_end_the_command_with_an_error(source: Path, tmp_path: Path) -> None:
    """The generator's cases show one body and differ by a grey value: copies, one of them a test case."""
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "btcv", "--source", str(source), "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert (tmp_path / "out" / "ct.json").is_file()
    assert "one case in two splits" in (tmp_path / "out" / "check" / "check.html").read_text()


@pytest.mark.slow
def test_the_exit_code_of_a_bad_tree(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    command = [sys.executable, "-m", "scripts", "prepare", "btcv", "--source", str(tmp_path / "in"), "--out", "nowhere"]
    done = run_command(command)
    assert done.code == 1
    assert len(done.errors) == 1
    assert "Expected files of it: img0001.nii.gz and label0001.nii.gz" in done.errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bctv"], r"bctv.yaml: no such file. Expected one of btcv, chaos, folder, mmwhs, mscmr, sifa"),
        (["btcv", "--protocol", "clear"], r"clear.yaml: no such file. Expected a protocol: clean, dar, disjoint, sifa"),
        (["btcv", "--map", "1:2"], "--map: given with 'btcv'"),
        (["btcv", "--domain", "mr"], "--domain: 'mr'. Expected one of ct"),
        (
            ["mscmr", "--protocol", "dar"],
            r"protocol 'dar': no rules for 'mscmr'\. Expected .*: clean, disjoint\. Fix: give --protocol clean",
        ),
    ],
)
def test_settings_that_are_wrong(arguments: list[str], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        main(["prepare", *arguments, "--source", str(source), "--out", str(tmp_path / "out")])
