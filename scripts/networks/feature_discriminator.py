"""The pixel-wise feature discriminator D1 of the segmentation stage (section 3.1)."""

from collections.abc import Sequence

from scripts.core.errors import check_choice
from scripts.networks.adain import InstanceNorm
from scripts.networks.layers import SpectralConv2d
from torch import Tensor, nn

__all__ = ["FEATURE_DISCRIMINATOR_NORMS", "FeatureDiscriminator"]

FEATURE_DISCRIMINATOR_NORMS = ("none", "instance", "spectral")


class FeatureDiscriminator(nn.Module):
    """The paper's D1: classifies each feature pixel as (translated) source or target (section 3.1).

    3 x 3 convolutions of stride 1 with LeakyReLU 0.2 between them. The resolution is kept; with the default depth the
    receptive field is 9 x 9 feature pixels. The output is a raw logit: the local mask takes its absolute value.

    Args:
        in_channels: channels of the features.
        channels: widths of the hidden layers.
        norm: "none"; "instance" (affine, as in the related code: it removes the per-image shift that D1 should see);
            "spectral" (weights of spectral norm 1, which keep the logits and thus the mask from saturating).

    Source: github.com/Kaiseem/DAR-UNet, models/discriminator.py.
    """

    def __init__(self, *, in_channels: int = 256, channels: Sequence[int] = (128, 64, 32), norm: str = "none") -> None:
        super().__init__()
        check_choice("feature_discriminator_norm", norm, FEATURE_DISCRIMINATOR_NORMS)
        convolution = SpectralConv2d if norm == "spectral" else nn.Conv2d
        layers: list[nn.Module] = []
        width = in_channels
        for next_width in channels:
            # Instance norm would remove a bias.
            layers.append(convolution(width, next_width, 3, padding=1, bias=norm != "instance"))
            if norm == "instance":
                layers.append(InstanceNorm(num_features=next_width, affine=True))
            layers.append(nn.LeakyReLU(0.2))
            width = next_width
        layers.append(convolution(width, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Raw logits that a feature pixel is from the source: (B, in_channels, h, w) to (B, 1, h, w)."""
        return self.layers(features)
