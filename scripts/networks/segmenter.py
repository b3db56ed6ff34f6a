"""The segmentation network S as a component: what every S shares, with D1 and the local mask inside (section 3.1)."""

from typing import List

import torch
from scripts.core.errors import check_choice
from scripts.networks.local_mask import MASK_MODES, local_mask
from torch import Tensor, nn

__all__ = ["Segmenter"]


class Segmenter(nn.Module):
    """S = (SE, SP) with the feature discriminator D1 and the local mask: shipped as it was trained (section 3.1).

    A subclass builds its layers, assigns ``feature_discriminator``, and implements :meth:`forward_features` (SE) and
    :meth:`predict_heads` (SP). Features are a list of tensors: D1 judges the first and the mask scales it; the others,
    such as the skip connections of a U-Net, go to SP as they are.

    ``forward`` segments target images, mask included. Source images take ``forward_features`` and
    ``predict_unmasked``, as only the target is masked in the paper.

    Args:
        mask_mode: one of ``MASK_MODES``.
        mask_detach: no gradient through the mask, so that SE cannot lower its loss by changing the mask.

    Attributes:
        feature_discriminator: D1, for features of the shape of the first tensor of ``forward_features``.
        head_weights: the weight of each head in the supervised loss.
        memory_format: the layout of weights and features that is fastest.
    """

    head_weights: List[float]
    memory_format = torch.channels_last

    def __init__(self, *, mask_mode: str = "abs", mask_detach: bool = True) -> None:
        super().__init__()
        check_choice("mask_mode", mask_mode, MASK_MODES)
        self.mask_mode = mask_mode
        self.mask_detach = mask_detach

    @torch.jit.export
    def forward_features(self, image: Tensor) -> List[Tensor]:
        """SE(x): (B, in_channels, H, W) in [-1, 1] to the features, the first of them (B, C, h, w)."""
        raise NotImplementedError

    @torch.jit.export
    def predict_heads(self, features: List[Tensor], size: List[int]) -> List[Tensor]:
        """SP(f): the logits of each head, float32; in evaluation mode all of (B, num_classes, *size)."""
        raise NotImplementedError

    @torch.jit.export
    def decide(self, heads: List[Tensor]) -> Tensor:
        """The logits of S from those of its heads: the first head's, unless a subclass combines them."""
        return heads[0]

    @torch.jit.export
    def mask_of_logits(self, logits: Tensor) -> Tensor:
        """The local mask from the logits of D1: (B, 1, h, w) to the same shape."""
        mask = local_mask(logits, self.mask_mode)
        return mask.detach() if self.mask_detach else mask

    @torch.jit.export
    def feature_mask(self, features: List[Tensor]) -> Tensor:
        """The local mask of features, (B, 1, h, w).

        With ``mask_mode="off"`` it is 0 and D1 is not evaluated.
        """
        if self.mask_mode == "off":
            return torch.zeros_like(features[0][:, :1])
        return self.mask_of_logits(self.feature_discriminator(features[0]))  # type: ignore[operator]

    @torch.jit.export
    def apply_mask(self, features: List[Tensor], mask: Tensor) -> List[Tensor]:
        """The re-weighted features f * (1 + m), the mask (B, 1, h, w) broadcast over channels."""
        masked = [features[0] * (1.0 + mask)]
        masked.extend(features[1:])
        return masked

    @torch.jit.export
    def predict(self, features: List[Tensor], mask: Tensor, size: List[int]) -> Tensor:
        """SP(f * (1 + m)): the logits for target features, (B, num_classes, *size), float32."""
        return self.predict_unmasked(self.apply_mask(features, mask), size)

    @torch.jit.export
    def predict_unmasked(self, features: List[Tensor], size: List[int]) -> Tensor:
        """SP(f): the logits for source features, (B, num_classes, *size), float32."""
        return self.decide(self.predict_heads(features, size))

    def forward(self, image: Tensor) -> Tensor:
        """Logits of a target image, mask included: (B, in_channels, H, W) to (B, num_classes, H, W), float32."""
        features = self.forward_features(image)
        size = [image.shape[2], image.shape[3]]
        if self.mask_mode == "off":
            return self.predict_unmasked(features, size)
        return self.predict(features, self.feature_mask(features), size)

    def segmenter_parameters(self) -> List[nn.Parameter]:
        """The parameters of SE and SP, which the segmentation step updates; those of D1 are not among them."""
        named = self.named_parameters()
        return [parameter for name, parameter in named if not name.startswith("feature_discriminator.")]
