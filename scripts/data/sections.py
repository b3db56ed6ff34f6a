"""Which part of a volume is looked at, decided by the image alone.

Both domains must show the same anatomical section (method notes of the paper's relatives), and a target's labels may
not decide which. Each class here maps an image (1, H, W, D) to a boolean mask whose bounding box is kept; it is handed
to MONAI's invertible ``CropForegroundd`` as ``select_fn``.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import KeepLargestConnectedComponent
from scipy import ndimage

# Slices whose lungs were missed (cut open by the frame) are bridged up to this gap.
GAP_MM = 20.0

__all__ = ["AroundForeground", "BelowLungs", "NotBlank", "body_mask"]


class NotBlank:
    """Keep everything but the blank (constant) slices at both ends of the stack along ``slice_axis``."""

    def __init__(self, *, slice_axis: int = 2) -> None:
        self.slice_axis = slice_axis

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Mask of the slices that are not constant; all of them if every slice is."""
        slices = torch.as_tensor(image).movedim(self.slice_axis + 1, 0).flatten(1)
        shown = (slices.amax(1) > slices.amin(1)).view([-1 if axis == self.slice_axis else 1 for axis in range(3)])
        mask = shown[None].expand(torch.as_tensor(image).shape)
        return mask if bool(mask.any()) else ~mask


class AroundForeground:
    """Keep the slices within ``margin_mm`` of a labelled one: for the *labelled* domain, as it looks at a label map."""

    def __init__(self, *, margin_mm: float = 30.0, slice_axis: int = 2) -> None:
        self.margin_mm, self.slice_axis = margin_mm, slice_axis

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        """Mask of whole slices; all slices if nothing is labelled."""
        labelled = (torch.as_tensor(label)[0] > 0).movedim(self.slice_axis, 0).flatten(1).any(1)
        indices = labelled.nonzero().flatten()
        keep = torch.zeros_like(labelled)
        if len(indices):
            margin = round(self.margin_mm / _slice_spacing_mm(label, self.slice_axis))
            keep[max(int(indices[0]) - margin, 0) : int(indices[-1]) + margin + 1] = True
        else:
            keep[:] = True
        shape = [-1 if axis == self.slice_axis else 1 for axis in range(3)]
        return keep.view(shape)[None].expand(torch.as_tensor(label).shape)


class BelowLungs:
    """Keep the upper abdomen of a CT that may show chest to pelvis: a fixed range around the base of the lungs.

    Lungs are low values inside the filled body. Their base is the lowest slice of the run of slices in which they
    fill more than ``lung_share`` of the body's area (of several runs the one with most air: bowel gas makes smaller
    ones); the range goes from ``above_mm`` above to ``below_mm`` below it. A volume without lungs is taken to start
    at its top. In plane the body's bounding box is kept. Expects axis 2 to run to superior (``orientation: RAS``).

    Args:
        threshold: values above it are tissue, in the image's own unit (HU).
        lung_share: share of the body's cross-section that must be lung.
        above_mm: how far above the lungs' base to look (the liver's dome reaches into the chest).
        below_mm: how far below.
    """

    def __init__(
        self, *, threshold: float, lung_share: float = 0.15, above_mm: float = 80.0, below_mm: float = 240.0
    ) -> None:
        self.threshold, self.lung_share = threshold, lung_share
        self.above_mm, self.below_mm = above_mm, below_mm

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Mask of the body within the range."""
        volume = np.asarray(image[0])
        body = body_mask(volume, self.threshold)
        lungs = ndimage.binary_opening(body & (volume <= self.threshold), np.ones((3, 3, 1), bool), iterations=2)
        share = lungs.sum((0, 1)) / np.maximum(body.sum((0, 1)), 1)
        spacing_mm = _slice_spacing_mm(image, 2)
        gap = max(round(GAP_MM / spacing_mm), 1)
        runs, count = ndimage.label(
            ndimage.binary_closing(np.pad(share > self.lung_share, gap), iterations=gap)[gap:-gap]
        )
        chest = np.argmax(np.bincount(runs, weights=share)[1:]) + 1 if count else 0
        base = int(np.flatnonzero(runs == chest)[0]) if count else volume.shape[2] - 1
        first = max(base - round(self.below_mm / spacing_mm), 0)
        last = base + round(self.above_mm / spacing_mm)
        body[..., :first] = False
        body[..., last + 1 :] = False
        return torch.from_numpy(body)[None]


def body_mask(volume: np.ndarray, threshold: float) -> np.ndarray:
    """The patient without table and clothing: the largest piece of tissue, its holes filled slice by slice.

    Args:
        volume: (H, W, D).
        threshold: values above it are tissue.

    Returns:
        Boolean mask (H, W, D).
    """
    disk = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)[:, :, None]
    tissue = ndimage.binary_opening(volume > threshold, disk)
    largest = KeepLargestConnectedComponent(is_onehot=False)(torch.from_numpy(tissue[None].astype(np.uint8)))
    body = np.asarray(largest[0]).astype(bool)
    for index in range(body.shape[2]):
        body[..., index] = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(body[..., index], 3), iterations=3))[
            3:-3, 3:-3
        ]
    return body


def _slice_spacing_mm(image: torch.Tensor, slice_axis: int) -> float:
    affine = getattr(image, "affine", None)
    return 1.0 if affine is None else float(np.linalg.norm(np.asarray(affine)[:3, slice_axis]))
