"""DeepLab with a second predictor on the features of an earlier stage, for alignment at two levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional

import torch
from scripts.core.descriptions import records_arguments
from scripts.networks.layers import as_plain_tensor
from scripts.networks.masked_deeplab import MaskedDeepLab
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TwoLevelDeepLab"]


@records_arguments
class TwoLevelDeepLab(MaskedDeepLab):
    """:class:`MaskedDeepLab` with an auxiliary predictor, a 1 x 1 convolution on the backbone's last stage but one.

    The auxiliary head is the second of ``predict_heads`` in training mode. In evaluation mode there is none, and the
    logits of S are those of the first head alone.

    Args:
        auxiliary_weight: weight of the auxiliary head in the supervised loss, 0.1 in the source.
        num_classes: this and all others are those of :class:`MaskedDeepLab`.

    Source: Chen et al., Unsupervised bidirectional cross-modality adaptation via deeply synergistic image and feature
    alignment for medical image segmentation (SIFA), 2020.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        auxiliary_weight: float = 0.1,
        in_channels: int = 1,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        output_stride: int = 8,
        feature_channels: int = 256,
        atrous_rates: Sequence[int] = (6, 12, 18),
        mask_mode: str = "abs",
        mask_detach: bool = True,
        feature_discriminator_norm: str = "none",
        dropout: float = 0.0,
        backbone_weights: Optional[str | Path] = None,
    ) -> None:
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            layers=layers,
            width=width,
            output_stride=output_stride,
            feature_channels=feature_channels,
            atrous_rates=atrous_rates,
            mask_mode=mask_mode,
            mask_detach=mask_detach,
            feature_discriminator_norm=feature_discriminator_norm,
            dropout=dropout,
            backbone_weights=backbone_weights,
        )
        self.head_weights = [1.0, auxiliary_weight]
        self.auxiliary_predictor = nn.Conv2d(16 * width, num_classes, 1)

    @torch.jit.export
    def forward_features(self, image: Tensor) -> List[Tensor]:
        """See :class:`Segmenter`: (B, feature_channels, h, w), and what the auxiliary predictor reads."""
        x = as_plain_tensor(image)
        earlier = x
        for index, stage in enumerate(self.feature_extractor.backbone):  # type: ignore[arg-type]
            x = stage(x)
            if index == 6:  # layer3, the last stage but one
                earlier = x
        return [self.feature_extractor.pyramid(x), earlier]  # type: ignore[operator]

    @torch.jit.export
    def predict_heads(self, features: List[Tensor], size: List[int]) -> List[Tensor]:
        """The logits of the predictor, in training mode also of the auxiliary one: (B, num_classes, *size), float32."""
        heads = [self.predictor(features[0])]
        if self.training:
            heads.append(self.auxiliary_predictor(features[1]))
        return [F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False) for x in heads]

    @torch.jit.export
    def decide(self, heads: List[Tensor]) -> Tensor:
        """The first head's logits."""
        return heads[0]
