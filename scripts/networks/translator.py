"""Interface of a generator, used by stage 1's trainer, sample pictures and inference (section 3.1)."""

from typing import Any, Dict, Optional

import torch
from scripts.core.domains import SOURCE, TARGET
from torch import Tensor, nn

__all__ = ["Translator"]


class Translator(nn.Module):
    """A generator in two halves: image to content, content and a style to image.

    A subclass defines what a style is. Here it is the domain label: one style per domain, as in the paper. A translator
    with many styles per domain overrides ``own_style``, ``new_style`` and ``volume_arguments``.

    Args:
        from_domain: domain of the input of ``forward``.
        to_domain: domain of the output of ``forward``.
    """

    def __init__(self, *, from_domain: int = SOURCE, to_domain: int = TARGET) -> None:
        super().__init__()
        self.from_domain = from_domain
        self.to_domain = to_domain

    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """The content of an image, ideally independent of the domain: (B, C, h, w).

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        raise NotImplementedError

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """A content rendered in a style, (B, in_channels, H, W) in [-1, 1].

        Args:
            content: output of ``encode``.
            style: one per sample, first axis B.
        """
        raise NotImplementedError

    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        """The style that renders each image as itself.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        return domain

    def new_style(self, domain: Tensor, random: Optional[torch.Generator] = None) -> Tensor:
        """A style of each given domain, drawn at random where a domain has several.

        Args:
            domain: int64 domain labels, (B,).
            random: generator on the CPU; PyTorch's own by default.
        """
        return domain

    def volume_arguments(self, volume: Tensor, seed: int) -> Dict[str, Any]:
        """Further arguments of ``forward``, shared by all slices of a volume.

        Args:
            volume: (in_channels, H, W, D) in [-1, 1].
            seed: seed of a style that is drawn.
        """
        return {}

    def forward(self, image: Tensor) -> Tensor:
        """Translate images of ``from_domain`` to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same."""
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        content = self.encode(image, domain)
        return self.decode(content, torch.full_like(domain, self.to_domain))
