"""``python -m scripts report``: tables, figures and one page of a comparison, from its files alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from scripts.core.errors import InputError
from scripts.core.files import atomic_path, make_folder, write_json
from scripts.evaluation.montage import DOTS_PER_INCH
from scripts.lab.experiments.charts import dice_chart, gap_chart, loss_chart, loss_logs, structure_chart
from scripts.lab.experiments.mask_figures import mask_chart, mask_picture, mask_tables
from scripts.lab.experiments.mask_statistics import mask_numbers
from scripts.lab.experiments.method_summaries import MethodSummary, summarise_methods
from scripts.lab.experiments.pictures import segmentation_picture, translation_picture
from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison, read_comparison
from scripts.lab.experiments.tables import (
    Table,
    comparison_tables,
    markdown_table,
    run_commands,
    table_csv,
    table_markdown,
    unfinished_runs,
)
from scripts.lab.page import page_figure, page_table, write_page

__all__ = ["write_comparison_report"]

PIXELS_PER_INCH = 75
"""Scale of montages on the page: a panel is 150 pixels wide, and wider montages scroll."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Shown:
    """A figure for the page."""

    path: Path
    caption: str

    def html(self) -> str:
        return page_figure(self.path, self.caption, shown_width=_montage_width(self.path))


def write_comparison_report(folder: Path) -> Path:
    """Write ``table.md``, ``table.csv``, ``mask.json``, ``mask.md``, ``plots/`` and ``report.html`` into the folder.

    The results of ``--evaluate_snapshots``, ``selection.md`` and its picture, are shown if they exist.
    Whatever is not there yet is left out, with the reason on the page; another call draws it once it is.

    Args:
        folder: what ``python -m scripts compare`` wrote.

    Returns:
        The page.

    Raises:
        InputError: the folder is none of a comparison, or cannot be written.
    """
    comparison = read_comparison(folder)
    summaries = summarise_methods(comparison)
    plots = make_folder(folder / "plots")
    left_out: list[str] = []
    charts = _charts(comparison, summaries, plots, left_out)
    masks, tables = _masks(comparison, summaries, plots, left_out)
    pictures = _pictures(comparison, plots, left_out)
    judged = [path for path in (folder / "selection.md", plots / "selection.png") if path.is_file()]
    _write(folder / "table.md", table_markdown(comparison, summaries, tables, judged))
    _write(folder / "table.csv", table_csv(comparison, summaries))
    page = folder / "report.html"
    body = _body(comparison, summaries, [charts, pictures, masks], tables, judged, left_out)
    content = comparison.content
    provenance = content.get("provenance", {})
    write_page(
        page,
        title=f"GLUA: {content['task']}",
        heading=f"{content['task']}: {len(comparison.methods)} methods, {comparison.direction}",
        body=body,
        footer="written last by: " + ", ".join(f"{key}: {value}" for key, value in provenance.items()),
        width="76rem",
    )
    return page


def _charts(
    comparison: Comparison, summaries: Sequence[MethodSummary], plots: Path, left_out: list[str]
) -> list[_Shown]:
    segmenters, translators = loss_logs(comparison)
    wanted: list[tuple[Callable[[], Path], str]] = [
        (
            partial(dice_chart, summaries, plots / "dice"),
            f"Mean Dice over the structures: each seed, their mean and sample standard deviation; {LOWER} and {UPPER} "
            "as lines.",
        ),
        (
            partial(structure_chart, summaries, comparison.label_names, plots / "structures"),
            "Dice and average surface distance (ASD) of each structure: each seed, their mean and sample standard "
            "deviation.",
        ),
        (
            partial(gap_chart, summaries, comparison.label_names, plots / "gap"),
            f"The domain gap of each structure, Dice from {LOWER} to {UPPER}, and how much of it each method closes.",
        ),
        (
            partial(loss_chart, segmenters, plots / "losses"),
            "Losses of the segmentation trainings, running means; a line for each seed.",
        ),
        (
            partial(loss_chart, translators, plots / "translator_losses"),
            "Losses of the translators' trainings, running means; a line for each seed.",
        ),
    ]
    drawn = [(_or_left_out(draw, left_out), caption) for draw, caption in wanted]
    return [_Shown(path, caption) for path, caption in drawn if path]


def _pictures(comparison: Comparison, plots: Path, left_out: list[str]) -> list[_Shown]:
    wanted = {plots / "translations.png": translation_picture, plots / "segmentations.png": segmentation_picture}
    drawn = {path: _or_left_out(partial(draw, comparison, path), left_out) for path, draw in wanted.items()}
    return [_Shown(path, caption) for path, caption in drawn.items() if caption]


