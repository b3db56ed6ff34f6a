"""Compares images with those that weights were trained for: a fingerprint beside the weights, a check of each image.

Distances of normalised intensity histograms tell nothing: those between CT and MR of the abdomen and MR of hearts are
not larger than those within each data set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scripts.core.errors import InputError, check_choice
from scripts.core.weights import TRAINING_CASES, read_metadata
from scripts.data.geometry import spacing_of
from scripts.data.nifti import read_nifti
from scripts.data.slices import SliceSet
from scripts.data.volumes import CT_FAT_HU

__all__ = ["UNLIKE", "CheckLikenessd", "describe_cases", "difference"]

logger = logging.getLogger(__name__)

# Key of an image's metadata for the warning that it is hardly alike.
UNLIKE = "unlike_training_images"

# Ratio to the extents of the training images from which an image is reported, and from which a smaller one is refused.
ODD, FOREIGN = 1.5, 3.0


def describe_cases(labelled: SliceSet, target: SliceSet | None, label_names: Sequence[str]) -> dict[str, Any]:
    """What inference compares with: volumes of the structures in the labelled cases, and the target's images, if any.

    Returns:
        The number of ``labelled_cases``, their ``volumes_ml`` (name -> least and greatest), and ``images``: whether all
        or none ``are_ct``, and the ``least_mm`` and ``greatest_mm`` of their extents, shortest edge first.
    """
    volumes = labelled.volumes_ml(len(label_names))  # (cases, K)
    ends = torch.stack([volumes.amin(0), volumes.amax(0)], 1).tolist()  # (K, 2)
    ranges = dict(zip(label_names, ends, strict=True))
    described: dict[str, Any] = {"labelled_cases": len({item["label"] for item in labelled.data}), "volumes_ml": ranges}
    if target is not None:
        images = (read_nifti(item["image"]) for item in target.data)
        lows, extents = zip(*(_measured(image.voxels, image.affine) for image in images), strict=True)
        kinds = {value < CT_FAT_HU for value in lows}
        described["images"] = {
            "are_ct": kinds.pop() if len(kinds) == 1 else None,
            "least_mm": np.min(extents, 0).round(1).tolist(),
            "greatest_mm": np.max(extents, 0).round(1).tolist(),
        }
    return described


def difference(image: Any, affine: Any, known: Mapping[str, Any]) -> tuple[float, str]:
    """How far an image is from the training images, at most 1 within their range, and what differs.

    Another modality is infinitely far. A longer image is at most ``FOREIGN`` times as far: the task's section crops it.

    ``image`` (H, W, D) is as stored, ``affine`` (4, 4) leads to RAS+ coordinates in mm, ``known`` are the ``images`` of
    :func:`describe_cases`.
    """
    low, extent_mm = _measured(image, affine)
    if known.get("are_ct") is not None and (low < CT_FAT_HU) != known["are_ct"]:
        return math.inf, f"lowest values of {low:.4g}: {'no CT in HU' if known['are_ct'] else 'a CT in HU'}"
    least, greatest = np.array(known["least_mm"]), np.array(known["greatest_mm"])
    distance = float(max((least / extent_mm).max(), min((extent_mm / greatest).max(), FOREIGN)))
    size, *known_sizes = (" x ".join(f"{edge:.0f}" for edge in edges) for edges in (extent_mm, least, greatest))
    return distance, f"edges of {size} mm, {distance:.1f} times outside those of training ({' to '.join(known_sizes)})"


class CheckLikenessd(MapTransform):
    """Refuse images unlike those that the weights were trained for, and warn of images that are hardly alike.

    Args:
        keys: keys of images (1, H, W, D) as stored, which stay as they are.
        weights: file of the weights; if their metadata do not describe the training images, nothing is checked.
        exported: an exported network that is used instead, which contains the metadata; None for the weights.
        unlike: ``refuse``, or ``warn`` to process images of every distance.
    """

    def __init__(self, keys: KeysCollection, *, weights: str, exported: Any = None, unlike: str = "refuse") -> None:
        super().__init__(keys)
        check_choice("unlike_images", unlike, ("refuse", "warn"))
        self.weights, self.exported, self.unlike = Path(weights), exported, unlike

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check each image."""
        metadata = read_metadata(self.weights) if self.exported is None else self.exported.metadata
        known = metadata.get(TRAINING_CASES, {}).get("images")
        for key in self.key_iterator(dict(data)) if known else ():
            image = data[key]
            file = image.meta.get("filename_or_obj", f"{key!r}")
            distance, found = difference(image[0], image.affine, known)
            if distance > FOREIGN and self.unlike == "refuse":
                expected = "an image like those that the weights were trained for"
                remedy = "leave it out, choose the task of its modality, or go on with --unlike_images warn"
                raise InputError(file=file, found=found, expected=expected, remedy=remedy)
            if distance > ODD:
                image.meta[UNLIKE] = found
                logger.warning("%s: %s. Fix: look at the image and at its label map before use.", file, found)
        return dict(data)


def _measured(image: Any, affine: Any) -> tuple[float, np.ndarray]:
    """The low end of the values, percentile 0.5 of at most a million voxels, and the edges in mm, shortest first."""
    step = math.ceil((math.prod(image.shape) / 2**20) ** (1 / 3))
    low = np.percentile(np.asarray(image[::step, ::step, ::step]), 0.5)
    return float(low), np.sort(np.multiply(image.shape, spacing_of(affine)))
