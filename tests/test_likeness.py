"""Images unlike the training images, and what an inference writes beside its label maps."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import refused, run_base, write_volume
from matplotlib.image import imread
from monai.data import MetaTensor
from scripts.core.weights import metadata_file, read_metadata, save_weights
from scripts.data.likeness import UNLIKE, CheckLikenessd, describe_cases, difference
from scripts.data.slices import SliceSet
from scripts.evaluation.segmentation_summary import _on_grid_of, range_slack, volume_warning, write_names

LABELLED: Any = SimpleNamespace(
    volumes_ml=lambda count: torch.tensor([[2.0, 0.0], [8.0, 0.5], [2.0, 0.0], [8.0, 0.5]]),
    data=[{"label": name} for name in ("1", "2", "1", "2")],  # two cases, translated and as they are
)


def described(folder: Path, *lowest: float) -> dict[str, Any]:
    """Training images of 20 x 30 x 40 mm, 22 x 33 x 44 mm and so on, with the given lowest values."""
    data = []
    for index, value in enumerate(lowest):
        voxels = np.full((20, 6, 10), 100, np.int16)
        voxels[0, 0] = value
        affine = np.diag([*np.multiply([1, 5, 4], 1 + 0.1 * index), 1])
        data.append({"image": str(write_volume(folder / f"{index}.nii.gz", voxels, affine))})
    return describe_cases(LABELLED, SimpleNamespace(data=data), ["liver", "spleen"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("lowest", "are_ct"), [((0, -5), False), ((-1000, -125), True), ((0, -1000), None)])
def test_training_cases_by_hand(lowest: tuple[float, ...], are_ct: bool | None, tmp_path: Path) -> None:
    assert described(tmp_path, *lowest) == {
        "labelled_cases": 2,
        "volumes_ml": {"liver": [2.0, 8.0], "spleen": [0.0, 0.5]},
        "images": {"are_ct": are_ct, "least_mm": [20, 30, 40], "greatest_mm": [22, 33, 44]},
    }
    assert "images" not in describe_cases(LABELLED, None, ["liver", "spleen"])


def image_of(shape: tuple[int, ...], lowest: float = 0.0) -> dict[str, Any]:
    values = torch.full((1, *shape), 100.0)
    values[0, 0] = lowest
    return {"image": MetaTensor(values, affine=torch.eye(4), meta={"filename_or_obj": "new.nii.gz"})}


def weights_for(folder: Path, *lowest: float) -> str:
    save_weights(folder / "model.pt", {}, {"training_cases": described(folder, *lowest)})
    return str(folder / "model.pt")


@pytest.mark.parametrize(
    ("shape", "distance"),
    [((40, 20, 30), 1.0), ((33, 44, 22), 1.0), ((14, 30, 40), 20 / 14), ((12, 30, 40), 20 / 12), ((20, 30, 400), 3.0)],
)
def test_an_image_of_another_size_is_reported(
    shape: tuple[int, ...], distance: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From a factor of 1.5 on. A longer image is never refused: the section crops it."""
    weights = weights_for(tmp_path, 0, 0)
    image = image_of(shape)
    known = read_metadata(Path(weights))["training_cases"]["images"]
    found, _ = difference(image["image"][0], image["image"].affine, known)
    assert found == pytest.approx(distance, rel=1e-6)
    checked = CheckLikenessd("image", weights=weights)(image)["image"]
    assert checked is image["image"]
    assert (UNLIKE in checked.meta) == (distance > 1.5) == ("new.nii.gz: edges of" in caplog.text)


@pytest.mark.parametrize(
    ("training", "shape", "lowest", "found"),
    [
        ((0, 0), (20, 30, 40), -1000.0, "lowest values of -1000: a CT in HU"),
        ((-1000, -125), (20, 30, 40), 0.0, "lowest values of 0: no CT in HU"),
        ((0, 0), (6, 30, 40), 0.0, "edges of 6 x 30 x 40 mm, 3.3 times outside those of training"),
    ],
    ids=["CT for MR", "MR for CT", "a fraction"],
)
def test_a_foreign_image_is_refused_or_processed_with_a_warning(
    training: tuple[float, ...], shape: tuple[int, ...], lowest: float, found: str, tmp_path: Path
) -> None:
    weights = weights_for(tmp_path, *training)
    error = refused(CheckLikenessd("image", weights=weights), image_of(shape, lowest))
    assert error.file == "new.nii.gz"
    assert error.found.startswith(found)
    assert "--unlike_images warn" in error.remedy
    checked = CheckLikenessd("image", weights=weights, unlike="warn")(image_of(shape, lowest))
    assert checked["image"].meta[UNLIKE] == error.found
    refused(CheckLikenessd, "image", weights=weights, unlike="ignore")


