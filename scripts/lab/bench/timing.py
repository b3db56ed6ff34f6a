"""Timing of variants of one job in turn, and the results of a benchmark section."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["Measurement", "Ratio", "Timings", "channels_last", "round_robin"]

Network = TypeVar("Network", bound=nn.Module)
Variants = Mapping[str, Callable[[], object]]

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # resets the peak of the resident set


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One line of the benchmark's table."""

    name: str
    value: float  # speed-up, or share of the time
    target: float | None = None  # to reach; None for information only
    is_share: bool = False  # should be below its target

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without a target."""
        if self.target is None:
            return None
        return self.value < self.target if self.is_share else self.value >= self.target


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock seconds and peak memory in MiB by variant."""

    seconds: dict[str, float]
    peak_memory_mib: dict[str, float]

    def ratio(self, slow: str, fast: str) -> float:
        """Time of ``slow`` divided by time of ``fast``."""
        return self.seconds[slow] / self.seconds[fast]

    def share(self, part: str, rest: str) -> float:
        """The share of ``part`` in an iteration that consists of both."""
        return self.seconds[part] / (self.seconds[part] + self.seconds[rest])


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One section of the benchmark; notes are other findings, such as why a variant is missing."""

    size: str
    timings: Timings
    ratios: list[Ratio]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The section for the JSON file."""
        ratios = [asdict(ratio) | {"reached": ratio.reached} for ratio in self.ratios]
        return {"size": self.size, **asdict(self.timings), "ratios": ratios, "notes": list(self.notes)}


def round_robin(variants: Variants, *, rounds: int, device: torch.device) -> Timings:
    """Time each variant once per round, so that other load on the machine affects all variants alike.

    Peak memory, of the device or of the process on a CPU, is measured in the warm-up round.
    """
    memory: dict[str, float] = {}
    for name, call in variants.items():
        _forget_peak_memory(device)
        call()
        memory[name] = _peak_memory_mib(device)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            start = _now(device)
            call()
            seconds[name].append(_now(device) - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return Timings(seconds=medians, peak_memory_mib=memory)


def channels_last(network: Network) -> Network:
    """The network with its weights in the memory layout of training and inference."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access(_CLEAR_REFS, os.W_OK):  # on other systems the peak cannot be reset
        _CLEAR_REFS.write_text(_RESET_PEAK)


def _peak_memory_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
