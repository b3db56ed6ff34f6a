"""The image discriminator D of the synthesis stage (section 3.1)."""

import torch
from scripts.core.errors import check_choice
from scripts.networks.adain import InstanceNorm
from scripts.networks.layers import SpectralConv2d, as_plain_tensor
from torch import Tensor, nn

__all__ = ["DOMAIN_DISCRIMINATOR_NORMS", "DomainDiscriminator", "logits_of_domain"]

DOMAIN_DISCRIMINATOR_NORMS = ("instance", "none", "spectral")
NUM_DOMAINS = 2


class DomainDiscriminator(nn.Module):
    """The paper's Markovian discriminator D(x | d), with one map of logits per domain (section 3.1).

    Five 4 x 4 convolutions of padding 1, strides 2, 2, 2, 1, 1, LeakyReLU 0.2 in between, normalisation after the
    second to the fourth. A logit's receptive field is 70 x 70 pixels. The smallest image is 32 x 32 (2 x 2 logits).

    Args:
        in_channels: channels of an image.
        channels: width of the first layer; doubled by each of the next three.
        norm: "instance" (not affine, as in the related code), "none", or "spectral" (weights of spectral norm 1).

    Raises:
        InputError: an unknown ``norm``.

    Source: github.com/Kaiseem/AD-GAN, models/discriminator.py; Isola et al., Image-to-image translation with
    conditional adversarial networks, 2017.
    """

    def __init__(self, *, in_channels: int = 1, channels: int = 64, norm: str = "instance") -> None:
        super().__init__()
        check_choice("norm", norm, DOMAIN_DISCRIMINATOR_NORMS)
        convolution = SpectralConv2d if norm == "spectral" else nn.Conv2d
        layers: list[nn.Module] = [convolution(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            width, bias = factor * channels, norm != "instance"  # instance normalisation would remove a bias
            layers.append(convolution(width, 2 * width, 4, stride=stride, padding=1, bias=bias))
            if norm == "instance":
                layers.append(InstanceNorm(num_features=2 * width))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(convolution(8 * channels, NUM_DOMAINS, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits that a patch is real, for each domain.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].

        Returns:
            (B, 2, H / 8 - 2, W / 8 - 2); channel d is the logit for domain d.
        """
        return self.layers(as_plain_tensor(image))


def logits_of_domain(logits: Tensor, domain: Tensor) -> Tensor:
    """D(x | d): the logit map of each sample's domain label.

    Args:
        logits: (B, 2, h, w), output of :class:`DomainDiscriminator`.
        domain: int64 domain labels, (B,).

    Returns:
        (B, 1, h, w).
    """
    return logits[torch.arange(logits.shape[0], device=logits.device), domain].unsqueeze(1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and not isinstance(module, SpectralConv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
