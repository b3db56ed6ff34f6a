"""Splits a mixed batch by domain, for networks that treat one domain at a time."""

from collections.abc import Sequence

import torch
from scripts.core.domains import SOURCE
from torch import Tensor, nn

__all__ = ["ByDomain", "join_domains", "split_by_domain"]


class ByDomain(nn.Module):
    """One module per domain; each sample goes through that of its domain.

    Args:
        modules: of the source and of the target, each called with a sample's ``x`` and ``condition``.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.of_domain = nn.ModuleList(modules)

    def forward(self, x: Tensor, condition: Tensor, domain: Tensor) -> Tensor:
        """(B, ...) in, (B, ...) out, in the same order.

        Args:
            x: (B, ...).
            condition: such as a style, (B, ...).
            domain: int64 domain labels, (B,).
        """
        parts, order = split_by_domain(x, domain)
        conditions, _ = split_by_domain(condition, domain)
        outputs: list[Tensor] = []
        for index, module in enumerate(self.of_domain):
            if parts[index].shape[0] > 0:
                outputs.append(module(parts[index], conditions[index]))
        return join_domains(outputs, order)


def split_by_domain(x: Tensor, domain: Tensor, source: int = SOURCE) -> tuple[list[Tensor], Tensor]:
    """The samples of each domain, and the order that :func:`join_domains` undoes.

    On a GPU the host waits here, to learn how many samples each domain has.

    Args:
        x: (B, ...).
        domain: int64 domain labels, (B,).
        source: the label ``SOURCE``; a default, because TorchScript compiles no globals.

    Returns:
        The source's samples and the target's, either possibly empty; and int64 indices (B,).
    """
    order = torch.argsort(domain, stable=True)
    num_source = int((domain == source).sum())
    return list(x[order].split([num_source, domain.shape[0] - num_source])), order


def join_domains(parts: list[Tensor], order: Tensor) -> Tensor:
    """Put the samples of both domains, (B, ...) in all, back in the order they had before the split."""
    return torch.cat(parts)[order.argsort()]
