"""HTML pages that stand alone: one style, tables, and pictures inside the file."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from string import Template

from scripts.core.files import atomic_path
from scripts.evaluation.figures import image_to_data_uri

__all__ = ["page_figure", "page_table", "write_page"]

PAGE = Template("""<!doctype html><html lang="en"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:$width;margin:2rem auto;padding:0 1rem;color:#222}
h1{line-height:1.2}h2{margin:2.2rem 0 .4rem}a{color:#0072b2}code,pre{font-size:.82rem}
table{border-collapse:collapse;width:100%;margin:1rem 0}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}
th{font-size:.85rem;color:#555;vertical-align:bottom}td{white-space:nowrap;font-variant-numeric:tabular-nums}
img{max-width:100%;display:block;margin:.6rem auto}figure{margin:1.5rem 0}figcaption{color:#555;font-size:.92rem}
.wide{overflow-x:auto}.wide img{max-width:none;margin-left:0}.wide td,.wide th{font-size:.86rem;padding:.3rem .45rem}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f5f5f5;padding:.6rem;border-radius:.3rem}
summary{cursor:pointer;color:#0072b2}
.gain{font-size:2.6rem;font-weight:700;color:#0072b2;margin:0}small{color:#777}
</style><h1>$heading</h1>
$body
<p><small>$footer</small></p></html>
""")


def write_page(
    path: str | os.PathLike[str], *, title: str, heading: str, body: str, footer: str, width: str = "62rem"
) -> None:
    """Write a page, whole or not at all.

    Args:
        path: HTML file to write.
        title: of the window.
        heading: of the page.
        body: HTML, such as :func:`page_table` and :func:`page_figure` give.
        footer: plain text in small print, such as the provenance.
        width: the text's greatest width, as CSS says it.

    Raises:
        InputError: the file cannot be written.
    """
    page = PAGE.substitute(
        title=html.escape(title), heading=html.escape(heading), body=body, footer=html.escape(footer), width=width
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def page_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = False) -> str:
    """A table of plain text as HTML: the first column left, the others right.

    Args:
        heads: one for each column.
        rows: cells.
        wide: let the table scroll within the page if it has more columns than fit.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f"<table><tr>{head}</tr>{body}</table>"
    return f'<div class="wide">{table}</div>' if wide else table


def page_figure(path: Path, caption: str, *, shown_width: int | None = None) -> str:
    """A picture file, put into the page, with its caption as plain text.

    Args:
        path: PNG or SVG file.
        caption: what it shows.
        shown_width: pixels, for a picture that may be wider than the page: it scrolls then.
    """
    image = f'<img src="{image_to_data_uri(path)}" alt=""{f" width={shown_width}" if shown_width else ""}>'
    image = f'<div class="wide">{image}</div>' if shown_width else image
    return f"<figure>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"
