"""The synthesis network G: one encoder and one decoder for both domains, styled by the domain label (section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.domains import SOURCE, TARGET
from scripts.networks.adain import StyleMapping, adaptive_instance_norm
from scripts.networks.plain_tensor import as_plain_tensor
from scripts.networks.upsample import FoldedUpsampleConv

__all__ = ["StyleTransferGenerator"]


class StyleTransferGenerator(nn.Module):
    """The paper's G = (GE, GD): image and domain to content, content and any domain to image (section 3.1).

    Encoder: 7 x 7 convolution, two of stride 2, ``num_blocks`` residual blocks; decoder: as many blocks, two
    up-samplings, 7 x 7 convolution, tanh. AdaIN in every normalisation of both, each with an MLP of its own. The layers
    are those of the authors' related code, but for the up-sampling (nearest + 5 x 5 in place of a transposed
    convolution, which leaves a checkerboard) and for the convolutions' biases before AdaIN, which it would remove.

    Height and width must be multiples of 4 and at least 8.

    Args:
        in_channels: channels of an image.
        channels: width at full resolution; doubled by each down-sampling.
        num_blocks: residual blocks in the encoder, and again in the decoder.
        style_channels: hidden width of the two MLPs.
        from_domain: the domain ``forward`` takes its images from.
        to_domain: the domain ``forward`` renders them in.

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
        super().__init__()
        self.from_domain = from_domain
        self.to_domain = to_domain
        self.encoder = _Encoder(in_channels, channels, num_blocks, style_channels)
        self.decoder = _Decoder(in_channels, channels, num_blocks, style_channels)
        self.apply(_initialise)

    @torch.jit.export
    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """GE(x, d): the content of an image, which should not depend on the domain.

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

    def forward(self, image: Tensor) -> Tensor:
        """Translate images of ``from_domain`` to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same."""
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        content = self.encode(image, domain)
        return self.decode(content, torch.full_like(domain, self.to_domain))


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, channels: int, num_blocks: int, style_channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.mapping = StyleMapping(
            num_features=[channels, 2 * channels] + [wide] * (1 + 2 * num_blocks), hidden_channels=style_channels
        )
        self.stem = _ReflectConvolution(in_channels, channels, kernel_size=7)
        self.down1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False)
        self.down2 = nn.Conv2d(2 * channels, wide, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.ModuleList([_ResidualBlock(wide) for _ in range(num_blocks)])

    def forward(self, image: Tensor, domain: Tensor) -> Tensor:
        styles = self.mapping(domain)
        x = F.relu(adaptive_instance_norm(self.stem(image), styles[0][0], styles[0][1]))
        x = F.relu(adaptive_instance_norm(self.down1(x), styles[1][0], styles[1][1]))
        x = F.relu(adaptive_instance_norm(self.down2(x), styles[2][0], styles[2][1]))
        for index, block in enumerate(self.blocks):
            x = block(x, styles[3 + 2 * index], styles[4 + 2 * index])
        return x


class _Decoder(nn.Module):
    def __init__(self, out_channels: int, channels: int, num_blocks: int, style_channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.mapping = StyleMapping(
            num_features=[wide] * (2 * num_blocks) + [2 * channels, channels], hidden_channels=style_channels
        )
        self.blocks = nn.ModuleList([_ResidualBlock(wide) for _ in range(num_blocks)])
        self.up1 = FoldedUpsampleConv(in_channels=wide, out_channels=2 * channels)
        self.up2 = FoldedUpsampleConv(in_channels=2 * channels, out_channels=channels)
        self.to_image = _ReflectConvolution(channels, out_channels, kernel_size=7, bias=True)

    def forward(self, content: Tensor, domain: Tensor) -> Tensor:
        styles = self.mapping(domain)
        x = content
        for index, block in enumerate(self.blocks):
            x = block(x, styles[2 * index], styles[2 * index + 1])
        x = F.relu(adaptive_instance_norm(self.up1(x), styles[-2][0], styles[-2][1]))
        x = F.relu(adaptive_instance_norm(self.up2(x), styles[-1][0], styles[-1][1]))
        return torch.tanh(self.to_image(x))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _ReflectConvolution(channels, channels, kernel_size=3)
        self.conv2 = _ReflectConvolution(channels, channels, kernel_size=3)

    def forward(self, x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
        residual = F.relu(adaptive_instance_norm(self.conv1(x), first[0], first[1]))
        return x + adaptive_instance_norm(self.conv2(residual), second[0], second[1])


class _ReflectConvolution(nn.Conv2d):
    """A convolution of odd kernel and stride 1 that pads by reflection in the dtype of its input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, padding_mode="reflect", bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._conv_forward(x, self.weight, self.bias)
        # CPU autocast would widen the features to float32, only for the convolution to narrow them again.
        with torch.autocast(x.device.type, enabled=False):
            margin = self.kernel_size[0] // 2
            padded = F.pad(x, [margin, margin, margin, margin], mode="reflect")
        return F.conv2d(padded, self.weight, self.bias)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
