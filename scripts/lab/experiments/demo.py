"""``python -m scripts demo``: a comparison of a few methods on a small generated phantom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.core.files import write_json
from scripts.core.run_folder import provenance
from scripts.lab.experiments.compare import run_comparison
from scripts.lab.experiments.comparison_record import writing_alone
from scripts.lab.experiments.comparison_report import write_comparison_report
from scripts.lab.experiments.plan import ComparisonRequest
from scripts.lab.experiments.results import Comparison, RunResult, read_comparison
from scripts.lab.experiments.run_record import RunRecord
from scripts.lab.page import Table

__all__ = ["run_demo"]

TITLES = {"none_unet": "no adaptation", "recommended": "recommended"}


def run_demo(
    out: Path, *, methods: Sequence[str] = ("none_unet", "recommended"), seed: int = 0, resume: bool = False
) -> None:
    """Generate the phantom, train, evaluate and report, in ``out``; without ``resume`` an earlier demo is repeated.

    The gain is that of the last method over the first one.

    Raises:
        SystemExit: a step failed.
    """
    if not resume:
        for record in out.glob(f"*/*_seed{seed}/{RunRecord.FILE}"):
            record.unlink()
        for datalist in (out / "data").glob("*.json"):
            datalist.unlink()
    if not run_comparison(ComparisonRequest("phantom_mr2ct", methods, [seed], out, "demo")):
        raise SystemExit(1)
    comparison = read_comparison(out)
    done = {method.name: run for method in comparison.methods for run in method.done if run.seed == seed}
    runs = {method: done[method] for method in methods}
    _write_summary(comparison, runs, seed)
    page = write_comparison_report(out)
    seconds = sum(sum(run.seconds.values()) for run in comparison.runs)
    print(
        f"\n{_closing_table(comparison, runs).as_text()}\n\nReport: {page}; {seconds:.0f} s of training and evaluation"
    )


def _write_summary(comparison: Comparison, runs: Mapping[str, RunResult], seed: int) -> None:
    methods = {
        name: {
            "title": TITLES.get(name, name),
            "mean": run.summary["mean_over_structures"],
            "structures": run.summary["structures"],
        }
        for name, run in runs.items()
    }
    dice = [method["mean"]["dice_percent"] for method in methods.values()]
    content = {
        "methods": methods,
        "folders": {run.name: str(run.folder.relative_to(comparison.folder)) for run in comparison.runs},
        "gain_in_mean_dice": dice[-1] - dice[0],
        "seconds": {f"{run.name}: {step}": s for run in comparison.runs for step, s in run.seconds.items()},
        "seed": seed,
    }
    with writing_alone(comparison.folder):
        write_json(comparison.folder / "summary.json", content | provenance())


def _closing_table(comparison: Comparison, runs: Mapping[str, RunResult]) -> Table:
    names = comparison.label_names
    rows = []
    for name, run in runs.items():
        summary = run.summary
        values = [(s["dice_percent"]["mean"], s["asd_mm"]["mean"]) for s in map(summary["structures"].get, names)]
        values.append((summary["mean_over_structures"]["dice_percent"], summary["mean_over_structures"]["asd_mm"]))
        rows.append([TITLES.get(name, name), *(f"{dice:.1f} ({asd:.1f})" for dice, asd in values)])
    return Table(heads=["Dice % (ASD mm), MR -> CT", *names, "mean"], rows=rows)
