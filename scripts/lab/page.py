"""Tables for HTML, Markdown and the terminal, and self-contained HTML pages."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from scripts.core.files import atomic_path

__all__ = ["Card", "Figure", "Section", "Table", "write_page", "write_text"]

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: the first column is left-aligned, the others are right-aligned."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]  # HTML pages escape text and insert ``markupsafe.Markup`` as it is
    title: str = ""
    note: str = ""
    is_wide: bool = False  # small print on an HTML page

    def as_markdown(self) -> str:
        """The aligned table, without title and note."""
        cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in [self.heads, *self.rows]]
        widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
        rule = ["-" * width if column == 0 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
        lines = [
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            for row in [cells[0], rule, *cells[1:]]
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def as_markdown_section(self) -> str:
        """Title, table and note, separated by empty lines."""
        return "\n\n".join(filter(None, [f"## {self.title}", self.as_markdown(), self.note]))

    def as_text(self) -> str:
        """The table for a terminal, all columns left-aligned below a rule."""
        widths = [max(map(len, column)) for column in zip(*[self.heads, *self.rows], strict=True)]
        head, *rows = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in [self.heads, *self.rows]
        ]
        return "\n".join([head, "-" * max(map(len, [head, *rows])), *rows])


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its caption; the page contains the content of the PNG or SVG file."""

    path: Path
    caption: str
    width: int | None = None  # pixels, for a picture that scrolls if wider than the page; None to fit the page

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        kind = "svg+xml" if self.path.suffix == ".svg" else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.path.read_bytes()).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Card:
    """A box with the pictures and numbers of one case."""

    title: str
    anchor: str = ""  # id for links on the page
    subtitle: str = ""
    severity: str = ""  # colour of the frame: ``error``, ``warning`` or empty
    tags: Sequence[tuple[str, str]] = ()  # severity and text
    pictures: Sequence[str] = ()  # three views as data URIs
    marks: Sequence[tuple[str, str]] = ()  # letters at the left and right edge of each view
    legend: Sequence[tuple[str, str, str]] = ()  # colour or empty, name, value
    footer: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page; non-empty parts are shown in the order of the attributes."""

    heading: str = ""
    highlight: str = ""  # one number in large print
    text: Sequence[str] = ()
    items: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    cards: Sequence[Card] = ()
    code: Sequence[tuple[str, str]] = ()  # name, and the code below it
    is_folded: bool = False  # shows the heading alone until the reader opens it

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below the heading."""
        parts = (self.highlight, self.text, self.items, self.tables, self.figures, self.cards, self.code)
        return not any(parts)


def write_page(
    path: str | os.PathLike[str], sections: Sequence[Section], *, heading: str, title: str = "", footer: str = ""
) -> Path:
    """Write a self-contained HTML page atomically. Empty sections are omitted."""
    template = _TEMPLATES.get_template("page.html.j2")
    shown = [section for section in sections if not section.is_empty]
    page = template.render(sections=shown, heading=heading, title=title or heading, footer=footer)
    return write_text(path, page)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file atomically and return its path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)