def test_weights_without_a_fingerprint_check_nothing(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.pt", {}, {"task": "abdomen"})
    for file in (tmp_path / "model.pt", tmp_path / "absent.pt"):
        assert UNLIKE not in CheckLikenessd("image", weights=str(file))(image_of((2, 2, 2)))["image"].meta


def test_volumes_of_structures_by_hand() -> None:
    """Case 0 has two slices with 3 + 1 voxels of 0.5 ml of class 1: 2 ml; case 1 one slice with 4 of 2 ml: 8 ml."""
    labels = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    labels[0, 0] = torch.tensor([[1, 1], [1, 2]])
    labels[1, 0, 0, 0] = 1
    labels[2] = 1
    slices: Any = SimpleNamespace(labels=labels, case_of=torch.tensor([0, 0, 1]), voxel_ml=[0.5, 2.0], data=[{}, {}])
    assert SliceSet.volumes_ml(slices, 2).tolist() == [[2.0, 0.5], [8.0, 0.0]]


@pytest.mark.parametrize(
    ("ml", "warning"),
    [(0.0, "missing"), (9.9, "too small"), (10.0, ""), (45.0, ""), (45.1, "too large"), (15000.0, "too large")],
)
def test_volumes_outside_one_and_a_half_times_the_range(ml: float, warning: str) -> None:
    assert volume_warning(ml, 15.0, 30.0, 1.5) == warning
    assert volume_warning(0.0, 0.0, 30.0, 1.5) == ""  # labelled cases may lack it


@pytest.mark.parametrize(("cases", "slack"), [(1, 2.949), (4, 2.043), (24, 1.492), (100_000, 1.0)])
def test_the_range_of_few_cases_says_little(cases: int, slack: float) -> None:
    """One case is expected in the middle: exp(0.35 x 3.09) = 2.949. The largest of 4 is expected 1.049 spreads above
    it, the normal quantile of 3.625 / 4.25 = 0.853: exp(0.35 x (3.09 - 1.049)) = 2.043. The largest of 24 is expected
    at the quantile of 23.625 / 24.25 = 0.974, 1.947: exp(0.35 x 1.143) = 1.492. The extremes of 100,000 people are
    the limit themselves.
    """
    assert range_slack(cases) == pytest.approx(slack, abs=0.001)


def test_labels_are_found_at_the_voxels_of_an_image_of_another_order_and_spacing() -> None:
    """The label map is stored with the axes (inferior, posterior, right) and half the voxel size of the image."""
    labels = torch.zeros(1, 8, 12, 16)
    labels[0, 2:4, 8:10, 4:6] = 1  # at x = 4 and 5, y = 11 - (8, 9) = 3 and 2, z = 7 - (2, 3) = 5 and 4 mm
    affine = torch.tensor([[0, 0, 1.0, 0], [0, -1.0, 0, 11], [-1.0, 0, 0, 7], [0, 0, 0, 1]], dtype=torch.float64)
    image = MetaTensor(torch.zeros(1, 8, 6, 4), affine=torch.diag(torch.tensor([2.0, 2, 2, 1], dtype=torch.float64)))
    found, axes = _on_grid_of(image, MetaTensor(labels, affine=affine))
    assert axes.tolist() == [2, 1, 0]
    assert found.shape == (8, 6, 4)
    assert np.argwhere(found).tolist() == [[2, 1, 2]]


def test_names_for_viewers(tmp_path: Path) -> None:
    write_names(tmp_path, {"liver": 1, "left kidney": 3})
    assert json.loads((tmp_path / "labels.json").read_text()) == {"1": "liver", "3": "left kidney"}
    assert (tmp_path / "labels_itksnap.txt").read_text().splitlines() == [
        '0 0 0 0 0 0 0 "Clear Label"',
        '1 230 159 0 1 1 1 "liver"',
        '3 86 180 233 1 1 1 "left kidney"',
    ]
    assert (tmp_path / "labels_slicer.ctbl").read_text().splitlines() == [
        "0 background 0 0 0 0",
        "1 liver 230 159 0 255",
        "3 left_kidney 86 180 233 255",
    ]


def test_an_inference_measures_draws_and_refuses_what_is_unlike(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three volumes: a CT as in training, the same stored otherwise, and an MR, which is refused and ends nothing."""
    models, volumes, out = tmp_path / "models", tmp_path / "volumes", tmp_path / "out"
    shutil.copytree(trained / "segmentation" / "models", models)
    volumes.mkdir()
    shutil.copy(data / "ct_0_image.nii.gz", volumes / "a.nii.gz")
    ct, mr = nib.load(data / "ct_0_image.nii.gz"), nib.load(data / "mr_0_image.nii.gz")
    nib.save(nib.as_closest_canonical(ct), volumes / "b.nii.gz")
    write_volume(volumes / "c.nii.gz", np.asarray(mr.dataobj), mr.affine)
    known = read_metadata(models / "model.pt")
    names = known["label_names"]
    assert all(0 < least <= greatest for least, greatest in known["training_cases"]["volumes_ml"].values())
    known["training_cases"]["volumes_ml"] = {name: [1e-4, 1e-4] for name in names}
    metadata_file(models / "model.pt").write_text(json.dumps(known))
    settings = {"ckpt_dir": models, "dataset_dir": volumes, "output_dir": out}
    error = refused(run_base, "segmentation/inference", bundle_root=tmp_path, **settings)
    assert error.found.startswith("1 of 3 volumes without a result")
    assert "c.nii.gz: lowest values of" in capsys.readouterr().err
    with (out / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"]) for row in rows] == [(case, name) for case in "ab" for name in names]
    assert all(row["warning"] == ("too large" if float(row["ml"]) else "missing") for row in rows)
    assert all((float(row["ml"]) == 0) == (row["slices"] == "0") for row in rows)
    assert [row["ml"] for row in rows[:4]] == [row["ml"] for row in rows[4:]]
    first, second = (imread(out / f"{case}_preview.png")[60:] for case in "ab")  # below the title
    assert np.array_equal(first, second)
    assert (out / "labels_slicer.ctbl").is_file()
