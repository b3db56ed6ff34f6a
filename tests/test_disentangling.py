"""Translators that separate content from a random style code: MUNIT and DRIT++."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import CONFIGS
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents
from scripts.core.domains import SOURCE, TARGET
from scripts.engines.disentangling_trainer import DisentanglingTrainer
from scripts.engines.image_pool import ImagePool
from scripts.engines.schedules import averaged_model
from scripts.losses.disentangling import confusion_loss, mode_seeking_loss, normality_loss
from scripts.losses.translation import StyleReconstruction
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.dritpp_generator import DritppGenerator
from scripts.networks.feature_discriminator import FeatureDiscriminator
from test_trainers import at
from test_translators import MIXED, build, images, learning, parameters_of, seeded, trainer_of

BOTH = torch.tensor([SOURCE, TARGET])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- MUNIT -----------------------------------------------------------------------------------------------------------


def test_a_style_of_munit_is_the_domain_and_a_code() -> None:
    network, image = build("munit"), images(5)
    own, drawn = network.own_style(image, MIXED), network.new_style(MIXED, seeded())
    assert own.shape == drawn.shape == (5, 1 + 8)
    assert own[:, 0].tolist() == drawn[:, 0].tolist() == MIXED.tolist()
    # A code is the noise itself: no network maps it.
    assert torch.equal(drawn[:, 1:], torch.randn(5, 8, generator=seeded()))
    assert network.encode(image, MIXED).shape == (5, 16, 4, 4)


def test_the_autoencoders_of_munit_share_no_parameter() -> None:
    network = build("munit")
    parts = (network.encoders, network.style_encoders, network.decoders)
    each = [parameters_of(*(part.of_domain[domain] for part in parts)) for domain in (SOURCE, TARGET)]
    assert each[0].isdisjoint(each[1])
    assert each[0] | each[1] == parameters_of(network)


def test_a_translation_uses_the_encoder_of_one_domain_and_the_decoder_of_the_other() -> None:
    network = build("munit")
    source, target = torch.full((2,), SOURCE), torch.full((2,), TARGET)
    network.decode(network.encode(images(2), source), network.new_style(target, seeded())).square().sum().backward()
    assert learning(network) == parameters_of(network.encoders.of_domain[SOURCE], network.decoders.of_domain[TARGET])


def test_codes_change_the_image_and_not_the_content() -> None:
    network, image = build("munit"), images(1)
    content = network.encode(image, BOTH[:1])
    first, second = (network.decode(content, network.new_style(BOTH[1:], seeded(seed))) for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_munits_losses_have_the_weights_of_its_file_and_reach_every_network() -> None:
    file = ConfigParser.load_config_file(str(CONFIGS / "translators" / "munit.yaml"))
    weights = {name: file[f"{name}_weight"] for name in ("reconstruction", "cycle", "content", "adversarial")}
    assert weights == {"reconstruction": 10, "cycle": 0, "content": 1, "adversarial": 1}
    # Eight of a style's nine numbers are its code: a mean over nine, times 9 / 8, is a mean over the code.
    assert file["extra_losses"]["style"]["weight"] == 9 / 8
    trainer = trainer_of(
        build("munit"),
        extra_losses={"style": StyleReconstruction(weight=1.125)},
        **{f"{name}_weight": weight for name, weight in weights.items()},
    )
    trainer.run()
    output = trainer.state.output[0]
    expected = 10 * output["reconstruction"] + output["content"] + output["adversarial"] + 1.125 * output["style"]
    torch.testing.assert_close(output["loss"], expected)
    assert learning(trainer.generator) == parameters_of(trainer.generator)


def test_a_few_steps_lower_munits_reconstruction() -> None:
    network, batch = build("munit"), {"image": images(2, 32), "target_image": images(2, 32)}
    trainer = trainer_of(
        network,
        iterations=15,
        train_data_loader=[batch] * 15,
        generator_optimizer=torch.optim.Adam(network.parameters(), lr=2e-3),
        adversarial_weight=0.0,
        **{"reconstruction_weight": 10.0, "cycle_weight": 0.0, "content_weight": 1.0},
    )
    losses = at(trainer, Events.ITERATION_COMPLETED, lambda: float(trainer.state.output[0]["reconstruction"]))
    trainer.run()
    assert losses[-1] < 0.8 * losses[0]


# --- DRIT++ ----------------------------------------------------------------------------------------------------------


def test_both_domains_share_the_last_block_of_the_encoder_and_the_first_of_the_generator() -> None:
    network = DritppGenerator(channels=4, num_blocks=2)
    encoders, decoders = network.encoders.of_domain, network.decoders.of_domain
    common = parameters_of(encoders[SOURCE]) & parameters_of(encoders[TARGET])
    assert common == parameters_of(encoders[SOURCE].blocks[1])
    common = parameters_of(decoders[SOURCE]) & parameters_of(decoders[TARGET])
    assert common == parameters_of(decoders[SOURCE].decoder.blocks[0])
    # Copies of the network, such as the moving average, still share.
    copy = averaged_model(network, 0.9).module
    assert copy.encoders.of_domain[SOURCE].blocks[1] is copy.encoders.of_domain[TARGET].blocks[1]


def test_an_images_own_style_is_the_mean_of_its_attributes() -> None:
    network, image = build("dritpp"), images(5)
    mean, log_variance = network.attributes(image, MIXED)
    assert mean.shape == log_variance.shape == (5, 8)
    assert torch.equal(network.own_style(image, MIXED), torch.cat([MIXED[:, None].float(), mean], 1))


def test_confusion_by_hand() -> None:
    # Logit 0 is probability 1/2: ln 2. Logit ln 3 is 3/4: -(ln 3/4 + ln 1/4) / 2 = ln 4 - (ln 3) / 2; -ln 3 is as bad.
    assert float(confusion_loss(torch.zeros(2, 1, 3, 3))) == pytest.approx(math.log(2))
    for logit in (math.log(3), -math.log(3)):
        assert float(confusion_loss(torch.tensor([logit]))) == pytest.approx(math.log(4) - math.log(3) / 2)


def test_normality_by_hand() -> None:
    zero = torch.zeros(2, 3)
    assert float(normality_loss(zero, zero)) == 0.0
    # Mean 2 in one number of one image: 2^2 / 2, over two images. Variance 4: (4 - 1 - ln 4) / 2, over two.
    mean, log_variance = zero.clone(), zero.clone()
    mean[0, 1], log_variance[1, 2] = 2.0, math.log(4)
    assert float(normality_loss(mean, log_variance)) == pytest.approx(0.5 * 2.0 + 0.5 * (3 - math.log(4)) / 2)


def test_mode_seeking_by_hand() -> None:
    # Styles 2 apart; translations 0.5 apart: a ratio of 4. Twice as different: 2. Equal translations: finite.
    one, styles = torch.zeros(2, 1, 4, 4), (torch.zeros(2, 3), torch.full((2, 3), 2.0))
    losses = [float(mode_seeking_loss(one, one + distance, *styles)) for distance in (0.5, 1.0, 0.0)]
    assert losses == pytest.approx([4.0, 2.0, 1e5], rel=1e-3)


def dritpp_trainer(iterations: int = 1, rate: float = 1e-3, **changes: Any) -> DisentanglingTrainer:
    generator = build("dritpp")
    judges = DomainDiscriminator(channels=4), FeatureDiscriminator(in_channels=16, channels=[8])
    batch = {"image": images(2, 32), "target_image": images(2, 32)}
    parts = {
        "generator": generator,
        "discriminator": judges[0],
        "content_discriminator": judges[1],
        "generator_optimizer": torch.optim.Adam(generator.parameters(), lr=rate),
        "discriminator_optimizer": torch.optim.Adam([p for judge in judges for p in judge.parameters()], lr=rate),
        "image_pool": ImagePool(size=0),
        "average": averaged_model(generator, 0.9),
        "reconstruction_weight": 10.0,
        "cycle_weight": 10.0,
        "content_weight": 0.0,
        "adversarial_weight": 2.0,
        "adversarial_kind": "bce",
        "device": "cpu",
        "max_epochs": 1,
        "epoch_length": iterations,
        "train_data_loader": [batch] * iterations,
        "precision": "float32",
    }
    return DisentanglingTrainer(**parts | changes)


def test_attributes_are_exchanged_and_exchanged_back() -> None:
    trainer, image = dritpp_trainer(), images(4, 32)
    domain = torch.tensor([SOURCE, SOURCE, TARGET, TARGET])
    network = trainer.generator
    for encoder in network.style_encoders.of_domain:  # a variance of e^-40, so that attributes are their means
        torch.nn.init.zeros_(encoder.last.weight[8:])
        torch.nn.init.constant_(encoder.last.bias[8:], -40.0)
    with torch.no_grad():
        passes, _ = trainer.disentangle(image, domain, domain.flip(0), seeded())
        content, own = network.encode(image, domain), network.own_style(image, domain)
        # The first source image is rendered with the attributes of the first target image, and so on.
        exchanged = network.decode(content, own[[2, 3, 0, 1]])
        back = network.own_style(exchanged, domain.flip(0))[[2, 3, 0, 1]]
        cycle = network.decode(network.encode(exchanged, domain.flip(0)), back)
    torch.testing.assert_close(passes["exchanged"], exchanged, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(passes["cycle"], cycle, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(passes["reconstruction"], network.decode(content, own), rtol=1e-4, atol=1e-5)
    assert back[:, 0].tolist() == domain.tolist()


def test_the_step_of_dritpp() -> None:
    trainer = dritpp_trainer()
    judges = [trainer.discriminator, trainer.content_discriminator]
    untouched = at(
        trainer, IterationEvents.BACKWARD_COMPLETED, lambda: [p.grad for judge in judges for p in judge.parameters()]
    )
    before = [p.detach().clone() for p in judges[1].parameters()]
    trainer.run()
    output = trainer.state.output[0]
    expected = 10 * (output["reconstruction"] + output["cycle"] + output["latent"]) + 2 * output["adversarial"]
    expected = expected + output["confusion"] + 0.01 * output["normality"] + output["mode_seeking"]
    torch.testing.assert_close(output["loss"], expected)
    assert all(gradient is None for gradient in untouched[0]), "G's step leaves the discriminators alone"
    assert learning(trainer.generator) == parameters_of(trainer.generator)
    assert learning(judges[1]) == parameters_of(judges[1])
    assert not any(torch.equal(now, then) for now, then in zip(judges[1].parameters(), before, strict=True))


def test_a_few_steps_lower_the_loss_of_dritpp() -> None:
    trainer = dritpp_trainer(iterations=12, rate=2e-3)
    losses = at(trainer, Events.ITERATION_COMPLETED, lambda: float(trainer.state.output[0]["reconstruction"]))
    trainer.run()
    assert losses[-1] < 0.9 * losses[0]
