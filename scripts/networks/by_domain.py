"""Splits a mixed batch by domain, for networks that treat one domain at a time."""

import torch
from scripts.core.domains import SOURCE
from torch import Tensor

__all__ = ["join_domains", "split_by_domain"]


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
