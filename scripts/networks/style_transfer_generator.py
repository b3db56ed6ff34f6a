"""The synthesis network G: one encoder and one decoder for both domains, styled by the domain label (section 3.1)."""

from collections.abc import Sequence

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.networks.adain import StyleMapping
from scripts.networks.generator_layers import ContentEncoder, ImageDecoder, initialise_generator
from scripts.networks.plain_tensor import as_plain_tensor
from scripts.networks.translator import Translator
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
        from_domain: domain of the input of ``forward``.
        to_domain: domain of the output of ``forward``.

    Source: github.com/Kaiseem/AD-GAN, models/generator.py.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: int = 64,
        num_blocks: int = 4,
        style_channels: int = 64,
        from_domain: int = SOURCE,
        to_domain: int = TARGET,
    ) -> None:
        super().__init__(from_domain=from_domain, to_domain=to_domain)

        def mapping(num_features: Sequence[int]) -> StyleMapping:
            return StyleMapping(num_features=num_features, hidden_channels=style_channels)

        self.encoder = ContentEncoder(
            in_channels=in_channels, channels=channels, num_blocks=num_blocks, mapping=mapping
        )
        self.decoder = ImageDecoder(out_channels=in_channels, channels=channels, num_blocks=num_blocks, mapping=mapping)
        self.apply(initialise_generator)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """GE(x, d): the content of an image, ideally independent of the domain.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).

        Returns:
            (B, 4 * channels, H / 4, W / 4).
        """
        return self.encoder(as_plain_tensor(image), domain)

    @torch.jit.export
    def decode(self, content: Tensor, domain: Tensor) -> Tensor:
        """GD(c, d): a content rendered in the style of a domain, (B, in_channels, H, W) in [-1, 1].

        Args:
            content: (B, 4 * channels, H / 4, W / 4).
            domain: int64 domain labels, (B,).
        """
        return self.decoder(content, domain)
