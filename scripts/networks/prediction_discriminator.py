"""The prediction discriminator D2 of the segmentation stage (section 3.1)."""

import itertools
import math

from torch import Tensor, nn

__all__ = ["PREDICTION_MAPS", "PredictionDiscriminator", "prediction_map"]

PREDICTION_MAPS = ("softmax", "entropy")


class PredictionDiscriminator(nn.Module):
    """The paper's D2: classifies maps of class probabilities as predictions on source or target (section 3.1).

    Five 4 x 4 convolutions of stride 2 with LeakyReLU 0.2 between them, no normalisation. Maps are 32 x 32 or larger.

    Args:
        num_classes: channels of the map, background included.
        channels: width of the first layer; doubled by each of the next three.

    Source: Tsai et al., Learning to adapt structured output space for semantic segmentation, 2018 (its discriminator).
    """

    def __init__(self, *, num_classes: int, channels: int = 64) -> None:
        super().__init__()
        widths = [num_classes, channels, 2 * channels, 4 * channels, 8 * channels]
        layers: list[nn.Module] = []
        for width, next_width in itertools.pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=2, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Raw logits that a region was predicted on the source: (B, num_classes, H, W) to (B, 1, H // 32, W // 32)."""
        return self.layers(probabilities)


def prediction_map(logits: Tensor, kind: str) -> Tensor:
    """The input of a prediction discriminator, each channel between 0 and 1.

    * ``softmax``: the probability p_k of each class, the paper's.
    * ``entropy``: the weighted self-information -p_k log p_k / log K of each class. Over the K classes it sums to the
      prediction's entropy as a share of the largest there is.

    Args:
        logits: (B, K, H, W).
        kind: one of ``PREDICTION_MAPS``.

    Returns:
        The map in the shape of ``logits``.

    Source of ``entropy``: Vu et al., ADVENT: adversarial entropy minimization for domain adaptation in semantic
    segmentation, 2019.
    """
    if kind == "softmax":
        return logits.softmax(1)
    if kind == "entropy":
        log_probabilities = logits.log_softmax(1)
        return -log_probabilities.exp() * log_probabilities / math.log(logits.shape[1])
    raise ValueError(f"kind must be one of {PREDICTION_MAPS}, got {kind!r}")
