"""DeepLab as segmenter: dilated backbone, gradient routing, and initial weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets import ResNet
from scripts.core.errors import InputError
from scripts.networks.dilated_resnet import build_dilated_resnet
from scripts.networks.masked_deeplab import MaskedDeepLab
from torch import Tensor, nn
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_segmenter(**settings: object) -> MaskedDeepLab:
    return MaskedDeepLab(num_classes=3, **{"layers": (1, 1, 1, 1), "width": 4, "feature_channels": 16, **settings})


def test_backbone_is_resnet50_with_its_names() -> None:
    backbone = build_dilated_resnet(in_channels=3, layers=(3, 4, 6, 3), width=64, output_stride=8)
    # torchvision's 25,557,032 less the classifier's 2048 * 1000 + 1000.
    assert count(backbone) == 25_557_032 - 2_049_000
    names = backbone.state_dict().keys()
    assert len(names) == 318
    assert {"conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.running_var"} <= names


@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_output_stride_and_odd_sizes(output_stride: int) -> None:
    net = small_segmenter(output_stride=output_stride)
    (features,) = net.forward_features(torch.randn(1, 1, 64, 96))
    assert features.shape == (1, 16, 64 // output_stride, 96 // output_stride)
    assert net.eval()(torch.randn(1, 1, 33, 47)).shape == (1, 3, 33, 47)
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("output_stride", "step"), [(4, 8), (8, 4), (16, 2)])
def test_dilation_keeps_what_the_strided_network_computes(output_stride: int, step: int) -> None:
    # The strided network has stride 32: its pixels are every (32 / output_stride)-th of the dilated one's.
    layers = [1, 2, 2, 3]
    dilated = build_dilated_resnet(in_channels=1, layers=layers, width=4, output_stride=output_stride).eval()
    settings = {"conv1_t_stride": 2, "feed_forward": False, "bias_downsample": False}
    strided = ResNet("bottleneck", layers, [4, 8, 16, 32], 2, n_input_channels=1, **settings).eval()
    strided.load_state_dict(dilated.state_dict())
    image = torch.randn(1, 1, 128, 128)
    expected = image
    for name, _ in dilated.named_children():
        expected = getattr(strided, name)(expected)
    torch.testing.assert_close(dilated(image)[:, :, ::step, ::step], expected, rtol=1e-4, atol=1e-4)


def test_unknown_output_stride_is_named() -> None:
    with pytest.raises(ValueError, match=r"setting 'output_stride': 32\. Expected one of 4, 8, 16"):
        small_segmenter(output_stride=32)


def test_gradients_reach_the_segmenter_and_not_its_discriminator() -> None:
    net = small_segmenter()
    net(torch.randn(2, 1, 64, 64)).square().sum().backward()
    segmenter = {id(parameter) for parameter in net.segmenter_parameters()}
    assert segmenter.isdisjoint(id(parameter) for parameter in net.feature_discriminator.parameters())
    assert len(segmenter) + len(list(net.feature_discriminator.parameters())) == len(list(net.parameters()))
    assert all(parameter.grad.any() for parameter in net.segmenter_parameters())
    assert all(parameter.grad is None for parameter in net.feature_discriminator.parameters())


def test_discriminator_step_on_detached_features_leaves_the_segmenter_untouched() -> None:
    net = small_segmenter()
    net.feature_discriminator(net.forward_features(torch.randn(2, 1, 64, 64))[0].detach()).sum().backward()
    assert all(parameter.grad.any() for parameter in net.feature_discriminator.parameters())
    assert all(parameter.grad is None for parameter in net.segmenter_parameters())


# --- backbone weights ------------------------------------------------------------------------------------------------


def rgb_weights(path: Path, **changes: object) -> dict[str, Tensor]:
    state = build_dilated_resnet(in_channels=3, layers=(1, 1, 1, 1), width=4, output_stride=16).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10), **changes}
    torch.save({name: tensor for name, tensor in state.items() if tensor is not None}, path)
    return state


def test_backbone_weights_give_a_grey_image_its_rgb_response(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    state = rgb_weights(path)
    net = small_segmenter(backbone_weights=path)
    backbone = net.feature_extractor.backbone
    assert torch.equal(backbone.layer4[0].conv2.weight, state["layer4.0.conv2.weight"])
    grey = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(
        backbone.conv1(grey), F.conv2d(grey.expand(-1, 3, -1, -1), state["conv1.weight"], stride=2, padding=3)
    )
    three_slices = small_segmenter(in_channels=3, backbone_weights=str(path)).feature_extractor.backbone
    assert torch.equal(three_slices.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer2.0.conv1.weight": torch.zeros(1)}, r"1 weights that do not fit, the first layer2.0.conv1.weight"),
        ({"layer2.0.conv1.weight": None}, r"shape none \(absent\)\. Expected shape \(8, 16, 1, 1\)"),
        ({"layer5.0.conv1.weight": torch.zeros(2)}, r"layer5.0.conv1.weight of shape \(2,\)\. Expected shape none"),
    ],
)
def test_backbone_weights_that_do_not_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = tmp_path / "resnet.pt"
    rgb_weights(path, **changes)
    with pytest.raises(InputError, match=message):
        small_segmenter(backbone_weights=path)


def test_backbone_weights_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        small_segmenter(backbone_weights=tmp_path / "absent.pt")
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="no weights"):
        small_segmenter(backbone_weights=broken)
    pickled = tmp_path / "network.pt"
    torch.save(nn.ReLU(), pickled)
    with pytest.raises(InputError, match="no weights"):
        small_segmenter(backbone_weights=pickled)
    nested = tmp_path / "nested.pt"
    torch.save({"state_dict": {}}, nested)
    with pytest.raises(InputError, match="weights that do not fit"):
        small_segmenter(backbone_weights=nested)
