"""Translators that separate content from a random style code: MUNIT."""

from __future__ import annotations

import pytest
import torch
from conftest import CONFIGS
from ignite.engine import Events
from monai.bundle import ConfigParser
from scripts.core.domains import SOURCE, TARGET
from scripts.losses.translation import StyleReconstruction
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
