"""The comparison's pictures: translations of each translator, and segmentations of each method, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from scripts.core.errors import InputError
from scripts.data.case_names import case_name
from scripts.data.datalists import read_datalist
from scripts.evaluation.figures import informative_slices
from scripts.evaluation.montage import NORMALISED, Panel, slice_montage
from scripts.lab.experiments.case_volumes import ComparisonVolumes, Cut, Volume
from scripts.lab.experiments.results import (
    LOWER,
    REFERENCE,
    UPPER,
    Comparison,
    MethodResult,
    RunResult,
    TranslatorResult,
)

__all__ = ["segmentation_picture", "shown_cases", "shown_runs", "translation_picture"]

MARGIN_MM = 25.0
"""Shown round the structures."""

MOST_SOURCE_CASES = 4


def translation_picture(comparison: Comparison, path: Path) -> str:
    """The same source slices in each translator's rendering (Fig. 7 of the paper), beside a slice of the target.

    Args:
        comparison: what was read.
        path: PNG file to write.

    Returns:
        A caption.

    Raises:
        InputError: nothing is translated, or a volume cannot be read.
    """
    volumes = ComparisonVolumes(comparison)
    folders = {translator.name: _translated_files(translator) for translator in _one_seed(comparison)}
    folders = {name: files for name, files in folders.items() if files}
    cases = {
        case: item for case, item in volumes.labelled().items() if all(_of_case(f, case) for f in folders.values())
    }
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
        images += [volumes.image(_of_case(files, case), "labelled_intensity") for files in folders.values()]  # type: ignore[arg-type]
        labels = cut.of(truth, index, is_label=True)
        row = [Panel(image=cut.of(image, index), labels=labels, limits=NORMALISED) for image in images]
        target = volumes.image(targets[number % len(targets)]["image"], "target_intensity")
        rows.append([*row, _target_panel(volumes, target, index / len(areas))])
    content = comparison.content
    slice_montage(
        rows,
        path,
        column_titles=(f"source: {content['source_domain']}", *folders, f"target: {content['target_domain']}"),
        row_titles=picked,
        label_names=comparison.label_names,
        title=f"Translation, {comparison.direction}",
    )
    return (
        f"The same labelled {content['source_domain']} slices as they are and as each translator renders them, and a "
        f"slice of another subject's {content['target_domain']} for the look. The outlines are the source's labels: "
        "anatomy has to stay where it was."
    )


def segmentation_picture(comparison: Comparison, path: Path) -> str:
    """Slices of the reference's median and worst case: image, truth, and each method (Fig. 4 and 5 of the paper).

    Args:
        comparison: what was read.
        path: PNG file to write.

    Returns:
        A caption.

    Raises:
        InputError: there is no result, or a volume cannot be read.
    """
    volumes = ComparisonVolumes(comparison)
    chosen, cases = shown_cases(comparison)
    runs = {name: run for name, run in shown_runs(comparison).items() if all(_has_prediction(run, c) for c in cases)}
    items = volumes.held_out()
    rows, row_titles = [], []
    for case, word in cases.items():
        image, truth = volumes.image(items[case]["image"], "target_intensity"), volumes.truth(items[case]["label"])
        label_maps = [truth, *(volumes.prediction(run, case) for run in runs.values())]
        cut = Cut.around(truth, volumes.slice_axis, MARGIN_MM)
        for index in reversed(informative_slices(truth.voxels, truth.voxels, volumes.slice_axis)):
            plain = Panel(image=cut.of(image, index), limits=NORMALISED, style="area")
            rows.append([plain, *(replace(plain, labels=cut.of(m, index, is_label=True)) for m in label_maps)])
            row_titles.append(f"{word} case, slice {index}")
    seed = comparison.shown_seed
    slice_montage(
        rows,
        path,
        column_titles=("image", "truth", *(_column(name, run, seed) for name, run in runs.items())),
        row_titles=row_titles,
        label_names=comparison.label_names,
        title=f"Segmentation, {comparison.direction}, seed {seed}",
    )
    said = " and ".join(f"the {word} ({case})" for case, word in cases.items())
    return f"Held-out cases of the target, by the mean Dice of {chosen.name}: {said}. Seed {seed}."


def shown_cases(comparison: Comparison) -> tuple[MethodResult, dict[str, str]]:
    """The method that chooses the cases to look at, and its median and worst case with these words.

    Of two medians it is the better. Without the reference the first method that is no yardstick chooses.

    Raises:
        InputError: no run has results.
    """
    order = sorted(comparison.methods, key=lambda m: (m.name != REFERENCE, m.name in (LOWER, UPPER)))
    method = next((method for method in order if method.done), None)
    run = method.run_of(comparison.shown_seed) if method else None
    if method is None or run is None or not run.dice_of_case:
        raise _nothing(Path("pictures"), "no run with results")
    ranked = sorted((dice, case) for case, dice in run.dice_of_case.items())
    median, worst = ranked[len(ranked) // 2][1], ranked[0][1]
    return method, {median: "median", worst: "worst"} if median != worst else {median: "only"}


def shown_runs(comparison: Comparison) -> dict[str, RunResult]:
    """A run of each method: that of the shown seed, or of the first there is."""
    runs = {method.name: method.run_of(comparison.shown_seed) for method in comparison.methods}
    return {name: run for name, run in runs.items() if run is not None}


def _one_seed(comparison: Comparison) -> list[TranslatorResult]:
    """One training of each translator that has left images: the shown seed's, or the first."""
    there = [t for t in comparison.translators if (t.folder / "translated" / "datalist.json").is_file()]
    chosen: dict[str, TranslatorResult] = {}
    for translator in sorted(there, key=lambda translator: translator.seed != comparison.shown_seed):
        chosen.setdefault(translator.name, translator)
    return list(chosen.values())


def _translated_files(translator: TranslatorResult) -> list[Path]:
    """The images a translator wrote; by their names alone, so that a comparison's folder can be moved."""
    folder = translator.folder / "translated"
    content = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))
    entries = [entry for section in ("training", "validation") for entry in content.get(section, [])]
    files = [folder / Path(entry["image"]).name for entry in entries]
    return [file for file in files if file.is_file()]


def _of_case(files: Sequence[Path], case: str) -> Path | None:
    """The image ``<case>_<postfix>`` among files."""
    return next((file for file in files if case_name(str(file)).rpartition("_")[0] == case), None)


def _target_panel(volumes: ComparisonVolumes, target: Volume, height: float) -> Panel:
    """The target's slice at the same share of its height."""
    slices = target.voxels.shape[volumes.slice_axis]
    index = min(int(height * slices), slices - 1)
    return Panel(image=volumes.field_of_view(target).of(target, index), limits=NORMALISED)


def _has_prediction(run: RunResult, case: str) -> bool:
    return (run.folder / "eval" / "predictions" / f"{case}_seg.nii.gz").is_file()


def _column(name: str, run: RunResult, seed: int | None) -> str:
    return name if run.seed == seed else f"{name} (seed {run.seed})"


def _nothing(path: Path, found: str) -> InputError:
    return InputError(file=path.name, found=found, expected="some to draw", remedy="run more of the comparison")
