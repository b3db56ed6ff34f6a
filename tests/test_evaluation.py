"""Summaries, files and tables of an evaluation."""

from __future__ import annotations

import csv
import errno
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scripts.core.errors import InputError
from scripts.evaluation.metrics import StructureResult, evaluate_case
from scripts.evaluation.summaries import CONVENTIONS, format_table, summarise, worst_and_median_case, write_evaluation

NAMES = ["myocardium", "aorta"]


def result(name: str = "aorta", dice: float = 0.8, **changes: object) -> StructureResult:
    values: dict = {
        "name": name,
        "status": "ok",
        "dice": dice,
        "asd_mm": 1.5,
        "asd_voxel": 1.0,
        "hd95_mm": 4.0,
        "volume_difference_percent": 10.0,
        "volume_prediction_ml": 11.0,
        "volume_truth_ml": 10.0,
    }
    return StructureResult(**{**values, **changes})


def missing(name: str, diagonal_mm: float = 300.0) -> StructureResult:
    return result(
        name,
        dice=0.0,
        status="missing_in_prediction",
        asd_mm=diagonal_mm,
        asd_voxel=200.0,
        hd95_mm=diagonal_mm,
        volume_difference_percent=-100.0,
        volume_prediction_ml=0.0,
    )


def absent(name: str) -> StructureResult:
    nothing = dict.fromkeys(("dice", "asd_mm", "asd_voxel", "hd95_mm", "volume_difference_percent"), math.nan)
    return result(name, status="absent_in_both", volume_prediction_ml=0.0, volume_truth_ml=0.0, **nothing)


@pytest.fixture
def results() -> dict[str, list[StructureResult]]:
    return {
        "ct_1": [result("myocardium", 0.6, asd_mm=2.0), result("aorta", 0.9)],
        "ct_2": [result("myocardium", 0.8, asd_mm=4.0), missing("aorta")],
        "ct_3": [absent("myocardium"), result("aorta", 0.6)],
    }


def test_statistics_by_hand(results: dict) -> None:
    summary = summarise(results, NAMES)
    myocardium, aorta = summary["structures"].values()
    # 60 and 80: mean 70, deviations of 10 -> std 10 with divisor n; the third case is not counted
    assert myocardium["dice_percent"] == {"mean": pytest.approx(70.0), "std": pytest.approx(10.0), "n": 2}
    assert myocardium["asd_mm"] == {"mean": 3.0, "std": 1.0, "n": 2}
    assert (myocardium["n"], myocardium["failures"]) == (2, 0)
    # 90, 0 (missing) and 60: mean 50; distances 1.5, 300 (diagonal) and 1.5: mean 101
    assert aorta["dice_percent"]["mean"] == pytest.approx(50.0)
    assert aorta["asd_mm"]["mean"] == pytest.approx(101.0)
    assert (aorta["n"], aorta["failures"]) == (3, 1)
    assert summary["mean_over_structures"]["dice_percent"] == pytest.approx(60.0)
    assert summary["mean_over_structures"]["asd_mm"] == pytest.approx(52.0)
    assert summary["failures"] == [{"case": "ct_2", "structure": "aorta", "status": "missing_in_prediction"}]
    assert summary["cases"] == 3
    assert summary["conventions"] == CONVENTIONS


def test_a_structure_no_case_shows_has_no_numbers() -> None:
    summary = summarise({"ct_1": [absent("myocardium"), result("aorta", 0.9)]}, NAMES)
    assert summary["structures"]["myocardium"]["dice_percent"] == {"mean": None, "std": None, "n": 0}
    assert summary["mean_over_structures"]["dice_percent"] == pytest.approx(90.0)
    assert "-" in format_table(summary)


def test_files_round_trip(results: dict, tmp_path: Path) -> None:
    provenance = {"config": "evaluate.yaml", "seed": 7, "device": "cpu"}
    summary = write_evaluation(tmp_path / "eval", results, NAMES, provenance)
    assert sorted(path.name for path in (tmp_path / "eval").iterdir()) == ["metrics.csv", "summary.json"]
    text = (tmp_path / "eval" / "summary.json").read_text()
    assert json.loads(text) == summary
    assert summary["provenance"] == provenance
    assert "NaN" not in text
    assert "Infinity" not in text
    with (tmp_path / "eval" / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["structure"]) for row in rows] == [(c, n) for c in results for n in NAMES]
    for row, expected in zip(rows, [single for case in results.values() for single in case], strict=True):
        assert row["status"] == expected.status
        np.testing.assert_equal(float(row["dice_percent"]), 100.0 * expected.dice)
        for column in ("asd_mm", "asd_voxel", "hd95_mm", "volume_difference_percent"):
            np.testing.assert_equal(float(row[column]), getattr(expected, column))
        assert float(row["volume_truth_ml"]) == expected.volume_truth_ml


def test_real_results_are_json_and_csv(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 3, (6, 6, 6))
    results = {"mr_1": evaluate_case(truth, np.roll(truth, 1, 0), spacing_mm=(1, 1, 2), label_names=NAMES)}
    write_evaluation(tmp_path, results, NAMES, {})
    assert "np.float64" not in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("writer", ["scripts.evaluation.summaries._write_csv", "pathlib.Path.write_text"])
def test_a_full_disk_leaves_no_file(writer: str, results: dict, tmp_path: Path, monkeypatch) -> None:
    def fill_the_disk(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half of")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, fill_the_disk)  # the CSV file's writer, then the JSON file's
    with pytest.raises(InputError, match=r"No space left on device.*no partial file was left"):
        write_evaluation(tmp_path / "eval", results, NAMES, {})
    assert list((tmp_path / "eval").iterdir()) == []


def test_table(results: dict) -> None:
    lines = format_table(summarise(results, NAMES)).splitlines()
    headings = ["structure", "Dice [%]", "ASD [mm]", "ASD [voxel]", "HD95 [mm]", "volume diff. [%]", "n", "failures"]
    assert re.split(r"\s{2,}", lines[0]) == headings
    assert "70.00 ± 10.00" in lines[2]
    assert lines[2].startswith("myocardium")
    assert len({len(line) for line in lines[:-1]}) == 1  # columns are aligned
    assert lines[5].startswith("mean")
    assert lines[-1] == "failed: ct_2, aorta (missing in prediction)"


def test_worst_and_median_case(results: dict) -> None:
    # mean Dice: ct_1 75, ct_2 40 (the missing aorta counts as 0), ct_3 60 (the absent myocardium does not count)
    assert worst_and_median_case(results) == ("ct_2", "ct_3")
    assert worst_and_median_case({"only": [result()]}) == ("only", "only")
    assert worst_and_median_case({"a": [result(dice=0.9)], "b": [result(dice=0.1)]}) == ("b", "a")


def test_bad_inputs_are_named(results: dict) -> None:
    with pytest.raises(InputError, match="no evaluated case"):
        summarise({}, NAMES)
    with pytest.raises(InputError, match="no structure in any prediction or truth"):
        worst_and_median_case({"ct_1": [absent("aorta")]})
    with pytest.raises(ValueError, match=r"case ct_1 has results for \['myocardium', 'aorta'\]"):
        summarise(results, ["aorta", "myocardium"])
