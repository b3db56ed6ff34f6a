"""The part of a volume that is used, and the largest connected component of a mask.

Both domains must show the same anatomy, and the target's labels must not be used to select it. Each class maps an image
(1, H, W, D) to a boolean mask, whose bounding box is kept: the ``select_fn`` of MONAI's ``CropForegroundd``.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from scipy import ndimage

# Gaps up to this length between slices with lungs are closed: the field of view may cut the lungs open.
GAP_MM = 20.0

# Voxels of components that are counted at a time.
COUNTED_VOXELS = 2**24

__all__ = ["AroundForeground", "BelowLungs", "KeepLargestd", "NotBlank", "body_mask", "largest_component"]


class NotBlank:
    """Drop blank (constant) slices at both ends of the stack along ``slice_axis``."""

    def __init__(self, *, slice_axis: int = 2) -> None:
        self.slice_axis = slice_axis

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Mask of the slices that are not constant, or of all slices if every one is constant."""
        slices = torch.as_tensor(image).movedim(self.slice_axis + 1, 0).flatten(1)
        shown = (slices.amax(1) > slices.amin(1)).view([-1 if axis == self.slice_axis else 1 for axis in range(3)])
        mask = shown[None].expand(torch.as_tensor(image).shape)
        return mask if bool(mask.any()) else ~mask


class AroundForeground:
    """Keep the slices within ``margin_mm`` of a labelled one. It reads the label map: for the labelled domain only."""

    def __init__(self, *, margin_mm: float = 30.0, slice_axis: int = 2) -> None:
        self.margin_mm, self.slice_axis = margin_mm, slice_axis

    def __call__(self, label: torch.Tensor) -> torch.Tensor:
        """Mask of whole slices, or of all slices if nothing is labelled."""
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
    """Keep the upper abdomen of a CT that may reach from chest to pelvis: a fixed range around the base of the lungs.

    Lungs are low values inside the filled body. Their base is the lowest slice of the run of slices in which they
    fill more than ``lung_share`` of the body's cross-section. Among several runs the one with the most air counts, as
    bowel gas forms smaller ones. The range extends from ``above_mm`` above, for the dome of the liver, to ``below_mm``
    below the base. Without lungs, the topmost slice counts as the base. In plane, the bounding box of the body is kept:
    tissue above ``threshold`` in HU. Axis 2 must point to superior (``orientation: RAS``).
    """

    def __init__(
        self, *, threshold: float, lung_share: float = 0.15, above_mm: float = 80.0, below_mm: float = 240.0
    ) -> None:
        self.threshold, self.lung_share = threshold, lung_share
        self.above_mm, self.below_mm = above_mm, below_mm

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Mask of the body within the range, or of the whole image if there is none: it is no CT, as others say."""
        volume = np.asarray(image[0])
        body = body_mask(volume, self.threshold)
        lungs = ndimage.binary_opening(body & (volume <= self.threshold), np.ones((3, 3, 1), bool), iterations=2)
        share = lungs.sum((0, 1)) / np.maximum(body.sum((0, 1)), 1)
        spacing_mm = _slice_spacing_mm(image, 2)
        gap = max(round(GAP_MM / spacing_mm), 1)
        closed = ndimage.binary_closing(np.pad(share > self.lung_share, gap), iterations=gap)[gap:-gap]
        runs, count = ndimage.label(closed)
        chest = np.argmax(np.bincount(runs, weights=share)[1:]) + 1 if count else 0
        base = int(np.flatnonzero(runs == chest)[0]) if count else volume.shape[2] - 1
        body[..., : max(base - round(self.below_mm / spacing_mm), 0)] = False
        body[..., base + round(self.above_mm / spacing_mm) + 1 :] = False
        return torch.from_numpy(body if body.any() else ~body)[None]


def body_mask(volume: np.ndarray, threshold: float) -> np.ndarray:
    """The patient (H, W, D) without table and clothing: the largest component of tissue, with holes filled."""
    disk = ndimage.iterate_structure(ndimage.generate_binary_structure(2, 1), 2)[:, :, None]
    tissue = ndimage.binary_opening(volume > threshold, disk)
    body = largest_component(tissue)
    for index in range(body.shape[2]):
        closed = ndimage.binary_closing(np.pad(body[..., index], 3), iterations=3)
        body[..., index] = ndimage.binary_fill_holes(closed)[3:-3, 3:-3]
    return body


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest component (H, W, D) of voxels that touch at faces, edges or corners; of equal ones the first.

    It takes 5 bytes a voxel, MONAI's 20 and more.
    """
    pieces, count = ndimage.label(mask, np.ones((3, 3, 3)))
    rows = max(COUNTED_VOXELS // mask[0].size, 1)  # counting converts to 8 bytes a voxel
    parts = (pieces[start : start + rows].ravel() for start in range(0, len(mask), rows))
    sizes = sum((np.bincount(part, minlength=count + 1) for part in parts), np.zeros(count + 1, int))
    return (pieces == sizes[1:].argmax() + 1) if count else np.zeros_like(mask)


class KeepLargestd(MapTransform):
    """Keep the largest component of each structure in class ids (1, H, W, D)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean each key."""
        cleaned = dict(data)
        for key in self.key_iterator(cleaned):
            classes = cleaned[key][0].cpu().numpy().copy()
            for number, place in enumerate(ndimage.find_objects(classes), start=1):
                if place is not None:
                    structure = classes[place] == number
                    classes[place][structure & ~largest_component(structure)] = 0
            cleaned[key] = MetaTensor(torch.from_numpy(classes)[None]).copy_meta_from(cleaned[key])
        return cleaned


def _slice_spacing_mm(image: torch.Tensor, slice_axis: int) -> float:
    affine = getattr(image, "affine", None)
    return 1.0 if affine is None else float(np.linalg.norm(np.asarray(affine)[:3, slice_axis]))
