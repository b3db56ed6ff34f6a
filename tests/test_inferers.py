"""From volume to slices and back: the identity, MONAI's own inferer as an independent form, and averaging by hand."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from torch import nn
from torch.nn import functional as F

from scripts.inference.inferers import SliceWiseInferer, SplitMaskd
from scripts.networks.masked_deeplab import MaskedDeepLab


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1)).eval()


def columns(batch: torch.Tensor) -> torch.Tensor:
    """A 'network' that knows where it looks: the image times its column's number, 1 to W."""
    return batch * torch.arange(1.0, batch.shape[3] + 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 2, 7, 8, 9])
def test_the_identity_comes_back_for_any_depth_and_axis(axis: int, depth: int) -> None:
    shape = [5, 6]
    shape.insert(axis, depth)
    image = volume(2, 1, *shape)
    result = SliceWiseInferer(slice_axis=axis, slice_batch_size=4, precision="float32")(image, nn.Identity())
    assert torch.equal(result, image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_it_agrees_with_monais_inferer(axis: int) -> None:
    image, net = volume(2, 1, 16, 12, 20), network()
    ours = SliceWiseInferer(slice_axis=axis, slice_batch_size=3, precision="float32")(image, net)
    size = [s for dimension, s in enumerate(image.shape[2:]) if dimension != axis]
    with torch.no_grad():
        theirs = SliceInferer(roi_size=size, spatial_dim=axis, sw_batch_size=3)(image, net)
    assert ours.shape == (2, 3, 16, 12, 20)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    image, net = volume(1, 1, 8, 8, 11), network()
    expected = SliceWiseInferer(slice_batch_size=2, precision="float32")(image, net)
    result = SliceWiseInferer(slice_batch_size=batch_size, precision="float32")(image, net)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_volumes_do_not_mix() -> None:
    image, net = volume(3, 1, 8, 8, 4), network()
    together = SliceWiseInferer(precision="float32")(image, net)
    one = SliceWiseInferer(precision="float32")(image[1:2], net)
    torch.testing.assert_close(together[1:2], one, atol=1e-5, rtol=0)


def test_a_meta_tensor_goes_in_and_no_gradient_comes_out() -> None:
    result = SliceWiseInferer(precision="float32")(MetaTensor(volume(1, 1, 8, 8, 4)), network())
    assert not result.requires_grad


def test_bf16_stays_near_float32_and_comes_back_as_float32() -> None:
    image, net = volume(1, 1, 16, 16, 4), network()
    half = SliceWiseInferer(precision="bf16")(image, net)
    full = SliceWiseInferer(precision="float32")(image, net)
    assert half.dtype == torch.float32
    # bf16 keeps 8 bits: the two differ, by about 1 % of the outputs' size.
    assert 0 < float((half - full).abs().max()) < 0.05


def test_softmax_gives_probabilities() -> None:
    result = SliceWiseInferer(softmax=True, precision="float32")(volume(1, 1, 8, 8, 4), network())
    torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 8, 4))
    assert float(result.min()) >= 0


def test_flips_are_averaged() -> None:
    image = volume(1, 1, 3, 4, 2)
    result = SliceWiseInferer(flip_axes=[1], precision="float32")(image, columns)
    # Column j times j, and flipped there and back times W + 1 - j: on average times (W + 1) / 2.
    torch.testing.assert_close(result, image * 2.5)
    # Along the rows the columns' numbers stay: the average is the plain output.
    result = SliceWiseInferer(flip_axes=[0], precision="float32")(image, columns)
    torch.testing.assert_close(result, image * torch.arange(1.0, 5).view(1, 1, 1, 4, 1))
    # Three views: plain, rows flipped (as plain), columns flipped: (2 j + 5 - j) / 3.
    result = SliceWiseInferer(flip_axes=[0, 1], precision="float32")(image, columns)
    torch.testing.assert_close(result, image * (torch.arange(1.0, 5) + 5).view(1, 1, 1, 4, 1) / 3)


def test_scales_are_averaged() -> None:
    image, net = volume(1, 1, 12, 10, 3), network()
    result = SliceWiseInferer(scales=[1.0, 1.5, 0.5], precision="float32")(image, net)
    slices = image[0].movedim(3, 0)
    with torch.no_grad():
        views = [net(slices)]
        for size in ((18, 15), (6, 5)):
            zoomed = net(F.interpolate(slices, size=size, mode="bilinear", align_corners=False))
            views.append(F.interpolate(zoomed, size=(12, 10), mode="bilinear", align_corners=False))
    expected = torch.stack(views).mean(0).movedim(0, 3)[None]
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_probabilities_are_averaged_not_logits() -> None:
    image, net = volume(1, 1, 6, 6, 2), network()
    inferer = SliceWiseInferer(flip_axes=[1], softmax=True, precision="float32")
    with torch.no_grad():
        plain = net(image[0].movedim(3, 0)).softmax(1)
        flipped = net(image[0].movedim(3, 0).flip(3)).softmax(1).flip(3)
    torch.testing.assert_close(inferer(image, net)[0], ((plain + flipped) / 2).movedim(0, 3), atol=1e-5, rtol=0)


def segmenter() -> MaskedDeepLab:
    torch.manual_seed(0)
    return MaskedDeepLab(
        num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16, atrous_rates=(1,), output_stride=8
    ).eval()


def test_the_mask_is_the_last_channel() -> None:
    image, net = volume(1, 1, 32, 40, 3), segmenter()
    result = SliceWiseInferer(with_mask=True, softmax=True, precision="float32")(image, net)
    assert result.shape == (1, 4, 32, 40, 3)
    plain = SliceWiseInferer(softmax=True, precision="float32")(image, net)
    torch.testing.assert_close(result[:, :3], plain, atol=1e-5, rtol=0)
    with torch.no_grad():
        mask = net.feature_mask(net.forward_features(image[..., 1]))
    expected = F.interpolate(mask, size=(32, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result[:, 3:, ..., 1], expected, atol=1e-5, rtol=0)
    assert 0 <= float(result[:, 3].min()) <= float(result[:, 3].max()) <= 1


def test_the_mask_is_averaged_over_views_too() -> None:
    image, net = volume(1, 1, 32, 32, 2), segmenter()
    inferer = SliceWiseInferer(with_mask=True, flip_axes=[0], scales=[1.0, 1.25], precision="float32")
    assert inferer(image, net).shape == (1, 4, 32, 32, 2)


def test_the_mask_becomes_a_key_of_its_own() -> None:
    image = volume(4, 5, 5, 2)
    split = SplitMaskd(keys="pred", mask_key="mask")({"pred": image, "other": 1})
    assert torch.equal(split["pred"], image[:3])
    assert torch.equal(split["mask"], image[3:])
    assert split["other"] == 1
