"""Atrous convolution: the sum of shifted taps equals the convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scripts.networks.atrous_conv import SLOW_DILATION, AtrousConv2d, sum_of_taps
from torch import Tensor
from torch.nn import functional as F


def gradients(layer: AtrousConv2d, x: Tensor, result: Tensor) -> list[Tensor]:
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result)
    return list(torch.autograd.grad((result * weights).sum(), [x, layer.weight]))


# Taps inside the map, partly outside, in one direction wholly outside, and all but the middle one outside.
@pytest.mark.parametrize(("dilation", "size"), [(1, (5, 7)), (2, (5, 7)), (6, (5, 9)), (9, (4, 8))])
def test_taps_sum_to_the_convolution_with_its_gradients(dilation: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = AtrousConv2d(3, 4, dilation=dilation).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, layer.weight, padding=dilation, dilation=dilation)
    found = sum_of_taps(x, layer.weight, dilation)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(layer, x, found), gradients(layer, x, expected))


def test_one_tap_by_hand() -> None:
    # A single 1 at row 0, column 6 of an image, seen through the tap up and right of the middle: the output lies
    # one dilation below and one to the left.
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 2] = 5.0
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 0, 6] = 1.0
    found = sum_of_taps(x, weight, 6)
    assert found.nonzero().tolist() == [[0, 0, 6, 0]]
    assert found[0, 0, 6, 0] == 5.0


@pytest.mark.parametrize("dilation", [SLOW_DILATION, 12])
def test_bf16_agrees_with_float32_to_its_rounding(dilation: int) -> None:
    torch.manual_seed(0)
    layer = AtrousConv2d(64, 8, dilation=dilation)
    x = torch.randn(2, 64, 16, 16, requires_grad=True)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x.bfloat16())
    # bf16 has 8 bits: a product is rounded by 2 ** -9 of its size at most, and nine partial sums again.
    assert (found - expected).norm() / expected.norm() < 2**-7
    for one, other in zip(gradients(layer, x, found), gradients(layer, x, expected), strict=True):
        assert (one - other).norm() / other.norm() < 2**-6


def test_only_bf16_on_a_cpu_takes_the_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel_sizes, conv2d = [], F.conv2d

    def noted(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        kernel_sizes.append(weight.shape[-1])
        return conv2d(x, weight, *rest)

    monkeypatch.setattr(F, "conv2d", noted)
    for dtype in (torch.float32, torch.bfloat16):
        for dilation in (SLOW_DILATION - 1, SLOW_DILATION):
            AtrousConv2d(2, 2, dilation=dilation).to(dtype)(torch.zeros(1, 2, 8, 8, dtype=dtype))
    assert kernel_sizes == [3, 3, 3, 1]


def test_names_and_scripting_are_those_of_a_convolution() -> None:
    layer = AtrousConv2d(2, 3, dilation=6)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {"weight": (3, 2, 3, 3)}
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(torch.jit.script(layer)(x), layer(x))
