"""Runs all sections of the benchmark and prints them as a table, optionally as JSON."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from scripts.core.files import write_json
from scripts.core.run_folder import provenance
from scripts.lab.bench.dual_alignment import measure_dual_alignment
from scripts.lab.bench.file_to_labels import measure_file_to_labels
from scripts.lab.bench.inference import measure_inference
from scripts.lab.bench.style_transfer import measure_style_transfer
from scripts.lab.bench.surface_distance import measure_surface_distance
from scripts.lab.bench.timing import Measurement, Ratio

__all__ = ["run_bench"]

ROUNDS = 3


def run_bench(out: Path | None = None, *, quick: bool = False) -> dict[str, Any]:
    """Measure the speed relative to plain implementations, print the ratios with their targets, and write them as JSON.

    Times are medians of wall-clock seconds of one process; the variants of a section are timed in turn.

    Returns:
        The content of the JSON file: ``provenance``, ``threads``, ``quick`` and ``sections`` by name, each with
        ``size``, ``seconds``, ``peak_memory_mib``, ``ratios`` and ``notes``.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{'':50} {'ratio':>8} {'target':>8}")
    sections: dict[str, dict[str, Any]] = {}
    for name, measure in (
        ("style_transfer", partial(measure_style_transfer, device)),
        ("dual_alignment", partial(measure_dual_alignment, device)),
        ("inference", partial(measure_inference, device)),
        ("file_to_labels", measure_file_to_labels),
        ("surface_distance", measure_surface_distance),
    ):
        measurement = measure(quick=quick, rounds=ROUNDS)
        _print(measurement)
        sections[name] = measurement.as_dict()
    result = {"provenance": provenance(), "threads": torch.get_num_threads(), "quick": quick, "sections": sections}
    if out is not None:
        write_json(out, result)
    return result


def _print(measurement: Measurement) -> None:
    for ratio in measurement.ratios:
        value = f"{ratio.value:.1%}" if ratio.is_share else f"{ratio.value:.2f} x"
        verdict = {True: "reached", False: "not reached", None: ""}[ratio.reached]
        print(f"{ratio.name:50} {value:>8} {_target(ratio):>8} {verdict}")
    timings = measurement.timings
    for name, seconds in timings.seconds.items():
        print(f"    {name:30} {seconds:9.4f} s {timings.peak_memory_mib[name]:9.0f} MiB at most")
    print("\n".join(f"    {line}" for line in (measurement.size, *measurement.notes)), flush=True)


def _target(ratio: Ratio) -> str:
    if ratio.target is None:
        return ""
    return f"< {ratio.target:.0%}" if ratio.is_share else f"{ratio.target:g} x"
