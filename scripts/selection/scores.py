"""Scores of a snapshot that need no label of the target, each a plain function.

A trained segmenter is scored by what it does on labelled cases of the other domain and by how its predictions on the
target look: whether they are sure, stable, well separated, and as large and as whole as the labels of the other domain
say. A high number of any one of them proves little alone: an empty prediction is sure and stable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from scripts.evaluation.metrics import dice_per_class
from scripts.losses.segmentation import supervised_loss

__all__ = [
    "MEASURED",
    "PARTS",
    "SCORES",
    "foreground_shares",
    "mask_patches",
    "masked_consistency_loss",
    "mean_components",
    "mean_dice",
    "neighbourhood_density",
    "normalised_entropy",
    "plausible_areas",
    "plausible_share",
    "volume_deviation",
]

PARTS = (
    "labelled_dice",
    "entropy",
    "consistency_loss",
    "neighbourhood_density",
    "volume_deviation",
    "component_gap",
    "plausible_share",
)
"""What is measured of a snapshot; all but the first are of the target's images."""

SCORES: dict[str, Callable[[Mapping[str, float]], float]] = {
    "masked_consistency": lambda part: part["labelled_dice"] - 0.5 * part["consistency_loss"],
    "labelled_dice": lambda part: part["labelled_dice"],
    "certainty": lambda part: -part["entropy"],
    "density": lambda part: part["neighbourhood_density"],
    "volumes": lambda part: -part["volume_deviation"],
    "components": lambda part: -part["component_gap"],
    "plausible": lambda part: part["plausible_share"],
}
"""Scores made of these parts; of each, more is better. The first is MAPSeg's (CVPR 2024)."""

MEASURED = (*(f"score_{name}" for name in SCORES), *PARTS)
"""What ``logs/selection.csv`` says of a snapshot."""

DENSITY_TEMPERATURE = 0.05
"""Temperature of the similarities in :func:`neighbourhood_density`, as published."""

LEAST_SHARE_DEVIATION = 0.02
"""Two points of a structure's share: a smaller spread over a handful of cases is chance."""

PLAUSIBLE_PERCENTILES = (2.5, 97.5)
"""Between which of the labelled slices' areas a structure's area is plausible."""

MASK_VALUE = -1.0
"""What a masked pixel shows: the darkest value."""


def mean_dice(
    prediction: NDArray[np.integer], label: NDArray[np.integer], case_of: NDArray[np.integer], num_structures: int
) -> float:
    """Dice over each case's slices together, averaged over its cases for each structure, then over structures.

    Args:
        prediction: class ids 0..K, (N, H, W).
        label: the same.
        case_of: (N,), the case each slice belongs to.
        num_structures: K.

    Returns:
        A number in [0, 1]; NaN where neither map shows any structure.
    """
    cases = [dice_per_class(prediction[case_of == c], label[case_of == c], num_structures) for c in np.unique(case_of)]
    of_structures = [_mean(column) for column in np.array(cases).reshape(-1, num_structures).T]
    return _mean(np.array(of_structures))


