"""A comparison's tables: what they contain for known results, computed by hand, and for missing results."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
from comparison_folders import CASES, everywhere, known_results, write_comparison
from conftest import refused
from scripts.core.files import write_json
from scripts.lab.cli import main
from scripts.lab.experiments.method_summaries import MethodSummary, summarise_methods
from scripts.lab.experiments.results import read_comparison
from scripts.lab.experiments.statistics import (
    Spread,
    gap_closed,
    gap_closed_percent,
    paired_test,
    rank_correlation,
    smallest_p,
)
from scripts.lab.experiments.tables import DASH, comparison_tables, table_csv, table_markdown, time_table
from scripts.lab.page import Table


def summarised(folder: Path) -> dict[str, MethodSummary]:
    return {summary.name: summary for summary in summarise_methods(read_comparison(folder))}


def csv_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(table_csv(read_comparison(folder)).splitlines()))


def markdown(folder: Path) -> str:
    comparison = read_comparison(folder)
    return table_markdown(comparison, comparison_tables(comparison, summarise_methods(comparison)))


def cells(text: str, method: str) -> list[str]:
    """The first line of a table that begins with a method."""
    line = next(line for line in text.splitlines() if re.match(rf"\| {method} +\|", line))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_and_sample_deviation_over_seeds() -> None:
    # 60 and 70: mean 65, deviations of 5 each: sqrt((25 + 25) / (2 - 1)) = 7.07
    spread = Spread.of([60.0, None, math.nan, 70.0])
    assert spread.mean == 65.0
    assert spread.sd == pytest.approx(math.sqrt(50))
    assert Spread.of([60.0]).sd is None
    assert Spread.of([]).mean is None


def test_gap_closed() -> None:
    assert gap_closed_percent(65.0, 30.0, 80.0) == 70.0
    assert gap_closed_percent(30.0, 30.0, 80.0) == 0.0
    assert gap_closed_percent(20.0, 30.0, 80.0) == -20.0
    assert gap_closed_percent(65.0, None, 80.0) is None
    assert gap_closed_percent(65.0, 30.0, None) is None
    assert gap_closed_percent(65.0, 80.0, 80.0) is None  # no gap


def test_gap_closed_seed_by_seed() -> None:
    # seed 0: (60 - 30) of (80 - 30) = 60 %; seed 1: (60 - 50) of (90 - 50) = 25 %; seed 2 has no gap; others lack one
    closed = gap_closed(
        {0: 60.0, 1: 60.0, 2: 60.0, 3: 99.0},
        {0: 30.0, 1: 50.0, 2: 40.0, 4: 0.0},
        {0: 80.0, 1: 90.0, 2: 40.0, 3: 99.0, 5: 99.0},
    )
    assert closed.percent.values == (60.0, 25.0)
    assert closed.percent.mean == 42.5
    assert closed.percent.sd == pytest.approx(math.sqrt(2 * 17.5**2))
    assert closed.gain.values == (30.0, 10.0, 20.0)
    assert gap_closed({0: 60.0}, {1: 30.0}, {0: 80.0, 1: 80.0}).percent.mean is None


@pytest.mark.parametrize(
    ("differences", "n", "p"),
    [
        ([1, 2, 3, 4, 5], 5, 2 / 32),  # one of 2^5 sign patterns is as extreme, on either side
        ([-1, -2, -3, -4, -5], 5, 2 / 32),
        # The negative rank is 5: of the subsets of {1..5} ten have a sum of at most 5.
        ([1, 2, 3, 4, -5], 5, 20 / 32),
        ([1, 2, 3, 4, 0], 4, 2 / 16),  # a case without a difference is left out
        ([0, 0, 0, 0, 0], 0, 1.0),
        ([7], 1, 1.0),
    ],
)
def test_signed_rank_test_by_hand(differences: list[float], n: int, p: float) -> None:
    reference = {0: {f"case {k}": 50.0 for k in range(len(differences))}}
    method = {0: {f"case {k}": 50.0 + d for k, d in enumerate(differences)}}
    test = paired_test(method, reference)
    assert test is not None
    assert (test.n, test.p) == (n, pytest.approx(p))
    assert test.mean_difference == pytest.approx(sum(differences) / len(differences))
    assert test.p >= smallest_p(n)


def test_cases_are_averaged_over_the_seeds_that_both_have() -> None:
    method = {0: {"a": 60.0, "b": 40.0}, 1: {"a": 70.0, "b": 40.0}, 2: {"a": 0.0, "b": 0.0}}
    reference = {0: {"a": 50.0, "b": 50.0}, 1: {"a": 50.0, "b": 50.0}, 3: {"a": 99.0, "b": 99.0}}
    test = paired_test(method, reference)
    assert test is not None
    assert test.mean_difference == (15 - 10) / 2
    assert paired_test({0: {"a": 1.0}}, {1: {"a": 1.0}}) is None
    assert paired_test({0: {"a": 1.0}}, {0: {"b": 1.0}}) is None


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 9], [10, 20, 21]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 9], [3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2], [3, 4]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None


def test_summaries_of_known_results(tmp_path: Path) -> None:
    summaries = summarised(write_comparison(tmp_path))
    glua, better = summaries["glua"], summaries["better"]
    assert glua.dice.values == pytest.approx((60.0, 70.0))
    assert glua.mean["asd_mm"].mean == pytest.approx(3.5)  # 10 mm times 0.4 and 0.3
    assert glua.mean["asd_voxel"].mean == pytest.approx(1.75)
    # the yardsticks have seed 0 alone: of 30 to 80 its 60 is 60 %; of 20 to 80 the myocardium's 50 is a half
    assert glua.gap_closed.percent.values == pytest.approx((60.0,))
    assert glua.structure_gap_closed["myocardium"].percent.mean == pytest.approx(50.0)
    assert glua.structure_gap_closed["aorta"].percent.mean == pytest.approx(75.0)
    assert (glua.missing, glua.counted) == (0, 2 * 5 * 3)
    assert glua.test is None
    assert better.test is not None
    assert (better.test.n, better.test.p) == (5, pytest.approx(2 / 32))
    assert better.test.mean_difference == pytest.approx(3.0)


def test_the_table_a_person_reads(tmp_path: Path) -> None:
    text = markdown(write_comparison(tmp_path))
    assert cells(text, "glua") == [
        *["glua", "2", "65.0 ± 7.1", "3.5 ± 0.7", "1.8 ± 0.4", "65.0 ± 7.1", "3.5 ± 0.7", "0 of 30", f"60 ± {DASH}"],
        *[DASH, DASH, DASH, "last", "1.0 min", "aaaaaaa"],
    ]
    assert cells(text, "better")[2] == f"63.0 ± {DASH}"
    assert cells(text, "better")[9:12] == ["+3.0", "0.0625", "5"]
    assert "divisor n - 1" in text
    assert "2^(1-n): 0.0625 for n = 5" in text
    assert "python -m monai.bundle run training --seed 1 # glua" in text
    assert "glua, seed 1 (commit aaaaaaa):" in text
    assert "commit c0ffee" in text


def test_the_table_a_program_reads(tmp_path: Path) -> None:
    rows = csv_rows(write_comparison(tmp_path))
    assert len(rows) == 5 * 2 * 3  # runs, with and without post-processing, structures
    (aorta,) = (
        row
        for row in rows
        if [row[key] for key in ("method", "seed", "largest_component", "structure")] == ["glua", "1", "False", "aorta"]
    )
    assert float(aorta["dice_percent"]) == pytest.approx(70.0)
    assert float(aorta["asd_mm"]) == pytest.approx(3.0)
    assert (aorta["failures"], aorta["n"]) == ("0", "5")


def test_post_processing_has_columns_of_its_own(tmp_path: Path) -> None:
    summary = write_comparison(tmp_path) / "methods" / "none_seed0" / "eval_largest_component" / "summary.json"
    content = json.loads(summary.read_text())
    content["mean_over_structures"]["dice_percent"] = 44.0
    write_json(summary, content)
    assert cells(markdown(tmp_path), "none")[2:6:3] == [f"30.0 ± {DASH}", f"44.0 ± {DASH}"]


def test_times_and_their_sum(tmp_path: Path) -> None:
    rows = time_table(read_comparison(write_comparison(tmp_path))).rows
    assert rows[0] == ["style, seed 0", "translation", "1 s"]
    assert rows[-1] == ["total", "", f"{1 + 5 * 61} s"]


def test_a_missing_structure_is_counted(tmp_path: Path) -> None:
    results = known_results()
    results["glua"][0] = everywhere(0.5, 0.7, 0.6) | {CASES[0]: [0.0, 0.7, 0.6]}
    assert cells(markdown(write_comparison(tmp_path, results)), "glua")[7] == "1 of 30"


def test_failed_runs_stay_as_failed(tmp_path: Path) -> None:
    failed = {("glua", 2): "error: setting 'seed': |", ("style", 0): "killed"}
    text = markdown(write_comparison(tmp_path, failed=failed))
    assert cells(text, "glua")[1:3] == ["2 (1 failed)", "65.0 ± 7.1"]
    assert cells(text, "style")[1:10] == ["0 (1 failed)", *[DASH] * 8]
    assert cells(text, "style")[12] == DASH, "no rule has chosen its weights"
    assert "- glua, seed 2: failed. error: setting 'seed': |" in text


@pytest.mark.parametrize("bound", ["none", "supervised"])
def test_without_a_bound_no_gap(bound: str, tmp_path: Path) -> None:
    results = known_results()
    del results[bound]
    assert "gap closed %" not in cells(markdown(write_comparison(tmp_path, results)), "method")


def test_without_the_reference_no_test(tmp_path: Path) -> None:
    results = known_results()
    del results["glua"]
    assert "vs glua" not in cells(markdown(write_comparison(tmp_path, results)), "method")


def test_a_damaged_evaluation_is_no_result(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    run = tmp_path / "methods" / "glua_seed1"
    (run / "eval" / "summary.json").write_text("{half of")
    glua = summarised(tmp_path)["glua"]
    assert glua.dice.values == pytest.approx((60.0,))
    assert glua.method.runs[1].status == "missing"
    assert "cannot be read" in str(glua.method.runs[1].error)
    (run / "eval" / "summary.json").write_text('{"structures": {}}')
    assert "no structure 'myocardium'" in str(summarised(tmp_path)["glua"].method.runs[1].error)
    (run / "eval" / "summary.json").unlink()
    assert "No such file" in markdown(tmp_path)


def test_a_run_without_evaluation_has_no_numbers(tmp_path: Path) -> None:
    run = write_comparison(tmp_path, failed={("style", 0): "killed"}) / "methods" / "style_seed0"
    record = json.loads((run / "run.json").read_text())
    training, evaluation = record["steps"].values()
    write_json(
        run / "run.json", record | {"steps": {"training": training | {"seconds": 60.0}, "inference": evaluation}}
    )
    assert cells(markdown(tmp_path), "style") == ["style", "1", *[DASH] * 10, "last", "1.0 min", "aaaaaaa"]


def test_a_run_names_its_own_selection(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    (tmp_path / "methods" / "none_seed0" / "config.yaml").write_text("selection: label_free\n")
    text = markdown(tmp_path)
    assert (cells(text, "none")[12], cells(text, "glua")[12]) == ("label_free", "last")


def test_a_renamed_folder_is_no_run(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    (tmp_path / "methods" / "glua_seed1").rename(tmp_path / "methods" / "glua_seed1.old")
    assert cells(markdown(tmp_path), "glua")[1] == "1"


def test_rows_name_the_commits_they_ran_on(tmp_path: Path) -> None:
    file = write_comparison(tmp_path) / "methods" / "none_seed0" / "run.json"
    record = json.loads(file.read_text())
    record["steps"]["training"]["commits"].append("b" * 40)
    record["steps"]["evaluation"] |= {"commits": ["b" * 40], "uncommitted_changes": True}
    write_json(file, record)
    text = markdown(tmp_path)
    assert cells(text, "none")[14] == "aaaaaaa, bbbbbbb, bbbbbbb+"
    assert "none, seed 0 (commit aaaaaaa, bbbbbbb, bbbbbbb+):" in text


def test_markdown_is_aligned_and_safe() -> None:
    table = Table(heads=["a", "number"], rows=[["x|y", "1"], ["two\nlines", "12345678"]])
    assert table.as_markdown().splitlines() == [
        "| a         |   number |",
        "| --------- | -------: |",
        "| x\\|y      |        1 |",
        "| two lines | 12345678 |",
    ]
    assert Table(heads=["a", "b"], rows=[["1", "2"]]).as_text().splitlines() == ["a  b", "----", "1  2"]
    section = Table(title="t", heads=["a"], rows=[["1"]], note="n").as_markdown_section()
    assert section == "## t\n\n| a   |\n| --- |\n| 1   |\n\nn"


def test_a_folder_that_is_no_comparison(tmp_path: Path) -> None:
    error = refused(main, ["report", str(tmp_path)])
    assert error.found == "no such file"
    assert "python -m scripts compare" in error.expected
    (tmp_path / "comparison.json").write_text("[")
    assert "cannot be read" in refused(main, ["report", str(tmp_path)]).found
    (tmp_path / "comparison.json").write_text(json.dumps({"task": "x"}))
    assert refused(main, ["report", str(tmp_path)]).found == "no 'size' in it"
    assert [path.name for path in tmp_path.iterdir()] == ["comparison.json"]  # nothing was written
