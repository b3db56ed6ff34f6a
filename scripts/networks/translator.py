"""What stage 1's trainer, its pictures and its inference ask of a generator, whichever it is (section 3.1)."""

from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn

from scripts.core.domains import SOURCE, TARGET

__all__ = ["Translator"]


class Translator(nn.Module):
    """A generator in two halves: image to content, content and a style to image.

    What a style is, each translator decides. Here it is the domain label, one style for a whole domain, as in the
    paper; one that knows many styles per domain overrides the three methods that hand them out.

    Args:
        from_domain: the domain ``forward`` takes its images from.
        to_domain: the domain ``forward`` renders them in.
    """

    def __init__(self, *, from_domain: int = SOURCE, to_domain: int = TARGET) -> None:
        super().__init__()
        self.from_domain = from_domain
        self.to_domain = to_domain

    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """The content of an image.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        raise NotImplementedError

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """A content rendered in a style, (B, in_channels, H, W) in [-1, 1].

        Args:
            content: what ``encode`` gave.
            style: one for each sample, its first axis B.
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
        """A style of each domain named, drawn where there are several.

        Args:
            domain: int64 domain labels, (B,).
            random: generator on the CPU; PyTorch's own by default.
        """
        return domain

    def volume_arguments(self, volume: Tensor, seed: int) -> Dict[str, Any]:
        """What ``forward`` takes besides the slices of one volume, so that they agree.

        Args:
            volume: (in_channels, H, W, D) in [-1, 1].
            seed: another seed, another style, where styles are drawn.
        """
        return {}

    def forward(self, image: Tensor) -> Tensor:
        """Translate images of ``from_domain`` to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same."""
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        content = self.encode(image, domain)
        return self.decode(content, torch.full_like(domain, self.to_domain))
