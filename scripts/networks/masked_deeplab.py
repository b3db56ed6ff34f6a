"""The segmentation network S with the feature discriminator D1 and the local mask inside (section 3.1)."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.core.errors import check_choice
from scripts.networks.atrous_conv import AtrousConv2d
from scripts.networks.dilated_resnet import build_dilated_resnet
from scripts.networks.feature_discriminator import FeatureDiscriminator
from scripts.networks.local_mask import MASK_MODES, local_mask
from scripts.networks.plain_tensor import as_plain_tensor

__all__ = ["MaskedDeepLab"]


class MaskedDeepLab(nn.Module):
    """The paper's S = (SE, SP), DeepLab-ResNet50, with D1 and the mask: shipped as it was trained (section 3.1).

    ``feature_extractor`` (SE): dilated ResNet and atrous spatial pyramid pooling. ``feature_discriminator`` (D1).
    ``predictor`` (SP): 3 x 3 convolution, batch norm, ReLU, 1 x 1 convolution, bilinear up-sampling. The cut lies
    before a non-linear head, since a positive gain per pixel before a linear classifier changes next to no decision.

    ``forward`` is the target's road, S with the mask; source images take ``forward_features`` and ``predict_unmasked``.
    Any image of 32 x 32 pixels or more will do.

    Args:
        num_classes: classes, the background included.
        in_channels: channels of an image.
        layers: residual blocks of the four stages of the ResNet.
        width: inner width of its first stage; doubled by each of the next three.
        output_stride: 4, 8 or 16, input pixels per feature pixel.
        feature_channels: channels of the features that D1 and the predictor see.
        atrous_rates: dilations, in feature pixels, of the 3 x 3 branches of the pyramid.
        mask_mode: one of ``MASK_MODES``.
        mask_detach: no gradient through the mask, so that SE cannot lower its loss by switching the mask.
        feature_discriminator_norm: the ``norm`` of :class:`FeatureDiscriminator`.
        predictors: 1 or 2. Two predictors vote: their logits are summed; see :mod:`scripts.losses.disagreement`.
        dropout: probability of dropping a feature before the last convolution.
        backbone_weights: path of a ResNet state dict in torchvision's names to start from.

    Raises:
        InputError: another ``mask_mode``, ``output_stride`` or number of predictors; ``backbone_weights`` cannot be
            read or do not fit.
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
        super().__init__()
        check_choice("mask_mode", mask_mode, MASK_MODES)
        check_choice("predictors", predictors, (1, 2))
        self.mask_mode = mask_mode
        self.mask_detach = mask_detach
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
    def forward_features(self, image: Tensor) -> Tensor:
        """SE(x): (B, in_channels, H, W) in [-1, 1] to (B, feature_channels, h, w), h = ceil(H / output_stride)."""
        return self.feature_extractor(as_plain_tensor(image))

    @torch.jit.export
    def mask_of_logits(self, logits: Tensor) -> Tensor:
        """The local mask from D1's logits where they are at hand already: (B, 1, h, w) to the same."""
        mask = local_mask(logits, self.mask_mode)
        return mask.detach() if self.mask_detach else mask

    @torch.jit.export
    def feature_mask(self, features: Tensor) -> Tensor:
        """The local mask of features, from D1's verdict on them: (B, feature_channels, h, w) to (B, 1, h, w).

        Without a mask (``mask_mode="off"``) it is 0 and D1 is not asked.
        """
        if self.mask_mode == "off":
            return torch.zeros_like(features[:, :1])
        return self.mask_of_logits(self.feature_discriminator(features))

    @torch.jit.export
    def predict(self, features: Tensor, mask: Tensor, size: List[int]) -> Tensor:
        """SP(f * (1 + m)): the logits of every class for target features (section 3.1).

        Args:
            features: (B, feature_channels, h, w).
            mask: (B, 1, h, w), spread over the channels.
            size: height and width of the logits, in pixels.

        Returns:
            (B, num_classes, *size), float32.
        """
        return self.predict_unmasked(self.apply_mask(features, mask), size)

    @torch.jit.export
    def predict_unmasked(self, features: Tensor, size: List[int]) -> Tensor:
        """SP(f): the logits of every class for source features, (B, num_classes, *size), float32."""
        each = self.predict_each(features, size)
        logits = each[0]
        for further in each[1:]:
            logits = logits + further
        return logits

    @torch.jit.export
    def apply_mask(self, features: Tensor, mask: Tensor) -> Tensor:
        """The re-weighted features f * (1 + m): (B, feature_channels, h, w) and (B, 1, h, w) to the former."""
        return features * (1.0 + mask)

    @torch.jit.export
    def predict_each(self, features: Tensor, size: List[int]) -> List[Tensor]:
        """The logits of each predictor by itself, (B, num_classes, *size), float32; ``predict_unmasked`` sums them."""
        each = [self.predictor(features)]
        for predictor in self.further_predictors:
            each.append(predictor(features))
        return [F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False) for x in each]

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a target image, mask included: (B, in_channels, H, W) to (B, num_classes, H, W), float32."""
        features = self.forward_features(image)
        size = [image.shape[2], image.shape[3]]
        if self.mask_mode == "off":
            return self.predict_unmasked(features, size)
        return self.predict(features, self.feature_mask(features), size)

    def segmenter_parameters(self) -> list[nn.Parameter]:
        """The parameters of SE and SP, which the segmentation step updates; D1's are not among them."""
        return [
            *self.feature_extractor.parameters(),
            *self.predictor.parameters(),
            *self.further_predictors.parameters(),
        ]


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
    return Convolution(
        spatial_dims=2,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        act="RELU",
        norm="BATCH",
        bias=False,
    )
