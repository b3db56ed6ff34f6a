"""A comparison's pictures: translations, segmentations, and local masks beside errors.

Each function writes a PNG file and returns its caption; nothing to draw raises ``InputError``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError
from scripts.data.case_names import Item, case_name
from scripts.data.datalists import read_datalist
from scripts.evaluation.figures import informative_slices
from scripts.evaluation.montage import NORMALISED, Panel, slice_montage
from scripts.lab.experiments.case_volumes import ComparisonVolumes, Cut, Volume
from scripts.lab.experiments.results import LOWER, REFERENCE, UPPER, Comparison, RunResult

__all__ = ["mask_picture", "segmentation_picture", "shown_cases", "translation_picture"]

# Shown around the structures.
MARGIN_MM = 25.0

MOST_SOURCE_CASES = 4


def translation_picture(comparison: Comparison, path: Path) -> str:
    """The same source slices translated by each translator (Fig. 7 of the paper), beside a slice of the target."""
    volumes = ComparisonVolumes(comparison)
    folders = {translator.name: _translated_files(translator) for translator in _one_seed(comparison)}
    folders = {name: files for name, files in folders.items() if files}
    cases = {case: item for case, item in volumes.labelled().items() if all(case in f for f in folders.values())}
    if not folders or not cases:
        raise _nothing(path, "no translated volume")
    names = list(cases)
    picked = [names[k] for k in np.linspace(0, len(names) - 1, min(MOST_SOURCE_CASES, len(names))).round().astype(int)]
    targets = read_datalist(str(comparison.datalist("target")), "training")
    rows = []
    for number, case in enumerate(picked):
        truth = volumes.truth(cases[case]["label"])
        areas = np.count_nonzero(truth.voxels, axis=tuple(a for a in range(3) if a != volumes.slice_axis))
        index, cut = int(areas.argmax()), volumes.field_of_view(truth)
        images = [volumes.image(cases[case]["image"], "source_intensity")]
        images += [volumes.image(files[case], "translated_intensity") for files in folders.values()]
        labels = cut.of(truth, index, is_label=True)
        row = [Panel(image=cut.of(image, index), labels=labels, limits=NORMALISED) for image in images]
        target = volumes.image(targets[number % len(targets)]["image"], "target_intensity")
        rows.append([*row, _target_panel(volumes, target, index / len(areas))])
    source, name = comparison.content["source_domain"], comparison.content["target_domain"]
    slice_montage(
        rows,
        path,
        column_titles=(f"source: {source}", *folders, f"target: {name}"),
        row_titles=picked,
        label_names=comparison.label_names,
        title=f"Translation, {comparison.direction}",
        marks=volumes.marks,
    )
    return (
        f"Labelled {source} slices before and after translation by each translator, and a {name} slice of another "
        "subject for comparison. The outlines are the source's labels: the anatomy must not move."
    )


def segmentation_picture(comparison: Comparison, path: Path) -> str:
    """Slices of two held-out cases: image, truth if there is one, and each method (Fig. 4 and 5 of the paper)."""
    volumes = ComparisonVolumes(comparison)
    items = volumes.held_out()
    cases, caption = shown_cases(comparison, items)
    runs = {
        name: run
        for name, run in _shown_runs(comparison).items()
        if all(run.result_file(case, "seg").is_file() for case in cases)
    }
    if not runs:
        raise _nothing(path, "no segmentation of the cases shown")

    def panels(case: str, shown: _ShownCase, index: int) -> list[Panel]:
        return [shown.panel(index), *(shown.panel(index, labels) for labels in shown.label_maps)]

    rows, row_titles = _case_rows(volumes, items, cases, list(runs.values()), panels)
    seed, truth = comparison.shown_seed, ["truth"] if "label" in items[next(iter(cases))] else []
    columns = [name if run.seed == seed else f"{name} (seed {run.seed})" for name, run in runs.items()]
    slice_montage(
        rows,
        path,
        column_titles=("image", *truth, *columns),
        row_titles=row_titles,
        label_names=comparison.label_names,
        title=f"Segmentation, {comparison.direction}, seed {seed}",
        marks=volumes.marks,
    )
    return f"{caption} Seed {seed}."


def mask_picture(comparison: Comparison, path: Path) -> str:
    """Slices with the truth, prediction and errors of the unadapted model, and local masks (Fig. 6 of the paper)."""
    volumes = ComparisonVolumes(comparison)
    items = volumes.held_out()
    cases, caption = shown_cases(comparison, items)
    runs = _shown_runs(comparison)
    masked = {n: run for n, run in runs.items() if all(run.result_file(case, "mask").is_file() for case in cases)}
    if not masked or LOWER not in runs or not all("label" in items[case] for case in cases):
        found = f"no labels, or no result of '{LOWER}'" if masked else "no local mask of the cases shown"
        raise _nothing(path, found)
    masks = {case: [volumes.mask(run, case) for run in masked.values()] for case in cases}
    maximum = max(float(mask.voxels.max()) for of_case in masks.values() for mask in of_case)

    def panels(case: str, shown: _ShownCase, index: int) -> list[Panel]:
        labels = [shown.panel(index, label_map) for label_map in shown.label_maps]
        truth, predicted = (np.asarray(panel.labels) for panel in labels)
        errors = Panel(image=(truth != predicted).astype(float), limits=(0.0, 1.0))
        return [*labels, errors, *(Panel(image=shown.cut.of(mask, index), heat=True) for mask in masks[case])]

    rows, row_titles = _case_rows(volumes, items, cases, [runs[LOWER]], panels)
    slice_montage(
        rows,
        path,
        column_titles=("truth", f"{LOWER}: prediction", f"{LOWER}: errors", *(f"mask of {name}" for name in masked)),
        row_titles=row_titles,
        label_names=comparison.label_names,
        title=f"Local mask and errors, {comparison.direction}",
        heat_max=max(math.ceil(10 * maximum), 1) / 10,
        marks=volumes.marks,
    )
    return f"{caption} Errors of the unadapted model are white. Seed {comparison.shown_seed}."


def shown_cases(comparison: Comparison, items: Mapping[str, Item]) -> tuple[dict[str, str], str]:
    """The held-out cases to show with a word for each, and a sentence on their selection.

    They are the median (the better of two) and the worst case of the reference, or of the first method that is not a
    bound. Without an evaluation they are the first and the last case.
    """
    ranked_methods = sorted(comparison.methods, key=lambda m: (m.name != REFERENCE, m.name in (LOWER, UPPER)))
    method = next((method for method in ranked_methods if method.evaluated), None)
    if method is None:
        if comparison.shown_seed is None:
            raise _nothing(Path("pictures"), "no run with results")
        names = list(items)
        return {names[-1]: "last", names[0]: "first"}, "The first and the last held-out case of the target."
    run = next((run for run in method.evaluated if run.seed == comparison.shown_seed), method.evaluated[0])
    ranked = sorted((dice, case) for case, dice in run.dice_of_case.items())
    median, worst = ranked[len(ranked) // 2][1], ranked[0][1]
    cases = {median: "median", worst: "worst"} if median != worst else {median: "only"}
    listed = " and ".join(f"the {word} ({case})" for case, word in cases.items())
    return cases, f"Held-out cases of the target, by the mean Dice of {method.name}: {listed}."


@dataclass(frozen=True)
class _ShownCase:
    """A case with its label maps, the truth first if there is one."""

    image: Volume
    label_maps: Sequence[Volume]
    cut: Cut
    slices: Sequence[int]

    def panel(self, index: int, labels: Volume | None = None) -> Panel:
        plain = Panel(image=self.cut.of(self.image, index), limits=NORMALISED, style="area")
        return replace(plain, labels=self.cut.of(labels, index, is_label=True)) if labels else plain


def _case_rows(
    volumes: ComparisonVolumes,
    items: Mapping[str, Item],
    cases: Mapping[str, str],
    runs: Sequence[RunResult],
    panels: Callable[[str, _ShownCase, int], list[Panel]],
) -> tuple[list[list[Panel]], list[str]]:
    """The panels of each slice to show, and the title of each row."""
    rows, titles = [], []
    for case, word in cases.items():
        shown = _load_case(volumes, items[case], runs)
        rows += [panels(case, shown, index) for index in shown.slices]
        titles += [f"{word} case, slice {index}" for index in shown.slices]
    return rows, titles


def _load_case(volumes: ComparisonVolumes, item: Item, runs: Iterable[RunResult]) -> _ShownCase:
    image = volumes.image(item["image"], "target_intensity")
    truth = [volumes.truth(item["label"])] if "label" in item else []
    maps = [*truth, *(volumes.prediction(run, case_name(item["image"])) for run in runs)]
    cut = Cut.around(maps[0], volumes.slice_axis, MARGIN_MM)
    slices = informative_slices(maps[0].voxels, volumes.slice_axis)
    return _ShownCase(image, maps, cut, slices[::-1])


def _shown_runs(comparison: Comparison) -> dict[str, RunResult]:
    """A run of each method: that of the shown seed, else of the first seed."""
    runs = {method.name: method.run_of(comparison.shown_seed) for method in comparison.methods}
    return {name: run for name, run in runs.items() if run is not None}


def _one_seed(comparison: Comparison) -> list[RunResult]:
    """One training of each translator that has written images: that of the shown seed, else of the first."""
    chosen: dict[str, RunResult] = {}
    for translator in sorted(comparison.translators, key=lambda translator: translator.seed != comparison.shown_seed):
        if (translator.folder / "translated" / "datalist.json").is_file():
            chosen.setdefault(translator.name, translator)
    return list(chosen.values())


def _translated_files(translator: RunResult) -> dict[str, Path]:
    """The images of a translator by case, searched beside their datalist, so that the folder can be moved."""
    folder = translator.folder / "translated"
    content = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    entries = [entry for section in ("training", "validation") for entry in content.get(section, [])]
    files = [folder / Path(entry["image"]).name for entry in entries]
    return {case_name(str(file)).rpartition("_")[0]: file for file in files if file.is_file()}


def _target_panel(volumes: ComparisonVolumes, target: Volume, height: float) -> Panel:
    """The target's slice at the same relative height."""
    slices = target.voxels.shape[volumes.slice_axis]
    index = min(int(height * slices), slices - 1)
    return Panel(image=volumes.field_of_view(target).of(target, index), limits=NORMALISED)


def _nothing(path: Path, found: str) -> InputError:
    return InputError(file=path.name, found=found, expected="finished runs", remedy="run more of the comparison")
