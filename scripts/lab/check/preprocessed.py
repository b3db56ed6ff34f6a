"""What the networks will see of some volumes: the task's own preprocessing, and what it loses, pads or clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from scripts.core.errors import InputError
from scripts.core.task_files import read_task
from scripts.data.slices import SliceSet
from scripts.data.volumes import ENDS, odd_intensities
from scripts.lab.check.cases import Finding, MeasuredCase
from scripts.lab.check.limits import LIMITS

__all__ = ["find_lost_structures", "find_preprocessing_faults", "find_unused_area"]

TRAINING = Path(__file__).parents[3] / "configs" / "synthesis" / "train.yaml"

# Keys of a task without which nothing can be preprocessed.
NEEDED = {"source_domain", "target_domain", "label_names", "label_values", "orientation", "spacing_mm", "slice_axis"}
NEEDED |= {"slice_size", "source_intensity", "target_intensity"}


def find_preprocessing_faults(
    task: str, cases: Sequence[MeasuredCase], findings: Sequence[Finding] = ()
) -> list[Finding]:
    """Preprocess some training cases without errors as the task says, and judge the slices that result."""
    settings = read_task(Path(task))
    if not settings.keys() >= NEEDED:
        return []
    wrong = {(one.domain, name) for one in findings if one.severity == "error" for name in one.cases}
    sound = [case for case in cases if case.shape and (case.domain, case.name) not in wrong]
    found = []
    for side, transform in _transforms(task).items():
        domain, is_source = str(settings[f"{side}_domain"]), side == "source"
        of_domain = [case for case in sound if case.domain == domain and (case.label_shape or not is_source)]
        chosen = _spread([case for case in of_domain if case.files.section == "training"] or of_domain)
        items = [
            {"image": case.files.image} | ({"label": str(case.files.label)} if is_source else {}) for case in chosen
        ]
        if items:
            found += _judge(items, transform, settings, side)
    return found


def find_lost_structures(counts: Sequence[Mapping[str, torch.Tensor]], names: Sequence[str], side: str) -> list[str]:
    """Structures of which a notable part lies outside the section; ``counts`` are :class:`SliceSet`'s, by case."""
    steps = list(counts[0])
    cut = steps.index("CropForegroundd") if "CropForegroundd" in steps else 0
    if not cut:
        return []
    before, after = (torch.stack([case[steps[index]] for case in counts]).sum(0) for index in (cut - 1, cut))
    lost = 1 - after / before.clamp_min(1)
    return [
        f"{100 * float(lost[number]):.0f} % of {name} lies outside {side}_section"
        for number, name in enumerate(names, start=1)
        if before[number] and lost[number] > LIMITS.lost_share
    ]


def find_unused_area(slices: SliceSet) -> list[str]:
    """Windows that are mostly padding, and slices that are mostly blank."""
    height, width = slices.window_size
    sizes = slices.sizes.float()  # (N, 2)
    filled = float((sizes[:, 0].clamp_max(height) * sizes[:, 1].clamp_max(width)).mean()) / (height * width)
    found = []
    if 1 - filled > LIMITS.padded_share:
        rows, columns = sizes.median(0).values.int().tolist()
        shown = f"slices of {rows} x {columns} pixels in windows of {height} x {width}"
        found.append(f"{100 * (1 - filled):.0f} % of the windows is padding: {shown}")
    shown_pixels = int((slices.images > -ENDS).sum())
    blank = 1 - shown_pixels / float(sizes.prod(1).sum())
    if blank > LIMITS.blank_share:
        found.append(f"{100 * blank:.0f} % of the slices' area is blank, at the lowest intensity")
    return found


def _judge(items: Sequence[dict[str, str]], transform: Any, settings: Mapping[str, Any], side: str) -> list[Finding]:
    domain, names = str(settings[f"{side}_domain"]), settings["label_names"] if side == "source" else []
    try:
        slices = SliceSet(items, transform, window_size=settings["slice_size"], slice_axis=int(settings["slice_axis"]))
    except InputError as error:
        found = f"{error.found} ({error.file})"
        return [Finding("error", "preprocessing", domain, (), found, error.expected, error.remedy)]
    seen = f"in {len(slices)} slices of {len(items)} volumes"
    lost = find_lost_structures(slices.counts, names, side) if names else []
    judged = (
        ("structure outside the section", lost, "whole structures", f"correct {side}_section in the task file"),
        (
            "unused area",
            find_unused_area(slices),
            "slices that the body fills",
            f"correct slice_size, spacing_mm or {side}_intensity in the task file",
        ),
        (
            "intensity range",
            odd_intensities(slices, names),
            "structures that differ in intensity, between -1 and 1",
            f"correct the window and the output range of {side}_intensity in the task file",
        ),
    )
    return [
        Finding("warning", kind, domain, (), f"{sentence}, {seen}", expected, remedy)
        for kind, sentences, expected, remedy in judged
        for sentence in sentences
    ]


def _transforms(task: str) -> dict[str, Any]:
    """The preprocessing of both domains, as stage 1 sees them."""
    parser = ConfigParser()
    parser.read_config([str(TRAINING), task])
    parts = {"source": "train#preprocessing", "target": "train#target_preprocessing"}
    return {side: parser.get_parsed_content(name) for side, name in parts.items()}


def _spread(cases: Sequence[MeasuredCase]) -> list[MeasuredCase]:
    """At most as many cases as are preprocessed of a domain, from all of its list."""
    count = min(len(cases), LIMITS.preprocessed_cases)
    return [cases[index * len(cases) // count] for index in range(count)]
