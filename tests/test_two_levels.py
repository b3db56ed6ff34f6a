"""Alignment of predictions at two levels of S, which SIFA is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from scripts.core.errors import InputError
from scripts.engines.alignment import DualAlignment, FeatureAdversary, PredictionAdversary
from scripts.engines.schedules import averaged_model
from scripts.engines.two_level_trainer import TwoLevelTrainer
from scripts.networks.prediction_discriminator import PredictionDiscriminator
from scripts.networks.two_level_deeplab import TwoLevelDeepLab
from test_trainers import after_update, at, copies, make_batches, same, settings, tiny_deeplab
from torch.optim import SGD, Adam


def two_levels() -> TwoLevelDeepLab:
    torch.manual_seed(0)
    return TwoLevelDeepLab(
        num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16, atrous_rates=(1,), mask_mode="off"
    )


def trainer_of(iterations: int = 1, segmenter: Any = None, rate: float = 1e-3, **changes: Any) -> TwoLevelTrainer:
    segmenter = segmenter or two_levels()
    d1 = segmenter.feature_discriminator
    d2, auxiliary = (PredictionDiscriminator(num_classes=3, channels=4) for _ in range(2))
    of_both = SGD([*d2.parameters(), *auxiliary.parameters()], lr=rate)
    alignment = DualAlignment(
        d1=FeatureAdversary(network=d1, optimizer=SGD(d1.parameters(), lr=rate), weight=0.1, kind="lsgan"),
        d2=PredictionAdversary(network=d2, optimizer=of_both, weight=0.1, kind="lsgan"),
    )
    parts = {
        "segmenter": segmenter,
        "segmenter_optimizer": Adam(segmenter.segmenter_parameters(), lr=rate),
        "average": averaged_model(segmenter, 0.9),
        "alignment": alignment,
        "auxiliary": PredictionAdversary(network=auxiliary, optimizer=of_both, weight=0.01, kind="lsgan"),
    }
    return TwoLevelTrainer(**parts | settings(iterations, make_batches(1) * iterations, changes))


def test_the_second_head_reads_the_last_stage_but_one_and_exists_in_training_alone() -> None:
    network, image = two_levels(), torch.rand(2, 1, 32, 32)
    features = network.forward_features(image)
    backbone = network.feature_extractor.backbone
    assert [tuple(feature.shape) for feature in features] == [(2, 16, 4, 4), (2, 64, 4, 4)]
    first, second = network.predict_heads(features, [32, 32])
    assert first.shape == second.shape == (2, 3, 32, 32)
    second.square().sum().backward()
    assert all(parameter.grad is None for parameter in backbone.layer4.parameters())
    assert any(bool(parameter.grad.any()) for parameter in backbone.layer3.parameters())
    network.eval()
    assert len(network.predict_heads(network.forward_features(image), [32, 32])) == 1
    assert network.head_weights == [1.0, 0.1]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_without_the_second_head_it_is_the_papers_network_also_in_torchscript() -> None:
    network, plain, image = two_levels().eval(), tiny_deeplab(mask_mode="off").eval(), torch.rand(2, 1, 32, 32)
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("auxiliary")}
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(network(image), plain(image))
        torch.testing.assert_close(torch.jit.script(network)(image), plain(image))


def test_the_step_of_two_levels() -> None:
    trainer = trainer_of()
    networks = trainer.alignment.d2.network, trainer.auxiliary.network
    before = [copies(network.parameters()) for network in networks]
    seen = after_update(
        trainer.segmenter_optimizer,
        lambda: all(parameter.grad is None for network in networks for parameter in network.parameters()),
    )
    trainer.run()
    assert seen == [True], "the step of S leaves the discriminators alone"
    assert not any(same(network.parameters(), then) for network, then in zip(networks, before, strict=True))
    output = trainer.state.output[0]
    adversarial = 0.1 * (output["alignment_d1"] + output["alignment_d2"]) + 0.01 * output["alignment_auxiliary"]
    torch.testing.assert_close(output["loss"], output["cross_entropy"] + output["dice"] + adversarial)


def test_losses_of_discriminators_that_say_nothing_by_hand() -> None:
    trainer = trainer_of()
    for parameter in trainer.auxiliary.network.parameters():
        torch.nn.init.zeros_(parameter)
    trainer.run()
    # Logits 0: S is 1 away from real, squared; the discriminator 1 from real and 0 from fake, halved.
    output = trainer.state.output[0]
    assert (float(output["alignment_auxiliary"]), float(output["auxiliary"])) == (1.0, 0.5)


def test_a_few_steps_lower_the_supervised_loss() -> None:
    label = torch.zeros(2, 1, 32, 32)
    label[..., 16:] = 2.0
    batch = make_batches(1)[0] | {"label": label}
    trainer = trainer_of(iterations=20, rate=5e-3, train_data_loader=[batch] * 20)
    losses = at(trainer, Events.ITERATION_COMPLETED, lambda: float(trainer.state.output[0]["cross_entropy"]))
    trainer.run()
    assert losses[-1] < 0.9 * losses[0]


def test_one_head_is_refused() -> None:
    with pytest.raises(InputError, match=r"one head.*two heads to align"):
        trainer_of(segmenter=tiny_deeplab(mask_mode="off"))
