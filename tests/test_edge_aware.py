"""Edge-aware smoothing of probabilities in 3D."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor
from scripts.inference.edge_aware import EdgeAwareSmoothing, EdgeAwareSmoothingd, _solve_lines


def test_two_voxels_by_hand() -> None:
    # One pair of neighbours 2 mm apart, no edge, length 2 mm: w = (2 / 2)^2 = 1. A solve of (1 + L) u = p with the
    # weight s w keeps the mean and divides the difference by 1 + 2 s w; the sweeps have s = 1.5 * (16, 4, 1) / 63.
    p = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    u = EdgeAwareSmoothing(length_mm=2.0, contrast=0.1)(p, torch.zeros(1, 1, 2), (1.0, 1.0, 2.0)).flatten()
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
    smoothed = EdgeAwareSmoothing(20.0, 0.07)(probabilities, torch.rand(4, 5, 6), (2.5, 2.5, 5.0))
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
    found = smoothing(torch.stack([1 - foreground, foreground]), image, (2.5, 2.5, 2.5)).argmax(0).bool()
    assert torch.equal(found, organ)
    blind = smoothing(torch.stack([1 - foreground, foreground]), torch.zeros(9, 9, 9), (2.5, 2.5, 2.5)).argmax(0).bool()
    assert not torch.equal(blind, organ)  # without edges the boundary is lost


def test_the_transform_takes_the_spacing_from_the_image() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    probabilities = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    case = {"image": MetaTensor(image, affine=affine), "pred": probabilities}
    smoothed = EdgeAwareSmoothingd("pred", length_mm=10.0, contrast=0.3)(case)["pred"]
    assert torch.equal(smoothed, EdgeAwareSmoothing(10.0, 0.3)(probabilities, image[0], (2.0, 3.0, 4.0)))
