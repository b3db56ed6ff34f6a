"""Edge-aware smoothing of probabilities in 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from scripts.inference import edge_aware
from scripts.inference.edge_aware import EdgeAwareSmoothing, _solve_lines
from scripts.inference.inferers import SliceWiseInferer
from torch import Tensor


def smooth(
    smoothing: EdgeAwareSmoothing,
    probabilities: Tensor,
    image: Tensor,
    spacing_mm: Sequence[float],
    *,
    axis: int = 2,
    thickness: int = 8,
) -> Tensor:
    return torch.cat(list(smoothing(iter(probabilities.split(thickness, axis + 1)), image, spacing_mm, axis)), axis + 1)


def test_two_voxels_by_hand() -> None:
    # One pair of neighbours 2 mm apart, no edge, length 2 mm: w = (2 / 2)^2 = 1. A solve of (1 + L) u = p with the
    # weight s w keeps the mean and divides the difference by 1 + 2 s w; the sweeps have s = 1.5 * (16, 4, 1) / 63.
    p = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    u = smooth(EdgeAwareSmoothing(length_mm=2.0, contrast=0.1), p, torch.zeros(1, 1, 2), (1.0, 1.0, 2.0)).flatten()
    difference = 1 / math.prod(1 + 2 * 1.5 * part / 63 for part in (16, 4, 1))
    assert u.tolist() == pytest.approx([0.5 + difference / 2, 0.5 - difference / 2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_elimination_equals_a_dense_solver(axis: int) -> None:
    generator = torch.Generator().manual_seed(axis)
    values = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(values[0].narrow(axis, 1, values.shape[axis + 1] - 1).shape, generator=generator).double()
    lines, pairs = values.movedim(axis + 1, 3), weights.movedim(axis, 2)  # (C, a, b, n), (a, b, n - 1)
    incidence = torch.eye(lines.shape[3], dtype=torch.float64).diff(dim=0)  # (n - 1, n): a row for each pair
    laplacian = incidence.T @ torch.diag_embed(pairs) @ incidence
    dense = torch.linalg.solve(torch.eye(lines.shape[3]) + laplacian, lines[..., None])[..., 0].movedim(3, axis + 1)
    assert torch.allclose(_solve_lines(values, weights, axis), dense)


def test_classes_sum_to_one_and_the_input_stays() -> None:
    probabilities = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).softmax(0)
    before = probabilities.clone()
    smoothed = smooth(EdgeAwareSmoothing(20.0, 0.07), probabilities, torch.rand(4, 5, 6), (2.5, 2.5, 5.0))
    assert torch.allclose(smoothed.sum(0), torch.ones(4, 5, 6), atol=1e-5)
    assert torch.equal(probabilities, before)


def test_a_missed_slice_is_filled_up_to_the_edge_of_its_organ() -> None:
    # The organ has the intensity 0.5 in a background of -0.5; the network missed it in one slice.
    organ = torch.zeros(9, 9, 9, dtype=torch.bool)
    organ[2:7, 2:7, :] = True
    image = organ.float() - 0.5
    foreground = torch.where(organ, 0.9, 0.1)
    foreground[:, :, 4] = 0.1
    smoothing = EdgeAwareSmoothing(20.0, 0.07)
    found = smooth(smoothing, torch.stack([1 - foreground, foreground]), image, (2.5, 2.5, 2.5)).argmax(0).bool()
    assert torch.equal(found, organ)
    blind = (
        smooth(smoothing, torch.stack([1 - foreground, foreground]), torch.zeros(9, 9, 9), (2.5, 2.5, 2.5))
        .argmax(0)
        .bool()
    )
    assert not torch.equal(blind, organ)  # without edges the boundary is lost


def test_the_inferer_takes_the_spacing_from_the_image_and_leaves_the_mask() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image = MetaTensor(torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1, affine=affine)
    outputs = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    smoothing = EdgeAwareSmoothing(10.0, 0.3)
    inferer = SliceWiseInferer(window_size=None, slice_batch_size=4, smoothing=smoothing, with_mask=True)
    inferer._blocks = lambda *_: (block.movedim(3, 1) for block in outputs.split(4, 3))
    found = inferer(image[None], None)[0].as_tensor()
    assert torch.equal(found[:2], smooth(smoothing, outputs[:2], image[0].as_tensor(), (2.0, 3.0, 4.0)))
    assert torch.equal(found[2], outputs[2])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 3, 8])
def test_slabs_give_the_undivided_result(axis: int, thickness: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 90 slices of 2 mm, smoothed over 6 mm: slabs of 12 slices with 12 more at each side. Without edges the whole
    # slab counts, which is the hardest case.
    generator = torch.Generator().manual_seed(axis)
    size = [6, 6, 6]
    size[axis] = 90
    probabilities = (4 * torch.randn(3, *size, generator=generator)).softmax(0)
    image, spacing = torch.zeros(size), (2.0, 2.0, 2.0)
    whole = smooth(EdgeAwareSmoothing(6.0, 0.07), probabilities, image, spacing, axis=axis, thickness=thickness)
    monkeypatch.setattr(edge_aware, "SLAB_VALUES", 1)
    parts = smooth(EdgeAwareSmoothing(6.0, 0.07), probabilities, image, spacing, axis=axis, thickness=thickness)
    assert not torch.equal(parts, whole)  # it was divided
    assert float((parts - whole).abs().max()) < 1e-3


def test_slabs_hold_a_bounded_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_aware, "SLAB_VALUES", 1)
    smoothing, longest = EdgeAwareSmoothing(3.0, 0.07), 0
    solve = smoothing._smooth

    def measured(values: Tensor, *others: Any) -> None:
        nonlocal longest
        longest = max(longest, values.shape[3])
        solve(values, *others)

    monkeypatch.setattr(smoothing, "_smooth", measured)
    smooth(smoothing, torch.rand(2, 3, 3, 400), torch.zeros(3, 3, 400), (1.0, 1.0, 1.0), thickness=5)
    assert longest <= 3 * 12 + 2 * 5  # slab and overlaps of 4 x 3 mm each, and a block at either end
