"""The terms of DRIT++ that no other translator has: confused content, normal attributes, translations that differ.

Source: Lee et al., DRIT++: diverse image-to-image translation via disentangled representations, 2020; of the last term,
Mao et al., Mode seeking generative adversarial networks for diverse image synthesis, 2019.
"""

from __future__ import annotations

import torch
from scripts.core.processes import mean_over_processes
from torch import Tensor
from torch.nn import functional as F

__all__ = ["confusion_loss", "mode_seeking_loss", "normality_loss"]

# Added to the ratio of distances, so that equal translations have a finite loss.
_SMALLEST_RATIO = 1e-5


def confusion_loss(logits: Tensor) -> Tensor:
    """The content encoder's adversarial loss: the content discriminator should give each domain the probability 1/2.

    Mean binary cross-entropy with 1/2, which is that with 1 and that with 0, halved; ln 2 at best.

    Args:
        logits: of the content of both domains, any shape.

    Returns:
        A float32 scalar.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), torch.full_like(logits, 0.5, dtype=torch.float32))


def normality_loss(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of codes from the normal distribution N(0, I), which translations draw from.

    Args:
        mean: of each number of each image's code, (B, C).
        log_variance: in the same shape.

    Returns:
        The sum over a code, averaged over images: a float32 scalar.
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1).mean()


def mode_seeking_loss(first: Tensor, second: Tensor, first_style: Tensor, second_style: Tensor) -> Tensor:
    """The ratio of the distance of two styles to the distance of the translations in them; lower is more diverse.

    Distances are mean absolute differences over the batch, of all processes.

    Args:
        first: translations, (B, C, H, W).
        second: of the same contents in other styles.
        first_style: of ``first``, (B, S).
        second_style: of ``second``.

    Returns:
        A float32 scalar.
    """
    pairs = ((first, second), (first_style, second_style))
    images, styles = mean_over_processes(torch.stack([F.l1_loss(one.float(), two.float()) for one, two in pairs]))
    return 1.0 / (images / styles + _SMALLEST_RATIO)
