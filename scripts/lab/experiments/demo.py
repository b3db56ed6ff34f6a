"""The main job in one command, on built-in data: every step is a command that a person could type.

Phantom, style transfer, translation, two segmenters (no adaptation, GLUA), evaluation and inference on unseen volumes
of the target, and a report. What differs between the methods is one file in ``configs/methods``.
"""

from __future__ import annotations

import json
from pathlib import Path

from scripts.core.files import write_json
from scripts.core.run_folder import provenance
from scripts.lab.experiments.compare import write_unseen
from scripts.lab.experiments.demo_page import write_report
from scripts.lab.experiments.plan import ComparisonRequest, plan
from scripts.lab.experiments.step_runner import StepRunner

__all__ = ["run_demo"]

TASK = "phantom_mr2ct"
METHODS = {"none": "no adaptation", "glua": "GLUA"}


def run_demo(out: Path, *, seed: int = 0, cases: int = 12, resume: bool = False) -> None:
    """Do the main job from data to report in ``out``: a comparison of two methods on data of its own.

    Args:
        out: the demo's folder: data, runs, ``report.html``, ``summary.json``.
        seed: seed of the phantom and of every training.
        cases: phantom volumes per domain; a quarter of them is held out.
        resume: continue a demo that was interrupted.
    """
    steps = StepRunner(out, resume)
    request = ComparisonRequest(TASK, list(METHODS), [seed], out)
    phantom = ["--cases", str(cases), "--validation", "0.25", "--seed", str(seed)]
    steps.run("phantom", ["-m", "scripts", "phantom", "--out", str(request.data), *phantom])
    write_unseen(request)
    runs = plan(request)
    for run in runs:
        for step in run.steps:
            steps.run(f"{METHODS.get(run.name, 'style transfer')}: {step.name}", step.command, *step.resumed)
    _summarise(out, seed, steps.seconds, {run.name: run.folder for run in runs})


def _summarise(out: Path, seed: int, seconds: dict[str, float], folders: dict[str, Path]) -> None:
    methods = {}
    for method, title in METHODS.items():
        summary = json.loads((folders[method] / "eval" / "summary.json").read_text())
        methods[method] = {"title": title, "mean": summary["mean_over_structures"], "structures": summary["structures"]}
    gain = methods["glua"]["mean"]["dice_percent"] - methods["none"]["mean"]["dice_percent"]
    places = {name: str(folder.relative_to(out)) for name, folder in folders.items()}
    content = {
        "methods": methods,
        "folders": places,
        "gain_in_mean_dice": gain,
        "seconds": seconds,
        "seed": seed,
    } | provenance()
    write_json(out / "summary.json", content)
    write_report(out)
    print("\n" + _closing_table(methods) + f"\n\nlook at {out / 'report.html'}; {sum(seconds.values()):.0f} s in all")


def _closing_table(methods: dict[str, dict]) -> str:
    names = list(next(iter(methods.values()))["structures"])
    lines = [f"{'Dice % (ASD mm), MR -> CT':28s}" + "".join(f"{name:>20s}" for name in [*names, "mean"])]
    for method in methods.values():
        cells = [method["structures"][name] for name in names]
        values = [(cell["dice_percent"]["mean"], cell["asd_mm"]["mean"]) for cell in cells]
        values.append((method["mean"]["dice_percent"], method["mean"]["asd_mm"]))
        lines.append(f"{method['title']:28s}" + "".join(f"{dice:11.1f} ({asd:6.1f})" for dice, asd in values))
    return "\n".join(lines)
