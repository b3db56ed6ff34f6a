"""A U-Net as the segmentation network S: learns faster than DeepLab from few slices, and is cheaper on a CPU."""

from collections.abc import Sequence
from typing import List

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetUpBlock
from scripts.core.descriptions import records_arguments
from scripts.core.errors import check_choice
from scripts.networks.feature_discriminator import FeatureDiscriminator
from scripts.networks.layers import as_plain_tensor
from scripts.networks.segmenter import Segmenter
from torch import Tensor, nn

__all__ = ["MaskedUNet"]

# Channels at which doubling stops, as in nnU-Net.
LARGEST_WIDTH = 320

NORM = ("instance", {"affine": True})


@records_arguments
class MaskedUNet(Segmenter):
    """nnU-Net's plain 2D U-Net as S, built of MONAI's DynUNet blocks.

    Each level has two 3 x 3 convolutions with instance norm and leaky ReLU 0.01; strided convolutions lead down,
    transposed ones up. SE ends, and D1 and the local mask act, at ``alignment_level``; the rest of the decoder is SP.
    In training mode the finest levels have a head each (deep supervision, weights 1, 1/2, 1/4); in evaluation mode
    only the finest has.

    Images of 32 x 32 pixels or more of any shape are accepted.

    Args:
        num_classes: number of classes, background included.
        in_channels: channels of an image.
        channels: channels of the finest level; doubled at each of the next, up to ``LARGEST_WIDTH``.
        levels: resolutions; the coarsest has 1 / 2^(levels - 1) of the image's.
        alignment_level: 0 for the last features, at the image's resolution; 2 for the decoder's features at a quarter
            of it; ``levels - 1`` for the bottleneck.
        heads: number of levels with a head in training.
        feature_discriminator_channels: widths of the hidden layers of D1.
        mask_mode: see :class:`Segmenter`.
        mask_detach: see :class:`Segmenter`.
        feature_discriminator_norm: the ``norm`` of :class:`FeatureDiscriminator`.

    Raises:
        InputError: unknown ``mask_mode``, or a level or number of heads that does not exist.

    Source: Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation,
    2021.
    """

    memory_format = torch.contiguous_format  # instance norm copies channels_last features

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        channels: int = 16,
        levels: int = 5,
        alignment_level: int = 2,
        heads: int = 3,
        feature_discriminator_channels: Sequence[int] = (64, 32, 16),
        mask_mode: str = "abs",
        mask_detach: bool = True,
        feature_discriminator_norm: str = "none",
    ) -> None:
        super().__init__(mask_mode=mask_mode, mask_detach=mask_detach)
        check_choice("alignment_level", alignment_level, range(levels))
        check_choice("heads", heads, range(1, levels))
        widths = [min(channels * 2**level, LARGEST_WIDTH) for level in range(levels)]
        self.alignment_level = alignment_level
        self.levels = levels
        weights = [0.5**level for level in range(heads)]
        self.head_weights = [weight / sum(weights) for weight in weights]
        down = [_encoder_block(widths[level], widths[level + 1], stride=2) for level in range(levels - 1)]
        self.encoder = nn.ModuleList([_encoder_block(in_channels, widths[0], stride=1), *down])
        self.decoder = nn.ModuleList([_decoder_block(widths[i + 1], widths[i]) for i in reversed(range(levels - 1))])
        self.heads = nn.ModuleList([nn.Conv2d(widths[level], num_classes, 1) for level in range(heads)])
        self.feature_discriminator = FeatureDiscriminator(
            in_channels=widths[alignment_level],
            channels=feature_discriminator_channels,
            norm=feature_discriminator_norm,
        )

    @torch.jit.export
    def forward_features(self, image: Tensor) -> List[Tensor]:
        """See :class:`Segmenter`.

        Returns:
            The features of ``alignment_level``, (B, C, h, w); the encoder's of the finer levels, finest first; in
            training mode also the decoder's of the coarser levels, coarsest first.
        """
        x = as_plain_tensor(image)
        skips: List[Tensor] = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        skips.pop()
        coarser: List[Tensor] = []
        for index, block in enumerate(self.decoder):
            if self.levels - 2 - index >= self.alignment_level:
                if index > 0:
                    coarser.append(x)
                x = block(x, skips.pop())
        features = [x]
        features.extend(skips)
        if self.training:
            features.extend(coarser)
        return features

    @torch.jit.export
    def predict_heads(self, features: List[Tensor], size: List[int]) -> List[Tensor]:
        """The logits of each head, finest first, float32; the finest always has the size of the image."""
        x = features[0]
        decoded = features[1 + self.alignment_level :]
        decoded.append(x)
        for index, block in enumerate(self.decoder):
            level = self.levels - 2 - index
            if level < self.alignment_level:
                x = block(x, features[1 + level])
                decoded.append(x)
        logits: List[Tensor] = []
        for level, head in enumerate(self.heads):
            if level == 0 or self.training:
                logits.append(head(decoded[len(decoded) - 1 - level]).float())
        return logits


class _UpBlock(UnetUpBlock):
    """MONAI's block for odd sizes too: what up-sampling adds beyond the skip connection is cut off."""

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = self.transp_conv(x)[:, :, : skip.shape[2], : skip.shape[3]]
        return self.conv_block(torch.cat((up, skip), dim=1))


def _encoder_block(in_channels: int, out_channels: int, stride: int) -> UnetBasicBlock:
    return UnetBasicBlock(2, in_channels, out_channels, kernel_size=3, stride=stride, norm_name=NORM)


def _decoder_block(in_channels: int, out_channels: int) -> _UpBlock:
    return _UpBlock(2, in_channels, out_channels, kernel_size=3, stride=1, upsample_kernel_size=2, norm_name=NORM)
