"""Random volumes as training data, to measure the time of drawing a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.transforms import Transform
from scripts.data.augmentation import BatchAugmentation
from scripts.data.slices import SliceSet, UnpairedSliceBatches

__all__ = ["random_batches"]


def random_batches(
    *, size: int, batch_size: int, num_classes: int, augmentation: BatchAugmentation, device: torch.device
) -> UnpairedSliceBatches:
    """Unpaired, augmented batches of noise: ``image``, ``label`` and ``target_image``, (batch_size, 1, size, size)."""
    transform = _RandomVolume(size, num_classes)
    source, target = (SliceSet([{"image": name}], transform, device=device) for name in ("source", "target"))
    return UnpairedSliceBatches(source=source, target=target, batch_size=batch_size, augmentation=augmentation)


class _RandomVolume(Transform):
    def __init__(self, size: int, num_classes: int, slices: int = 32) -> None:
        self.shape, self.num_classes = (1, size, size, slices), num_classes

    def __call__(self, data: Mapping[str, str]) -> dict[str, Any]:
        return {
            "image": torch.rand(self.shape) * 2 - 1,
            "label": torch.randint(self.num_classes, self.shape, dtype=torch.uint8),
        }
