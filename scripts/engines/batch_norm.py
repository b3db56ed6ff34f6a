"""Batch normalisation with the statistics of all processes, equal to a single process with the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from scripts.core.processes import mean_over_processes, num_processes
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["BatchNormOverProcesses", "running_statistics", "synchronised", "unsynchronised"]


class BatchNormOverProcesses(nn.SyncBatchNorm):
    """PyTorch's ``SyncBatchNorm``, on CPUs too.

    PyTorch's works on GPUs only; on a CPU the means of the processes are averaged, then the mean squared distances from
    that mean. Every process must have the same number of values per channel.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W)."""
        if x.is_cuda or not self.training or num_processes() == 1:
            return super().forward(x)
        values, shape = x.float(), (1, -1, 1, 1)
        mean = mean_over_processes(values.mean((0, 2, 3)))
        variance = mean_over_processes((values - mean.view(shape)).square().mean((0, 2, 3)))
        self._keep(mean.detach(), variance.detach(), count=num_processes() * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(shape), values - mean.view(shape), scale.view(shape)).to(x.dtype)

    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        """Update the running statistics as ``F.batch_norm`` does."""
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


def synchronised(network: nn.Module) -> nn.Module:
    """Replace each batch norm of a network by :class:`BatchNormOverProcesses` with the same state.

    Args:
        network: changed in place; its state dict stays the same.
    """
    return _exchange(network, nn.BatchNorm2d, BatchNormOverProcesses)


def unsynchronised(network: nn.Module) -> nn.Module:
    """Undo :func:`synchronised`, for work on a single process."""
    return _exchange(network, BatchNormOverProcesses, nn.BatchNorm2d)


@contextmanager
def running_statistics(module: nn.Module, *, update: bool) -> Iterator[None]:
    """Whether batch-norm layers update their running statistics in this pass; they use batch statistics either way."""
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    if not update:
        for layer in layers:
            layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _exchange(network: nn.Module, old: type[_BatchNorm], new: type[_BatchNorm]) -> nn.Module:
    for name, layer in [(name, layer) for name, layer in network.named_modules() if isinstance(layer, old)]:
        substitute = new(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        substitute.load_state_dict(layer.state_dict())
        network.set_submodule(name, substitute.to(layer.weight.device))
    return network
