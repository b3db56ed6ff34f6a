"""Volumes to segment against those that the run was planned from: another modality, or another part of the body."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scripts.core.errors import InputError
from scripts.data.nifti import read_nifti
from scripts.lab.adapt.folders import modality_of, with_article
from scripts.lab.adapt.label_maps import checked_cases

__all__ = ["check_alike"]

logger = logging.getLogger(__name__)

# Ratio to the shortest and the longest extent of the known volumes from which a volume shows another part of the body.
SLACK = 1.5


def check_alike(images: Sequence[str], check: Path, target: str) -> None:
    """Refuse volumes of another modality than those that were checked, and warn of volumes of another size."""
    known = [case for case in checked_cases(check, target) if case["shape"]]
    modality = modality_of(float(np.median([case["percentiles"]["0.5"] for case in known])))
    extents = np.sort([np.multiply(case["shape"], case["spacing_mm"]) for case in known])  # (cases, 3), ascending
    for image in images:
        volume = read_nifti(image)
        lowest = float(np.percentile(volume.voxels, 0.5))
        if modality_of(lowest) != modality:
            raise InputError(
                file=image,
                found=f"the intensities of {with_article(modality_of(lowest))} (percentile 0.5: {lowest:.4g})",
                expected=f"{with_article(modality)}, as the volumes of {target} that the segmenter was trained for",
                remedy="leave it out, or run adapt for this modality",
            )
        spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
        size = np.sort(spacing * volume.voxels.shape)
        if (size < extents.min(0) / SLACK).any() or (size > extents.max(0) * SLACK).any():
            logger.warning(
                "%s: a volume of %s mm. The volumes that the segmenter was trained for have %s to %s mm. "
                "Does it show another part of the body? Look at its label map.",
                image,
                *(" x ".join(f"{edge:.0f}" for edge in edges) for edges in (size, extents.min(0), extents.max(0))),
            )
