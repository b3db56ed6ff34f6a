"""Edge-aware smoothing of class probabilities in 3D: neighbouring voxels of similar intensity agree on their class."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

__all__ = ["EdgeAwareSmoothing", "EdgeAwareSmoothingd"]

# Sweeps over the three axes; each is weaker than the one before and removes its streaks along the axes.
SWEEPS = 3


class EdgeAwareSmoothing:
    """Smooth the probabilities of a slice-wise network along all three axes, but not across edges of the image.

    The smoothed probabilities u of a class minimise, over the voxels i and the pairs of neighbours (i, j) h mm apart,

        sum_i (u_i - p_i)^2 + sum_ij w_ij (u_i - u_j)^2,    w_ij = (length / h)^2 exp(-(x_i - x_j)^2 / (2 contrast^2)),

    which are the probabilities of a random walker with priors p (Grady, Multilabel random walker image segmentation
    using prior models, 2005). Each axis is solved exactly in turn, with weights that fall from sweep to sweep (Min et
    al., Fast global image smoothing based on weighted least squares, 2014). The classes still sum to 1.

    Args:
        length_mm: distance over which probabilities are averaged in a homogeneous region.
        contrast: difference of neighbouring intensities, in [-1, 1], that counts as an edge.
    """

    def __init__(self, length_mm: float, contrast: float) -> None:
        self.length_mm, self.contrast = length_mm, contrast

    def __call__(self, probabilities: Tensor, image: Tensor, spacing_mm: Sequence[float]) -> Tensor:
        """Smooth along each axis.

        Args:
            probabilities: (K + 1, H, W, D), or any values that are smoothed alike.
            image: (H, W, D), the network's input, in [-1, 1].
            spacing_mm: of the three axes.

        Returns:
            A new tensor (K + 1, H, W, D), float32.
        """
        smoothed = probabilities.float()
        weights = [
            (self.length_mm / step) ** 2 * torch.exp(-(image.float().diff(dim=axis) ** 2) / (2 * self.contrast**2))
            for axis, step in enumerate(map(float, spacing_mm))
        ]
        for sweep in range(1, SWEEPS + 1):
            share = 1.5 * 4 ** (SWEEPS - sweep) / (4**SWEEPS - 1)
            for axis in (2, 0, 1):
                smoothed = _solve_lines(smoothed, share * weights[axis], axis)
        return smoothed


class EdgeAwareSmoothingd(MapTransform):
    """:class:`EdgeAwareSmoothing` of probabilities (K + 1, H, W, D) with the image that they were computed from."""

    def __init__(self, keys: KeysCollection, length_mm: float, contrast: float, ref_key: str = "image") -> None:
        super().__init__(keys)
        self.ref_key, self.smoothing = ref_key, EdgeAwareSmoothing(length_mm, contrast)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Smooth each key."""
        smoothed = dict(data)
        reference = MetaTensor(smoothed[self.ref_key])
        for key in self.key_iterator(smoothed):
            image = reference.as_tensor()[0].to(smoothed[key].device)
            values = torch.as_tensor(smoothed[key])
            smoothed[key] = self.smoothing(values, image, reference.pixdim.tolist())
        return smoothed


def _solve_lines(values: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Solve (1 + L) u = values along every line of an axis by elimination; L is the Laplacian of the line's weights.

    Args:
        values: (C, H, W, D).
        weights: (H, W, D) less one voxel along the axis: of each pair of neighbours.
        axis: 0, 1 or 2.
    """
    lines = values.movedim(axis + 1, 0).clone(memory_format=torch.contiguous_format)  # (n, C, ...)
    pairs = weights.movedim(axis, 0).contiguous()  # (n - 1, ...)
    last = len(lines) - 1
    ratio = torch.zeros_like(lines[0, 0])  # of the previous row's upper entry to its pivot
    ratios = torch.empty_like(pairs)
    for row in range(last + 1):
        pivot = torch.ones_like(ratio)
        if row > 0:
            pivot += pairs[row - 1] * (1 - ratio)
            lines[row].addcmul_(lines[row - 1], pairs[row - 1])
        if row < last:
            pivot += pairs[row]
            ratio = ratios[row] = pairs[row] / pivot
        lines[row] /= pivot
    for row in range(last - 1, -1, -1):
        lines[row].addcmul_(lines[row + 1], ratios[row])
    return lines.movedim(0, axis + 1)
