"""Several processes at one piece of work: how they find each other, and what they tell each other.

``torchrun`` starts them and says in the environment who they are; a process alone needs none of this, and every
function here then hands its argument through.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist

from scripts.core.errors import InputError

__all__ = [
    "available_cores",
    "gathered",
    "gathered_batch",
    "join",
    "leave",
    "mean_over_processes",
    "num_processes",
    "own_part",
    "rank",
    "sum_over_processes",
    "told_by_first",
]

T = TypeVar("T")


def join() -> None:
    """Meet the other processes that the launcher started, and take the GPU of this one's place on its machine.

    Raises:
        InputError: more processes than GPUs on a machine, or a launcher whose second workers would look for the first.
    """
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    _check_restarts()
    if torch.cuda.is_available():
        _take_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()  # NCCL for tensors on GPUs, gloo for those on the host
    idist.sync()  # ignite makes a group of its own, which all have to do together


def _check_restarts() -> None:
    """Refuse at once what would fail at the first restart.

    By default, PyTorch's launcher keeps one store of addresses; restarted workers read those of the dead in it
    (PyTorch issue 135712).
    """
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shares_store and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0:
        raise InputError(
            file="torchrun --max-restarts",
            found="a launcher that keeps the addresses of workers that died",
            expected="new addresses at every restart",
            remedy="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment",
        )


def _take_gpu(place: int) -> None:
    if place >= torch.cuda.device_count():
        raise InputError(
            file="--nproc_per_node",
            found=f"more processes than this machine's {torch.cuda.device_count()} GPU(s)",
            expected="one process per GPU",
            remedy="start fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES= to share the CPU",
        )
    torch.cuda.set_device(place)


def leave() -> None:
    """Part from the other processes, after work that ended well; a failed process leaves that to its launcher."""
    if num_processes() > 1:
        idist.finalize()


def num_processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is; the first, 0, alone writes what is one for all."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sum of every process's ``values``; gradients reach them all."""
    return values if num_processes() == 1 else _Sum.apply(values)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of every process's ``values``; gradients reach them all."""
    return sum_over_processes(values) / num_processes()


def gathered_batch(batch: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """The batches of all processes as one process would hold them, without gradients.

    Args:
        batch: (groups x B, ...), the same shape on every process: ``groups`` runs of B samples each.
        groups: a batch of both domains has two; each stays together.

    Returns:
        (groups x N x B, ...) for N processes, in their order within each group.
    """
    if num_processes() == 1:
        return batch
    parts = [torch.empty_like(batch, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    dist.all_gather(parts, batch.contiguous())
    return torch.cat([part.unflatten(0, (groups, -1)) for part in parts], 1).flatten(0, 1)


def own_part(batch: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """This process's samples of what :func:`gathered_batch` gave."""
    if num_processes() == 1:
        return batch
    return batch.unflatten(0, (groups, -1)).chunk(num_processes(), 1)[rank()].flatten(0, 1)


def gathered(item: T) -> list[T]:
    """Every process's item, in their order; all wait here for the last one."""
    items: list[Any] = [item] * num_processes()
    if num_processes() > 1:
        dist.all_gather_object(items, item)
    return items


def told_by_first(items: Sequence[T]) -> list[T]:
    """The first process's items, on every process: folders are looked at once, so that all speak of the same files."""
    told = list(items)
    if num_processes() > 1:
        message = [told]
        dist.broadcast_object_list(message, src=0)
        told = message[0]
    return told


class _Sum(torch.autograd.Function):
    """A sum over processes; each value's gradient is what all processes' losses together say of it."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(ctx, gradient)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
