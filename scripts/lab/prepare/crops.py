"""Crops of published protocols that MONAI lacks. They use label maps, unlike the `clean` protocol."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, SpatialCrop, SpatialPad

__all__ = ["CropAroundLabeld"]


class CropAroundLabeld(MapTransform):
    """Crop or pad (1, H, W, D) to ``size`` voxels (-1: all) about the mean position of the labelled voxels."""

    def __init__(self, keys: KeysCollection, label_key: str, size: Sequence[int]) -> None:
        super().__init__(keys)
        self.label_key, self.size = label_key, tuple(size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop each key; something is labelled."""
        cropped = dict(data)
        labelled = torch.as_tensor(data[self.label_key])[0].nonzero()
        shape = data[self.label_key].shape[1:]
        size = [length if length > 0 else whole for length, whole in zip(self.size, shape, strict=True)]
        mean = labelled.double().mean(0).round().long().tolist()
        centre = [
            place if length > 0 else whole // 2 for place, length, whole in zip(mean, self.size, shape, strict=True)
        ]
        # Pad first, because SpatialCrop clips boxes that are partly outside and thereby moves their centre.
        margin = [length if length > 0 else 0 for length in self.size]
        for key in self.key_iterator(cropped):
            padded = SpatialPad([whole + 2 * more for whole, more in zip(shape, margin, strict=True)])(cropped[key])
            place = [at + more for at, more in zip(centre, margin, strict=True)]
            cropped[key] = SpatialCrop(roi_center=place, roi_size=size)(padded)
        return cropped
