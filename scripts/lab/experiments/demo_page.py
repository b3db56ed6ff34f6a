"""A page a person wants to look at: ``report.html`` of a demo, one file with its pictures inside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from scripts.lab.page import page_figure, page_table, write_page

__all__ = ["write_report"]

BODY = Template("""<p>A generated cardiac phantom: labelled MR volumes, unlabelled CT volumes of other subjects.
The style transfer rendered the labelled MR in CT style, a segmenter was trained on it against two discriminators, and
CT volumes that no training saw were segmented. Their labels were used for this table alone.</p>
<p class="gain">$gain points</p><p>of mean Dice gained over no adaptation ($before % to $after %).</p>
<h2>Dice in % (average symmetric surface distance in mm)</h2>$table$failures
<h2>What it looks like</h2>$pictures
<h2>How long it took</h2>$seconds
""")


def write_report(out: Path) -> None:
    """Write ``report.html`` from a demo's ``summary.json`` and pictures."""
    summary = json.loads((out / "summary.json").read_text())
    means = {name: method["mean"]["dice_percent"] for name, method in summary["methods"].items()}
    total = sum(summary["seconds"].values())
    rows = [[name, f"{seconds:.0f} s"] for name, seconds in summary["seconds"].items()] + [["in all", f"{total:.0f} s"]]
    provenance = {
        key: summary[key] for key in ("time", "commit", "uncommitted_changes", "seed", "device", "python", "packages")
    }
    body = BODY.substitute(
        gain=f"{summary['gain_in_mean_dice']:+.1f}",
        before=f"{means['none']:.1f}",
        after=f"{means['glua']:.1f}",
        table=_results(summary["methods"]),
        failures=_failures(summary["methods"]),
        pictures=_pictures({name: out / folder for name, folder in summary["folders"].items()}),
        seconds=page_table(["step", "time"], rows),
    )
    write_page(
        out / "report.html",
        title="GLUA: the demo",
        heading="Labels of one modality, a segmenter for the other",
        body=body,
        footer=", ".join(f"{key}: {value}" for key, value in provenance.items()),
    )


def _results(methods: Mapping[str, Any]) -> str:
    names = list(next(iter(methods.values()))["structures"])
    rows = []
    for method in methods.values():
        cells = [method["structures"][name] for name in names]
        values = [(cell["dice_percent"]["mean"], cell["asd_mm"]["mean"]) for cell in cells]
        values.append((method["mean"]["dice_percent"], method["mean"]["asd_mm"]))
        rows.append([method["title"], *(f"{dice:.1f} ({asd:.1f})" for dice, asd in values)])
    return page_table(["method", *names, "mean"], rows)


def _failures(methods: Mapping[str, Any]) -> str:
    counts = {m["title"]: sum(s["failures"] for s in m["structures"].values()) for m in methods.values()}
    listed = ", ".join(f"{title} {count}" for title, count in counts.items())
    return (
        f"<p>Structures missing altogether (they count as Dice 0 and as far away as the image is long): {listed}.</p>"
    )


def _pictures(folders: Mapping[str, Path]) -> str:
    none, glua = folders["none"], folders["glua"]
    figures = [
        (
            _latest(folders["style"], "translation"),
            "Slices, their translation into the other domain's style, and back. The outlines are the "
            "labels of the MR: anatomy has to stay where it was.",
        ),
        (
            _latest(glua, "segmentation"),
            "CT slices, the prediction, and the local mask: bright where the feature discriminator is sure.",
        ),
        ([glua / "eval" / "median_case.png"], "GLUA on unseen CT, the median case: image, prediction, truth."),
        ([none / "eval" / "median_case.png"], "The same without adaptation (its own median case)."),
        ([glua / "eval" / "worst_case.png"], "GLUA, the worst case."),
        ([glua / "pictures" / "losses.png"], "The losses of the segmentation training."),
    ]
    return "".join(page_figure(path, caption) for paths, caption in figures for path in paths)


def _latest(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "pictures").glob(f"{kind}_*.png"))[-1:]
