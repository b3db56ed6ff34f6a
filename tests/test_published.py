"""The published numbers: README.md, docs/results.md and docs/results agree, and what the command says where not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scripts.core.errors import InputError
from scripts.lab.cli import main
from scripts.lab.experiments import published_pages
from scripts.lab.experiments.published import ResultTable, read_tables
from scripts.lab.experiments.published_pages import PAGES, ROOT, render_page, update_pages

TABLES = read_tables(ROOT / "docs" / "results")

# Two seeds of b: mean (80 + 90) / 2 = 85, sample deviation sqrt(5^2 + 5^2) = 7.07; liver of seed 1 is not filled yet.
HEARTS = """key,seed,evaluation,commit,hearts,liver,liver ASD,mean Dice,gap closed %,gap closed % p
a,0,,,`a`: plain,61.4,13.2,61.4,0,0.008
b,0,one/eval,abc,**b**,80.0000,1.0000,80.0000,97,
b,1,two/eval,abc,seed 1,,2.0000,90.0000,99,
"""
LUNGS = """key,seed,evaluation,commit,lungs,mean Dice
b,0,,,`b`: other title,50.0
"""
STALE = """# Title
It reaches **<!-- hearts b mean Dice -->84.0 %**, <!-- hearts b mean Dice sd -->7.1 over <!-- hearts b seeds -->2 seeds.

<!-- table: hearts -->
| hearts | liver |
| old | 1 |

End
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    (folder / "hearts.csv").write_text(HEARTS)
    (folder / "lungs.csv").write_text(LUNGS)
    (tmp_path / "README.md").write_text("No numbers, <!-- a comment --> and <!-- long -->\n")
    (tmp_path / "docs" / "results.md").write_text(STALE)
    return tmp_path


def write_summary(folder: Path, liver: float, mean: float) -> None:
    folder.mkdir(parents=True)
    numbers = {"dice_percent": {"mean": liver}, "asd_mm": {"mean": 2.00001}}
    means = {"dice_percent": mean, "asd_mm": 2.0}
    (folder / "summary.json").write_text(json.dumps({"structures": {"liver": numbers}, "mean_over_structures": means}))


def test_the_committed_pages_agree_with_docs_results() -> None:
    assert update_pages(check=True) == []


def test_every_table_is_shown_and_the_page_stays_short() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    shown = re.findall(r"<!-- table: ([^:>]+?)(?::[^>]+)? -->", text)
    assert {name for names in shown for name in names.split(", ")} == set(TABLES)
    assert len(text.splitlines()) <= 200


def test_no_line_begins_with_a_number() -> None:
    """Markdown would take such a line for HTML, and end the paragraph before it."""
    lines = {page: (ROOT / page).read_text(encoding="utf-8").splitlines() for page in PAGES}
    assert [
        f"{page}: {line}" for page in PAGES for line in lines[page] if re.match(r"<!-- \w+ \S+ .*-->\S", line)
    ] == []


def test_means_are_those_of_their_structures_or_seeds() -> None:
    """Within the rounding of both: 0.05 for the mean and 0.05 for the numbers it is of."""
    offenders, checked = [], 0
    for name, table in TABLES.items():
        ends = [column for column in ("mean Dice", "mean") if column in table.columns]
        parts = table.columns[: table.columns.index(ends[0])] if ends else []
        for row in table.rows:
            texts = [row[part] for part in parts if row[part]]
            if texts and (len(texts) == len(parts) or name == "phantom"):
                checked += 1
                mean = sum(map(float, texts)) / len(texts)
                offenders += (
                    [f"{name} {row['key']}: {row[ends[0]]}"] if abs(float(row[ends[0]]) - mean) > 0.1001 else []
                )
    assert offenders == []
    assert checked >= 60


@pytest.mark.parametrize("name", ["abdomen_ct2mr", "abdomen_mr2ct", "hearts"])
def test_the_gap_closed_is_that_of_the_means(name: str) -> None:
    """100 (method - none) / (supervised - none), within the rounding of three means and the share: 1 %."""
    dice = {row["key"]: float(row["mean Dice"]) for row in TABLES[name].rows}
    for row in TABLES[name].rows:
        closed = 100 * (dice[row["key"]] - dice["none"]) / (dice["supervised"] - dice["none"])
        assert float(row["gap closed %"]) == pytest.approx(closed, abs=1.0), row["key"]


def test_seeds_of_a_method_are_one_row_with_mean_and_deviation(project: Path) -> None:
    table = read_tables(project / "docs" / "results")["hearts"]
    assert (table.value("b", "mean Dice"), table.value("b", "mean Dice sd")) == ("85.0", "7.1")
    assert (table.value("b", "seeds"), table.seeds("b")) == ("2", "80.0, 90.0")
    assert table.value("b", "liver") == "", "one seed lacks it, so there is no mean over both"
    assert table.value("a", "mean Dice sd") == "", "one seed has no deviation"


