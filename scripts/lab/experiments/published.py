"""The published numbers: one CSV file of ``docs/results`` per table, compared with the evaluations they come from.

The first four columns are not shown: ``key`` names the row, ``seed`` its seed, ``evaluation`` the folder of its
evaluation below ``runs``, if it was kept, and ``commit`` the code. The fifth is the title of the row. Rows with the
same key are seeds of one method. Values with four decimals are measured and shown with one; all others as they are.
"""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError
from scripts.lab.page import write_text

__all__ = ["ResultTable", "read_tables"]

HIDDEN = ["key", "seed", "evaluation", "commit"]
MEAN = "mean Dice"

# What stands behind ``X`` in the same cell, by the column that has it.
BEHIND = {" sd": " ± {}", " ASD": " ({})", " p": " ({})"}
# Columns of another evaluation of the same run.
OTHER_EVALUATIONS = {", all components": "eval", ", largest component": "eval_largest_component"}


@dataclass(frozen=True)
class ResultTable:
    """One file of docs/results: its columns, and the text of each row by column."""

    file: Path
    heads: list[str]
    rows: list[dict[str, str]]

    @property
    def title(self) -> str:
        """The heading of the rows' titles."""
        return self.heads[len(HIDDEN)]

    @property
    def titles(self) -> dict[str, str]:
        """The title of each row by its key; seeds of one method have the title of the first."""
        titles: dict[str, str] = {}
        for row in self.rows:
            titles.setdefault(row["key"], row[self.title])
        return titles

    @property
    def columns(self) -> list[str]:
        """The columns that are shown in cells of their own."""
        behind = {head + end for head in self.heads for end in BEHIND}
        return [head for head in self.heads[len(HIDDEN) + 1 :] if head not in behind]

    def value(self, key: str, column: str) -> str:
        """A number as the pages show it: the mean over the seeds of a method, if it has several.

        ``X sd`` without a column of that name is the sample standard deviation over the seeds, ``seeds`` their number.
        Empty if a seed lacks the number.
        """
        rows = [row for row in self.rows if row["key"] == key]
        if column == "seeds":
            return str(len(rows))
        is_spread = column not in self.heads and column.endswith(" sd")
        texts = [row.get(column.removesuffix(" sd") if is_spread else column, "") for row in rows]
        if not all(texts) or len(texts) < (2 if is_spread else 1):
            return ""
        if len(texts) == 1:
            return _shown(texts[0])
        values = [float(text) for text in texts]
        return f"{np.std(values, ddof=1) if is_spread else np.mean(values):.1f}"

    def cell(self, key: str, column: str) -> str:
        """The number of a column with what stands behind it, such as ``88.7 (3.0)``."""
        own = self.value(key, column)
        return own and own + "".join(
            form.format(value) for end, form in BEHIND.items() if (value := self.value(key, column + end))
        )

    def seeds(self, key: str) -> str:
        """The mean Dice of each seed, separated by commas."""
        return ", ".join(_shown(row[MEAN]) for row in self.rows if row["key"] == key)

    def compare(self, runs: Path, *, fill: bool) -> list[str]:
        """Compare the rows with the summaries of their evaluations below ``runs``, as far as these exist.

        With ``fill``, measured values are written into empty cells. Returns a sentence for each number that differs.
        """
        found = []
        for row in (row for row in self.rows if row["evaluation"]):
            for column in self.heads[len(HIDDEN) + 1 :]:
                value = _measured(runs / row["evaluation"], column)
                if fill and not row[column]:
                    row[column] = value
                elif value and row[column] and row[column] not in (value, _shown(value)):
                    where, expected = f"{row['key']}, {column}", f"{value}, from {row['evaluation']}/summary.json"
                    remedy = "correct the cell, or empty it and repeat make results with RUNS"
                    found.append(str(InputError(self.file, f"{where}: {row[column]}", expected, remedy)))
        if fill:
            stream = io.StringIO()
            writer = csv.DictWriter(stream, self.heads, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
            write_text(self.file, stream.getvalue())
        return found


def read_tables(folder: Path) -> dict[str, ResultTable]:
    """All tables of a folder by name. A row may end with its title: its numbers are then empty.

    Raises:
        InputError: a file lacks the first columns, or a row has too few or too many cells.
    """
    tables = {}
    for file in sorted(folder.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            heads, rows = list(reader.fieldnames or []), list(reader)
        for row in rows:
            if all(row[head] is None for head in heads[len(HIDDEN) + 1 :]):
                row.update(dict.fromkeys(heads[len(HIDDEN) + 1 :], ""))
        ragged = [str(line) for line, row in enumerate(rows, 2) if None in row or None in row.values()]
        if heads[: len(HIDDEN)] != HIDDEN or len(heads) == len(HIDDEN) or ragged:
            found = f"line {', '.join(ragged)}: too few or too many cells" if ragged else "not a table of results"
            expected = f"the columns {', '.join(HIDDEN)} and a title first, and as many cells in each row"
            raise InputError(file, found, expected, "correct the file")
        tables[file.stem] = ResultTable(file, heads, rows)
    return tables


def _shown(text: str) -> str:
    return f"{float(text):.1f}" if re.fullmatch(r"-?\d+\.\d{4}", text) else text


def _measured(evaluation: Path, column: str) -> str:
    """A structure's number in an evaluation's summary, or the mean over them; empty for all other columns."""
    base, measure = column.removesuffix(" ASD"), "asd_mm" if column.endswith(" ASD") else "dice_percent"
    for end, other in OTHER_EVALUATIONS.items():
        if base.endswith(end):
            base, evaluation = base.removesuffix(end), evaluation.with_name(other)
    file = evaluation / "summary.json"
    if not file.is_file():
        return ""
    summary = json.loads(file.read_text(encoding="utf-8"))
    if base == MEAN:
        return f"{summary['mean_over_structures'][measure]:.4f}"
    structure = summary["structures"].get(base)
    return f"{structure[measure]['mean']:.4f}" if structure else ""
