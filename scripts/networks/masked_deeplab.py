"""DeepLab with a dilated ResNet as the segmentation network S, the paper's choice (section 3.1)."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional

import torch
from monai.networks.blocks import Convolution
from scripts.core.descriptions import records_arguments
from scripts.core.errors import check_choice
from scripts.networks.atrous_conv import AtrousConv2d
from scripts.networks.dilated_resnet import build_dilated_resnet
from scripts.networks.feature_discriminator import FeatureDiscriminator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.segmenter import Segmenter
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MaskedDeepLab"]


@records_arguments
class MaskedDeepLab(Segmenter):
    """DeepLab as S, with ResNet-50 the paper's network (section 3.1).

    ``feature_extractor`` (SE): dilated ResNet and atrous spatial pyramid pooling. ``feature_discriminator`` (D1).
    ``predictor`` (SP): 3 x 3 convolution, batch norm, ReLU, 1 x 1 convolution, bilinear up-sampling. SE ends before a
    non-linear head: a positive gain per pixel in front of a linear classifier changes hardly any decision.

    Images of 32 x 32 pixels or more of any shape are accepted.

    Args:
        num_classes: number of classes, background included.
        in_channels: channels of an image.
        layers: residual blocks of the four stages of the ResNet.
        width: inner width of its first stage; doubled by each of the next three.
        output_stride: 4, 8 or 16, input pixels per feature pixel.
        feature_channels: channels of the features that D1 and the predictor see.
        atrous_rates: dilations, in feature pixels, of the 3 x 3 branches of the pyramid.
        mask_mode: see :class:`Segmenter`.
        mask_detach: see :class:`Segmenter`.
        feature_discriminator_norm: the ``norm`` of :class:`FeatureDiscriminator`.
        predictors: 1 or 2. Two predictors are two heads whose logits are summed; see
            :mod:`scripts.losses.disagreement`.
        dropout: probability of dropping a feature before the last convolution.
        backbone_weights: path of a ResNet state dict in torchvision's names to start from.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        output_stride: int = 8,
        feature_channels: int = 256,
        atrous_rates: Sequence[int] = (6, 12, 18),
        mask_mode: str = "abs",
        mask_detach: bool = True,
        feature_discriminator_norm: str = "none",
        predictors: int = 1,
        dropout: float = 0.0,
        backbone_weights: Optional[str | Path] = None,
    ) -> None:
        super().__init__(mask_mode=mask_mode, mask_detach=mask_detach)
        check_choice("predictors", predictors, (1, 2))
        self.head_weights = [1.0] * predictors
        backbone = build_dilated_resnet(
            in_channels=in_channels, layers=layers, width=width, output_stride=output_stride, weights=backbone_weights
        )
        pyramid = _AtrousPyramid(32 * width, feature_channels, atrous_rates)
        self.feature_extractor = nn.Sequential(OrderedDict(backbone=backbone, pyramid=pyramid))
        self.predictor = _predictor(feature_channels, num_classes, dropout)
        self.further_predictors = nn.ModuleList(
            [_predictor(feature_channels, num_classes, dropout) for _ in range(predictors - 1)]
        )
        self.feature_discriminator = FeatureDiscriminator(
            in_channels=feature_channels,
            channels=(feature_channels // 2, feature_channels // 4, feature_channels // 8),
            norm=feature_discriminator_norm,
        )

    @torch.jit.export
    def forward_features(self, image: Tensor) -> List[Tensor]:
        """See :class:`Segmenter`: one tensor, (B, feature_channels, h, w) with h = ceil(H / output_stride)."""
        return [self.feature_extractor(as_plain_tensor(image))]

    @torch.jit.export
    def predict_heads(self, features: List[Tensor], size: List[int]) -> List[Tensor]:
        """The logits of each predictor, (B, num_classes, *size), float32."""
        heads = [self.predictor(features[0])]
        for predictor in self.further_predictors:
            heads.append(predictor(features[0]))
        return [F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False) for x in heads]

    @torch.jit.export
    def decide(self, heads: List[Tensor]) -> Tensor:
        """The sum of the predictors' logits."""
        logits = heads[0]
        for further in heads[1:]:
            logits = logits + further
        return logits


class _AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling of DeepLab v3 less its image-level branch, which a batch of one cannot train."""

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_convolution(in_channels, out_channels, kernel_size=1)])
        for rate in rates:
            branch = _convolution(in_channels, out_channels, kernel_size=3)
            branch.conv = AtrousConv2d(in_channels, out_channels, dilation=rate)
            self.branches.append(branch)
        self.project = _convolution(out_channels * len(self.branches), out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(torch.cat([branch(x) for branch in self.branches], dim=1))


def _predictor(in_channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """A non-linear head from features to the logits of every class."""
    return nn.Sequential(
        _convolution(in_channels, in_channels, kernel_size=3),
        nn.Dropout(dropout),
        nn.Conv2d(in_channels, num_classes, 1),
    )


def _convolution(in_channels: int, out_channels: int, kernel_size: int) -> Convolution:
    """Convolution, batch norm, ReLU."""
    return Convolution(2, in_channels, out_channels, kernel_size=kernel_size, act="RELU", norm="BATCH", bias=False)
