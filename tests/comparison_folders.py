"""A tiny comparison: its request, and its folder with known results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import write_volume
from scripts.core.files import write_json
from scripts.evaluation.metrics import StructureResult
from scripts.evaluation.summaries import write_evaluation
from scripts.lab.experiments.plan import ComparisonRequest

NAMES = ["myocardium", "aorta", "atrium"]
CASES = [f"ct_{k}" for k in range(1, 6)]
VALUES = [205, 820, 420]

SHAPE = (16, 14, 6)
AFFINE = np.array([[-2.0, 0, 0, 30], [0, -2.0, 0, 40], [0, 0, 4.0, -20], [0, 0, 0, 1]])
"""Stored as LPS."""

SCALE = {
    "_target_": "ScaleIntensityRanged",
    "keys": "image",
    "a_min": 0.0,
    "a_max": 1000.0,
    "b_min": -1.0,
    "b_max": 1.0,
}

SETTINGS = {
    "orientation": "RAS",
    "slice_axis": 2,
    "slice_size": [16, 16],
    "spacing_mm": [2.0, 2.0, -1.0],
    "network_def": {"output_stride": 1},
    "label_values": VALUES,
    "background_values": [600],
    "source_intensity": SCALE,
    "target_intensity": SCALE,
}

DiceByCase = Mapping[str, Sequence[float]]


def request_for(folder: Path, methods: Sequence[str], seeds: Sequence[int]) -> ComparisonRequest:
    """A request for ``<folder>/comparison`` on data of one empty case, so that nothing is generated."""
    data = folder / "data"
    write_json(data / "ct.json", {"validation": [{"image": "a.nii.gz", "label": "b.nii.gz"}]})
    for name in ("a", "b"):
        (data / f"{name}.nii.gz").touch()
    return ComparisonRequest("phantom_mr2ct", methods, seeds, folder / "comparison", dataset_dir=data)


def everywhere(*dice: float) -> dict[str, list[float]]:
    """The same Dice of each structure in every case."""
    return {case: list(dice) for case in CASES}


def known_results() -> dict[str, dict[int, DiceByCase]]:
    """Dice in [0, 1] by method, seed, case and structure; the tests' numbers follow from these."""
    glua = everywhere(0.5, 0.7, 0.6)  # mean 60
    better = {case: [d + 0.01 * k for d in glua[case]] for k, case in enumerate(CASES, start=1)}
    return {
        "none": {0: everywhere(0.2, 0.4, 0.3)},  # mean 30
        "better": {0: better},  # 1 to 5 points above glua: 3 in the mean
        "glua": {0: glua, 1: everywhere(0.7, 0.7, 0.7)},  # means 60 and 70
        "supervised": {0: everywhere(0.8, 0.8, 0.8)},  # mean 80
    }


def write_comparison(
    folder: Path,
    results: Mapping[str, Mapping[int, DiceByCase]] | None = None,
    *,
    failed: Mapping[tuple[str, int], str] | None = None,
    names: Sequence[str] = NAMES,
) -> Path:
    """Write ``comparison.json`` and the record and evaluation of each run.

    Args:
        folder: the comparison's.
        results: by method, seed and case, the Dice of each structure; ASD is 10 mm (5 voxels) times (1 - Dice).
        failed: errors of runs that failed.
        names: of the structures.
    """
    results, failed = known_results() if results is None else results, failed or {}
    runs = [(method, seed, None) for method, seeds in results.items() for seed in seeds]
    runs += [(method, seed, error) for (method, seed), error in failed.items()]
    for method, seed, error in runs:
        run = folder / "methods" / f"{method}_seed{seed}"
        (run / "logs").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
        (run / "logs" / "losses.csv").write_text("iteration,loss\n" + "".join(f"{i},{9 / i}\n" for i in range(1, 30)))
        write_json(run / "run.json", record(method, seed, error))
        if error is None:
            cases = {case: evaluated(dice, names) for case, dice in results[method][seed].items()}
            for evaluation in ("eval", "eval_largest_component"):
                write_evaluation(run / evaluation, cases, names, {"seed": seed})
    translator = record("style", 0, None) | {"kind": "translator", "steps": {"translation": step("translate")}}
    write_json(folder / "translators" / "style_seed0" / "run.json", translator)
    content = {
        "task": "phantom_mr2ct",
        "size": "small",
        "dataset_dir": str(folder / "data"),
        "settings": {},
        "source_domain": "mr",
        "target_domain": "ct",
        "label_names": list(names),
        "methods": list(dict.fromkeys(method for method, _, _ in runs)),
        "seeds": [0],
        "provenance": {"commit": "c0ffee", "device": "a CPU", "packages": {"monai": "1.6.1"}},
    }
    write_json(folder / "comparison.json", content)
    return folder


