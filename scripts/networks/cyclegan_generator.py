"""The two generators of CycleGAN, source -> target and target -> source, behind one interface."""

from typing import Any

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.networks.by_domain import ByDomain
from scripts.networks.generator_layers import ContentEncoder, ImageDecoder, initialise_generator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.style_mappings import NoMapping
from scripts.networks.translators import Translator
from torch import Tensor

__all__ = ["CycleGanGenerator"]


class CycleGanGenerator(Translator):
    """Two independent generators: the domain of an image selects the encoder, the domain to render selects the decoder.

    The encoder of one domain and the decoder of the other form a generator. Encoder and decoder of one domain belong to
    different generators and share no loss. Layers are those of :class:`StyleTransferGenerator` with plain instance
    normalisation, so that the two differ in the method only. The original has transposed convolutions and all its
    residual blocks in one stack.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in each encoder, and again in each decoder; the original has 9 in all.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.

    Source: Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial networks, 2017.
    """

    def __init__(self, *, in_channels: int = 1, channels: int = 64, num_blocks: int = 4, **direction: int) -> None:
        super().__init__(**direction)

        sizes: dict[str, Any] = {"channels": channels, "num_blocks": num_blocks, "mapping": NoMapping}
        self.encoders = ByDomain([ContentEncoder(in_channels=in_channels, **sizes) for _ in (SOURCE, TARGET)])
        self.decoders = ByDomain([ImageDecoder(out_channels=in_channels, **sizes) for _ in (SOURCE, TARGET)])
        self.apply(initialise_generator)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`; the content is (B, 4 * channels, H / 4, W / 4)."""
        return self.encoders(as_plain_tensor(image), domain, domain)

    @torch.jit.export
    def decode(self, content: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`."""
        return self.decoders(content, domain, domain)
