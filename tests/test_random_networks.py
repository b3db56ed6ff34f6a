"""GIN's random networks: equal to a plain form, one per sample, range kept, contrasts inverted."""

from __future__ import annotations

import pytest
import torch
from scripts.data.augmentation import LAYERS, WIDTH, BatchAugmentation, through_random_networks
from torch.nn import functional as F


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 9, 12, generator=generator(1)) * 1.6 - 0.9


def test_each_sample_goes_through_a_network_of_its_own() -> None:
    """Written again plainly: sample by sample, with true 1 x 1 convolutions, from the same draws."""
    image, draws = batch(), generator(5)
    features = list(image.split(1))
    for layer in range(LAYERS):
        inputs, outputs = (1 if layer == 0 else WIDTH), (1 if layer == LAYERS - 1 else WIDTH)
        weights = torch.randn(len(image), outputs, inputs, 3, 3, generator=draws)
        is_pointwise = torch.rand(len(image), generator=draws) < 0.5
        offsets = torch.randn(len(image) * outputs, generator=draws).view(len(image), outputs)
        for i, (weight, offset) in enumerate(zip(weights, offsets, strict=True)):
            if is_pointwise[i]:
                features[i] = F.conv2d(features[i], weight[:, :, 1:2, 1:2], offset)
            else:
                features[i] = F.conv2d(F.pad(features[i], (1, 1, 1, 1), mode="replicate"), weight, offset)
            if layer < LAYERS - 1:
                features[i] = torch.where(features[i] > 0, features[i], 0.01 * features[i])
    shares = torch.rand(len(image), 1, 1, 1, generator=draws)
    mixture = (1 - shares) * image + shares * torch.cat(features)
    for found, sample, mixed in zip(through_random_networks(image, generator(5)), image, mixture, strict=True):
        expected = sample.min() + (mixed - mixed.min()) / (mixed.max() - mixed.min()) * (sample.max() - sample.min())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_range_stays_and_samples_do_not_meet() -> None:
    image = batch()
    changed = through_random_networks(image, generator())
    for end in (torch.amin, torch.amax):
        torch.testing.assert_close(end(changed, (1, 2, 3)), end(image, (1, 2, 3)))
    other = image.clone()
    other[0] = other[0].flip(2)
    assert torch.equal(through_random_networks(other, generator())[1:], changed[1:])
    assert not torch.equal(through_random_networks(image, generator(1)), changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_stays_under_autocast_too(dtype: torch.dtype) -> None:
    image = batch().to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = through_random_networks(image, generator())
    assert changed.dtype == dtype
    assert torch.equal(changed, through_random_networks(image.float(), generator()).to(dtype))


def test_one_value_everywhere_stays() -> None:
    flat = torch.full((2, 1, 6, 6), -1.0)
    assert torch.equal(through_random_networks(flat, generator()), flat)


def test_contrasts_turn_over_as_no_rising_curve_can() -> None:
    """Half dark, half bright, no noise: after the network the dark half may be the brighter one."""
    image = torch.tensor([-0.5, 0.5]).repeat_interleave(8).expand(400, 1, 16, 16)
    changed = through_random_networks(image, generator())
    left, right = changed[..., 1:7].mean((1, 2, 3)), changed[..., 9:15].mean((1, 2, 3))
    turned = int((left > right).sum())
    assert 40 < turned < 200  # under half, as the image itself is part of the mixture


def test_a_share_of_a_batch_is_sent() -> None:
    image = torch.rand(400, 1, 5, 5, generator=generator(2)) * 2 - 1
    label = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    changed, moved = BatchAugmentation(random_networks=0.5)(image, label, generator())
    assert moved is label
    # 400 fair coins: 200 with a standard deviation of 10.
    assert 160 < int((changed != image).flatten(1).any(1).sum()) < 240
