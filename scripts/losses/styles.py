"""What a generator of many styles per domain minimises besides the objective of the synthesis stage.

Source: Choi et al., StarGAN v2: diverse image synthesis for multiple domains, 2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from scripts.networks.translator import Translator

__all__ = ["ExtraLoss", "StyleDiversity", "StyleReconstruction"]


class ExtraLoss(Protocol):
    """A named part that a config adds to the generator's loss (``extra_losses`` of the training config).

    Attributes:
        weight: factor of the part in the total; below 0 for what is to grow.
        schedule: factor of the weight at an iteration, counted from 0; None for 1.
    """

    weight: float
    schedule: Callable[[int], float] | None

    def __call__(
        self,
        generator: Translator,
        *,
        content: Tensor,
        translation: Tensor,
        domain: Tensor,
        style: Tensor,
        random: torch.Generator,
    ) -> Tensor:
        """The part, unweighted, a float32 scalar.

        Args:
            generator: what is trained.
            content: of the images, as ``encode`` gave it.
            translation: the contents rendered in ``style``, (B, C, H, W) in [-1, 1].
            domain: int64 labels of the domains translated to, (B,).
            style: of the translations, as ``new_style`` drew it.
            random: generator on the CPU, of this iteration.
        """


class StyleReconstruction:
    """The style of a translation should be the one that it was rendered in: mean |E(x_ij) - s_j|.

    Args:
        weight: 1 in the original.
        schedule: factor of the weight at an iteration.
    """

    def __init__(self, *, weight: float = 1.0, schedule: Callable[[int], float] | None = None) -> None:
        self.weight, self.schedule = weight, schedule

    def __call__(
        self,
        generator: Translator,
        *,
        content: Tensor,
        translation: Tensor,
        domain: Tensor,
        style: Tensor,
        random: torch.Generator,
    ) -> Tensor:
        """See :class:`ExtraLoss`; gradients reach the style encoder, the translation and the style."""
        return F.l1_loss(generator.own_style(translation, domain).float(), style.float())


class StyleDiversity:
    """How far another style would have led: mean |x_ij - x'_ij|, the second translation without gradient.

    Args:
        weight: -1 in the original, for it is to grow.
        schedule: factor of the weight at an iteration; in the original it falls linearly to 0.
    """

    def __init__(self, *, weight: float = -1.0, schedule: Callable[[int], float] | None = None) -> None:
        self.weight, self.schedule = weight, schedule

    def __call__(
        self,
        generator: Translator,
        *,
        content: Tensor,
        translation: Tensor,
        domain: Tensor,
        style: Tensor,
        random: torch.Generator,
    ) -> Tensor:
        """See :class:`ExtraLoss`; gradients reach the first translation alone."""
        with torch.no_grad():
            another = generator.decode(content, generator.new_style(domain, random))
        return F.l1_loss(translation.float(), another.float())
