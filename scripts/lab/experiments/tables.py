"""The tables of a comparison, for the page, ``table.md`` and ``table.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.lab.experiments.method_summaries import MEASURES, MethodSummary
from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison
from scripts.lab.experiments.statistics import Spread, smallest_p
from scripts.lab.page import Table

__all__ = [
    "DASH",
    "comparison_tables",
    "run_commands",
    "show",
    "show_spread",
    "table_csv",
    "table_markdown",
    "time_table",
    "unfinished_runs",
]

DASH = "–"


def comparison_tables(comparison: Comparison, summaries: Sequence[MethodSummary]) -> list[Table]:
    """The main table and, if any run was evaluated, one each for Dice, distance and gap closed by structure."""
    names = comparison.label_names
    if not any(summary.counted for summary in summaries):
        return [_main_table(summaries)]

    def by_structure(title: str, rows: Sequence[Sequence[str]], note: str = "") -> Table:
        return Table(title=f"{title} by structure", heads=["method", *names], rows=rows, note=note, is_wide=True)

    per_structure = [
        by_structure(
            title, [[s.name, *(show_spread(s.structures[name][measure]) for name in names)] for s in summaries]
        )
        for title, measure in (("Dice in %", "dice_percent"), ("ASD in mm", "asd_mm"))
    ]
    closed = by_structure(
        "Gap closed in %",
        [[s.name, *(show_spread(s.structure_gap_closed[name].percent, ".0f") for name in names)] for s in summaries],
        f"Share of the gap in Dice between `{LOWER}` (0 %) and `{UPPER}` (100 %) of the same seed, mean ± sample "
        "standard deviation over the seeds that all three have. A dash if there is no such seed; seeds in which "
        f"`{UPPER}` is not better are left out. If the gap is small, the share means little.",
    )
    return [_main_table(summaries), *per_structure, closed]


def show(value: float | None, form: str = ".1f") -> str:
    """A number, or a dash."""
    return DASH if value is None else f"{value:{form}}"


def show_spread(spread: Spread, form: str = ".1f") -> str:
    """Mean and standard deviation over seeds; a dash for the deviation of one seed."""
    return DASH if spread.mean is None else f"{spread.mean:{form}} ± {show(spread.sd, form)}"


def time_table(comparison: Comparison) -> Table:
    """The seconds of every step, and their sum."""
    rows = [[run.title, name, f"{seconds:.0f} s"] for run in comparison.runs for name, seconds in run.seconds.items()]
    total = sum(seconds for run in comparison.runs for seconds in run.seconds.values())
    return Table(
        title="Time", heads=["run", "step", "time"], rows=[*rows, ["total", "", f"{total:.0f} s"]], is_wide=True
    )


def table_markdown(comparison: Comparison, tables: Iterable[Table], selection: Sequence[Path] = ()) -> str:
    """The content of ``table.md``: tables, unfinished runs and commands."""
    content = comparison.content
    parts = [f"# {content['task']}: {comparison.direction}, size {content['size']}"]
    parts += [_provenance(content.get("provenance", {})), *(table.as_markdown_section() for table in tables)]
    links = [path.relative_to(comparison.folder).as_posix() for path in selection]
    parts += ["## Which snapshot each score would have chosen"] if links else []
    parts += [f"{'!' if link.endswith('.png') else ''}[{link}]({link})" for link in links]
    unfinished = [f"- {line}" for line in unfinished_runs(comparison)]
    parts += ["## Runs without results", "\n".join(unfinished) or "None.", "## Commands"]
    parts += [f"{name}:\n\n```bash\n{commands}\n```" for name, commands in run_commands(comparison)]
    return "\n\n".join(parts) + "\n"


def table_csv(comparison: Comparison) -> str:
    """The content of ``table.csv``: a row for each evaluated run, post-processing and structure, for other programs."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["method", "seed", "largest_component", "structure", *MEASURES, "failures", "n"])
    for run in (run for method in comparison.methods for run in method.evaluated):
        for largest, summary in ((False, run.summary), (True, run.summary_largest)):
            for name, values in summary["structures"].items():
                numbers = [values[measure]["mean"] for measure in MEASURES]
                writer.writerow([run.name, run.seed, largest, name, *numbers, values["failures"], values["n"]])
    return stream.getvalue()