def record(method: str, seed: int, error: str | None) -> dict[str, Any]:
    """The content of ``run.json``; training took 60 seconds."""
    training = step(f"python -m monai.bundle run training --seed {seed} # {method}")
    return {
        "kind": "method",
        "name": method,
        "seed": seed,
        "translator": "style" if method == "glua" else "none",
        "steps": {
            "training": training | {"seconds": None if error else 60.0},
            "evaluation": step("python -m monai.bundle run evaluating"),
        },
        "failure": {"step": "training", "error": error, "signal": None} if error else None,
    }


def step(command: str) -> dict[str, Any]:
    return {"command": command, "commits": ["a" * 40], "uncommitted_changes": False, "seconds": 1.0}


def evaluated(dice: Sequence[float], names: Sequence[str] = NAMES) -> list[StructureResult]:
    """Results of a case; a structure of Dice 0 is missing in the prediction."""
    return [
        StructureResult(
            name=name,
            status="ok" if d else "missing_in_prediction",
            dice=d,
            asd_mm=10 * (1 - d),
            asd_voxel=5 * (1 - d),
            hd95_mm=20.0,
            volume_difference_percent=0.0,
            volume_prediction_ml=1.0,
            volume_truth_ml=1.0,
        )
        for name, d in zip(names, dice, strict=True)
    ]


def add_volumes(folder: Path) -> None:
    """Images, labels, predictions, masks and translations of two held-out and two source cases.

    The unadapted model calls the first structure's upper half background, all others agree with the truth; the mask is
    0.9 where the unadapted model errs and 0.1 elsewhere.
    """
    truth = np.zeros(SHAPE, np.int16)
    truth[2:7, 3:8, 1:5], truth[8:13, 3:8, 1:5], truth[8:13, 9:12, 1:5] = 1, 2, 3
    wrong = truth.copy()
    wrong[2:7, 3:8, 3:5] = 0
    file_values = np.array([0, *VALUES], np.int16)[truth]
    image = (200 + 150 * truth + np.random.default_rng(0).normal(0, 20, SHAPE)).astype(np.float32)
    for domain, cases in (("mr", ["mr_1", "mr_2"]), ("ct", CASES[:2])):
        (folder / "data").mkdir(exist_ok=True)
        entries = []
        for case in cases:
            write_volume(folder / "data" / f"{case}.nii.gz", image, AFFINE)
            write_volume(folder / "data" / f"{case}_label.nii.gz", file_values, AFFINE)
            entries.append({"image": f"{case}.nii.gz", "label": f"{case}_label.nii.gz"})
        write_list(folder / "data" / f"{domain}.json", training=entries, validation=entries if domain == "ct" else [])
    for run in (folder / "methods").iterdir():
        for case in CASES[:2]:
            predicted = run / "eval" / "predictions" / f"{case}_seg.nii.gz"
            predicted.parent.mkdir(parents=True, exist_ok=True)
            write_volume(predicted, wrong if run.name.startswith("none") else truth, AFFINE)
            if run.name.startswith("glua"):
                (run / "inference").mkdir(exist_ok=True)
                mask = np.where(wrong != truth, 0.9, 0.1).astype(np.float32)
                write_volume(run / "inference" / f"{case}_mask.nii.gz", mask, AFFINE)
    translated = folder / "translators" / "style_seed0" / "translated"
    translated.mkdir()
    for case in ("mr_1", "mr_2"):
        write_volume(translated / f"{case}_translated.nii.gz", (1000 - image).astype(np.int16), AFFINE)
    entries = [{"image": f"{case}_translated.nii.gz", "label": f"{case}_label.nii.gz"} for case in ("mr_1", "mr_2")]
    write_list(translated / "datalist.json", training=entries)


def write_list(path: Path, **sections: list[dict[str, str]]) -> None:
    path.write_text(json.dumps({"name": path.stem, **sections}))
