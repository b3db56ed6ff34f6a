"""``python -m scripts results``: write the tables and numbers of README.md and docs/results.md from docs/results.

A page takes them in two ways:

- Below ``<!-- table: NAME -->`` stands ``docs/results/NAME.csv`` as a Markdown table. ``<!-- table: NAME, NAME: COLUMN,
  COLUMN -->`` shows some columns of several files side by side.
- Behind ``<!-- NAME KEY COLUMN -->`` stands one number, see :meth:`ResultTable.value`.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path

from scripts.core.errors import InputError
from scripts.lab.experiments.published import MEAN, ResultTable, read_tables
from scripts.lab.page import write_text

__all__ = ["PAGES", "render_page", "update_pages"]

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "docs/results.md")
REPAIR = "make results"

TABLE = re.compile(r"<!-- table: ([^:>]+?)(?:: ([^>]+?))? -->\n((?:\|.*\n)*)")
NUMBER = re.compile(r"<!-- (\w+) (\S+) ([^>]+?) -->([+-]?\d+(?:\.\d+)?)?")


def render_page(name: str, text: str, tables: dict[str, ResultTable]) -> tuple[str, list[str]]:
    """A page with its tables and numbers as the files have them, and a sentence for each place that differs.

    Raises:
        InputError: the page names a table, row or column that does not exist.
    """
    page = _Page(name, tables)
    return TABLE.sub(page.table, NUMBER.sub(page.number, text)), page.found


def update_pages(root: Path = ROOT, *, check: bool = False, runs: Path | None = None) -> list[str]:
    """Write the pages from docs/results, or only compare them (``check``); return a sentence for each difference left.

    ``runs`` is a folder of evaluations to compare docs/results with and to fill its empty cells from.
    """
    tables = read_tables(root / "docs" / "results")
    found = [line for table in tables.values() if runs for line in table.compare(runs, fill=not check)]
    for name in PAGES:
        text = (root / name).read_text(encoding="utf-8")
        new, different = render_page(name, text, tables)
        if check:
            found += different
        elif new != text:
            write_text(root / name, new)
    return found


class _Page:
    """Replaces the references of one page and notes what differed."""

    def __init__(self, name: str, tables: dict[str, ResultTable]) -> None:
        self.name, self.tables = name, tables
        self.found: list[str] = []

    def number(self, match: re.Match[str]) -> str:
        table, key, column, old = match.groups(default="")
        new = self._known(match, table).value(key, column)
        if not new:
            raise self._error(match, f"no {key}, {column}", f"a number in {table}.csv", "correct the page or the file")
        if new != old:
            expected = f"{new}, from {table}.csv ({key}, {column})"
            self.found.append(str(self._error(match, old or "no number", expected, REPAIR)))
        return match[0].removesuffix(old) + new

    def table(self, match: re.Match[str]) -> str:
        names, columns = match[1].split(", "), match[2].split(", ") if match[2] else []
        shown = [self._known(match, name) for name in names]
        for table, column in ((table, column) for table in shown for column in columns if column not in table.columns):
            expected = f"one of {', '.join(table.columns)}"
            raise self._error(match, f"no column {column} in {table.file.name}", expected, "correct the page")
        new = _markdown(shown, columns)
        pairs = zip_longest(match[3].splitlines(), new.splitlines(), fillvalue="the end of the table")
        for line, (old, expected) in enumerate(pairs, 1):
            if old != expected:
                self.found.append(str(self._error(match, old, f"{expected}, from {match[1]}.csv", REPAIR, line)))
                break
        return match[0].removesuffix(match[3]) + new

    def _known(self, match: re.Match[str], table: str) -> ResultTable:
        if table not in self.tables:
            raise self._error(match, f"no table {table}", f"one of {', '.join(self.tables)}", "correct the page")
        return self.tables[table]

    def _error(self, match: re.Match[str], found: str, expected: str, remedy: str, offset: int = 0) -> InputError:
        line = match.string.count("\n", 0, match.start()) + 1 + offset
        return InputError(f"{self.name}:{line}", found, expected, remedy)


def _markdown(tables: list[ResultTable], columns: list[str]) -> str:
    """One table with all columns, or some columns of several tables; rows in the order of the first."""
    first = tables[0]
    if columns:
        heads = ["method", *(f"{table.title}: {column}" for table in tables for column in columns)]
        rows = [[first.titles[k], *(t.cell(k, c) for t in tables for c in columns)] for k in first.titles]
    else:
        heads = [first.title, *first.columns]
        rows = [[title, *(first.cell(key, column) for column in first.columns)] for key, title in first.titles.items()]
        if len(rows) < len(first.rows):
            heads.append(f"{MEAN} of each seed")
            rows = [[*row, first.seeds(key)] for row, key in zip(rows, first.titles, strict=True)]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("|" + "".join(f" {cell} |" if cell else " |" for cell in line) + "\n" for line in lines)
