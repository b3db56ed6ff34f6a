"""StarGAN v2's generator, mapping network and style encoder: many styles per domain."""

from functools import partial

import torch
from scripts.networks.generator_layers import ContentEncoder, ImageDecoder, initialise_generator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.random_styles import RandomStyleTranslator, style_convolutions
from scripts.networks.style_mappings import CodeMapping, NoMapping
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["StarGanV2Generator"]

NUM_DOMAINS = 2


class StarGanV2Generator(RandomStyleTranslator):
    """Content encoder with plain instance normalisation, decoder with AdaIN, and two sources of style codes.

    A *mapping network* turns noise into a code of a domain: a new style. A *style encoder* computes the code of an
    image: its own style. One new style per volume is the original's latent-guided synthesis with a volume as the image.

    Encoder and decoder have the layers of :class:`StyleTransferGenerator`, so that the two differ in the method only.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in the encoder, and again in the decoder.
        noise_channels: length of the noise vector, 16 as in the original.
        code_channels: length of a style code, 64 as in the original.
        mapping_channels: width of the mapping network; 512 in the original.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.

    Source: Choi et al., StarGAN v2: diverse image synthesis for multiple domains, 2020.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: int = 64,
        num_blocks: int = 4,
        noise_channels: int = 16,
        code_channels: int = 64,
        mapping_channels: int = 128,
        **direction: int,
    ) -> None:
        super().__init__(noise_channels=noise_channels, **direction)

        sizes = {"channels": channels, "num_blocks": num_blocks}
        self.encoder = ContentEncoder(in_channels=in_channels, mapping=NoMapping, **sizes)
        mapping = partial(CodeMapping, code_channels=code_channels)
        self.decoder = ImageDecoder(out_channels=in_channels, mapping=mapping, **sizes)
        self.mapping_network = _MappingNetwork(noise_channels, mapping_channels, code_channels)
        self.style_encoder = _StyleEncoder(in_channels, channels, code_channels)
        self.apply(initialise_generator)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`; the content is (B, 4 * channels, H / 4, W / 4) and independent of ``domain``."""
        return self.encoder(as_plain_tensor(image), domain)

    @torch.jit.export
    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """See :class:`Translator`; a style is a code, (B, code_channels)."""
        return self.decoder(content, style)

    @torch.jit.export
    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        """The style encoder: see :class:`Translator`; the codes are (B, code_channels)."""
        return self.style_encoder(as_plain_tensor(image), domain)

    @torch.jit.export
    def map_noise(self, noise: Tensor, domain: Tensor) -> Tensor:
        """The mapping network: the codes of noise in the given domains, (B, code_channels).

        Args:
            noise: (B, noise_channels), of mean 0 and standard deviation 1.
            domain: int64 domain labels, (B,).
        """
        return self.mapping_network(noise, domain)


class _MappingNetwork(nn.Module):
    """Two shared layers and two per domain; the original has four and four."""

    def __init__(self, noise_channels: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Linear(noise_channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()
        )
        self.own = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, code_channels))
                for _ in range(NUM_DOMAINS)
            ]
        )

    def forward(self, noise: Tensor, domain: Tensor) -> Tensor:
        hidden = self.shared(noise)
        return _of_domain(torch.stack([layers(hidden) for layers in self.own], 1), domain)


class _StyleEncoder(nn.Module):
    """Four convolutions of stride 2, global average pooling, and a linear layer per domain.

    The original has residual blocks down to 4 x 4 pixels.
    """

    def __init__(self, in_channels: int, channels: int, code_channels: int) -> None:
        super().__init__()
        self.layers = style_convolutions(in_channels, channels)
        self.own = nn.ModuleList([nn.Linear(4 * channels, code_channels) for _ in range(NUM_DOMAINS)])

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        hidden = F.adaptive_avg_pool2d(self.layers(image), 1).flatten(1)
        return _of_domain(torch.stack([layer(hidden) for layer in self.own], 1), domain)


def _of_domain(codes: Tensor, domain: Tensor) -> Tensor:
    """(B, NUM_DOMAINS, C) to (B, C): the code of each sample's domain."""
    return codes[torch.arange(codes.shape[0], device=codes.device), domain]
