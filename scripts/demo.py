"""The main job in one command, on built-in data: every step is a command that a person could type.

Phantom, style transfer, translation, two segmenters (no adaptation, GLUA), inference on unseen volumes of the target,
evaluation, and a report. What differs between the methods is one file in ``configs/methods``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from scripts.data.writers import write_json
from scripts.report import write_report
from scripts.run_folder import provenance
from scripts.steps import Steps

__all__ = ["run_demo"]

TASK = "configs/tasks/phantom_mr2ct.yaml"
METHODS = {"none": "no adaptation", "glua": "GLUA"}


def run_demo(out: Path, *, seed: int = 0, cases: int = 12, resume: bool = False) -> None:
    """Do the main job from data to report in ``out``.

    Args:
        out: the demo's folder: data, runs, ``report.html``, ``summary.json``.
        seed: seed of the phantom and of every training.
        cases: phantom volumes per domain; a quarter of them is held out.
        resume: continue a demo that was interrupted.
    """
    steps = Steps(out, resume)
    data, synthesis, cache = out / "data", out / "synthesis", f"--cache_dir={out / 'cache'}"
    settings = ["--dataset_dir", str(data), "--logging_file", "configs/logging.conf"]
    training, again = [*settings, cache, "--seed", str(seed)], ("--resume", "True")
    small_g, tiny_s = "configs/sizes/synthesis_small.yaml", "configs/sizes/segmentation_tiny.yaml"

    phantom = ["--cases", str(cases), "--validation", "0.25", "--seed", str(seed)]
    steps.run("phantom", ["-m", "scripts", "phantom", "--out", str(data), *phantom])
    train = ["configs/synthesis/train.yaml", TASK, small_g, "configs/demo/synthesis.yaml"]
    steps.run("synthesis training", _bundle("training", train, synthesis, *training), *again)
    steps.run(
        "translation", _bundle("inference", ["configs/synthesis/inference.yaml", TASK, small_g], synthesis, *settings)
    )
    labelled = ["--labelled_datalist", str(synthesis / "translated" / "datalist.json")]
    for method, title in METHODS.items():
        run = out / method
        train = ["configs/segmentation/train.yaml", TASK, tiny_s, "configs/demo/segmentation.yaml"]
        if method == "glua":
            steps.run(f"segmentation training, {title}", _bundle("training", train, run, *training, *labelled), *again)
        else:
            train.append(f"configs/methods/{method}.yaml")
            steps.run(f"segmentation training, {title}", _bundle("training", train, run, *training), *again)
        mask = ["--mask_mode", "abs" if method == "glua" else "off"]
        evaluate = ["configs/segmentation/evaluate.yaml", TASK, tiny_s]
        steps.run(f"evaluation, {title}", _bundle("evaluating", evaluate, run, *settings, *mask))
    unseen = [
        "--dataset_dir",
        str(_unseen_images(data)),
        "--write_mask",
        "True",
        "--logging_file",
        "configs/logging.conf",
    ]
    infer = ["configs/segmentation/inference.yaml", TASK, tiny_s]
    steps.run("inference, GLUA", _bundle("inference", infer, out / "glua", *unseen))
    _summarise(out, seed, steps.seconds)


def _bundle(run_id: str, files: Sequence[str], root: Path, *options: str) -> list[str]:
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    return ["-m", "monai.bundle", "run", run_id, "--config_file", listed, "--bundle_root", str(root), *options]


def _unseen_images(data: Path) -> Path:
    """A datalist of the target's held-out images alone, without their labels."""
    target = json.loads((data / "ct.json").read_text())
    images = [{"image": item["image"]} for item in target["validation"]]
    write_json(data / "unseen.json", {"name": "ct", "validation": images})
    return data / "unseen.json"


def _summarise(out: Path, seed: int, seconds: dict[str, float]) -> None:
    methods = {}
    for method, title in METHODS.items():
        summary = json.loads((out / method / "eval" / "summary.json").read_text())
        methods[method] = {"title": title, "mean": summary["mean_over_structures"], "structures": summary["structures"]}
    gain = methods["glua"]["mean"]["dice_percent"] - methods["none"]["mean"]["dice_percent"]
    content = {"methods": methods, "gain_in_mean_dice": gain, "seconds": seconds, "seed": seed} | provenance()
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