def _masks(
    comparison: Comparison, summaries: Sequence[MethodSummary], plots: Path, left_out: list[str]
) -> tuple[list[_Shown], list[Table]]:
    numbers = _or_left_out(partial(mask_numbers, comparison, summaries), left_out)
    if numbers is None:
        return [], []
    tables = mask_tables(numbers)
    write_json(comparison.folder / "mask.json", numbers)
    text = [f"# {comparison.content['task']}: the local mask and the domain gap, {comparison.direction}", ""]
    for table in tables:
        text += [f"## {table.title}", "", markdown_table(table), "", table.note, ""]
    text += ["## How each number is defined", ""]
    text += [f"- {name.replace('_', ' ')}: {said}" for name, said in numbers["conventions"].items()]
    _write(comparison.folder / "mask.md", "\n".join(text) + "\n")
    picture, chart = plots / "mask.png", partial(mask_chart, numbers, plots / "mask_by_structure")
    caption, path = _or_left_out(partial(mask_picture, comparison, picture), left_out), _or_left_out(chart, left_out)
    shown = [_Shown(picture, caption)] if caption else []
    shown += [_Shown(path, "The mean local mask inside each structure against the structure's gap.")] if path else []
    return shown, tables


def _body(
    comparison: Comparison,
    summaries: Sequence[MethodSummary],
    shown: Sequence[Sequence[_Shown]],
    mask: Sequence[Table],
    judged: Sequence[Path],
    left_out: Sequence[str],
) -> str:
    main, *others = comparison_tables(comparison, summaries)
    charts, pictures, masks = ("".join(figure.html() for figure in figures) for figures in shown)
    parts = [_gain(summaries), _table(main)]
    if unfinished := unfinished_runs(comparison):
        parts.append(f"<h2>Runs without results</h2>{_list(unfinished)}")
    parts += ["<h2>Charts</h2>", charts, "<h2>What it looks like</h2>", pictures, "<h2>The local mask</h2>", masks]
    parts += [_table(table) for table in [*mask, *others]]
    parts += _judged(judged)
    if left_out:
        parts.append(f"<h2>Not drawn</h2>{_list(left_out)}")
    commands = "".join(
        f"<p>{html.escape(name)}</p><pre>{html.escape(chr(10).join(listed) or 'none')}</pre>"
        for name, listed in run_commands(comparison)
    )
    return "\n".join([*parts, f"<details><summary>The command of every run</summary>{commands}</details>"])


def _judged(paths: Sequence[Path]) -> list[str]:
    """What ``--evaluate_snapshots`` wrote: a link to its page, its picture."""
    pages = [path.name for path in paths if path.suffix == ".md"]
    pictures = [path for path in paths if path.suffix == ".png"]
    parts = ["<h2>Which snapshot each score would have chosen</h2>"] if paths else []
    parts += [f'<p><a href="{page}">{page}</a> beside this page has the numbers.</p>' for page in pages]
    caption = "Scores of snapshots and their true Dice, which only the judgement reads; rings: what a score chose."
    return [*parts, *(page_figure(path, caption) for path in pictures)]


def _gain(summaries: Sequence[MethodSummary]) -> str:
    """The share of the gap that the reference closes, in large print, where it is known."""
    closed = next((s.gap_closed.percent for s in summaries if s.name == REFERENCE), None)
    if closed is None or closed.mean is None:
        return ""
    spread = f" (± {closed.sd:.0f} over {len(closed.values)} seeds)" if closed.sd is not None else ""
    return (
        f'<p class="gain">{closed.mean:.0f} %</p><p>of the gap in mean Dice between {LOWER} and {UPPER} are closed by '
        f"{REFERENCE}{spread}.</p>"
    )


def _table(table: Table) -> str:
    note = f"<p><small>{html.escape(table.note.replace('`', ''))}</small></p>" if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2>{page_table(table.heads, table.rows, wide=True)}{note}"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _or_left_out(draw: Callable[[], _T], left_out: list[str]) -> _T | None:
    """What a function gives, or None and a line that says why not."""
    try:
        return draw()
    except InputError as error:
        left_out.append(str(error))
        return None


def _montage_width(path: Path) -> int | None:
    """Pixels that a montage takes on the page; None for charts, which fit themselves."""
    if path.suffix != ".png":
        return None
    width = int.from_bytes(path.read_bytes()[16:20], "big")  # the PNG header's
    return round(width * PIXELS_PER_INCH / DOTS_PER_INCH)


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