def test_a_table_shows_distances_and_p_in_brackets(project: Path) -> None:
    tables = read_tables(project / "docs" / "results")
    text, _ = render_page("p", "<!-- table: hearts -->\n", tables)
    assert text.splitlines()[1:] == [
        "| hearts | liver | mean Dice | gap closed % | mean Dice of each seed |",
        "| --- | --- | --- | --- | --- |",
        "| `a`: plain | 61.4 (13.2) | 61.4 | 0 (0.008) | 61.4 |",
        "| **b** | | 85.0 ± 7.1 | 98.0 ± 1.4 | 80.0, 90.0 |",
    ]


def test_tables_side_by_side_have_the_rows_of_the_first(project: Path) -> None:
    tables = read_tables(project / "docs" / "results")
    text, _ = render_page("p", "<!-- table: hearts, lungs: mean Dice -->\n| old |\nText\n", tables)
    assert text.splitlines()[1:] == [
        "| method | hearts: mean Dice | lungs: mean Dice |",
        "| --- | --- | --- |",
        "| `a`: plain | 61.4 | |",
        "| **b** | 85.0 ± 7.1 | 50.0 |",
        "Text",
    ]


def test_the_check_names_line_found_expected_and_remedy(project: Path) -> None:
    found = update_pages(project, check=True)
    assert found[0] == "docs/results.md:2: 84.0. Expected 85.0, from hearts.csv (b, mean Dice). Fix: make results."
    assert found[1].startswith("docs/results.md:5: | hearts | liver |. Expected | hearts | liver | mean Dice | gap")
    assert found[1].endswith("|, from hearts.csv. Fix: make results.")
    assert len(found) == 2
    assert (project / "docs" / "results.md").read_text() == STALE, "a check writes nothing"


def test_writing_repairs_numbers_and_tables_and_nothing_else(project: Path) -> None:
    assert update_pages(project) == []
    lines = (project / "docs" / "results.md").read_text().splitlines()
    assert "**<!-- hearts b mean Dice -->85.0 %**, <!-- hearts b mean Dice sd -->7.1 over" in lines[1]
    assert [lines[0], lines[3], lines[-1]] == ["# Title", "<!-- table: hearts -->", "End"]
    assert update_pages(project, check=True) == []


def test_a_run_that_differs_is_named_and_kept(project: Path, tmp_path: Path) -> None:
    """80.0000 in the file, 81.5 in the run; 2.0000 mm. The folder of the other seed does not exist."""
    write_summary(tmp_path / "runs" / "one" / "eval", liver=81.5, mean=80.0)
    update_pages(project)
    found = update_pages(project, check=True, runs=tmp_path / "runs")
    assert len(found) == 2
    assert "b, liver: 80.0000. Expected 81.5000, from one/eval/summary.json. Fix: correct the cell" in found[0]
    assert "b, liver ASD: 1.0000. Expected 2.0000" in found[1]


def test_empty_cells_are_filled_from_the_run(project: Path, tmp_path: Path) -> None:
    """Also a row that ends with its title: the mean of 80, 90 and 94 is 88."""
    with (project / "docs" / "results" / "hearts.csv").open("a") as file:
        file.write("b,2,three/eval,abc,seed 2\n")
    write_summary(tmp_path / "runs" / "two" / "eval", liver=70.0, mean=90.0)
    write_summary(tmp_path / "runs" / "three" / "eval", liver=75.0, mean=94.0)
    assert update_pages(project, runs=tmp_path / "runs") == []
    table = read_tables(project / "docs" / "results")["hearts"]
    assert table.rows[2]["liver"] == "70.0000"
    assert table.value("b", "liver") == "75.0"
    assert "| **b** | 75.0 ± 5.0 (1.7) | 88.0 ± 7.2 | " in (project / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<!-- heart b mean Dice -->1", "p:1: no table heart. Expected one of hearts, lungs."),
        ("\n<!-- table: heart -->\n", "p:2: no table heart."),
        ("<!-- hearts c mean Dice -->1", "p:1: no c, mean Dice."),
        ("<!-- hearts b liver -->1", "p:1: no b, liver."),
        ("<!-- table: lungs: liver -->\n", "p:1: no column liver in lungs.csv."),
    ],
)
def test_names_that_do_not_exist_are_refused(project: Path, text: str, found: str) -> None:
    with pytest.raises(InputError, match=re.escape(found)):
        render_page("p", text, read_tables(project / "docs" / "results"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("method,Dice\na,1\n", "not a table of results"),
        (HEARTS + "b,2,,,title,70.0\n", "line 5: too few or too many cells"),
        (LUNGS + "b,1,,,title,50.0,1\n", "line 3: too few or too many cells"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str, found: str) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=found):
        read_tables(tmp_path)


def test_the_command_fails_with_the_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_pages, "update_pages", lambda **options: ["first", "second"])
    with pytest.raises(SystemExit, match="first\nsecond"):
        main(["results", "--check"])


def test_cells_without_four_decimals_are_shown_as_they_are() -> None:
    row = {"key": "a", "a": "0.008", "b": "0.0084", "c": "+0.2", "d": "> 5"}
    table = ResultTable(Path("t.csv"), ["key", "seed", "evaluation", "commit", "title", *"abcd"], [row])
    assert [table.value("a", column) for column in "abcd"] == ["0.008", "0.0", "+0.2", "> 5"]
