"""DRIT++'s encoders and generators: content shared by both domains, and Gaussian attributes of each image."""

from typing import Any, Tuple

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.networks.layers import as_plain_tensor
from scripts.networks.munit_generator import MunitGenerator
from torch import Tensor

__all__ = ["DritppGenerator"]


class DritppGenerator(MunitGenerator):
    """MUNIT's networks, with layers that both domains share and attributes that are distributions.

    The last block of the content encoder and the first block of the generator are the same in both domains, because
    both domains should have one content. The attribute encoder (MUNIT's style encoder) computes mean and log variance
    of a normal distribution of codes.

    Args:
        num_blocks: residual blocks in each encoder, and again in each generator; at least 1.
        code_channels: length of an attribute code, 8 as in the original.
        arguments: see :class:`MunitGenerator`.

    Source: Lee et al., DRIT++: diverse image-to-image translation via disentangled representations, 2020.
    """

    def __init__(self, *, code_channels: int = 8, **arguments: Any) -> None:
        super().__init__(code_channels=code_channels, **arguments)
        encoders: Any = self.encoders.of_domain
        decoders: Any = self.decoders.of_domain
        encoders[TARGET].blocks[-1] = encoders[SOURCE].blocks[-1]
        decoders[TARGET].decoder.blocks[0] = decoders[SOURCE].decoder.blocks[0]

    @staticmethod
    def style_numbers(code_channels: int) -> int:
        """How many numbers a style encoder computes for an image: mean and log variance of its code."""
        return 2 * code_channels

    @torch.jit.export
    def attributes(self, image: Tensor, domain: Tensor) -> Tuple[Tensor, Tensor]:
        """The attribute encoder: mean and log variance of each image's code, both (B, code_channels), float32.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        numbers = self.style_encoders(as_plain_tensor(image), domain, domain).float()
        mean, log_variance = numbers.chunk(2, dim=1)
        return mean, log_variance

    @torch.jit.export
    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        """The domain and the mean code of each image: see :class:`Translator`; (B, 1 + code_channels), float32."""
        return self.map_noise(self.attributes(image, domain)[0], domain)
