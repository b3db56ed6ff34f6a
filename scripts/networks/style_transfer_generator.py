"""The synthesis network G: one encoder and one decoder for both domains, styled by the domain label (section 3.1)."""

from functools import partial

import torch
from scripts.networks.generator_layers import ContentEncoder, ImageDecoder, initialise_generator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.style_mappings import StyleMapping
from scripts.networks.translators import Translator
from torch import Tensor

__all__ = ["StyleTransferGenerator"]


class StyleTransferGenerator(Translator):
    """The paper's G = (GE, GD): image and domain to content, content and any domain to image (section 3.1).

    Encoder: 7 x 7 convolution, two of stride 2, ``num_blocks`` residual blocks; decoder: as many blocks, two
    up-samplings, 7 x 7 convolution, tanh. AdaIN in every normalisation, with one MLP for the encoder and one for the
    decoder. Layers follow the authors' related code, with two exceptions: up-sampling is nearest neighbour + 5 x 5
    convolution, because a transposed convolution leaves a checkerboard, and convolutions before AdaIN have no bias,
    because AdaIN would remove it.

    Height and width must be multiples of 4 and at least 8.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in the encoder, and again in the decoder.
        style_channels: hidden width of the two MLPs.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.

    Source: github.com/Kaiseem/AD-GAN, models/generator.py.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: int = 64,
        num_blocks: int = 4,
        style_channels: int = 64,
        **direction: int,
    ) -> None:
        super().__init__(**direction)

        mapping = partial(StyleMapping, hidden_channels=style_channels)
        sizes = {"channels": channels, "num_blocks": num_blocks}
        self.encoder = ContentEncoder(in_channels=in_channels, mapping=mapping, **sizes)
        self.decoder = ImageDecoder(out_channels=in_channels, mapping=mapping, **sizes)
        self.apply(initialise_generator)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """GE(x, d): see :class:`Translator`; the content is (B, 4 * channels, H / 4, W / 4)."""
        return self.encoder(as_plain_tensor(image), domain)

    @torch.jit.export
    def decode(self, content: Tensor, domain: Tensor) -> Tensor:
        """GD(c, d): see :class:`Translator`."""
        return self.decoder(content, domain)
