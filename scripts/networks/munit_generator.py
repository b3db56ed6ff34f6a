"""MUNIT's autoencoders: one per domain, each with a content encoder, a style encoder and a decoder."""

from functools import partial

import torch
from scripts.networks.by_domain import ByDomain
from scripts.networks.generator_layers import ContentEncoder, ImageDecoder, initialise_generator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.random_styles import RandomStyleTranslator, style_convolutions
from scripts.networks.style_mappings import CodeMapping, NoMapping
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MunitGenerator"]

NUM_DOMAINS = 2


class MunitGenerator(RandomStyleTranslator):
    """An autoencoder per domain, image = decoder(content, style code); to translate, the decoders are exchanged.

    A code is drawn from a normal distribution, or computed from an image by the style encoder of its domain. Because
    each domain has its own decoder, a *style* here is the domain's label followed by the code.

    Encoders and decoders have the layers of :class:`StyleTransferGenerator`, so that the two differ in the method only.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in each encoder, and again in each decoder.
        code_channels: length of a style code, 8 as in the original.
        mapping_channels: width of the MLP from a code to the AdaIN parameters, 256 as in the original.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.

    Source: Huang et al., Multimodal unsupervised image-to-image translation, 2018.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: int = 64,
        num_blocks: int = 4,
        code_channels: int = 8,
        mapping_channels: int = 256,
        **direction: int,
    ) -> None:
        super().__init__(noise_channels=code_channels, **direction)

        sizes = {"channels": channels, "num_blocks": num_blocks}
        self.encoders = ByDomain(
            [ContentEncoder(in_channels=in_channels, mapping=NoMapping, **sizes) for _ in range(NUM_DOMAINS)]
        )
        self.style_encoders = ByDomain(
            [_StyleEncoder(in_channels, channels, self.style_numbers(code_channels)) for _ in range(NUM_DOMAINS)]
        )
        mapping = partial(CodeMapping, code_channels=mapping_channels)
        decoders = [ImageDecoder(out_channels=in_channels, mapping=mapping, **sizes) for _ in range(NUM_DOMAINS)]
        self.decoders = ByDomain([_StyledDecoder(decoder, code_channels, mapping_channels) for decoder in decoders])
        self.apply(initialise_generator)

    @staticmethod
    def style_numbers(code_channels: int) -> int:
        """How many numbers a style encoder computes for an image: the code."""
        return code_channels

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`; the content is (B, 4 * channels, H / 4, W / 4)."""
        return self.encoders(as_plain_tensor(image), domain, domain)

    @torch.jit.export
    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """See :class:`Translator`; a style is a domain label and a code, (B, 1 + code_channels)."""
        return self.decoders(content, style, style[:, 0].to(torch.int64))

    @torch.jit.export
    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        """The style encoders: see :class:`Translator`; the styles are (B, 1 + code_channels), float32."""
        return self.map_noise(self.style_encoders(as_plain_tensor(image), domain, domain), domain)

    @torch.jit.export
    def map_noise(self, noise: Tensor, domain: Tensor) -> Tensor:
        """The styles of codes, (B, code_channels), in the given domains: (B, 1 + code_channels), float32."""
        return torch.cat([domain[:, None].float(), noise.float()], 1)


class _StyleEncoder(nn.Module):
    """Four convolutions of stride 2, global average pooling and a linear layer."""

    def __init__(self, in_channels: int, channels: int, numbers: int) -> None:
        super().__init__()
        self.layers = style_convolutions(in_channels, channels)
        self.last = nn.Linear(4 * channels, numbers)

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        return self.last(F.adaptive_avg_pool2d(self.layers(image), 1).flatten(1))


class _StyledDecoder(nn.Module):
    """A decoder behind the hidden layers of the MLP from codes to AdaIN parameters; its mapping is the last layer."""

    def __init__(self, decoder: ImageDecoder, code_channels: int, mapping_channels: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(code_channels, mapping_channels),
            nn.ReLU(),
            nn.Linear(mapping_channels, mapping_channels),
            nn.ReLU(),
        )
        self.decoder = decoder

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.decoder(content, self.hidden(style[:, 1:]))
