"""The backbone of DeepLab: a ResNet of bottleneck blocks whose last strides are replaced by dilation."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.networks.nets import ResNet
from scripts.core.errors import InputError, check_choice
from scripts.core.weights import check_finite, read_state
from torch import nn

__all__ = ["build_dilated_resnet"]

# By output stride, the stages that lose their stride, and the dilation that makes up for it.
DILATIONS = {4: {"layer2": 2, "layer3": 4, "layer4": 8}, 8: {"layer3": 2, "layer4": 4}, 16: {"layer4": 2}}

STAGES = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")


def build_dilated_resnet(
    *, in_channels: int, layers: Sequence[int], width: int, output_stride: int, weights: str | Path | None = None
) -> nn.Sequential:
    """MONAI's ResNet without its classifier, its last stages dilated; parameter names are torchvision's.

    At every pixel of the strided network the dilated one computes the same value, so that weights trained with strides
    can be used.

    Args:
        in_channels: channels of an image.
        layers: residual blocks of the four stages, (3, 4, 6, 3) for ResNet-50.
        width: inner width of the first stage, 64 for ResNet-50; the output has 32 times as many channels.
        output_stride: 4, 8 or 16, input pixels per output pixel.
        weights: path of a state dict to start from. A first convolution of 3 input channels is summed over them and
            divided by ``in_channels``, so that a grey image gives the response of its RGB copy.
    """
    check_choice("output_stride", output_stride, sorted(DILATIONS))
    widths = [width, 2 * width, 4 * width, 8 * width]
    resnet = ResNet(
        "bottleneck", list(layers), widths, 2, in_channels, conv1_t_stride=2, feed_forward=False, bias_downsample=False
    )
    for name, dilation in DILATIONS[output_stride].items():
        _dilate(getattr(resnet, name), dilation)
    backbone = nn.Sequential(OrderedDict((name, getattr(resnet, name)) for name in STAGES))
    if weights is not None:
        _load(backbone, Path(weights), in_channels)
    return backbone


def _dilate(stage: nn.Sequential, dilation: int) -> None:
    for index, block in enumerate(stage):
        # The first block read its input before the stride, so its taps lie half as far apart as the others'.
        rate = dilation // 2 if index == 0 else dilation
        for module in block.modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
                if module.kernel_size == (3, 3):
                    module.dilation = module.padding = (rate, rate)


def _load(backbone: nn.Module, path: Path, in_channels: int) -> None:
    given = read_state(path, remedy="check backbone_weights")
    check_finite(path, given)
    state = {str(name): tensor for name, tensor in given.items() if not str(name).startswith("fc.")}
    first = state.get("conv1.weight")
    if first is not None and first.ndim == 4 and first.shape[1] == 3 and in_channels != 3:
        state["conv1.weight"] = (first.sum(dim=1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)
    expected = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    found = {name: getattr(value, "shape", ()) for name, value in state.items()}  # of values that are no tensors, too
    # Batch norm's counter is absent from the older published files; torch then starts it at 0.
    wrong = sorted(
        name
        for name in expected.keys() | found.keys()
        if expected.get(name) != found.get(name) and not name.endswith("num_batches_tracked")
    )
    if wrong:
        name = wrong[0]
        remedy = "give the state dict of a ResNet of these layers and this width, in torchvision's names"
        reason = f"{len(wrong)} weights that do not fit, the first {name} of shape {_shape(found, name)}"
        raise InputError(file=path, found=reason, expected=f"shape {_shape(expected, name)}", remedy=remedy)
    backbone.load_state_dict({name: tensor for name, tensor in state.items() if name in expected})


def _shape(shapes: Mapping[str, Any], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "none (absent)"
