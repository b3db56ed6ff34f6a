"""Edge-aware smoothing of class probabilities in 3D: neighbouring voxels of similar intensity agree on their class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["EdgeAwareSmoothing"]

# Sweeps over the three axes; each is weaker than the one before and removes its streaks along the axes.
SWEEPS = 3

# Slabs of a divided volume overlap by this many smoothing lengths; an influence falls to 1/e within 0.6 of one.
OVERLAP_LENGTHS = 4

# Values in the middle of a slab, if the overlap is not larger. Volumes of less are smoothed as a whole.
SLAB_VALUES = 2**26

# Lines that are solved together, in values.
CHUNK_VALUES = 2**22


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

    def held_bytes(self, values: int, slices: int, step_mm: float) -> int:
        """Memory for a volume with ``values`` probabilities in a slice: a slab in float32, and the same smoothed."""
        core, overlap = self._slab(values, step_mm)
        return 2 * 4 * values * min(core + 2 * overlap, slices)

    def _slab(self, values: int, step_mm: float) -> tuple[int, int]:
        """Slices of a slab's middle, and by how many it overlaps each neighbour."""
        overlap = math.ceil(OVERLAP_LENGTHS * self.length_mm / step_mm)
        return max(overlap, SLAB_VALUES // values), overlap

    def __call__(
        self,
        blocks: Iterator[Tensor],
        image: Tensor,
        spacing_mm: Sequence[float],
        axis: int,
        channels: int | None = None,
    ) -> Iterator[Tensor]:
        """Smooth a volume that comes in parts; overlapping slabs of it are held, so that memory does not grow.

        Args:
            blocks: consecutive parts of the probabilities (K + 1, H, W, D), divided along ``axis``.
            image: (H, W, D), the network's input, in [-1, 1].
            spacing_mm: of the three axes.
            axis: 0, 1 or 2.
            channels: end of the channels that are smoothed; None for all.
        """
        held: list[Tensor] = []
        end = done = 0
        size = image.shape[axis]
        for block in blocks:
            held.append(block)
            end += block.shape[axis + 1]
            core, overlap = self._slab(block.numel() // block.shape[axis + 1], float(spacing_mm[axis]))
            while done < size and (end == size or end - done >= core + overlap):
                length = sum(part.shape[axis + 1] for part in held)
                slab = torch.cat(held, axis + 1).float()
                self._smooth(slab[:channels], image.narrow(axis, end - length, length), spacing_mm)
                start, done = done, min(done + core, size)
                finished = slab.narrow(axis + 1, start - end + length, done - start)
                yield from finished.split(block.shape[axis + 1], axis + 1)
                del slab, finished  # before the next one is made
                while length - held[0].shape[axis + 1] >= end - done + overlap:
                    length -= held.pop(0).shape[axis + 1]

    def _smooth(self, values: Tensor, image: Tensor, spacing_mm: Sequence[float]) -> None:
        """Smooth a slab (C, H, W, D) with its image (H, W, D) in place, some lines at a time."""
        for sweep in range(1, SWEEPS + 1):
            share = 1.5 * 4 ** (SWEEPS - sweep) / (4**SWEEPS - 1)
            for axis in (2, 0, 1):
                other = 0 if axis else 1
                count = max(CHUNK_VALUES * values.shape[other + 1] // values.numel(), 1)
                weight = share * (self.length_mm / float(spacing_mm[axis])) ** 2
                for lines, shown in zip(values.split(count, other + 1), image.split(count, other), strict=True):
                    edges = torch.exp(-(shown.float().diff(dim=axis) ** 2) / (2 * self.contrast**2))
                    lines.copy_(_solve_lines(lines, weight * edges, axis))


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
