"""What a person sees of the local mask: tables, slices beside the unadapted model's errors, and a chart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts.core.errors import InputError
from scripts.evaluation.figures import informative_slices
from scripts.evaluation.montage import INK, NORMALISED, PALE_INK, Panel, quiet_axes, slice_montage
from scripts.lab.experiments.case_volumes import ComparisonVolumes, Cut, mask_path
from scripts.lab.experiments.charts import line_style, save_chart
from scripts.lab.experiments.mask_statistics import KINDS, REGIONS
from scripts.lab.experiments.pictures import MARGIN_MM, shown_cases, shown_runs
from scripts.lab.experiments.results import LOWER, UPPER, Comparison
from scripts.lab.experiments.tables import Table, show

__all__ = ["mask_chart", "mask_picture", "mask_tables"]


def mask_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """The numbers as tables: correlations, and the mask inside each structure beside the structure's gap."""
    methods, gaps = numbers["methods"], numbers["dice_gap"]
    correlations = Table(
        title=f"Local mask and the errors of {LOWER}",
        heads=["method", "where", *(kind.replace("_", ", ").capitalize() for kind in KINDS), "cases"],
        rows=[
            [
                name,
                region.replace("_", " "),
                *(show(entry["correlation"][region][kind], "+.2f") for kind in KINDS),
                str(len(entry["cases"])),
            ]
            for name, entry in methods.items()
            for region in REGIONS
        ],
        note="Correlation over voxels, mean over cases and seeds. Error: 1 where the unadapted prediction is wrong; "
        "smoothed: averaged over one pixel of the mask. Field of view: all that the network saw. Structures: what "
        "truth or that prediction call a structure.",
    )
    inside = Table(
        title="Mean local mask inside each structure",
        heads=["", *gaps, "rank correlation"],
        rows=[
            [f"Dice gap, {LOWER} to {UPPER}", *(show(gap) for gap in gaps.values()), ""],
            *(
                [
                    name,
                    *(show(entry["structures"][structure]["mean_mask"], ".3f") for structure in gaps),
                    f"{show(entry['rank_correlation'], '+.2f')} (n = {entry['n_structures']})",
                ]
                for name, entry in methods.items()
            ),
        ],
        note="Rank correlation: Spearman's, of mean mask and Dice gap over so few structures.",
    )
    return [correlations, inside]


def mask_picture(comparison: Comparison, path: Path) -> str:
    """Slices with the truth, the unadapted model's prediction and errors, and the mask of each method that has one.

    Args:
        comparison: what was read.
        path: PNG file to write.

    Returns:
        A caption.

    Raises:
        InputError: a part is not there, or a volume cannot be read.
    """
    volumes = ComparisonVolumes(comparison)
    items, (chosen, cases) = volumes.held_out(), shown_cases(comparison)
    runs = shown_runs(comparison)
    masked = {name: run for name, run in runs.items() if all(mask_path(run, case).is_file() for case in cases)}
    if not masked or LOWER not in runs:
        found = f"no result of '{LOWER}'" if masked else "no local mask of the cases shown"
        raise InputError(file=path.name, found=found, expected="some to draw", remedy="run more of the comparison")
    rows, row_titles, brightest = [], [], 0.0
    for case, word in cases.items():
        image, truth = volumes.image(items[case]["image"], "target_intensity"), volumes.truth(items[case]["label"])
        unadapted = volumes.prediction(runs[LOWER], case)
        masks = [volumes.mask(run, case) for run in masked.values()]
        brightest = max([brightest, *(float(mask.voxels.max()) for mask in masks)])
        cut = Cut.around(truth, volumes.slice_axis, MARGIN_MM)
        for index in reversed(informative_slices(truth.voxels, truth.voxels, volumes.slice_axis)):
            plain = cut.of(image, index)
            labels = [cut.of(label_map, index, is_label=True) for label_map in (truth, unadapted)]
            row = [Panel(image=plain, labels=label, limits=NORMALISED, style="area") for label in labels]
            row.append(Panel(image=(labels[0] != labels[1]).astype(float), limits=(0.0, 1.0)))
            rows.append([*row, *(Panel(image=cut.of(mask, index), heat=True) for mask in masks)])
            row_titles.append(f"{word} case, slice {index}")
    slice_montage(
        rows,
        path,
        column_titles=("truth", f"{LOWER}: prediction", f"{LOWER}: errors", *(f"mask of {name}" for name in masked)),
        row_titles=row_titles,
        label_names=comparison.label_names,
        title=f"Local mask and errors, {comparison.direction}",
        heat_max=max(math.ceil(10 * brightest), 1) / 10,
    )
    said = " and ".join(f"the {word} ({case})" for case, word in cases.items())
    return (
        f"Held-out cases by the mean Dice of {chosen.name}, {said}: where the unadapted model errs (white), and the "
        f"local masks on one scale. Seed {comparison.shown_seed}."
    )


def mask_chart(numbers: Mapping[str, Any], stem: Path) -> Path:
    """The mean mask inside each structure against the structure's Dice gap, a line of points for each method.

    Args:
        numbers: of :func:`mask_numbers`.
        stem: path of the files, without suffix.

    Returns:
        The SVG file.

    Raises:
        InputError: no gap is known, or a file cannot be written.
    """
    gaps = {name: gap for name, gap in numbers["dice_gap"].items() if gap is not None}
    if not gaps:
        found = f"no results of both yardsticks, {LOWER} and {UPPER}"
        raise InputError(file=stem.name, found=found, expected="both", remedy="run more of the comparison")
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(gaps, key=lambda name: gaps[name])
    for order, (name, entry) in enumerate(numbers["methods"].items()):
        values = [entry["structures"][structure]["mean_mask"] for structure in ordered]
        points = [(gaps[s], value) for s, value in zip(ordered, values, strict=True) if value is not None]
        rank = show(entry["rank_correlation"], "+.2f")
        label = f"{name} (rank correlation {rank}, n = {entry['n_structures']})"
        axes.plot(
            *zip(*points, strict=True), marker="o", markersize=6, label=label, **line_style(order) | {"linewidth": 0.6}
        )
    quiet_axes(axes)
    for number, structure in enumerate(ordered):
        axes.axvline(gaps[structure], color="#E5E5E5", linewidth=0.8, zorder=0)
        place = (gaps[structure], 1.02 + 0.07 * (number % 2))
        axes.annotate(
            structure,
            place,
            xycoords=("data", "axes fraction"),
            ha="center",
            fontsize=7.5,
            color=INK,
            annotation_clip=False,
        )
    axes.set_xlabel(f"Dice gap of the structure, {LOWER} to {UPPER} [points]", fontsize=8, color=PALE_INK)
    axes.set_ylabel("mean local mask inside it", fontsize=8, color=PALE_INK)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, labelcolor=INK)
    return save_chart(figure, stem)
