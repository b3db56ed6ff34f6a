"""The local mask: values, range, broadcasting, gradients, and its effect on the domain gap."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.losses.adversarial import discriminator_loss
from scripts.networks.feature_discriminator import FeatureDiscriminator
from scripts.networks.local_mask import MASK_MODES, local_mask
from scripts.networks.masked_deeplab import MaskedDeepLab


def small_segmenter(**settings: object) -> MaskedDeepLab:
    torch.manual_seed(0)
    return MaskedDeepLab(num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16, **settings)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_values_by_hand() -> None:
    # tanh 1 = (e^2 - 1) / (e^2 + 1); p = sigmoid(ln 3) = 3/4, so 4 p (1 - p) = 4 * 3/4 * 1/4 = 3/4, the same for -ln 3.
    tanh_one = (math.e**2 - 1) / (math.e**2 + 1)
    torch.testing.assert_close(local_mask(logits(1.0, -1.0, 0.0), "abs"), logits(tanh_one, tanh_one, 0.0))
    torch.testing.assert_close(local_mask(logits(1.0, -1.0, 0.0), "target_confidence"), logits(0.0, tanh_one, 0.0))
    # From the verdict of the source, 1: none at 1, as far at 2 as at 0.
    torch.testing.assert_close(local_mask(logits(1.0, 0.0, 2.0), "source_distance"), logits(0.0, tanh_one, tanh_one))
    three = math.log(3.0)
    torch.testing.assert_close(local_mask(logits(three, -three, 0.0), "uncertainty"), logits(0.75, 0.75, 1.0))
    assert local_mask(logits(1.0, -1.0, 0.0), "off").count_nonzero() == 0


@pytest.mark.parametrize("mode", MASK_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_range_shape_and_dtype(mode: str, dtype: torch.dtype) -> None:
    z = (torch.linspace(-200.0, 200.0, 401).view(1, 1, 1, -1)).to(dtype)
    mask = local_mask(z, mode)
    assert mask.shape == z.shape
    assert mask.dtype == dtype
    assert mask.min() >= 0
    assert mask.max() <= 1
    if mode != "uncertainty":
        moderate = local_mask(torch.linspace(-5.0, 5.0, 101), mode)  # beyond, tanh rounds to 1
        assert moderate.max() < 1


def test_unknown_mode_is_named() -> None:
    with pytest.raises(ValueError, match="got sigmoid"):
        local_mask(logits(0.0), "sigmoid")
    with pytest.raises(ValueError, match=r"setting 'mask_mode': 'sigmoid'\. Expected one of abs"):
        small_segmenter(mask_mode="sigmoid")


def test_the_mask_has_one_channel_and_is_spread_over_all() -> None:
    net = small_segmenter().eval()
    features = net.forward_features(torch.randn(2, 1, 48, 40))
    mask = net.feature_mask(features)
    assert mask.shape == (2, 1, *features[0].shape[2:])
    expanded = features[0] + features[0] * mask.expand_as(features[0])  # the paper's formula, term by term
    torch.testing.assert_close(net.predict(features, mask, [48, 40]), net.predict_unmasked([expanded], [48, 40]))


def test_without_a_mask_the_net_is_plain_deeplab() -> None:
    net = small_segmenter(mask_mode="off").eval()
    image = torch.randn(2, 1, 48, 40)
    features = net.forward_features(image)
    assert net.feature_mask(features).count_nonzero() == 0
    plain = net.predict_unmasked(features, [48, 40])
    assert torch.equal(net(image), plain)
    assert torch.equal(net.predict(features, net.feature_mask(features), [48, 40]), plain)
    masked = small_segmenter(mask_mode="abs").eval()
    masked.load_state_dict(net.state_dict())
    assert not torch.allclose(masked(image), plain)


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_through_the_mask(detach: bool) -> None:
    net = small_segmenter(mask_detach=detach)
    features = torch.randn(2, 16, 5, 5, requires_grad=True)
    mask = net.feature_mask([features])
    assert mask.requires_grad is not detach
    net.predict([features], mask, [32, 32]).square().sum().backward()
    touched = [parameter.grad is not None for parameter in net.feature_discriminator.parameters()]
    assert not any(touched) if detach else all(touched)
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def gain_ratio(kind: str, seed: int, *modes: str) -> list[float]:
    """For each mode, (1 + mask) within the domain gap over it outside, after D1 alone was trained on random features.

    Source features are N(0, 1); the target's are shifted by 1.5 in the central half of a 24 x 24 map.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    shift = torch.zeros(24, 24)
    shift[6:18, 6:18] = 1.5
    discriminator = FeatureDiscriminator(in_channels=16, channels=(16, 8, 4))
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=4e-3, betas=(0.9, 0.99))
    for _ in range(150):
        source, target = torch.randn(2, 4, 16, 24, 24, generator=generator)
        loss = discriminator_loss(discriminator(source), discriminator(target + shift), kind)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        verdict = discriminator(torch.randn(64, 16, 24, 24, generator=generator) + shift)
    gains = [1 + local_mask(verdict, mode)[:, 0] for mode in modes]
    aligned = torch.ones(24, 24, dtype=torch.bool)
    aligned[3:21, 3:21] = False
    return [float(gain[:, 8:16, 8:16].mean() / gain[:, aligned].mean()) for gain in gains]


def test_bce_mask_emphasises_the_gap_and_lsgan_mask_suppresses_it() -> None:
    # Under LSGAN the logit of a target pixel goes to 0, and so does its mask; under BCE it goes to minus infinity.
    assert gain_ratio("bce", 0, "abs")[0] > 1.1
    suppressed, emphasised = gain_ratio("lsgan", 0, "abs", "source_distance")
    assert suppressed < 0.9
    # Measured from the source's verdict, 1, in place of the target's, 0, it marks the gap as BCE's does.
    assert emphasised > 1.1
