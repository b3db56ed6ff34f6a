"""Demodulated convolutions, and the translator whose decoder consists of them."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events
from scripts.core.domains import SOURCE, TARGET
from scripts.engines.image_pool import ImagePool
from scripts.engines.schedules import averaged_model
from scripts.engines.style_transfer_trainer import StyleTransferTrainer
from scripts.networks.by_domain import join_domains, split_by_domain
from scripts.networks.demodulated_conv import DemodulatedConv, DemodulatedUpsampleConv, demodulate
from scripts.networks.demodulated_generator import DemodulatedGenerator
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_demodulation_by_hand() -> None:
    # Two output channels, two input channels, 1 x 1 pixels; the second input channel counts twice.
    weight = torch.tensor([[3.0, 2.5], [8.0, 1.0]])[:, :, None, None]
    result = demodulate(weight, torch.tensor([1.0, 2.0]))[:, :, 0, 0]
    # (3, 5) less its mean 4 is (-1, 1), of norm sqrt(2); (8, 2) less 5 is (3, -3).
    torch.testing.assert_close(result, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2))


def test_a_common_factor_of_scales_or_weights_cancels() -> None:
    weight, scale = torch.randn(3, 4, 3, 3), torch.rand(4) + 0.5
    expected = demodulate(weight, scale)
    torch.testing.assert_close(demodulate(7 * weight, scale), expected)
    torch.testing.assert_close(demodulate(weight, 0.1 * scale), expected)


def test_noise_of_unit_variance_keeps_it_and_a_common_mean_is_removed() -> None:
    x = torch.randn(1, 8, 64, 64) + 5
    y = F.conv2d(x, demodulate(torch.randn(6, 8, 3, 3), torch.rand(8) + 0.1))
    # 3,844 output pixels, which neighbours correlate: the variance is estimated within a few per cent.
    torch.testing.assert_close(y.var(dim=[0, 2, 3]), torch.ones(6), rtol=0.15, atol=0)
    assert y.mean(dim=[0, 2, 3]).abs().max() < 0.1


def test_modulated_weights_equal_modulated_features() -> None:
    layer = DemodulatedConv(3, 5, 3, code_channels=4, gain=2.0).double()
    with torch.no_grad():
        layer.style.weight.normal_()
    x, code = torch.randn(2, 3, 8, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    # Independent form: scale the input, convolve with the plain weight, subtract the kernel's mean times the sum of the
    # input under it, divide by the kernel's norm.
    style = layer.style.weight @ code
    scale, bias = 1 + style[:3], style[3:]
    modulated = (layer.weight * scale[:, None, None]).flatten(1)
    mean, norm = modulated.mean(1), (modulated - modulated.mean(1, keepdim=True)).norm(dim=1)
    sums = F.conv2d(x, torch.ones(1, 3, 3, 3, dtype=torch.float64), padding=1)
    features = F.conv2d(x * scale[:, None, None], layer.weight, padding=1) - mean[:, None, None] * sums
    expected = 2 * features / norm[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(layer(x, code), expected, rtol=1e-5, atol=1e-6)


def test_upsampling_equals_nearest_then_five_by_five() -> None:
    layer, x, code = DemodulatedUpsampleConv(3, 2, code_channels=4), torch.randn(2, 3, 5, 4), torch.randn(4)
    weight, bias = layer.weight_and_bias(code)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=2)
    torch.testing.assert_close(layer(x, code), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [[1, 0, 0, 1, 0], [1, 1], [0]])
def test_a_batch_split_by_domain_is_joined_in_its_order(labels: list[int]) -> None:
    x, domain = torch.arange(len(labels)) + 10, torch.tensor(labels)
    parts, order = split_by_domain(x, domain)
    assert [part.tolist() for part in parts] == [
        [10 + place for place, label in enumerate(labels) if label == d] for d in (SOURCE, TARGET)
    ]
    assert torch.equal(join_domains(parts, order), x)


@pytest.mark.parametrize(("build", "is_local"), [(DemodulatedGenerator, True), (StyleTransferGenerator, False)])
def test_a_spike_in_the_content_stays_local_unlike_with_adain(build: type, is_local: bool) -> None:
    """AdaIN's statistics carry one spike to every pixel: that is what droplets exploit."""
    network, content, domain = (
        build(channels=4, num_blocks=1).eval(),
        torch.randn(1, 16, 24, 24),
        torch.tensor([TARGET]),
    )
    spiked = content.clone()
    spiked[..., :2, :2] += 100
    with torch.no_grad():
        change = (network.decode(spiked, domain) - network.decode(content, domain))[..., 64:, 64:].abs().max()
    assert (change == 0) == is_local


def test_both_domains_reach_every_parameter_and_one_domain_its_own_code() -> None:
    network, image = DemodulatedGenerator(channels=4, num_blocks=1), torch.rand(2, 1, 16, 16)
    domain = torch.tensor([SOURCE, TARGET])
    network.decode(network.encode(image, domain), domain.flip(0)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    network.zero_grad()
    same = torch.full((2,), TARGET)
    network.decode(network.encode(image, same), same).square().sum().backward()
    assert not network.codes.grad[SOURCE].any()
    assert network.codes.grad[TARGET].any()


def test_bf16_is_close_to_float32() -> None:
    network, image = DemodulatedGenerator(channels=4, num_blocks=1).eval(), torch.rand(2, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        # Grey values round 0. Near the background bf16 resolves 1/256, as much as a new network's whole contrast.
        network.decoder.to_image.bias.zero_()
        exact = network(image)
        network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            close = network(image.contiguous(memory_format=torch.channels_last))
    assert (close.float() - exact).square().mean().sqrt() / exact.std() < 0.05


def disks(inside: float, *, count: int = 4, size: int = 32) -> Tensor:
    """(count, 1, size, size): disks of one brightness on a background of -1, at different places."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    centres = [(10 + 3 * index, 20 - 2 * index) for index in range(count)]
    masks = torch.stack([(rows - y) ** 2 + (columns - x) ** 2 < 49 for y, x in centres])
    return torch.where(masks[:, None], inside, -1.0)


@pytest.mark.slow
def test_the_trainer_halves_its_cycle_loss() -> None:
    iterations = 60
    generator, discriminator = DemodulatedGenerator(channels=8, num_blocks=1), DomainDiscriminator(channels=4)
    cycle: list[float] = []
    trainer = StyleTransferTrainer(
        generator=generator,
        discriminator=discriminator,
        generator_optimizer=Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99)),
        discriminator_optimizer=Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.99)),
        image_pool=ImagePool(size=0),
        average=averaged_model(generator, 0.9),
        device="cpu",
        max_epochs=1,
        epoch_length=iterations,
        train_data_loader=[{"image": disks(0.8), "target_image": disks(-0.2)}] * iterations,
        precision="float32",
    )
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: cycle.append(float(engine.state.output[0]["cycle"]))
    )
    trainer.run()
    early, late = sum(cycle[:5]) / 5, sum(cycle[-5:]) / 5
    assert late < 0.5 * early, f"cycle loss {early:.3f} at the start, {late:.3f} at the end"
