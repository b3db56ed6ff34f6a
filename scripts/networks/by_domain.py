"""Splits a mixed batch by domain, for networks that treat one domain at a time."""

from collections.abc import Sequence

import torch
from scripts.core.domains import SOURCE
from torch import Tensor, nn

__all__ = ["ByDomain", "join_domains", "split_by_domain"]


class ByDomain(nn.Module):
    """One module per domain, called with ``x`` and ``condition``; each sample goes through that of its domain."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.of_domain = nn.ModuleList(modules)

    def forward(self, x: Tensor, condition: Tensor, domain: Tensor) -> Tensor:
        """(B, ...) in, (B, ...) out, in the same order; ``condition``, such as a style, has first axis B."""
        parts, order = split_by_domain(x, domain)
        conditions, _ = split_by_domain(condition, domain)
        outputs: list[Tensor] = []
        for index, module in enumerate(self.of_domain):
            if parts[index].shape[0] > 0:
                outputs.append(module(parts[index], conditions[index]))
        return join_domains(outputs, order)


def split_by_domain(x: Tensor, domain: Tensor, source: int = SOURCE) -> tuple[list[Tensor], Tensor]:
    """The samples of each domain, either possibly none, and the int64 indices (B,) that :func:`join_domains` undoes.

    On a GPU the host waits here, to learn how many samples each domain has. ``source`` is a default, because
    TorchScript compiles no globals.
    """
    order = torch.argsort(domain, stable=True)
    num_source = int((domain == source).sum())
    return list(x[order].split([num_source, domain.shape[0] - num_source])), order


def join_domains(parts: list[Tensor], order: Tensor) -> Tensor:
    """Put the samples of both domains, (B, ...) in all, back in the order they had before the split."""
    return torch.cat(parts)[order.argsort()]