def unfinished_runs(comparison: Comparison) -> list[str]:
    """A line for each run of a method that failed or is missing, with its error."""
    runs = [run for method in comparison.methods for run in method.runs if run.status != "done"]
    return [f"{run.title}: {run.status}. {' '.join((run.error or '').split())}" for run in runs]


def run_commands(comparison: Comparison) -> list[tuple[str, str]]:
    """Title and commits of every run, and its commands, one per line."""
    return [
        (f"{run.title}{f' (commit {code})' if (code := ', '.join(run.commits)) else ''}", "\n".join(run.commands))
        for run in comparison.runs
    ]


def _main_table(summaries: Sequence[MethodSummary]) -> Table:
    heads = ["method", "seeds", "Dice %", "ASD mm", "ASD voxel", "Dice % (LC)", "ASD mm (LC)", "missing structures"]
    heads += ["gap closed %", f"vs {REFERENCE}", "p", "n", "selection", "training", "commit"]
    sizes = sorted({s.test.n for s in summaries if s.test and s.test.n})
    smallest = ", ".join(f"{smallest_p(n):.3g} for n = {n}" for n in sizes)
    note = (
        "Mean ± sample standard deviation (divisor n - 1) over the seeds, of the mean over the structures; a dash for "
        "the deviation of one seed. LC: only the largest component of each structure. A missing structure counts as "
        "Dice 0 and the image diagonal as distance; they are counted over all held-out cases and seeds. Gap closed: "
        f"share of the gap in mean Dice between `{LOWER}` (0 %) and `{UPPER}` (100 %) of the same seed, over the seeds "
        f"that all three have. vs {REFERENCE}: mean difference in points of Dice over the held-out cases, averaged "
        "over structures and over the seeds that both methods have. p: exact two-sided Wilcoxon signed-rank test "
        "over those cases, n of them (cases without a difference are left out), not corrected for the number of "
        f"methods. With n cases the smallest possible p is 2^(1-n){f': {smallest}' if smallest else ''}. Commit: of "
        "the code of the runs, with a plus if it had uncommitted changes."
    )
    rows = [_main_row(summary) for summary in summaries]
    used = [column for column in range(len(heads)) if column == 0 or any(row[column] != DASH for row in rows)]
    return Table(
        title="Methods",
        heads=[heads[column] for column in used],
        rows=[[row[column] for column in used] for row in rows],
        note=note if any(summary.counted for summary in summaries) else "",
        is_wide=True,
    )


def _main_row(summary: MethodSummary) -> list[str]:
    test, runs = summary.test, summary.method.runs
    seconds = summary.training_seconds.mean
    return [
        summary.name,
        _seeds(summary),
        *(show_spread(summary.mean[measure]) for measure in MEASURES),
        *(show_spread(summary.largest_mean[measure]) for measure in ("dice_percent", "asd_mm")),
        f"{summary.missing} of {summary.counted}" if summary.counted else DASH,
        show_spread(summary.gap_closed.percent, ".0f"),
        *((f"{test.mean_difference:+.1f}", f"{test.p:.3g}", str(test.n)) if test else [DASH] * 3),
        ", ".join(dict.fromkeys(run.selection for run in runs if run.selection)) or DASH,
        DASH if seconds is None else f"{seconds / 60:.1f} min",
        ", ".join(_commits(summary)) or DASH,
    ]


def _commits(summary: MethodSummary) -> list[str]:
    """The commits of the runs with results; without any, of all."""
    return [*dict.fromkeys(code for run in summary.method.done or summary.method.runs for code in run.commits)]


def _seeds(summary: MethodSummary) -> str:
    counts = {status: sum(run.status == status for run in summary.method.runs) for status in ("failed", "missing")}
    unfinished = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(summary.method.done)}{f' ({unfinished})' if unfinished else ''}"


def _provenance(provenance: Mapping[str, Any]) -> str:
    """Of the command that wrote ``comparison.json`` last; each run names its own commits."""
    parts = [f"{key} {provenance[key]}" for key in ("commit", "device", "time") if provenance.get(key)]
    parts += ["uncommitted changes"] if provenance.get("uncommitted_changes") else []
    parts += [f"{name} {version}" for name, version in provenance.get("packages", {}).items()]
    return f"Last started with: {', '.join(parts) or 'unknown'}."
