"""Label-free scores of a snapshot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.evaluation.metrics import dice_per_class
from scripts.losses.segmentation import supervised_loss
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MEASURED", "PARTS", "SCORES", "mask_patches", "masked_consistency_loss", "mean_dice"]

# Measured values: the first on labelled cases of the source, the second on target images.
PARTS = ("labelled_dice", "consistency_loss")

# The scores computed from these parts; higher is better. The first is MAPSeg's (CVPR 2024).
SCORES: dict[str, Callable[[Mapping[str, float]], float]] = {
    "masked_consistency": lambda part: part["labelled_dice"] - 0.5 * part["consistency_loss"],
    "labelled_dice": lambda part: part["labelled_dice"],
}

# Columns of ``logs/selection.csv`` for each snapshot.
MEASURED = (*(f"score_{name}" for name in SCORES), *PARTS)

# The value of a masked pixel: the darkest.
MASK_VALUE = -1.0


def mean_dice(
    prediction: NDArray[np.integer], label: NDArray[np.integer], case_of: NDArray[np.integer], num_structures: int
) -> float:
    """Dice over all slices of each case, averaged over cases for each structure, then over structures.

    Class ids 0..K are (N, H, W), ``case_of`` (N,). NaN where no structure is present in either map.
    """
    cases = [dice_per_class(prediction[case_of == c], label[case_of == c], num_structures) for c in np.unique(case_of)]
    of_structures = [_mean(column) for column in np.array(cases).reshape(-1, num_structures).T]
    return _mean(np.array(of_structures))


def mask_patches(image: Tensor, *, share: float, patches_per_side: int, generator: torch.Generator) -> Tensor:
    """Blank a random share of square patches with ``MASK_VALUE``, in another pattern for each sample of (B, 1, H, W).

    There are ``patches_per_side`` rows and columns; the share, 0 to 1, is rounded to whole patches.
    """
    count = patches_per_side**2
    order = torch.rand(len(image), count, generator=generator).argsort(1)
    masked = torch.zeros(len(image), count).scatter_(1, order[:, : round(share * count)], 1.0)
    pattern = masked.view(-1, 1, patches_per_side, patches_per_side).to(image.device)
    wide = F.interpolate(pattern, size=image.shape[2:], mode="nearest")
    return image.masked_fill(wide > 0, MASK_VALUE)


def masked_consistency_loss(changed_logits: Tensor, prediction: Tensor) -> float:
    """L_seg between the logits of masked, augmented slices and the prediction on the original ones (MAPSeg).

    Logits are (B, K + 1, H, W); class ids (B, 1, H, W) are transformed as the augmented slices.
    """
    # Only rank 0 scores; a sum over processes would wait for the others.
    return float(supervised_loss(changed_logits, prediction, over_processes=False)[0])


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
