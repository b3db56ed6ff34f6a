"""The U-Net as segmenter: shapes, what the mask affects, and parameters by role."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet
from scripts.core.errors import InputError
from scripts.networks.masked_unet import MaskedUNet


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def small_unet(**settings: object) -> MaskedUNet:
    return MaskedUNet(num_classes=3, **{"channels": 4, "levels": 4, "feature_discriminator_channels": (4,), **settings})


@pytest.mark.parametrize(("level", "channels", "side"), [(0, 4, 32), (1, 8, 16), (2, 16, 8), (3, 32, 4)])
def test_d1_and_the_mask_act_at_the_level_that_was_chosen(level: int, channels: int, side: int) -> None:
    net = small_unet(alignment_level=level).eval()
    features = net.forward_features(torch.randn(2, 1, 32, 32))
    assert features[0].shape == (2, channels, side, side)
    assert len(features) == 1 + level  # and the skip connections of the finer levels
    assert net.feature_mask(features).shape == (2, 1, side, side)
    # A mask changes what SP makes of the features, and nothing of the skip connections.
    masked = net.apply_mask(features, torch.ones(2, 1, side, side))
    torch.testing.assert_close(masked[0], 2 * features[0])
    assert all(now is before for now, before in zip(masked[1:], features[1:], strict=True))
    assert not torch.allclose(net.predict_unmasked(masked, [32, 32]), net.predict_unmasked(features, [32, 32]))


@pytest.mark.parametrize("level", range(4))
def test_heads_of_the_finest_levels_in_training_alone(level: int) -> None:
    net, image = small_unet(alignment_level=level), torch.randn(2, 1, 32, 32)
    heads = net.predict_heads(net.forward_features(image), [32, 32])
    assert [tuple(head.shape) for head in heads] == [(2, 3, 32, 32), (2, 3, 16, 16), (2, 3, 8, 8)]
    assert net.head_weights == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    net.eval()
    (only,) = net.predict_heads(net.forward_features(image), [32, 32])
    torch.testing.assert_close(only, heads[0])  # instance norm has no memory: both modes agree


def test_where_d1_judges_does_not_change_the_network() -> None:
    image = torch.randn(1, 1, 32, 32)
    first, *others = [small_unet(alignment_level=level, mask_mode="off").eval() for level in range(4)]
    for net in others:
        own = {name: value for name, value in first.state_dict().items() if "discriminator" not in name}
        net.load_state_dict(own, strict=False)
        torch.testing.assert_close(net(image), first(image))


def test_it_computes_what_monais_dynunet_does() -> None:
    net = small_unet(mask_mode="off").eval()
    norm = ("instance", {"affine": True})
    theirs = DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[4, 8, 16, 32], norm_name=norm)
    blocks = [*net.encoder, *net.decoder, net.heads[0]]
    up = [theirs.bottleneck, *theirs.upsamples, theirs.output_block.conv.conv]
    reference = [theirs.input_block, *theirs.downsamples, *up]
    for ours, other in zip(blocks, reference, strict=True):
        other.load_state_dict(ours.state_dict())
    image = torch.randn(2, 1, 48, 32)
    torch.testing.assert_close(net(image), theirs.eval()(image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(33, 47), (40, 36), (50, 34)])
def test_any_size_of_slice(shape: tuple[int, int]) -> None:
    assert small_unet().eval()(torch.randn(1, 1, *shape)).shape == (1, 3, *shape)


def test_every_parameter_of_s_learns_and_none_of_d1() -> None:
    net = small_unet()
    heads = net.predict_heads(net.forward_features(torch.randn(2, 1, 32, 32)), [32, 32])
    sum(head.square().sum() for head in heads).backward()
    owned = {id(parameter) for parameter in net.segmenter_parameters()}
    discriminator = list(net.feature_discriminator.parameters())
    assert owned.isdisjoint(map(id, discriminator))
    assert len(owned) + len(discriminator) == len(list(net.parameters()))
    assert all(parameter.grad.any() for parameter in net.segmenter_parameters())
    assert all(parameter.grad is None for parameter in discriminator)


@pytest.mark.parametrize(("setting", "value"), [("alignment_level", 4), ("heads", 4), ("mask_mode", "on")])
def test_what_does_not_exist_is_refused(setting: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"setting '{setting}': {value!r}\. Expected one of"):
        small_unet(**{setting: value})
