"""Strips MONAI's metadata from an image before a network sees it: each operation on a MetaTensor costs extra time."""

import torch
from monai.data import MetaTensor
from torch import Tensor

__all__ = ["as_plain_tensor"]


def as_plain_tensor(image: Tensor) -> Tensor:
    """The same values without metadata, gradients flowing through; under TorchScript there is none to strip."""
    if not torch.jit.is_scripting() and isinstance(image, MetaTensor):
        return image.as_tensor()
    return image
