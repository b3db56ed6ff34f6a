"""A translator whose decoder has no feature normalisation: the style modulates its convolutions' weights."""

from functools import partial

import torch
from scripts.networks.by_domain import join_domains, split_by_domain
from scripts.networks.demodulated_conv import DemodulatedConv, DemodulatedUpsampleConv
from scripts.networks.generator_layers import ContentEncoder, initialise_generator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.style_mappings import StyleMapping
from scripts.networks.translators import Translator
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DemodulatedGenerator"]

NUM_DOMAINS = 2

# Slope of the leaky ReLU. With a plain ReLU, trainings at a high rate ended in images that are background throughout.
SLOPE = 0.2

# Norm of a kernel that keeps the second moment through the leaky ReLU.
ACTIVATION_GAIN = (2.0 / (1.0 + SLOPE**2)) ** 0.5

# Four residual blocks then multiply the variance by 1.25^4 = 2.4 instead of 16.
RESIDUAL_GAIN = 0.5

# Images start near tanh(-2) = -0.96, nearly the background. Started at 0, most of the gradient would push the whole
# image to -1, where tanh saturates and training stays.
BACKGROUND_LOGIT = -2.0


class DemodulatedGenerator(Translator):
    """The paper's encoder, and its decoder with demodulated convolutions instead of AdaIN.

    AdaIN divides features by their standard deviation over the image. A decoder can therefore rescale a whole channel
    by placing one strong spike, and does: bright droplets and rings in flat regions. Demodulation divides by the
    *expected* standard deviation, which follows from the weights alone, so spikes gain nothing.

    Each domain has one learned style code, the equivalent of an MLP of a one-hot label. Other differences from
    :class:`StyleTransferGenerator`: leaky ReLU in the decoder, zero instead of reflection padding there, and a last
    convolution of 3 x 3 instead of 7 x 7, which took a tenth of the time of a step.

    Height and width must be multiples of 4 and at least 8.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in the encoder, and again in the decoder.
        style_channels: hidden width of the encoder's MLP, and length of a style code of the decoder.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.

    Source: Karras et al., Analyzing and improving the image quality of StyleGAN, 2020.
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

        self.encoder = ContentEncoder(
            in_channels=in_channels,
            channels=channels,
            num_blocks=num_blocks,
            mapping=partial(StyleMapping, hidden_channels=style_channels),
        )
        self.encoder.apply(initialise_generator)
        self.codes = nn.Parameter(torch.randn(NUM_DOMAINS, style_channels))
        self.decoder = _Decoder(in_channels, channels, num_blocks, style_channels)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`; the content is (B, 4 * channels, H / 4, W / 4)."""
        return self.encoder(as_plain_tensor(image), domain)

    @torch.jit.export
    def decode(self, content: Tensor, domain: Tensor) -> Tensor:
        """See :class:`Translator`."""
        parts, order = split_by_domain(content, domain)
        images: list[Tensor] = []
        for index, part in enumerate(parts):
            if part.shape[0] > 0:
                images.append(self.decoder(part, self.codes[index]))
        return join_domains(images, order)

    def forward(self, image: Tensor) -> Tensor:
        """Translate images of ``from_domain`` to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same."""
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        return self.decoder(self.encode(image, domain), self.codes[self.to_domain])


class _Decoder(nn.Module):
    def __init__(self, out_channels: int, channels: int, num_blocks: int, code_channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.blocks = nn.ModuleList([_ResidualBlock(wide, code_channels) for _ in range(num_blocks)])
        self.up1 = DemodulatedUpsampleConv(wide, 2 * channels, code_channels=code_channels, gain=ACTIVATION_GAIN)
        self.up2 = DemodulatedUpsampleConv(2 * channels, channels, code_channels=code_channels, gain=ACTIVATION_GAIN)
        self.to_image = nn.Conv2d(channels, out_channels, 3, padding=1)
        assert self.to_image.bias is not None
        nn.init.constant_(self.to_image.bias, BACKGROUND_LOGIT)

    def forward(self, content: Tensor, code: Tensor) -> Tensor:
        x = content
        for block in self.blocks:
            x = block(x, code)
        x = _activate(self.up1(x, code))  # (B, 2 channels, H / 2, W / 2)
        x = _activate(self.up2(x, code))  # (B, channels, H, W)
        return torch.tanh(self.to_image(x))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__()
        self.conv1 = DemodulatedConv(channels, channels, 3, code_channels=code_channels, gain=ACTIVATION_GAIN)
        self.conv2 = DemodulatedConv(channels, channels, 3, code_channels=code_channels, gain=RESIDUAL_GAIN)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return x + self.conv2(_activate(self.conv1(x, code)), code)


def _activate(x: Tensor, slope: float = SLOPE) -> Tensor:
    return F.leaky_relu(x, slope)
