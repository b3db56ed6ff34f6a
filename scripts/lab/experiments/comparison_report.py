"""``python -m scripts report``: tables, figures and one page of a comparison, from its files alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from scripts.core.errors import InputError
from scripts.core.files import make_folder, write_json
from scripts.evaluation.montage import DOTS_PER_INCH
from scripts.lab.experiments.charts import dice_chart, gap_chart, loss_chart, structure_chart
from scripts.lab.experiments.comparison_record import writing_alone
from scripts.lab.experiments.mask_statistics import mask_numbers, mask_table
from scripts.lab.experiments.method_summaries import MethodSummary, summarise_methods
from scripts.lab.experiments.pictures import mask_picture, segmentation_picture, translation_picture
from scripts.lab.experiments.results import (
    LOWER,
    RECOMMENDED,
    RECOMMENDED_LOWER,
    REFERENCE,
    UPPER,
    Comparison,
    read_comparison,
)
from scripts.lab.experiments.tables import (
    comparison_tables,
    run_commands,
    table_csv,
    table_markdown,
    time_table,
    unfinished_runs,
)
from scripts.lab.page import Figure, Section, Table, write_page, write_text

__all__ = ["write_comparison_report"]

# Scale of montages on the page: a panel is 150 pixels wide, and wider montages scroll.
PIXELS_PER_INCH = 75

_T = TypeVar("_T")


def write_comparison_report(folder: Path) -> Path:
    """Write the page ``report.html``, ``table.md``, ``table.csv``, ``mask.json`` and ``plots/`` of a comparison.

    What is not available yet is left out, with the reason on the page. The results of ``--evaluate_snapshots`` are
    shown if they exist.
    """
    comparison = read_comparison(folder)
    with writing_alone(make_folder(folder)):
        return _write_report(comparison, folder)


def _write_report(comparison: Comparison, folder: Path) -> Path:
    summaries = summarise_methods(comparison)
    plots = make_folder(folder / "plots")
    not_drawn: list[str] = []
    charts = _charts(comparison, summaries, plots, not_drawn)
    tables = comparison_tables(comparison, summaries)
    if numbers := _or_reason(partial(mask_numbers, comparison), not_drawn):
        write_json(folder / "mask.json", numbers)
        tables.append(mask_table(numbers))
    drawers = {"translations": translation_picture, "segmentations": segmentation_picture, "mask": mask_picture}
    pictures = [
        Figure(path=path, caption=caption, width=_montage_width(path))
        for name, draw in drawers.items()
        for path in [plots / f"{name}.png"]
        if (caption := _or_reason(partial(draw, comparison, path), not_drawn))
    ]
    selection = [path for path in (folder / "selection.md", plots / "selection.png") if path.is_file()]
    write_text(folder / "table.md", table_markdown(comparison, tables, selection))
    write_text(folder / "table.csv", table_csv(comparison))
    sections = [
        _main_section(summaries, tables[0]),
        Section(heading="Runs without results", items=unfinished_runs(comparison)),
        Section(heading="Pictures", figures=pictures),
        Section(heading="Charts", figures=charts),
        Section(heading="Details", tables=[*tables[1:], time_table(comparison)]),
        _selection_section(selection),
        Section(heading="Not drawn", items=not_drawn),
        Section(heading="The commands of every run", code=run_commands(comparison), is_folded=True),
    ]
    provenance = comparison.content.get("provenance", {})
    return write_page(
        folder / "report.html",
        sections,
        title=f"GLUA: {comparison.content['task']}",
        heading=f"{comparison.content['task']}: {len(comparison.methods)} methods, {comparison.direction}",
        footer="last started with: " + ", ".join(f"{key}: {value}" for key, value in provenance.items()),
    )


def _charts(
    comparison: Comparison, summaries: Sequence[MethodSummary], plots: Path, not_drawn: list[str]
) -> list[Figure]:
    names = comparison.label_names
    segmenters = {method.name: method.runs for method in comparison.methods}
    translators = {
        run.name: [t for t in comparison.translators if t.name == run.name] for run in comparison.translators
    }
    wanted: list[tuple[Callable[[], Path], str]] = [
        (
            partial(dice_chart, summaries, plots / "dice"),
            f"Mean Dice over the structures: each seed, mean and standard deviation; {LOWER} and {UPPER} as lines.",
        ),
        (
            partial(structure_chart, summaries, names, plots / "structures"),
            "Dice and average surface distance (ASD) of each structure: each seed, mean and standard deviation.",
        ),
        (
            partial(gap_chart, summaries, names, plots / "gap"),
            f"The domain gap of each structure, Dice from {LOWER} to {UPPER}, and how much of it each method closes.",
        ),
        (
            partial(loss_chart, segmenters, plots / "losses"),
            "Losses of the segmentation trainings, running means; one line per seed.",
        ),
        (
            partial(loss_chart, translators, plots / "translator_losses"),
            "Losses of the translators' trainings, running means; one line per seed.",
        ),
    ]
    drawn = [(_or_reason(draw, not_drawn), caption) for draw, caption in wanted]
    return [Figure(path=path, caption=caption) for path, caption in drawn if path]


def _main_section(summaries: Sequence[MethodSummary], table: Table) -> Section:
    """The main table, and the share of the gap that one method closes, or what it gains over the lower bound."""
    if any(s.method.done for s in summaries) and not any(s.counted for s in summaries):
        return Section(text=["The target's held-out cases have no labels: nothing was measured."], tables=[table])
    known = {summary.name: summary for summary in summaries if summary.dice.mean is not None}
    name = RECOMMENDED if RECOMMENDED in known else REFERENCE
    method, lower = known.get(name), known.get(LOWER)
    if name == RECOMMENDED:
        lower = known.get(RECOMMENDED_LOWER, lower)
    if method and (mean := method.gap_closed.percent.mean) is not None:
        closed = method.gap_closed.percent
        spread = "" if closed.sd is None else f" (± {closed.sd:.0f} over {len(closed.values)} seeds)"
        text = f"of the gap in mean Dice between {LOWER} and {UPPER} is closed by {name}{spread}."
        return Section(highlight=f"{mean:.0f} %", text=[text], tables=[table])
    if method and lower and (after := method.dice.mean) is not None and (before := lower.dice.mean) is not None:
        text = f"of mean Dice gained by {name} over {lower.name} ({before:.1f} % to {after:.1f} %)."
        return Section(highlight=f"{after - before:+.1f} points", text=[text], tables=[table])
    return Section(tables=[table])


def _selection_section(files: Sequence[Path]) -> Section:
    caption = "Scores of snapshots and their true Dice, which no training reads. Rings: what a score chose."
    return Section(
        heading="Which snapshot each score would have chosen",
        text=[f"Numbers: {path.name}" for path in files if path.suffix == ".md"],
        figures=[Figure(path=path, caption=caption) for path in files if path.suffix == ".png"],
    )


def _or_reason(draw: Callable[[], _T], not_drawn: list[str]) -> _T | None:
    """What a function returns, or None and its reason in the list."""
    try:
        return draw()
    except InputError as error:
        not_drawn.append(str(error))
        return None


def _montage_width(path: Path) -> int:
    """Pixels that a montage takes on the page."""
    width = int.from_bytes(path.read_bytes()[16:20], "big")  # in the PNG header
    return round(width * PIXELS_PER_INCH / DOTS_PER_INCH)