def normalised_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of each pixel's class probabilities, 0 (sure) to 1 (all classes alike).

    Args:
        probabilities: (B, C, H, W).

    Returns:
        (B, H, W).
    """
    return torch.special.entr(probabilities).sum(1) / math.log(probabilities.shape[1])


def mask_patches(image: Tensor, *, share: float, patches_per_side: int, generator: torch.Generator) -> Tensor:
    """Blank a random share of square patches, as one pattern for each sample.

    Args:
        image: (B, 1, H, W) in [-1, 1].
        share: of the patches, 0 to 1; rounded to whole patches.
        patches_per_side: rows and columns of patches.
        generator: CPU generator of the draw.

    Returns:
        The image with ``MASK_VALUE`` in the masked patches.
    """
    count = patches_per_side**2
    order = torch.rand(len(image), count, generator=generator).argsort(1)
    masked = torch.zeros(len(image), count).scatter_(1, order[:, : round(share * count)], 1.0)
    pattern = masked.view(-1, 1, patches_per_side, patches_per_side).to(image.device)
    wide = F.interpolate(pattern, size=image.shape[2:], mode="nearest")
    return image.masked_fill(wide > 0, MASK_VALUE)


def masked_consistency_loss(changed_logits: Tensor, prediction: Tensor) -> float:
    """L_seg between the logits for changed slices and what was predicted for them unchanged (MAPSeg).

    Args:
        changed_logits: (B, K + 1, H, W), for the slices masked and augmented.
        prediction: (B, 1, H, W) class ids of the unchanged slices, moved as the augmentation moved the image.
    """
    # The first process alone scores: the others, at their next step, would add gradients to its sums.
    return float(supervised_loss(changed_logits, prediction, over_processes=False)[0])


def neighbourhood_density(probabilities: Tensor) -> float:
    """Soft neighbourhood density (Saito et al., ICCV 2021): how many like predictions each pixel's has round it.

    The similarities of all pairs of predictions, softmaxed over each one's neighbours, have an entropy: low where a
    prediction is near one other alone, high in dense clusters.

    Args:
        probabilities: (M, C), class probabilities of M sampled pixels.

    Returns:
        The mean entropy over its greatest, ``log(M - 1)``: 0 to 1.
    """
    directions = F.normalize(probabilities.float(), dim=1)
    similarity = directions @ directions.T / DENSITY_TEMPERATURE
    similarity.fill_diagonal_(-torch.inf)
    return float(torch.special.entr(similarity.softmax(1)).sum(1).mean() / math.log(len(probabilities) - 1))


def foreground_shares(label: NDArray[np.integer], num_structures: int) -> NDArray[np.float64]:
    """Share of each structure in all that is labelled: of any size of section alike.

    Args:
        label: class ids 0..K, any shape.
        num_structures: K.

    Returns:
        (K,), with sum 1; zeros where nothing is labelled.
    """
    counts = np.bincount(label.ravel(), minlength=num_structures + 1)[1:].astype(np.float64)
    return counts / max(counts.sum(), 1.0)


def volume_deviation(shares: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """How far predicted shares lie from those of labelled cases: the mean absolute z-score over structures.

    Args:
        shares: (K,), from :func:`foreground_shares`.
        reference: (cases, K), the same of labelled cases.
    """
    spread = np.maximum(reference.std(0), LEAST_SHARE_DEVIATION)
    return float((np.abs(shares - reference.mean(0)) / spread).mean())


def mean_components(label: NDArray[np.integer], num_structures: int) -> float:
    """Connected pieces (edge neighbours) of a structure in a slice that shows it, averaged over all such pairs.

    Args:
        label: class ids 0..K, (N, H, W).
        num_structures: K.

    Returns:
        At least 1, or 0 where nothing is shown.
    """
    counts = [ndimage.label(one == structure)[1] for one in label for structure in range(1, num_structures + 1)]
    shown = [count for count in counts if count]
    return float(np.mean(shown)) if shown else 0.0


def plausible_areas(label: NDArray[np.integer], num_structures: int) -> NDArray[np.float64]:
    """The least and greatest plausible area of each structure in a slice that shows it.

    Args:
        label: class ids 0..K, (N, H, W), of labelled slices.
        num_structures: K.

    Returns:
        (K, 2) in pixels, the ``PLAUSIBLE_PERCENTILES``; NaN, which nothing lies between, where none shows it.
    """
    shown = [areas[areas > 0] for areas in _areas(label, num_structures).T]
    none = np.full(2, np.nan)
    return np.array([np.percentile(areas, PLAUSIBLE_PERCENTILES) if len(areas) else none for areas in shown])


def plausible_share(label: NDArray[np.integer], limits: NDArray[np.float64]) -> float:
    """Share of slices that show a structure, and each structure they show with a plausible area.

    Args:
        label: class ids 0..K, (N, H, W), as predicted.
        limits: (K, 2), from :func:`plausible_areas`.
    """
    areas = _areas(label, len(limits))
    is_plausible = (areas >= limits[:, 0]) & (areas <= limits[:, 1])
    return float(((is_plausible | (areas == 0)).all(1) & (areas > 0).any(1)).mean())


def _areas(label: NDArray[np.integer], num_structures: int) -> NDArray[np.int64]:
    """(N, K) pixels of each structure in each slice."""
    return np.stack([(label == structure).sum((1, 2)) for structure in range(1, num_structures + 1)], 1)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
