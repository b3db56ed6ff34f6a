"""Process groups: joining, leaving and collectives.

``torchrun`` starts the processes and sets their ranks in the environment. In a single process every collective returns
its argument.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from scripts.core.errors import SettingError

__all__ = [
    "all_gather",
    "all_gather_batch",
    "broadcast_from_rank0",
    "check_ranks_agree",
    "end_with_parent",
    "join",
    "leave",
    "local_shard",
    "mean_over_processes",
    "num_processes",
    "rank",
    "run_and_wait_ns",
    "sum_over_processes",
]

T = TypeVar("T")

# Number of the request to Linux for a signal at the death of the parent process.
PR_SET_PDEATHSIG = 1


def join() -> None:
    """Initialise the process group that the launcher prepared, and select the GPU of this process's local rank."""
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    _check_restarts()
    end_with_parent()
    if torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()  # NCCL for tensors on GPUs, gloo for those on the host
    idist.sync()  # ignite creates a group of its own, a collective call


def end_with_parent() -> None:
    """Let the system end this process when the one that started it is killed; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def check_ranks_agree(what: str, own: Mapping[str, Any]) -> None:
    """Compare values by name with those of rank 0; refuse the first that differs, on all processes."""
    every = all_gather({name: str(value) for name, value in own.items()})
    for number, other in enumerate(every[1:], start=1):
        for name in sorted(every[0].keys() | other.keys()):
            if every[0].get(name) != other.get(name):
                found, expected = f"{name}: {other.get(name)}", f"{every[0].get(name)}, as on process 0"
                remedy = "start every process with the same settings, on the same data"
                raise SettingError(setting=f"{what} of process {number}", found=found, expected=expected, remedy=remedy)


def _check_restarts() -> None:
    """Refuse a launcher whose restarted workers would read the addresses of dead ones (PyTorch issue 135712)."""
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        found, expected = "a launcher that keeps the addresses of dead workers", "new addresses at every restart"
        remedy = "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment"
        raise SettingError(setting="torchrun --max-restarts", found=found, expected=expected, remedy=remedy)


def _take_gpu(place: int) -> None:
    if place >= torch.cuda.device_count():
        found = f"more processes than this machine's {torch.cuda.device_count()} GPU(s)"
        remedy = "start fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES= to share the CPU"
        raise SettingError(setting="--nproc_per_node", found=found, expected="one process per GPU", remedy=remedy)
    torch.cuda.set_device(place)


def leave() -> None:
    """Leave the process group after success; after a failure the launcher ends the group."""
    if num_processes() > 1:
        idist.finalize()


def num_processes() -> int:
    """World size; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Global rank; 0 without a process group. Only rank 0 writes shared files."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum ``values`` over all processes, differentiably."""
    return values if num_processes() == 1 else _Sum.apply(values)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Average ``values`` over all processes, differentiably."""
    return sum_over_processes(values) / num_processes()


def all_gather_batch(batch: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Concatenate batches (groups x B, ...) in rank order to (groups x N x B, ...), without gradients."""
    if num_processes() == 1:
        return batch
    parts = [torch.empty_like(batch, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    dist.all_gather(parts, batch.contiguous())
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def local_shard(batch: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """This process's samples of a batch that :func:`all_gather_batch` returned."""
    if num_processes() == 1:
        return batch
    return batch.unflatten(0, (groups, -1)).chunk(num_processes(), 1)[rank()].flatten(0, 1)


def all_gather(item: T) -> list[T]:
    """Gather one object from every process, in rank order; this synchronises the processes."""
    items: list[Any] = [item] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(items, item)
    return items


def broadcast_from_rank0(items: Sequence[T]) -> list[T]:
    """Replace ``items`` by those of rank 0 on every process, so that all processes work on the same files."""
    message = [list(items)]
    if num_processes() > 1:
        dist.broadcast_object_list(message, src=0)
    return message[0]


class _Sum(torch.autograd.Function):
    """All-reduce sum whose backward pass sums the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


def run_and_wait_ns() -> tuple[int, int]:
    """Time that this thread has run on a core, and waited for one; zeros where the system (not Linux) does not tell."""
    try:
        run, wait, _ = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0, 0
    return int(run), int(wait)
