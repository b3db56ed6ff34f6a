"""What translators with many styles per domain share: styles from noise, and the convolutions of a style encoder."""

import zlib
from itertools import pairwise
from typing import Any, Dict, Optional

import torch
from scripts.networks.layers import as_plain_tensor
from scripts.networks.translators import Translator
from torch import Tensor, nn

__all__ = ["RandomStyleTranslator", "style_convolutions"]


class RandomStyleTranslator(Translator):
    """A translator that turns noise into a style of a domain.

    A volume is translated with one new style, drawn from a seed and its voxels, so its slices are consistent.

    Args:
        noise_channels: length of the noise vector.
        direction: ``from_domain`` and ``to_domain`` of :class:`Translator`.
    """

    def __init__(self, *, noise_channels: int, **direction: int) -> None:
        super().__init__(**direction)
        self.noise_channels = noise_channels

    def map_noise(self, noise: Tensor, domain: Tensor) -> Tensor:
        """The styles of noise in the given domains, first axis B.

        Args:
            noise: (B, noise_channels), of mean 0 and standard deviation 1.
            domain: int64 domain labels, (B,).
        """
        raise NotImplementedError

    def new_style(self, domain: Tensor, random: Optional[torch.Generator] = None) -> Tensor:
        """A random style in the domain of each sample: see :class:`Translator`."""
        noise = torch.randn(domain.shape[0], self.noise_channels, generator=random)
        return self.map_noise(noise.to(domain.device, non_blocking=True), domain)

    def volume_arguments(self, volume: Tensor, seed: int) -> Dict[str, Any]:
        """One style for all slices of a volume; it depends on the voxels and the seed only. See :class:`Translator`."""
        checksum = zlib.crc32(as_plain_tensor(volume).float().cpu().contiguous().numpy().tobytes(), seed)
        domain = torch.tensor([self.to_domain], device=volume.device)
        return {"style": self.new_style(domain, torch.Generator().manual_seed(checksum))}

    def forward(self, image: Tensor, style: Optional[Tensor] = None) -> Tensor:
        """Translate images to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            style: one per image or one for all; by default the style of zero noise.
        """
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        content = self.encode(image, domain)
        if style is None:
            noise = torch.zeros(1, self.noise_channels, device=image.device)
            style = self.map_noise(noise, torch.full_like(domain[:1], self.to_domain))
        return self.decode(content, style.expand(image.shape[0], -1))


def style_convolutions(in_channels: int, channels: int) -> nn.Sequential:
    """Four convolutions of stride 2 from an image to (B, 4 * channels, H / 16, W / 16).

    No normalisation: it would remove the style.

    Args:
        in_channels: channels of an image.
        channels: width of the first; doubled by the second and the third.
    """
    widths = [in_channels, channels, 2 * channels, 4 * channels, 4 * channels]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Conv2d(width_in, width_out, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers)
