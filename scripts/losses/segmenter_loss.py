"""Additional loss terms of the segmenter, which a config plugs in by name (``extra_losses``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["ForwardPass", "SegmenterLoss", "SegmenterStep"]

# The results of a forward pass of S by name: ``image`` and ``logits``, and the lists ``features`` and ``heads``.
#
# For labelled slices also ``label``; for target slices ``d1_logits``, ``mask`` and ``pixel_weights``.
ForwardPass = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SegmenterStep:
    """What an iteration has computed before the additional loss terms.

    Attributes:
        source: forward pass on labelled slices.
        target: forward pass on target slices; None without a target.
        iteration: counted from 1.
        iterations: length of the training.
    """

    source: ForwardPass
    target: ForwardPass | None
    iteration: int
    iterations: int


class SegmenterLoss(ABC):
    """A term of the loss of S.

    Args:
        weight: factor of the term in the total.
    """

    needs_target = False
    """Whether it needs target slices even where both adversaries are off."""

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, step: SegmenterStep) -> Tensor:
        """The unweighted term, a float32 scalar."""
