"""The pixel-wise feature discriminator D1 of the segmentation stage (section 3.1)."""

from collections.abc import Sequence

from scripts.core.errors import check_choice
from scripts.networks.adain import InstanceNorm
from scripts.networks.spectral_conv import SpectralConv2d
from torch import Tensor, nn

__all__ = ["FEATURE_DISCRIMINATOR_NORMS", "FeatureDiscriminator"]

FEATURE_DISCRIMINATOR_NORMS = ("none", "instance", "spectral")


class FeatureDiscriminator(nn.Module):
    """The paper's D1: is this feature pixel from the (translated) source or from the target (section 3.1)?

    3 x 3 convolutions of stride 1, LeakyReLU 0.2 between; resolution is kept, each logit sees 9 x 9 feature pixels with
    the default depth. The output is a raw logit, not a probability: the local mask takes its absolute value.

    Args:
        in_channels: channels of the features.
        channels: widths of the hidden layers.
        norm: "none"; "instance" (affine, the related code's: it removes the per-image shift that D1 should see);
            "spectral" (every weight of spectral norm 1, which keeps the logits and so the mask from saturating).

    Raises:
        InputError: for another ``norm``.

    Source: github.com/Kaiseem/DAR-UNet, models/discriminator.py.
    """

    def __init__(self, *, in_channels: int = 256, channels: Sequence[int] = (128, 64, 32), norm: str = "none") -> None:
        super().__init__()
        check_choice("feature_discriminator_norm", norm, FEATURE_DISCRIMINATOR_NORMS)
        convolution = SpectralConv2d if norm == "spectral" else nn.Conv2d
        layers: list[nn.Module] = []
        width = in_channels
        for next_width in channels:
            # Instance normalisation would remove a bias.
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
