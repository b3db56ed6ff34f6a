"""From volume to slices and back: the identity, MONAI's inferer as an independent form, windows and views by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from scripts.core.errors import InputError
from scripts.inference.inferers import SliceWiseInferer, SplitMaskd
from scripts.networks.masked_deeplab import MaskedDeepLab
from torch import nn
from torch.nn import functional as F


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, channels, 3, padding=1)).eval()


def inferer(*window_size: int, **settings: Any) -> SliceWiseInferer:
    return SliceWiseInferer(**{"window_size": window_size, "precision": "float32"} | settings)


def columns(batch: torch.Tensor) -> torch.Tensor:
    """A 'network' that knows where it looks: the image times its column's number, 1 to W."""
    return batch * torch.arange(1.0, batch.shape[3] + 1)


class Counted(nn.Module):
    """The identity, which notes the size of each batch of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape))
        return image


@pytest.mark.parametrize("window", [(5, 6), (8, 8), (4, 4), (4, 8)])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("depth", [1, 7, 8, 9])
def test_the_identity_comes_back(axis: int, depth: int, window: tuple[int, int]) -> None:
    shape = [5, 6]
    shape.insert(axis, depth)
    image = volume(2, 1, *shape)
    result = inferer(*window, slice_axis=axis, slice_batch_size=4)(image, nn.Identity())
    torch.testing.assert_close(result, image)
    assert window == (4, 4) or window[0] < 5 or torch.equal(result, image)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_window_is_monais_inferer(axis: int) -> None:
    image, net = volume(2, 1, 16, 12, 20), network()
    size = [s for dimension, s in enumerate(image.shape[2:]) if dimension != axis]
    ours = inferer(*size, slice_axis=axis, slice_batch_size=3)(image, net)
    with torch.no_grad():
        theirs = SliceInferer(roi_size=size, spatial_dim=axis, sw_batch_size=3)(image, net)
    assert ours.shape == (2, 3, 16, 12, 20)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("window", [(8, 8), (16, 16), (8, 24)])
def test_several_windows_are_monais_inferer(window: tuple[int, int], blending: str) -> None:
    image, net = volume(1, 1, 18, 21, 5), network()
    ours = inferer(*window, overlap=0.25, blending=blending)(image, net)
    theirs = SliceInferer(roi_size=window, spatial_dim=2, sw_batch_size=3, overlap=0.25, mode=blending, cval=-1)
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(image, net), atol=1e-5, rtol=0)


def test_one_window_costs_one_pass_and_small_slices_are_padded_with_background() -> None:
    net = Counted()
    assert torch.equal(inferer(8, 8)(torch.ones(1, 1, 8, 8, 3), net), torch.ones(1, 1, 8, 8, 3))
    inferer(8, 8)(torch.ones(1, 1, 5, 6, 3), net)
    assert net.seen == [(3, 1, 8, 8), (3, 1, 8, 8)]
    # Rows 5 of 8: one above, two below; columns 6 of 8: one each side. Where the network looks, the margin is -1.
    seen: list[torch.Tensor] = []
    inferer(8, 8)(torch.ones(1, 1, 5, 6, 1), lambda windows: seen.append(windows.clone()) or windows)
    assert seen[0][0, 0, :, 4].tolist() == [-1, 1, 1, 1, 1, 1, -1, -1]
    assert seen[0][0, 0, 4].tolist() == [-1, 1, 1, 1, 1, 1, 1, -1]


def test_overlapping_windows_are_averaged() -> None:
    """Six columns by windows of four with half of it shared: columns 0-3 and 2-5, numbered 1 to 4 in each."""
    result = inferer(2, 4, overlap=0.5, blending="constant")(torch.ones(1, 1, 2, 6, 1), columns)
    # Alone 1, 2; shared (3 + 1) / 2, (4 + 2) / 2; alone 3, 4.
    torch.testing.assert_close(result[0, 0, 0, :, 0], torch.tensor([1.0, 2.0, 2.0, 3.0, 3.0, 4.0]))


def test_the_middle_of_a_window_counts_more_with_gaussian_blending() -> None:
    result = inferer(2, 4, overlap=0.5)(torch.ones(1, 1, 2, 6, 1), columns)[0, 0, 0, :, 0]
    # Column 2 is the third of the first window (3), near its middle, and the first of the second (1), at its border.
    assert 2.0 < float(result[2]) < 3.0
    assert 2.0 < float(result[3]) < 3.0


def test_the_overlap_decides_on_the_number_of_windows() -> None:
    def windows(overlap: float) -> int:
        net = Counted()
        inferer(8, 8, overlap=overlap, slice_batch_size=1)(torch.ones(1, 1, 8, 16, 1), net)
        return len(net.seen)

    # Starts 0, 8; 0, 4, 8; 0, 2, 4, 6, 8.
    assert [windows(overlap) for overlap in (0.0, 0.5, 0.75)] == [2, 3, 5]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"'window_blending': 'gauss'\. Expected one of gaussian, constant"):
        inferer(8, 8, blending="gauss")
    with pytest.raises(InputError, match=r"'window_overlap': 1\.0\. Expected a share"):
        inferer(8, 8, overlap=1.0)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
@pytest.mark.parametrize("window", [8, 6])
def test_the_batch_size_does_not_matter(batch_size: int, window: int) -> None:
    image, net = volume(1, 1, 8, 8, 11), network()
    expected = inferer(window, window, slice_batch_size=2)(image, net)
    result = inferer(window, window, slice_batch_size=batch_size)(image, net)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_volumes_do_not_mix() -> None:
    image, net = volume(3, 1, 8, 8, 4), network()
    together = inferer(8, 8)(image, net)
    one = inferer(8, 8)(image[1:2], net)
    torch.testing.assert_close(together[1:2], one, atol=1e-5, rtol=0)


def test_a_meta_tensor_goes_in_and_no_gradient_comes_out() -> None:
    result = inferer(8, 8)(MetaTensor(volume(1, 1, 8, 8, 4)), network())
    assert not result.requires_grad


def test_bf16_stays_near_float32_and_comes_back_as_float32() -> None:
    image, net = volume(1, 1, 16, 16, 4), network()
    half = inferer(16, 16, precision="bf16")(image, net)
    full = inferer(16, 16)(image, net)
    assert half.dtype == torch.float32
    # bf16 keeps 8 bits: the two differ, by about 1 % of the outputs' size.
    assert 0 < float((half - full).abs().max()) < 0.05


@pytest.mark.parametrize("window", [8, 6])
def test_softmax_gives_probabilities(window: int) -> None:
    result = inferer(window, window, softmax=True)(volume(1, 1, 8, 8, 4), network())
    torch.testing.assert_close(result.sum(1), torch.ones(1, 8, 8, 4))
    assert float(result.min()) >= 0


def test_flips_are_averaged() -> None:
    image = volume(1, 1, 3, 4, 2)
    result = inferer(3, 4, flip_axes=[1])(image, columns)
    # Column j times j, and flipped there and back times W + 1 - j: on average times (W + 1) / 2.
    torch.testing.assert_close(result, image * 2.5)
    # Along the rows the columns' numbers stay: the average is the plain output.
    result = inferer(3, 4, flip_axes=[0])(image, columns)
    torch.testing.assert_close(result, image * torch.arange(1.0, 5).view(1, 1, 1, 4, 1))
    # Three views: plain, rows flipped (as plain), columns flipped: (2 j + 5 - j) / 3.
    result = inferer(3, 4, flip_axes=[0, 1])(image, columns)
    torch.testing.assert_close(result, image * (torch.arange(1.0, 5) + 5).view(1, 1, 1, 4, 1) / 3)


def test_a_rescaled_slice_goes_through_windows_of_the_same_size() -> None:
    """Half the size is padded to one window; one and a half times the size takes several."""
    image, net = volume(1, 1, 12, 10, 3), network()
    seen = Counted()
    inferer(12, 10, scales=[1.0, 1.5, 0.5])(image, seen)
    assert {shape[2:] for shape in seen.seen} == {(12, 10)}
    result = inferer(12, 10, scales=[1.0, 1.5, 0.5])(image, net)
    views = [inferer(12, 10)(image, net)]
    for size in ((18, 15), (6, 5)):
        zoomed = F.interpolate(image[0].movedim(3, 0), size=size, mode="bilinear", align_corners=False)
        output = inferer(12, 10)(zoomed.movedim(0, 3)[None], net)[0].as_tensor().movedim(3, 0)
        views.append(F.interpolate(output, size=(12, 10), mode="bilinear", align_corners=False).movedim(0, 3)[None])
    torch.testing.assert_close(result.as_tensor(), torch.stack([torch.as_tensor(view) for view in views]).mean(0))


@pytest.mark.parametrize("window", [6, 4])
def test_probabilities_are_averaged_not_logits(window: int) -> None:
    image, net = volume(1, 1, 6, 6, 2), network()
    result = inferer(window, window, flip_axes=[1], softmax=True)(image, net)
    plain = inferer(window, window, softmax=True)
    expected = (plain(image, net) + plain(image.flip(3), net).flip(3)) / 2
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def segmenter() -> MaskedDeepLab:
    torch.manual_seed(0)
    return MaskedDeepLab(
        num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16, atrous_rates=(1,), output_stride=8
    ).eval()


def test_the_mask_is_the_last_channel() -> None:
    image, net = volume(1, 1, 32, 40, 3), segmenter()
    result = inferer(32, 40, with_mask=True, softmax=True)(image, net)
    assert result.shape == (1, 4, 32, 40, 3)
    plain = inferer(32, 40, softmax=True)(image, net)
    torch.testing.assert_close(result[:, :3], plain, atol=1e-5, rtol=0)
    with torch.no_grad():
        mask = net.feature_mask(net.forward_features(image[..., 1]))
    expected = F.interpolate(mask, size=(32, 40), mode="bilinear", align_corners=False)
    torch.testing.assert_close(result[:, 3:, ..., 1], expected, atol=1e-5, rtol=0)
    assert 0 <= float(result[:, 3].min()) <= float(result[:, 3].max()) <= 1


def test_the_mask_is_averaged_over_windows_and_views() -> None:
    image, net = volume(1, 1, 32, 40, 2), segmenter()
    result = inferer(32, 32, with_mask=True, flip_axes=[0], scales=[1.0, 1.25])(image, net)
    assert result.shape == (1, 4, 32, 40, 2)
    assert 0 <= float(result[:, 3].min()) <= float(result[:, 3].max()) <= 1


def test_the_mask_becomes_a_key_of_its_own() -> None:
    image = volume(4, 5, 5, 2)
    split = SplitMaskd(keys="pred", mask_key="mask")({"pred": image, "other": 1})
    assert torch.equal(split["pred"], image[:3])
    assert torch.equal(split["mask"], image[3:])
    assert split["other"] == 1
