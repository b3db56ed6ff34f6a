"""Learning-rate factors where they can be computed by hand, and the moving average of weights."""

from __future__ import annotations

import pytest
import torch
from scripts.engines.schedules import ConstantThenLinear, PolynomialDecay, averaged_model, linear_ramp
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR


@pytest.mark.parametrize(("iteration", "factor"), [(0, 1.0), (50, 0.5**0.9), (100, 0.0), (150, 0.0)])
def test_polynomial_decay(iteration: int, factor: float) -> None:
    assert PolynomialDecay(iterations=100, power=0.9)(iteration) == pytest.approx(factor)


@pytest.mark.parametrize(("iteration", "factor"), [(0, 0.1), (4, 0.5 * 0.96), (9, 0.91), (10, 0.9), (50, 0.5)])
def test_polynomial_decay_after_a_warm_up(iteration: int, factor: float) -> None:
    # Power 1 and ten iterations of warm-up: the n-th of them has n / 10.
    assert PolynomialDecay(iterations=100, power=1.0, warmup_iterations=10)(iteration) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("iteration", "factor"), [(0, 1.0), (49, 1.0), (50, 1.0), (75, 0.5), (99, 0.02), (100, 0.0), (120, 0.0)]
)
def test_constant_then_linear(iteration: int, factor: float) -> None:
    assert ConstantThenLinear(iterations=100)(iteration) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("iteration", "length", "value"), [(0, 10, 0.0), (5, 10, 0.5), (10, 10, 1.0), (99, 10, 1.0), (0, 0, 1.0)]
)
def test_linear_ramp(iteration: int, length: int, value: float) -> None:
    assert linear_ramp(iteration, length) == value


def test_a_schedule_continues_where_it_was_saved() -> None:
    def make() -> tuple[SGD, LambdaLR]:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
        return optimizer, LambdaLR(optimizer, PolynomialDecay(iterations=10, power=1.0))

    (first, schedule), (second, resumed) = make(), make()
    for _ in range(4):
        first.step()
        schedule.step()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    second.step()
    resumed.step()
    # Five of ten iterations are over: half of 2.
    assert second.param_groups[0]["lr"] == pytest.approx(1.0)


def test_the_average_by_hand() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.register_buffer("count", torch.tensor(0.0))
    average = averaged_model(network, 0.25)
    expected = 0.0
    for update, value in enumerate([3.0, 7.0, -2.0, 4.0, 8.0]):
        nn.init.constant_(network.weight, value)
        network.count.fill_(value)
        average.update_parameters(network)
        # The first update copies; then the decay is (1 + n) / (10 + n) after n updates, at most 0.25, from n = 2 on.
        decay = 0.0 if update == 0 else min(0.25, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
        assert float(average.module.count) == value  # a buffer is the network's own
