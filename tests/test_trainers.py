"""Both trainers: who learns from what, what is reported, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from scripts.core.domains import SOURCE, TARGET
from scripts.engines.adversarial_trainer import frozen
from scripts.engines.alignment import DualAlignment, FeatureAdversary, PredictionAdversary
from scripts.engines.dual_alignment_trainer import DualAlignmentTrainer
from scripts.engines.image_pool import ImagePool
from scripts.engines.schedules import averaged_model
from scripts.engines.style_transfer_trainer import StyleTransferTrainer
from scripts.losses.segmenter_loss import SegmenterLoss
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.prediction_discriminator import PredictionDiscriminator
from scripts.networks.segmenter import Segmenter
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from torch import nn
from torch.optim import SGD

Batch = dict[str, torch.Tensor]


def make_batches(count: int = 20, *, target: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        batch = {
            "image": torch.rand(2, 1, 32, 32, generator=generator) * 2 - 1,
            "label": torch.randint(3, (2, 1, 32, 32), generator=generator, dtype=torch.uint8),
        }
        if target:
            batch["target_image"] = torch.rand(2, 1, 32, 32, generator=generator) - 1
        batches.append(batch)
    return batches


def settings(iterations: int, batches: Iterable[Batch] | None, changes: dict[str, Any]) -> dict[str, Any]:
    return {
        "device": "cpu",
        "max_epochs": 1,
        "epoch_length": iterations,
        "train_data_loader": make_batches() if batches is None else batches,
        "precision": "float32",
        **changes,
    }


def style_trainer(iterations: int = 1, batches: Iterable[Batch] | None = None, **changes: Any) -> StyleTransferTrainer:
    torch.manual_seed(0)
    generator = StyleTransferGenerator(channels=4, num_blocks=1, style_channels=4)
    discriminator = DomainDiscriminator(channels=4)
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": SGD(generator.parameters(), lr=1e-3),
        "discriminator_optimizer": SGD(discriminator.parameters(), lr=1e-3),
        "image_pool": ImagePool(size=0),
        "average": averaged_model(generator, 0.9),
    }
    return StyleTransferTrainer(**parts | settings(iterations, batches, changes))


def dual_trainer(
    iterations: int = 1,
    batches: Iterable[Batch] | None = None,
    segmenter: Segmenter | None = None,
    d1: dict[str, Any] | None = None,
    d2: dict[str, Any] | None = None,
    warmup: int = 0,
    extra_losses: Callable[[Any], dict[str, SegmenterLoss]] = lambda _: {},
    **changes: Any,
) -> DualAlignmentTrainer:
    """A trainer of tiny networks; ``d1`` and ``d2`` are further arguments of the adversaries.

    ``extra_losses`` makes them from an object with the ``segmenter`` and its ``average``.
    """
    segmenter = tiny_deeplab() if segmenter is None else segmenter
    average = averaged_model(segmenter, 0.9)
    d2_network = PredictionDiscriminator(num_classes=3, channels=4)
    alignment = DualAlignment(
        d1=FeatureAdversary(
            network=segmenter.feature_discriminator,
            optimizer=SGD(segmenter.feature_discriminator.parameters(), lr=1e-3),
            **d1 or {},
        ),
        d2=PredictionAdversary(network=d2_network, optimizer=SGD(d2_network.parameters(), lr=1e-3), **d2 or {}),
        warmup=warmup,
    )
    parts = {
        "segmenter": segmenter,
        "segmenter_optimizer": SGD(segmenter.segmenter_parameters(), lr=1e-3),
        "average": average,
        "alignment": alignment,
        "extra_losses": extra_losses(SimpleNamespace(segmenter=segmenter, average=average)),
    }
    return DualAlignmentTrainer(**parts | settings(iterations, batches, changes))


def tiny_deeplab(norm: str = "none", mask_mode: str = "abs", predictors: int = 1) -> MaskedDeepLab:
    """The same weights each time."""
    torch.manual_seed(0)
    return MaskedDeepLab(
        num_classes=3,
        layers=(1, 1, 1, 1),
        width=4,
        feature_channels=16,
        atrous_rates=(1,),
        feature_discriminator_norm=norm,
        mask_mode=mask_mode,
        predictors=predictors,
    )


OFF = {"weight": 0.0}
"""An adversary that takes no part."""


def copies(parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def same(parameters: Iterable[torch.Tensor], before: list[torch.Tensor]) -> bool:
    return all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def at(trainer: Any, event: Any, look: Callable[[], Any]) -> list[Any]:
    """The results of ``look`` at each ``event``."""
    seen: list[Any] = []
    trainer.add_event_handler(event, lambda engine: seen.append(look()))
    return seen


def after_update(optimizer: torch.optim.Optimizer, look: Callable[[], Any]) -> list[Any]:
    """The results of ``look`` after each update of an optimiser."""
    seen: list[Any] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(look()))
    return seen


def test_the_generators_step_leaves_the_discriminator_alone() -> None:
    trainer = style_trainer()
    before = copies(trainer.discriminator.parameters()), copies(trainer.generator.parameters())
    seen = after_update(
        trainer.generator_optimizer,
        lambda: (
            same(trainer.discriminator.parameters(), before[0]),
            all(parameter.grad is None for parameter in trainer.discriminator.parameters()),
            all(parameter.requires_grad for parameter in trainer.discriminator.parameters()),
            same(trainer.generator.parameters(), before[1]),
        ),
    )
    trainer.run()
    assert seen == [(True, True, True, False)]


def test_the_discriminators_step_leaves_the_generator_alone() -> None:
    trainer = style_trainer()
    discriminator = copies(trainer.discriminator.parameters())
    after_step: list[list[torch.Tensor]] = after_update(
        trainer.generator_optimizer, lambda: copies(trainer.generator.parameters())
    )
    gradients = after_update(
        trainer.generator_optimizer, lambda: copies(p.grad for p in trainer.generator.parameters())
    )
    trainer.run()
    assert same(trainer.generator.parameters(), after_step[0])
    assert same((p.grad for p in trainer.generator.parameters()), gradients[0])
    assert not same(trainer.discriminator.parameters(), discriminator)


def test_the_generator_learns_from_every_loss() -> None:
    trainer = style_trainer()
    trainer.run()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trainer.generator.parameters() if p.ndim == 4)


def test_the_papers_weights_are_in_the_total() -> None:
    trainer = style_trainer()
    trainer.run()
    output = trainer.state.output[0]
    expected = 20 * output["reconstruction"] + 20 * output["cycle"] + output["content"] + output["adversarial"]
    torch.testing.assert_close(output["loss"], expected)
    assert sorted(output) == [
        "adversarial",
        "content",
        "content_std",
        "cycle",
        "discriminator",
        "loss",
        "reconstruction",
    ]


def test_other_weights_are_in_the_total() -> None:
    trainer = style_trainer(
        reconstruction_weight=1.0, cycle_weight=2.0, content_weight=3.0, adversarial_weight=4.0, adversarial_kind="bce"
    )
    trainer.run()
    output = trainer.state.output[0]
    expected = output["reconstruction"] + 2 * output["cycle"] + 3 * output["content"] + 4 * output["adversarial"]
    torch.testing.assert_close(output["loss"], expected)


def test_the_shared_passes_are_those_of_the_equations() -> None:
    trainer = style_trainer()
    generator, batch = trainer.generator, make_batches(1)[0]
    image = torch.cat([batch["image"], batch["target_image"]])
    domain = torch.tensor([SOURCE, SOURCE, TARGET, TARGET])
    other = torch.tensor([TARGET, TARGET, SOURCE, SOURCE])
    with torch.no_grad():
        translation, passes = trainer.translate(image, domain, other, style=other)
        content = generator.encode(image, domain)
        expected = generator.decode(content, other)
        torch.testing.assert_close(translation, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(passes["reconstruction"], generator.decode(content, domain), atol=1e-5, rtol=1e-4)
        back = generator.decode(generator.encode(expected, other), domain)
        torch.testing.assert_close(passes["cycle"], back, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [style_trainer, dual_trainer])
def test_events_fire_in_order(make: Callable[..., Any]) -> None:
    trainer = make(iterations=2)
    order: list[str] = []
    for event in (Events.ITERATION_STARTED, *IterationEvents, Events.ITERATION_COMPLETED):
        if event != IterationEvents.INNER_ITERATION_STARTED and event != IterationEvents.INNER_ITERATION_COMPLETED:
            trainer.add_event_handler(event, lambda engine, name=event.name: order.append(name))
    trainer.run()
    assert order == 2 * [
        "ITERATION_STARTED",
        "FORWARD_COMPLETED",
        "LOSS_COMPLETED",
        "BACKWARD_COMPLETED",
        "MODEL_COMPLETED",
        "ITERATION_COMPLETED",
    ]


@pytest.mark.parametrize(
    ("make", "optimizer"), [(style_trainer, "generator_optimizer"), (dual_trainer, "segmenter_optimizer")]
)
def test_a_handler_can_change_gradients_before_the_update(make: Callable[..., Any], optimizer: str) -> None:
    # As MONAI's trainers have it: after the backward pass and before the step, where gradients are clipped.
    trainer = make()
    parameters = [p for group in getattr(trainer, optimizer).param_groups for p in group["params"]]
    before = copies(parameters)

    def clip_to_nothing() -> bool:
        had = any(bool(p.grad.any()) for p in parameters)
        for parameter in parameters:
            parameter.grad.zero_()
        return had and same(parameters, before)

    seen = at(trainer, IterationEvents.BACKWARD_COMPLETED, clip_to_nothing)
    trainer.run()
    assert seen == [True]
    assert same(parameters, before)


@pytest.mark.parametrize(
    ("make", "keys"), [(style_trainer, ["translation", "content"]), (dual_trainer, ["image", "label", "pred"])]
)
def test_handlers_see_what_they_need(make: Callable[..., Any], keys: list[str]) -> None:
    trainer = make()
    forward = at(trainer, IterationEvents.FORWARD_COMPLETED, lambda: set(trainer.state.output))
    loss = at(trainer, IterationEvents.LOSS_COMPLETED, lambda: float(trainer.state.output["loss"]))
    trainer.run()
    assert set(keys) <= forward[0]
    assert loss == [float(trainer.state.output[0]["loss"])]
    assert not any(value.requires_grad for value in trainer.state.output[0].values())


@pytest.mark.parametrize("make", [style_trainer, dual_trainer])
def test_precision_is_what_was_asked_for(make: Callable[..., Any]) -> None:
    losses = {}
    for precision in ("float32", "bf16"):
        trainer = make(precision=precision)
        with trainer.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
        trainer.run()
        losses[precision] = float(trainer.state.output[0]["loss"])
    # bf16 keeps 8 bits: near, not equal.
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.05)


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"setting 'precision': 'fp16'\. Expected one of auto, bf16, float32"):
        style_trainer(precision="fp16").autocast()


def test_frozen_parameters_are_given_back_as_they_were() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    image = torch.ones(1, 2, requires_grad=True)
    with frozen(network):
        assert not any(parameter.requires_grad for parameter in network.parameters())
        network(image).sum().backward()
    assert image.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [parameter.requires_grad for parameter in network.parameters()] == before
    with pytest.raises(KeyError), frozen(network):
        raise KeyError
    assert [parameter.requires_grad for parameter in network.parameters()] == before


def test_the_average_follows_every_step() -> None:
    trainer = style_trainer(iterations=3)
    weight = next(iter(trainer.generator.parameters()))
    path = after_update(trainer.generator_optimizer, lambda: weight.detach().clone())
    trainer.run()
    # The first update copies; after n updates the decay is min(0.9, (1 + n) / (10 + n)): 2/11, then 3/12.
    expected = path[0]
    for now, decay in zip(path[1:], (2 / 11, 3 / 12), strict=True):
        expected = decay * expected + (1 - decay) * now
    torch.testing.assert_close(next(iter(trainer.average.module.parameters())), expected)


def endless() -> Iterator[Batch]:
    while True:
        yield from make_batches(3)


def test_a_finished_training_only_completes() -> None:
    trainer = style_trainer(iterations=2, batches=endless())
    trainer.run()
    before, completed = copies(trainer.generator.parameters()), at(trainer, Events.COMPLETED, lambda: True)
    again = at(trainer, Events.ITERATION_COMPLETED, lambda: True)
    trainer.run()
    assert (completed, again) == ([True], [])
    assert same(trainer.generator.parameters(), before)
