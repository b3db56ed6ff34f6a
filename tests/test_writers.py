"""Files appear complete or not at all, also on a full disk."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import CT_AFFINE, ROOT, listed_files, refused, run_command
from monai.data import MetaTensor
from scripts.core.errors import InputError
from scripts.core.files import AtomicSaveImaged, atomic_path, check_file_name, make_folder, save_tensors, write_json
from scripts.lab.case_lists import datalists_of_domains


def saver(folder: Path) -> AtomicSaveImaged:
    return AtomicSaveImaged("pred", output_dir=str(folder), output_postfix="seg", output_dtype=np.int16)


def prediction(seed: int = 0) -> dict[str, MetaTensor]:
    voxels = torch.randint(0, 900, (1, 12, 10, 8), generator=torch.Generator().manual_seed(seed)).float()
    meta = {"filename_or_obj": "somewhere/case.nii.gz"}
    return {"pred": MetaTensor(voxels, affine=torch.from_numpy(CT_AFFINE), meta=meta)}


def write_half(path: Path, error: BaseException) -> None:
    """Begin to write, and fail."""
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_under_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(listed_files(tmp_path)) == ["new/folder/a.nii.gz"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_half(tmp_path / "a.txt", KeyError("in the middle"))
    assert list(listed_files(tmp_path)) == []


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a.txt", KeyboardInterrupt())
    assert (tmp_path / "a.txt").read_text() == "old"
    assert list(listed_files(tmp_path)) == ["a.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("")
    with atomic_path(tmp_path / "ours.txt") as temporary:
        temporary.write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain.txt", "ours.txt")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("function", ["os.replace", "pathlib.Path.write_text"])
def test_a_full_disk_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.json").write_text('{"old": 1}')
    monkeypatch.setattr(function, full)
    with pytest.raises(
        InputError, match=r"a\.json: could not be written \(No space left on device\)\. Expected a folder"
    ):
        write_json(tmp_path / "a.json", {"new": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert list(listed_files(tmp_path)) == ["a.json"]


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_path_below_a_file_gets_a_sentence(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / below
    with pytest.raises(InputError, match=r"a folder that cannot be written .*Expected a writable folder"):
        make_folder(folder)
    with pytest.raises(InputError, match="cannot be written"), atomic_path(folder / "a.txt"):
        pytest.fail("the block must not start")
    assert (tmp_path / "file").read_text() == "in the way"


def test_make_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_json_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Grenzfläche", "values": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {
        "name": "Grenzfläche",
        "values": [1, 2.5, None],
    }


def test_a_volume_is_saved_with_affine_and_type(tmp_path: Path) -> None:
    saver(tmp_path)(prediction())
    file = nib.load(tmp_path / "case_seg.nii.gz")
    np.testing.assert_allclose(file.affine, CT_AFFINE, atol=1e-6)
    assert file.get_data_dtype() == np.int16
    assert file.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(file.dataobj), np.asarray(prediction()["pred"][0]))
    assert list(listed_files(tmp_path)) == ["case_seg.nii.gz"]


def test_channels_become_the_last_axis(tmp_path: Path) -> None:
    one = prediction()["pred"]
    both = {"pred": MetaTensor(torch.cat([one, one + 1]), meta=one.meta)}
    AtomicSaveImaged("pred", output_dir=str(tmp_path), output_postfix="two")(both)
    file = nib.load(tmp_path / "case_two.nii.gz")
    assert (file.shape, file.get_data_dtype()) == ((12, 10, 8, 2), np.float32)
    np.testing.assert_array_equal(np.asarray(file.dataobj)[..., 1], np.asarray(one[0]) + 1)


def test_a_volume_that_finds_the_disk_full_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver(tmp_path)(prediction(0))
    before = (tmp_path / "case_seg.nii.gz").read_bytes()

    def full(image: nib.Nifti1Image, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(nib, "save", full)
    with pytest.raises(InputError, match=r"case_seg\.nii\.gz: .*No space left on device"):
        saver(tmp_path)(prediction(1))
    assert (tmp_path / "case_seg.nii.gz").read_bytes() == before
    assert list(listed_files(tmp_path)) == ["case_seg.nii.gz"]


WRITE_UNDER_A_LIMIT = """
import resource, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
import torch
from scripts.core.files import save_tensors
from scripts.core.errors import show_input_errors_as_sentences
from test_writers import prediction, saver

show_input_errors_as_sentences()
folder = Path(sys.argv[2])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
if sys.argv[1] == "volume":
    saver(folder)(prediction())
else:
    save_tensors(folder / "model.pt", {"weight": torch.rand(1000)})
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="the system has no limit on file sizes")
@pytest.mark.parametrize(("what", "name"), [("volume", "case_seg.nii.gz"), ("weights", "model.pt")])
def test_a_write_that_the_system_cuts_short_leaves_nothing(tmp_path: Path, what: str, name: str) -> None:
    # The kernel itself refuses to let a file grow beyond 500 bytes, in the middle of writing.
    done = run_command([sys.executable, "-c", WRITE_UNDER_A_LIMIT, what, str(tmp_path)], PYTHONPATH=str(ROOT))
    assert done.code == 1, done.stderr
    (sentence,) = done.errors
    assert sentence.startswith(f"error: {tmp_path / name}: could not be written (File too large)")
    assert list(listed_files(tmp_path)) == []


def test_tensors_are_saved_for_safe_loading(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.pt", {"weight": torch.arange(3.0)})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["weight"].tolist() == [0, 1, 2]


NO_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "a\\b",
    "C:x",
    "/etc/x",
    ".hidden",
    "a\0b",
    "a\nb",
    "a ",
    "a.",
    " a",
    "\u2028",
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_that_would_leave_its_folder(name: str) -> None:
    with pytest.raises(InputError, match="a plain file name") as caught:
        check_file_name(name, "list.json")
    assert caught.value.file == "list.json"


@pytest.mark.parametrize("name", ["mr", "ct_1001", "bSSFP-1.2", "Röntgen", "a b"])
def test_a_plain_name(name: str) -> None:
    assert check_file_name(name, "list.json") == name


def test_a_folder_whose_name_holds_a_zero_byte() -> None:
    with pytest.raises(InputError, match="a folder that cannot be written"):
        make_folder("a\0b")


def test_a_domain_cannot_name_a_path(tmp_path: Path) -> None:
    """``datalist`` writes ``<domain>.json``: a name with separators would overwrite a file elsewhere."""
    listed = tmp_path / "dataset.json"
    listed.write_text(json.dumps({"domains": {"../../x": {"modality": "MR", "training": []}}}))
    with pytest.raises(InputError, match=r"dataset\.json: the name '\.\./\.\./x'"):
        datalists_of_domains(str(listed))


def test_a_name_too_long_for_the_system_says_so(tmp_path: Path) -> None:
    error = refused(write_json, tmp_path / ("n" * 256), {})
    assert (error.expected, error.remedy) == ("a shorter name", "rename the input; no partial file was left")
    assert not list(tmp_path.iterdir())
