"""Stage 2's trainer: who learns from what, whose statistics are kept, and when the adversaries join in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.handlers import CheckpointLoader
from scripts.core.errors import InputError
from scripts.losses.segmentation import supervised_loss
from test_trainers import OFF, after_update, at, copies, dual_trainer, make_batches, same, tiny_deeplab
from torch import nn
from torch.optim import SGD


def test_the_segmenters_step_leaves_both_discriminators_alone() -> None:
    trainer = dual_trainer()
    segmenter, d1, d2 = trainer.segmenter, trainer.segmenter.feature_discriminator, trainer.alignment.d2.network
    adversaries = [*d1.parameters(), *d2.parameters()]
    before, own = copies(adversaries), copies(segmenter.segmenter_parameters())
    seen = after_update(
        trainer.segmenter_optimizer,
        lambda: (
            same(adversaries, before),
            all(parameter.grad is None for parameter in adversaries),
            same(segmenter.segmenter_parameters(), own),
        ),
    )
    after_step = after_update(trainer.segmenter_optimizer, lambda: copies(segmenter.segmenter_parameters()))
    trainer.run()
    assert seen == [(True, True, False)]
    # The discriminators' steps then change them, and nothing of the segmenter.
    assert not same(d1.parameters(), before[: len(list(d1.parameters()))])
    assert not same(d2.parameters(), before[len(list(d1.parameters())) :])
    assert same(segmenter.segmenter_parameters(), after_step[0])


def test_d1_is_changed_by_its_own_optimiser_alone() -> None:
    trainer = dual_trainer(iterations=3)
    for group in trainer.alignment.d1.optimizer.param_groups:
        group["lr"] = 0.0
    before = copies(trainer.segmenter.feature_discriminator.parameters())
    trainer.run()
    assert same(trainer.segmenter.feature_discriminator.parameters(), before)
    owned = {id(p) for group in trainer.segmenter_optimizer.param_groups for p in group["params"]}
    assert not owned & {id(p) for p in trainer.segmenter.feature_discriminator.parameters()}


def test_the_segmenters_total_is_weighted() -> None:
    trainer = dual_trainer(d1={"weight": 0.5}, d2={"weight": 0.25})
    trainer.run()
    output = trainer.state.output[0]
    expected = output["cross_entropy"] + output["dice"] + 0.5 * output["alignment_d1"] + 0.25 * output["alignment_d2"]
    torch.testing.assert_close(output["loss"], expected)
    assert {"d1", "d2", "mask_mean", "mask_std"} <= set(output)


def test_the_adversarial_weights_rise_from_nothing() -> None:
    trainer = dual_trainer(iterations=4, d1={"weight": 0.5}, d2={"weight": 0.5}, warmup=2)

    def adversarial_share() -> float:
        output = trainer.state.output[0]
        plain = output["cross_entropy"] + output["dice"]
        return float((output["loss"] - plain) / (0.5 * output["alignment_d1"] + 0.5 * output["alignment_d2"]))

    shares = at(trainer, Events.ITERATION_COMPLETED, adversarial_share)
    trainer.run()
    assert shares == pytest.approx([0.0, 0.5, 1.0, 1.0], abs=1e-4)


@pytest.mark.parametrize(
    ("d1", "d2", "present", "absent"),
    [
        (0.01, 0.0, {"alignment_d1", "d1"}, {"alignment_d2", "d2"}),
        (0.0, 0.01, {"alignment_d2", "d2"}, {"alignment_d1", "d1"}),
        (0.0, 0.0, set(), {"alignment_d1", "alignment_d2", "d1", "d2", "mask_mean"}),
    ],
)
def test_a_weight_of_nothing_switches_a_discriminator_off(
    d1: float, d2: float, present: set[str], absent: set[str]
) -> None:
    trainer = dual_trainer(
        d1={"weight": d1}, d2={"weight": d2}, segmenter=tiny_deeplab(mask_mode="abs" if d1 else "off")
    )
    trainer.run()
    assert present <= set(trainer.state.output[0])
    assert not absent & set(trainer.state.output[0])


def test_a_mask_whose_discriminator_never_learns_is_refused() -> None:
    with pytest.raises(InputError, match=r"'d1_weight': 0 with a mask.* give --mask_mode off as well"):
        dual_trainer(d1=OFF)


def test_a_mask_without_target_slices_is_refused_unless_a_trained_one_is_loaded() -> None:
    class NoTarget(list):  # what UnpairedSliceBatches says of itself
        target = None

    batches = NoTarget(make_batches(1))
    with pytest.raises(InputError, match=r"'target_datalist': none with a mask.* give --mask_mode off as well"):
        dual_trainer(batches=batches)
    dual_trainer(batches=batches, segmenter=tiny_deeplab(mask_mode="off"))
    # Fine-tuning: a checkpoint brings a D1 that was trained.
    dual_trainer(batches=batches, train_handlers=[CheckpointLoader("model.pt", {"model": nn.Linear(1, 1)})])


def test_the_average_ends_with_the_last_update_of_d1() -> None:
    trainer = dual_trainer(iterations=1)
    trainer.run()
    averaged = trainer.average.module.feature_discriminator.parameters()
    assert same(averaged, copies(trainer.segmenter.feature_discriminator.parameters()))


@pytest.mark.parametrize("adversary", ["d1", "d2"])
def test_an_unknown_kind_is_refused_before_any_step(adversary: str) -> None:
    with pytest.raises(InputError, match=rf"setting '{adversary}_kind': 'wgan'\. Expected one of bce, lsgan"):
        dual_trainer(**{adversary: {"kind": "wgan"}})


def running_means(segmenter: nn.Module) -> list[torch.Tensor]:
    return copies(layer.running_mean for layer in segmenter.modules() if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("warmup", "sole_influence"), [(5, "image"), (0, "target_image")], ids=["before the end", "after it"]
)
def test_one_domain_alone_sets_the_batch_norm_statistics(warmup: int, sole_influence: str) -> None:
    other = "target_image" if sole_influence == "image" else "image"

    def statistics(changed: str) -> list[torch.Tensor]:
        (batch,) = make_batches(1)
        batch[changed] = batch[changed] * 0.5 + 0.3
        trainer = dual_trainer(batches=[batch], warmup=warmup)
        trainer.run()
        return running_means(trainer.segmenter)

    plain = dual_trainer(warmup=warmup)
    fresh = running_means(plain.segmenter)
    plain.run()
    expected = running_means(plain.segmenter)
    assert not same(expected, fresh)
    assert same(statistics(other), expected)
    assert not same(statistics(sole_influence), expected)


def test_statistics_change_hands_when_the_warm_up_ends() -> None:
    # With one batch repeated, the statistics follow the source for two iterations and then turn to the target.
    trainer = dual_trainer(iterations=4, batches=make_batches(1) * 4, warmup=2)
    updates: list[tuple[bool, bool]] = []
    source_pass, target_pass = trainer.source_pass, trainer.target_pass

    def watched(work: Callable[..., Any], results: list[bool]) -> Callable[..., Any]:
        def run(image: torch.Tensor) -> Any:
            before = running_means(trainer.segmenter.feature_extractor)
            result = work(image)
            results.append(not same(running_means(trainer.segmenter.feature_extractor), before))
            return result

        return run

    source: list[bool] = []
    target: list[bool] = []
    trainer.source_pass, trainer.target_pass = watched(source_pass, source), watched(target_pass, target)
    trainer.run()
    updates = list(zip(source, target, strict=True))
    assert updates == [(True, False), (True, False), (False, True), (False, True)]
    momenta = {m.momentum for m in trainer.segmenter.modules() if isinstance(m, nn.BatchNorm2d)}
    assert momenta == {0.1}


def test_without_a_target_it_is_a_plain_supervised_trainer() -> None:
    trainer = dual_trainer(iterations=2, batches=make_batches(2, target=False))
    d1_before = copies(trainer.segmenter.feature_discriminator.parameters())
    torch.manual_seed(0)
    plain = dual_trainer(iterations=1).segmenter
    optimizer = SGD(plain.segmenter_parameters(), lr=1e-3)
    for batch in make_batches(2, target=False):
        features = plain.forward_features(batch["image"])
        loss, _ = supervised_loss(plain.predict_unmasked(features, [32, 32]), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trainer.run()
    assert sorted(trainer.state.output[0]) == ["cross_entropy", "dice", "image", "label", "loss", "pred"]
    for ours, theirs in zip(trainer.segmenter.segmenter_parameters(), plain.segmenter_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert same(trainer.segmenter.feature_discriminator.parameters(), d1_before)


def test_the_sources_features_are_masked_on_request_alone() -> None:
    image = make_batches(1)[0]["image"]
    plain, masked = dual_trainer(), dual_trainer(mask_source=True)
    with torch.no_grad():
        for trainer in (plain, masked):
            trainer.segmenter.eval()
        segmenter = plain.segmenter
        features = segmenter.forward_features(image)
        unmasked = segmenter.predict_unmasked(features, [32, 32])
        torch.testing.assert_close(plain.source_pass(image)["logits"], unmasked)
        expected = segmenter.predict(features, segmenter.feature_mask(features), [32, 32])
        torch.testing.assert_close(masked.source_pass(image)["logits"], expected)
        assert not torch.allclose(expected, unmasked)


@pytest.mark.parametrize("kind", ["bce", "lsgan", "hinge"])
@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_every_kind_of_game_can_be_played(kind: str, norm: str) -> None:
    trainer = dual_trainer(d1={"kind": kind}, d2={"kind": kind}, segmenter=tiny_deeplab(norm))
    trainer.run()
    assert all(bool(torch.isfinite(value.float()).all()) for value in trainer.state.output[0].values())
