"""The networks of both stages: sizes, parameter counts, equality with plain forms, gradients, TorchScript, bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from scripts.core.domains import SOURCE, TARGET
from scripts.networks.adain import InstanceNorm, adaptive_instance_norm
from scripts.networks.domain_discriminator import DOMAIN_DISCRIMINATOR_NORMS, DomainDiscriminator, logits_of_domain
from scripts.networks.feature_discriminator import FEATURE_DISCRIMINATOR_NORMS, FeatureDiscriminator
from scripts.networks.generator_layers import FoldedUpsampleConv
from scripts.networks.layers import SpectralConv2d
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.masked_unet import MaskedUNet
from scripts.networks.prediction_discriminator import PredictionDiscriminator
from scripts.networks.segmenter import Segmenter
from scripts.networks.style_mappings import StyleMapping
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_generator(**settings: int) -> StyleTransferGenerator:
    return StyleTransferGenerator(channels=4, num_blocks=1, **settings)


def small_segmenter(**settings: object) -> MaskedDeepLab:
    return MaskedDeepLab(num_classes=3, **{"layers": (1, 1, 1, 1), "width": 4, "feature_channels": 16, **settings})


def small_unet(**settings: object) -> MaskedUNet:
    return MaskedUNet(num_classes=3, **{"channels": 4, "levels": 4, "feature_discriminator_channels": (4,), **settings})


def assert_every_parameter_gets_a_gradient(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# --- adaptive instance normalisation ---------------------------------------------------------------------------------


def test_adain_equals_torch_instance_norm_in_values_and_gradients() -> None:
    x = (3 * torch.randn(2, 5, 6, 7) + 10).requires_grad_()
    scale, shift = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    weight = torch.randn_like(x)

    def plain() -> Tensor:
        return F.instance_norm(x) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]

    ours, theirs = adaptive_instance_norm(x, scale, shift), plain()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours_gradients = torch.autograd.grad((ours * weight).sin().sum(), (x, scale, shift))
    their_gradients = torch.autograd.grad((theirs * weight).sin().sum(), (x, scale, shift))
    for ours, theirs in zip(ours_gradients, their_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_adain_second_derivatives_equal_those_of_automatic_differentiation() -> None:
    x, scale, shift = torch.randn(2, 3, 5, 4), torch.randn(2, 3), torch.randn(2, 3)
    inputs = [tensor.requires_grad_() for tensor in (x, scale, shift)]
    scripted = torch.jit.script(adaptive_instance_norm)  # differentiated operation by operation

    def second(function: object) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(function(*inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)

    for ours, theirs in zip(second(adaptive_instance_norm), second(scripted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_gradient_penalty_passes_through_an_instance_norm_without_parameters() -> None:
    x = torch.randn(2, 3, 5, 4, requires_grad=True)

    def penalty(function: object) -> Tensor:
        (first,) = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    ours, theirs = penalty(InstanceNorm(num_features=3)), penalty(F.instance_norm)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_adain_keeps_dtype_and_layout_forward_and_backward(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x = torch.randn(2, 8, 6, 6).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
    y = adaptive_instance_norm(x, torch.zeros(2, 8), torch.zeros(2, 8))
    y.float().square().sum().backward()
    for tensor in (y, x.grad):
        assert tensor.dtype == dtype
        assert tensor.stride() == x.stride()


def test_adain_statistics_are_float32_accurate_for_bf16() -> None:
    # bf16 has 8 bits: a mean kept in it would be off by up to 0.25 at 100, against a standard deviation of 1.
    x = (100 + torch.randn(1, 4, 32, 32)).bfloat16()
    exact = F.instance_norm(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours = adaptive_instance_norm(x, torch.zeros(1, 4), torch.zeros(1, 4))
    torch.testing.assert_close(ours.double(), exact, rtol=2**-8, atol=1e-4)


def test_instance_norm_of_one_pixel_is_the_shift() -> None:
    norm = InstanceNorm(num_features=3, affine=True)
    nn.init.constant_(norm.shift, 2.0)
    assert torch.equal(norm(torch.randn(2, 3, 1, 1)), torch.full((2, 3, 1, 1), 2.0))


def test_style_mapping_splits_in_the_order_of_the_layers() -> None:
    mapping = StyleMapping([2, 3])
    nn.init.zeros_(mapping.last.weight)
    with torch.no_grad():
        mapping.last.bias.copy_(torch.arange(10.0))
    styles = mapping(torch.tensor([SOURCE]))
    assert [[part.tolist() for part in pair] for pair in styles] == [[[[0, 1]], [[2, 3]]], [[[4, 5, 6]], [[7, 8, 9]]]]


# --- up-sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_folded_upsampling_equals_interpolation_and_convolution(memory_format: torch.memory_format) -> None:
    folded = FoldedUpsampleConv(in_channels=3, out_channels=4)
    x = torch.randn(2, 3, 5, 7).contiguous(memory_format=memory_format).requires_grad_()

    def plain() -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), folded.weight, padding=2)

    assert folded(x).shape == (2, 4, 10, 14)
    torch.testing.assert_close(folded(x), plain())
    ours = torch.autograd.grad(folded(x).sin().sum(), (x, folded.weight))
    theirs = torch.autograd.grad(plain().sin().sum(), (x, folded.weight))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


# --- generator -------------------------------------------------------------------------------------------------------


def test_generator_has_the_published_numbers_of_parameters() -> None:
    generator = StyleTransferGenerator()
    # Two per normalised feature: 2 * (64 + 128 + 9 * 256) and 2 * (8 * 256 + 128 + 64).
    assert generator.encoder.mapping.last.out_features == 4992
    assert generator.decoder.mapping.last.out_features == 4480
    # MLP: 2 * 64 + 64 + 64 * 64 + 64 + 65 P.
    assert count(generator.encoder.mapping) == 4352 + 65 * 4992
    assert count(generator.decoder.mapping) == 4352 + 65 * 4480
    # Encoder: 49 * 64 + 9 * 64 * 128 + 9 * 128 * 256 + 8 * 9 * 256^2 = 5.09 M.
    blocks = 8 * 9 * 256**2
    assert count(generator.encoder) - count(generator.encoder.mapping) == 3136 + 73728 + 294912 + blocks
    # Decoder: 25 taps in place of 9 in the two up-samplings, and the only bias before the tanh.
    assert count(generator.decoder) - count(generator.decoder.mapping) == 25 * (32768 + 8192) + blocks + 3136 + 1


def test_generator_forward_is_the_composition_and_stays_in_range() -> None:
    generator = small_generator()
    image = torch.rand(2, 1, 36, 52) * 2 - 1
    source, target = torch.full((2,), SOURCE), torch.full((2,), TARGET)
    content = generator.encode(image, source)
    assert content.shape == (2, 16, 9, 13)
    translated = generator(image)
    assert torch.equal(translated, generator.decode(content, target))
    assert translated.shape == image.shape
    assert translated.abs().max() <= 1
    backward = small_generator(from_domain=TARGET, to_domain=SOURCE)
    backward.load_state_dict(generator.state_dict())
    assert torch.equal(backward(image), backward.decode(backward.encode(image, target), source))


def test_labels_differ_and_a_mixed_batch_equals_two_passes() -> None:
    generator = small_generator()
    image = torch.rand(2, 1, 32, 32) * 2 - 1
    mixed = torch.tensor([SOURCE, TARGET])
    for function, x in ((generator.encode, image), (generator.decode, generator.encode(image, mixed))):
        together = function(x, mixed)
        apart = torch.cat([function(x[:1], mixed[:1]), function(x[1:], mixed[1:])])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(function(x[:1], mixed[:1]), function(x[:1], mixed[1:]), atol=1e-2)


def test_encoder_and_decoder_have_mappings_of_their_own_and_all_parameters_learn() -> None:
    generator = small_generator()
    encoder = {id(parameter) for parameter in generator.encoder.parameters()}
    assert encoder.isdisjoint(id(parameter) for parameter in generator.decoder.parameters())
    image, domain = torch.rand(2, 1, 16, 16), torch.tensor([SOURCE, TARGET])
    generator.decode(generator.encode(image, domain), domain).square().sum().backward()
    assert_every_parameter_gets_a_gradient(generator)


def test_reflected_convolutions_equal_torchs_and_narrow_features_stay_narrow() -> None:
    network = StyleTransferGenerator(channels=4, num_blocks=1)
    layers = [network.encoder.stem, network.encoder.blocks[0].conv1, network.decoder.to_image]
    for layer in layers:
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            padding="same",
            padding_mode="reflect",
            bias=layer.bias is not None,
        )
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(2, layer.in_channels, 8, 12)
        torch.testing.assert_close(layer(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            # Padding copies values: in bf16 it changes none of those that the convolution takes from float32.
            assert torch.equal(layer(x.bfloat16()), plain(x.bfloat16()))


def test_reconstruction_of_a_constant_is_learned() -> None:
    generator = small_generator()
    image, domain = torch.full((2, 1, 16, 16), 0.4), torch.tensor([SOURCE, TARGET])
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.99))
    for _ in range(100):
        loss = F.l1_loss(generator.decode(generator.encode(image, domain), domain), image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# --- discriminators --------------------------------------------------------------------------------------------------


def test_domain_discriminator_sizes() -> None:
    # 16 taps: 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 2 products; biases 64 + 2. 2.77 M in all.
    assert count(DomainDiscriminator()) == 16 * (64 + 8192 + 32768 + 131072 + 1024) + 66
    discriminator = DomainDiscriminator(channels=4)
    assert discriminator(torch.randn(2, 1, 32, 32)).shape == (2, 2, 2, 2)
    assert discriminator(torch.randn(2, 1, 64, 48)).shape == (2, 2, 6, 4)
    weights = torch.cat([p.flatten() for p in DomainDiscriminator().parameters() if p.ndim == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)


def test_logits_of_domain_picks_the_channel_and_sends_gradients_there_alone() -> None:
    logits = torch.arange(16.0).view(2, 2, 2, 2).requires_grad_()
    picked = logits_of_domain(logits, torch.tensor([TARGET, SOURCE]))
    assert picked.tolist() == [[[[4, 5], [6, 7]]], [[[8, 9], [10, 11]]]]
    picked.sum().backward()
    assert logits.grad[0, SOURCE].sum() == 0
    assert logits.grad[0, TARGET].sum() == 4


@pytest.mark.parametrize("norm", DOMAIN_DISCRIMINATOR_NORMS)
def test_domain_discriminator_parameters_learn(norm: str) -> None:
    discriminator = DomainDiscriminator(channels=4, norm=norm)
    discriminator(torch.randn(2, 1, 32, 32)).square().sum().backward()
    assert_every_parameter_gets_a_gradient(discriminator)


@pytest.mark.parametrize("norm", FEATURE_DISCRIMINATOR_NORMS)
def test_feature_discriminator_keeps_resolution_and_learns(norm: str) -> None:
    discriminator = FeatureDiscriminator(in_channels=8, channels=(8, 4), norm=norm)
    logits = discriminator(torch.randn(2, 8, 7, 9))
    assert logits.shape == (2, 1, 7, 9)
    logits.square().sum().backward()
    assert_every_parameter_gets_a_gradient(discriminator)


def test_feature_discriminator_sees_nine_by_nine() -> None:
    features = torch.randn(1, 256, 15, 15, requires_grad=True)
    FeatureDiscriminator()(features)[0, 0, 7, 7].backward()
    seen = features.grad[0].abs().sum(0) > 0
    assert seen.sum() == 81
    assert seen[3:12, 3:12].all()


@pytest.mark.parametrize("discriminator", [DomainDiscriminator, FeatureDiscriminator])
def test_unknown_norm_is_named(discriminator: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"norm': 'batch'\. Expected one of .*none"):
        discriminator(norm="batch")


def test_spectral_convolution_has_spectral_norm_one() -> None:
    convolution = SpectralConv2d(3, 6, 3, padding=1, bias=False)
    with torch.no_grad():
        convolution.weight.mul_(7).add_(torch.randn_like(convolution.weight))
    kept = convolution.left.clone()
    convolution.eval()(torch.randn(1, 3, 5, 5))
    assert torch.equal(convolution.left, kept)
    convolution.train()
    for _ in range(50):
        convolution(torch.randn(1, 3, 5, 5))
    # A delta at the centre reads the flipped kernel, so the response is the normalised weight itself.
    deltas = torch.zeros(3, 3, 3, 3)
    deltas[range(3), range(3), 1, 1] = 1
    weight = convolution.eval()(deltas).flip(2, 3).transpose(0, 1).flatten(1)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=1e-3)


def test_prediction_discriminator_sizes() -> None:
    discriminator = PredictionDiscriminator(num_classes=5)
    assert discriminator(torch.rand(1, 5, 64, 64)).shape == (1, 1, 2, 2)
    assert discriminator(torch.rand(1, 5, 33, 40)).shape == (1, 1, 1, 1)
    # 16 taps, biases 64 + 128 + 256 + 512 + 1.
    assert count(discriminator) == 16 * (5 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 961


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 1, 40, 36)])
def test_metadata_is_accepted_and_dropped(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    for net in (small_segmenter().eval(), small_generator(), DomainDiscriminator(channels=4)):
        output = net(MetaTensor(image))
        assert type(output) is Tensor
        assert torch.equal(output, net(image))


# --- TorchScript and precision ---------------------------------------------------------------------------------------

NETWORKS = {
    "generator": (small_generator, (2, 1, 36, 44)),
    "segmenter": (small_segmenter, (2, 1, 37, 45)),
    "unet": (small_unet, (2, 1, 37, 45)),
    "unet_bottleneck_off": (lambda: small_unet(alignment_level=3, mask_mode="off"), (2, 1, 32, 32)),
    "segmenter_off": (lambda: small_segmenter(mask_mode="off"), (2, 1, 32, 32)),
    "segmenter_two_predictors": (lambda: small_segmenter(predictors=2), (2, 1, 37, 45)),
    "segmenter_source_distance": (lambda: small_segmenter(mask_mode="source_distance"), (2, 1, 32, 32)),
    "segmenter_spectral": (lambda: small_segmenter(feature_discriminator_norm="spectral"), (2, 1, 40, 40)),
    "domain_discriminator": (lambda: DomainDiscriminator(channels=4), (2, 1, 32, 40)),
    "domain_discriminator_spectral": (lambda: DomainDiscriminator(channels=4, norm="spectral"), (2, 1, 32, 32)),
    "feature_discriminator": (lambda: FeatureDiscriminator(in_channels=8, channels=(8, 4)), (2, 8, 7, 9)),
    "feature_discriminator_instance": (lambda: FeatureDiscriminator(in_channels=8, norm="instance"), (2, 8, 7, 9)),
    "prediction_discriminator": (lambda: PredictionDiscriminator(num_classes=3, channels=4), (2, 3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript_is_equal_and_survives_saving(name: str, tmp_path: Path) -> None:
    build, shape = NETWORKS[name]
    net, x = build().eval(), torch.randn(shape)
    torch.jit.script(net).save(str(tmp_path / "net.ts"))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "net.ts"))(x), net(x))


def test_scripted_methods_are_equal() -> None:
    generator, image, domain = small_generator().eval(), torch.randn(2, 1, 16, 16), torch.tensor([TARGET, SOURCE])
    scripted = torch.jit.script(generator)
    content = generator.encode(image, domain)
    torch.testing.assert_close(scripted.encode(image, domain), content)
    torch.testing.assert_close(scripted.decode(content, domain), generator.decode(content, domain))
    for segmenter in (small_segmenter().eval(), small_unet().eval()):
        assert_same_methods(segmenter)


def assert_same_methods(segmenter: Segmenter) -> None:
    scripted = torch.jit.script(segmenter)
    features = scripted.forward_features(torch.randn(2, 1, 32, 32))
    mask = scripted.feature_mask(features)
    torch.testing.assert_close(mask, segmenter.feature_mask(features))
    torch.testing.assert_close(
        scripted.predict(features, mask, [32, 32]), segmenter.predict(features, mask, torch.Size([32, 32]))
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_channels_last_is_close_to_float32(name: str) -> None:
    build, shape = NETWORKS[name]
    net, x = build().eval(), torch.randn(shape)
    with torch.no_grad():
        exact = net(x)
        net.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            close = net(x.contiguous(memory_format=torch.channels_last))
    error = (close.float() - exact).square().mean().sqrt() / exact.std()
    assert error < 0.05, f"relative error {error:.3f}"


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_training_pass_has_finite_gradients(name: str) -> None:
    build, shape = NETWORKS[name]
    net, x = build().to(memory_format=torch.channels_last), torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x.contiguous(memory_format=torch.channels_last))
    output.float().square().mean().backward()
    for parameter in net.parameters():
        assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.dtype == torch.float32)
