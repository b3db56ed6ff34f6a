"""The comparison's tables: for a person as Markdown, for a program as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lab.experiments.method_summaries import MEASURES, MethodSummary
from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison, MethodResult, RunResult
from scripts.lab.experiments.statistics import Spread, smallest_p

__all__ = [
    "DASH",
    "Table",
    "comparison_tables",
    "markdown_table",
    "run_commands",
    "show",
    "show_spread",
    "table_csv",
    "table_markdown",
    "unfinished_runs",
]

DASH = "–"
COMMIT_DIGITS = 7


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of plain text.

    Attributes:
        title: heading.
        heads: one for each column.
        rows: cells.
        note: what a reader has to know, under the table.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def comparison_tables(comparison: Comparison, summaries: Sequence[MethodSummary]) -> list[Table]:
    """The main table, and one each for Dice, distance and gap closed by structure."""
    names = comparison.label_names
    per_structure = [
        Table(
            title=f"{title} by structure",
            heads=["method", *names],
            rows=[[s.name, *(show_spread(s.structures[name][measure]) for name in names)] for s in summaries],
        )
        for title, measure in (("Dice in %", "dice_percent"), ("ASD in mm", "asd_mm"))
    ]
    closed = Table(
        title="Gap closed in % by structure",
        heads=["method", *names],
        rows=[
            [s.name, *(show_spread(s.structure_gap_closed[name].percent, ".0f") for name in names)] for s in summaries
        ],
        note=f"Of the gap in Dice between `{LOWER}` (0 %) and `{UPPER}` (100 %) of the same seed, mean ± sample "
        "standard deviation over the seeds that all three have; a dash where there is none, and seeds in which "
        f"`{UPPER}` is not better are left out. Where the gap is small the share is of little worth.",
    )
    return [_main_table(summaries), *per_structure, closed]


def show(value: float | None, form: str = ".1f") -> str:
    """A number, or a dash."""
    return DASH if value is None else f"{value:{form}}"


def show_spread(spread: Spread, form: str = ".1f") -> str:
    """Mean and standard deviation over seeds; a dash for a deviation of one seed."""
    return DASH if spread.mean is None else f"{spread.mean:{form}} ± {show(spread.sd, form)}"


def table_markdown(
    comparison: Comparison, summaries: Sequence[MethodSummary], more: Iterable[Table] = (), judged: Sequence[Path] = ()
) -> str:
    """The whole of ``table.md``: the tables, runs without results, and every run's commands.

    Args:
        comparison: what was read.
        summaries: a line for each method.
        more: further tables.
        judged: the page and the picture that judge how snapshots are chosen, where they were made.
    """
    content = comparison.content
    lines = [f"# {content['task']}: {comparison.direction}, size {content.get('size', DASH)}", ""]
    lines += [_provenance(content.get("provenance", {})), ""]
    for table in [*comparison_tables(comparison, summaries), *more]:
        lines += [f"## {table.title}", "", markdown_table(table), ""]
        lines += [table.note, ""] if table.note else []
    lines += _judged(comparison, judged)
    unfinished = [f"- {line}" for line in unfinished_runs(comparison)]
    lines += ["## Runs without results", "", *(unfinished or ["None."]), "", "## Commands", ""]
    for name, commands in run_commands(comparison):
        lines += [f"{name}:", "", "```bash", *commands, "```", ""] if commands else [f"{name}: none.", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def markdown_table(table: Table) -> str:
    """A table as aligned Markdown, without its title."""
    cells = [list(map(_escaped, row)) for row in [table.heads, *table.rows]]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(table.heads))]
    rule = [("-" * width if column == 0 else "-" * (width - 1) + ":") for column, width in enumerate(widths)]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in [cells[0], rule, *cells[1:]]
    ]
    return "\n".join(f"{line} |" for line in lines)


def table_csv(comparison: Comparison, summaries: Sequence[MethodSummary]) -> str:
    """The whole of ``table.csv``: a row for each method, an empty cell where there is no number."""
    rows = [_csv_row(comparison, summary) for summary in summaries]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else ["method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def unfinished_runs(comparison: Comparison) -> list[str]:
    """A line for each run that failed or is missing, with what it said."""
    runs = [run for method in comparison.methods for run in method.runs if run.status != "done"]
    return [f"{run.method}, seed {run.seed}: {run.status}. {_one_line(run.error or '')}".rstrip() for run in runs]


def run_commands(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """The name of every training with the commits it ran on, translators first, and what was run for it."""
    entries = [
        *((f"translator {e['translator']}, seed {e['seed']}", e) for e in comparison.content.get("translators", [])),
        *((f"{e['method']}, seed {e['seed']}", e) for e in comparison.content["runs"]),
    ]
    return [
        (f"{name}{f' (commit {code})' if (code := _code(e)) else ''}", list(e.get("commands") or ()))
        for name, e in entries
    ]


def _judged(comparison: Comparison, paths: Sequence[Path]) -> list[str]:
    names = [path.relative_to(comparison.folder).as_posix() for path in paths]
    shown = [f"{'!' if name.endswith('.png') else ''}[{name}]({name})" for name in names]
    return ["## Which snapshot each score would have chosen", "", *shown, ""] if shown else []


def _code(entry: Mapping[str, Any]) -> str:
    """The commits of an entry of ``comparison.json``, short, with a plus where the code had changes beside them."""
    shown = ", ".join(commit[:COMMIT_DIGITS] for commit in entry["commits"])
    return f"{shown}+" if shown and entry.get("uncommitted_changes") else shown


def _main_table(summaries: Sequence[MethodSummary]) -> Table:
    heads = ["method", "seeds", "Dice %", "ASD mm", "ASD voxel", "missing structures", "gap closed %"]
    heads += [f"vs {REFERENCE}", "p", "n", "selection", "training", "commit"]
    note = (
        "Mean ± sample standard deviation (divisor n - 1) over the seeds, of the mean over the structures; a dash for "
        "the deviation of one seed. A missing structure counts as Dice 0 and as far away as the image is long; they "
        "are counted over all held-out cases and seeds. Gap closed: of the gap in mean Dice between "
        f"`{LOWER}` (0 %) and `{UPPER}` (100 %) of the same seed, over the seeds that all three have. "
        f"vs {REFERENCE}: mean difference in points of Dice over the held-out cases, each averaged over its structures "
        "and over the seeds that both methods have; p: exact two-sided "
        "Wilcoxon signed-rank test of those cases, n of them (a case without a difference is left out), not corrected "
        f"for the number of methods. {_smallest(summaries)} Commit: of the code that the row's runs ran on, with "
        "a plus if it had changes beside the commit."
    )
    return Table(title="Methods", heads=heads, rows=[_main_row(summary) for summary in summaries], note=note)


def _smallest(summaries: Sequence[MethodSummary]) -> str:
    sizes = sorted({s.test.n for s in summaries if s.test and s.test.n})
    found = ", ".join(f"{smallest_p(n):.3g} for n = {n}" for n in sizes)
    return f"With n cases the smallest p there can be is 2^(1-n){f': {found}' if found else ''}."


def _main_row(summary: MethodSummary) -> list[str]:
    test, runs = summary.test, summary.method.runs
    return [
        summary.name,
        _seeds(summary),
        *(show_spread(summary.mean[measure]) for measure in MEASURES),
        f"{summary.missing} of {summary.counted}" if summary.counted else DASH,
        show_spread(summary.gap_closed.percent, ".0f"),
        *((f"{test.mean_difference:+.1f}", f"{test.p:.3g}", str(test.n)) if test else [DASH] * 3),
        ", ".join(_selections(runs)) or DASH,
        _minutes(summary.training_seconds.mean),
        ", ".join(_commits(summary.method)) or DASH,
    ]


def _selections(runs: Iterable[RunResult]) -> list[str]:
    return [*dict.fromkeys(run.selection for run in runs if run.selection)]


def _commits(method: MethodResult) -> list[str]:
    """Of the runs with results; without any, of all."""
    runs = method.done or method.runs
    listed = [_code({"commits": [c], "uncommitted_changes": r.uncommitted_changes}) for r in runs for c in r.commits]
    return [*dict.fromkeys(listed)]


def _seeds(summary: MethodSummary) -> str:
    counts = {status: sum(run.status == status for run in summary.method.runs) for status in ("failed", "missing")}
    lacking = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(summary.method.done)}{f' ({lacking})' if lacking else ''}"


def _minutes(seconds: float | None) -> str:
    return DASH if seconds is None else f"{seconds / 60:.1f} min"


def _provenance(provenance: Mapping[str, Any]) -> str:
    """Of the command that wrote ``comparison.json`` last; runs name their own commits."""
    said = [f"{key} {provenance[key]}" for key in ("commit", "device", "time") if provenance.get(key)]
    said += ["uncommitted changes"] if provenance.get("uncommitted_changes") else []
    said += [f"{name} {version}" for name, version in provenance.get("packages", {}).items()]
    return f"Written last by: {', '.join(said)}." if said else "No provenance was left."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(cell: str) -> str:
    return _one_line(cell).replace("|", "\\|")


def _csv_row(comparison: Comparison, summary: MethodSummary) -> dict[str, Any]:
    runs, test = summary.method.runs, summary.test
    row: dict[str, Any] = {
        "method": summary.name,
        "translator": next((run.translator for run in runs), ""),
        "selection": " ".join(_selections(runs)) or DASH,
        **{f"seeds_{status}": sum(run.status == status for run in runs) for status in ("done", "failed", "missing")},
    }
    for measure in MEASURES:
        row |= _csv_spread(measure, summary.mean[measure])
    row |= {
        "missing_structures": summary.missing if summary.counted else None,
        "counted_structures": summary.counted if summary.counted else None,
        **_csv_spread("gap_closed_percent", summary.gap_closed.percent),
        "gap_closed_seeds": len(summary.gap_closed.percent.values),
        f"difference_from_{REFERENCE}": test.mean_difference if test else None,
        f"p_against_{REFERENCE}": test.p if test else None,
        "n_cases": test.n if test else None,
        "smallest_p": smallest_p(test.n) if test and test.n else None,
        "training_seconds": summary.training_seconds.mean,
    }
    for name in comparison.label_names:
        for measure in MEASURES:
            row |= _csv_spread(f"{name} {measure}", summary.structures[name][measure])
        row |= _csv_spread(f"{name} gap_closed_percent", summary.structure_gap_closed[name].percent)
    errors = [f"seed {run.seed}: {_one_line(run.error)}" for run in runs if run.error]
    commits = " ".join(_commits(summary.method))
    return row | {"errors": "; ".join(errors), "commits": commits, "command": " && ".join(_commands(comparison, runs))}


def _commands(comparison: Comparison, runs: Sequence[RunResult]) -> list[str]:
    """What was run for the first seed that is done, or else the first: its translator's commands and its own."""
    run = next((run for run in runs if run.status == "done"), next(iter(runs), None))
    if run is None:
        return []
    taught_by = [t for t in comparison.translators if (t.name, t.seed) == (run.translator, run.seed)]
    return [*(command for translator in taught_by for command in translator.commands), *run.commands]


def _csv_spread(name: str, spread: Spread) -> dict[str, float | None]:
    return {f"{name} mean": spread.mean, f"{name} sd": spread.sd}
