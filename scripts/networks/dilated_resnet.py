"""The backbone of DeepLab: a ResNet of bottleneck blocks whose last strides are replaced by dilation."""

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets import ResNet
from scripts.core.errors import InputError, check_choice
from torch import Tensor, nn

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

    Raises:
        InputError: another ``output_stride``; weights that cannot be read, or whose names or shapes do not fit.
    """
    check_choice("output_stride", output_stride, sorted(DILATIONS))
    resnet = ResNet(
        block="bottleneck",
        layers=list(layers),
        block_inplanes=[width, 2 * width, 4 * width, 8 * width],
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_stride=2,
        feed_forward=False,
        bias_downsample=False,
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
    state = {name: tensor for name, tensor in _read_state_dict(path).items() if not name.startswith("fc.")}
    first = state.get("conv1.weight")
    if first is not None and first.ndim == 4 and first.shape[1] == 3 and in_channels != 3:
        state["conv1.weight"] = (first.sum(dim=1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)
    expected = {name: tensor.shape for name, tensor in backbone.state_dict().items()}
    found = {name: tensor.shape for name, tensor in state.items()}
    # Batch norm's counter is absent from the older published files; torch then starts it at 0.
    wrong = sorted(
        name
        for name in expected.keys() | found.keys()
        if expected.get(name) != found.get(name) and not name.endswith("num_batches_tracked")
    )
    if wrong:
        name = wrong[0]
        raise InputError(
            file=path,
            found=f"{len(wrong)} weights that do not fit, the first {name} of shape {_shape(found, name)}",
            expected=f"shape {_shape(expected, name)}",
            remedy="give the state dict of a ResNet with these layers and this width, in torchvision's names",
        )
    backbone.load_state_dict({name: tensor for name, tensor in state.items() if name in expected})


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        found = "no such file"
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        found = f"a file that torch cannot load safely ({type(error).__name__})"
    else:
        if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
            return state
        found = f"an object of type {type(state).__name__} that is not a plain state dict"
    raise InputError(
        file=path,
        found=found,
        expected="a state dict of tensors, as torch.save(network.state_dict(), path) writes it",
        remedy="check backbone_weights",
    )


def _shape(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "none (absent)"
