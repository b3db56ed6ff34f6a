"""Two views of a labelled slice, fused by where the segmentation depends on the image.

Source: Su et al., Rethinking data augmentation for single-source domain generalization in medical image segmentation
(SLAug), AAAI 2023: saliency-balancing fusion.
"""

from __future__ import annotations

import torch
from scripts.core.processes import rank
from scripts.data.location_scale import LocationScale
from scripts.data.slices import iteration_generator
from scripts.losses.segmentation import supervised_losses
from scripts.losses.segmenter_loss import SegmenterLoss, SegmenterStep
from scripts.networks.segmenter import Segmenter
from torch import Tensor
from torch.nn import functional as F

__all__ = ["SaliencyFusion", "saliency"]

# Stream of random numbers for the local views.
LOCAL_STREAM = 223


class SaliencyFusion(SegmenterLoss):
    """L_seg of labelled slices that are fused with a local view of theirs.

    The batch's labelled slices are the global views, on which S is trained too. Where L_seg depends most on a global
    view it stays, and where it depends least the local view replaces it.

    Args:
        segmenter: S.
        local: makes the local views.
        grid: rows and columns of cells in which saliency is averaged.
        weight: factor of the term in the total.
        seed: of the local views, together with the iteration and the process.
    """

    def __init__(
        self, *, segmenter: Segmenter, local: LocationScale, grid: int, weight: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(weight=weight)
        self.segmenter, self.local, self.grid, self.seed = segmenter, local, grid, seed

    def __call__(self, step: SegmenterStep) -> Tensor:
        """See :class:`SegmenterLoss`."""
        image, label = step.source["image"], step.source["label"]
        local, _ = self.local(image, label, iteration_generator(self.seed, step.iteration, LOCAL_STREAM, rank()))
        seen = image.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.supervised(seen, label), seen)
        return self.supervised(torch.lerp(local, image, saliency(gradient, self.grid)), label)

    def supervised(self, image: Tensor, label: Tensor) -> Tensor:
        """L_seg of unmasked slices, a float32 scalar."""
        features = self.segmenter.forward_features(image.contiguous(memory_format=self.segmenter.memory_format))
        heads = self.segmenter.predict_heads(features, list(image.shape[-2:]))
        return supervised_losses(heads, label, self.segmenter.head_weights)[0]


def saliency(gradient: Tensor, grid: int) -> Tensor:
    """How much a loss depends on each part of an image: 0 where least, 1 where most.

    Args:
        gradient: of the loss by the image, (B, 1, H, W).
        grid: rows and columns of cells, whose mean magnitudes are interpolated bilinearly.

    Returns:
        (B, 1, H, W), float32; 0 if it depends on all parts alike.
    """
    cells = F.adaptive_avg_pool2d(gradient.float().abs(), grid)
    smooth = F.interpolate(cells, size=gradient.shape[2:], mode="bilinear", align_corners=False)
    low, high = smooth.amin((2, 3), keepdim=True), smooth.amax((2, 3), keepdim=True)
    return (smooth - low) / (high - low).clamp_min(torch.finfo(smooth.dtype).tiny)
