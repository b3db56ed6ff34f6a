"""What the rivals of stage 2 are made of: entropy maps, two predictors that disagree, self-training."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS, run_config
from ignite.engine import Events
from scripts.core.errors import InputError
from scripts.engines.dual_alignment_trainer import DualAlignmentTrainer
from scripts.losses.adversarial import discriminator_loss, generator_loss
from scripts.losses.disagreement import Disagreement, PredictorSimilarity, disagreement_weights, predictor_similarity
from scripts.losses.segmentation import supervised_loss, supervised_losses
from scripts.losses.self_training import UNSURE, SelfTraining, pseudo_labels
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.prediction_discriminator import PREDICTION_MAPS, prediction_map
from test_trainers import OFF, after_update, copies, dual_trainer, make_batches, same, tiny_deeplab
from torch import nn

LN2, LN3 = math.log(2.0), math.log(3.0)


def pixels(*vectors: tuple[float, ...]) -> torch.Tensor:
    """One row of pixels, each given by its channels: (1, channels, 1, pixels)."""
    return torch.tensor(vectors).T[None, :, None, :]


def logits_of(*probabilities: tuple[float, ...]) -> torch.Tensor:
    return pixels(*probabilities).clamp(min=1e-30).log()


# --- what D2 looks at ------------------------------------------------------------------------------------------------


def test_entropy_map_by_hand() -> None:
    # Uniform over four classes: -1/4 log 1/4 / log 4 = 1/4 in each, 1 in all. Sure of one class: 0.
    # (1/2, 1/2, 0, 0): -1/2 log 1/2 / log 4 = 1/4 in two of them.
    logits = logits_of((0.25, 0.25, 0.25, 0.25), (1.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.0, 0.0))
    expected = pixels((0.25, 0.25, 0.25, 0.25), (0.0, 0.0, 0.0, 0.0), (0.25, 0.25, 0.0, 0.0))
    torch.testing.assert_close(prediction_map(logits, "entropy"), expected, atol=1e-6, rtol=0)


def test_entropy_map_is_the_entropy_in_shares() -> None:
    logits = 3 * torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
    torch.testing.assert_close(prediction_map(logits, "entropy").sum(1), entropy / math.log(5.0))
    torch.testing.assert_close(prediction_map(logits, "softmax"), logits.softmax(1))


def test_entropy_map_of_a_sure_prediction_has_a_finite_gradient() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]]).view(1, 3, 1, 1).requires_grad_()
    prediction_map(logits, "entropy").sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_an_unknown_map_is_named() -> None:
    with pytest.raises(ValueError, match="got 'logits'"):
        prediction_map(torch.zeros(1, 2, 1, 1), "logits")
    with pytest.raises(InputError, match=r"setting 'input_map': 'logits'\. Expected one of softmax, entropy"):
        dual_trainer(d2={"input_map": "logits"})


@pytest.mark.parametrize("kind", PREDICTION_MAPS)
def test_d2_sees_the_map_that_was_asked_for(kind: str) -> None:
    trainer = dual_trainer(d2={"input_map": kind}, d1=OFF, segmenter=tiny_deeplab(mask_mode="off"))
    seen: list[torch.Tensor] = []
    trainer.alignment.d2.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    trainer.run()
    # S's step shows it the target; its own step both domains, the source first, here with its prediction in the output.
    source = prediction_map(trainer.state.output[0]["pred"], kind)
    torch.testing.assert_close(seen[1], torch.cat([source, seen[0]]))
    assert len(seen) == 2


# --- weights per pixel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bce", "lsgan", "hinge"])
def test_weights_of_an_adversarial_loss(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 4, 4, generator=generator) for _ in range(2))
    ones = torch.ones(2, 1, 4, 4)
    torch.testing.assert_close(generator_loss(fake, kind, ones), generator_loss(fake, kind))
    torch.testing.assert_close(discriminator_loss(real, fake, kind, ones), discriminator_loss(real, fake, kind))
    # A weight of 3 on the first image alone: 3/2 of its own mean loss.
    ones[0], ones[1] = 3.0, 0.0
    torch.testing.assert_close(generator_loss(fake, kind, ones), 1.5 * generator_loss(fake[:1], kind))
    # The real is never weighted.
    unweighted = discriminator_loss(real, fake, kind, 0 * ones)
    torch.testing.assert_close(unweighted, discriminator_loss(real, torch.full_like(fake, -50.0), kind, 0 * ones))


def test_coarse_logits_are_spread_over_the_weights_pixels() -> None:
    # Logits ln 3 and 0 spread bilinearly over four pixels: ln 3 at both left ones' edge, 3/4 and 1/4 of it, 0.
    logits, weights = pixels((LN3,), (0.0,)), pixels((1.0,), (0.0,), (0.0,), (0.0,))
    # Only the first counts: -ln sigmoid(ln 3) = ln 4/3, over four pixels.
    assert float(generator_loss(logits, "bce", weights)) == pytest.approx(math.log(4 / 3) / 4)


# --- two predictors --------------------------------------------------------------------------------------------------


def test_disagreement_by_hand() -> None:
    # Equal predictions: cosine 1. Sure of different classes: cosine 0. (1, 0) against (1/2, 1/2): cosine 1 / sqrt 2.
    first = logits_of((0.3, 0.7), (1.0, 0.0), (1.0, 0.0))
    second = logits_of((0.3, 0.7), (0.0, 1.0), (0.5, 0.5))
    weights = disagreement_weights([first, second], base=0.4, weight=40.0)
    torch.testing.assert_close(weights, pixels((0.4,), (40.4,), (0.4 + 40 * (1 - 1 / math.sqrt(2)),)))


def test_disagreement_gives_no_gradient() -> None:
    each = [torch.randn(1, 3, 2, 2, requires_grad=True) for _ in range(2)]
    assert not disagreement_weights(each, base=0.4, weight=40.0).requires_grad


def predictor(*weights: float) -> nn.Module:
    """A convolution with these two weights, behind a norm whose scale is 1 whatever they are."""
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor(weights).view(1, 2, 1, 1))
    return module


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((3.0, 4.0), 2.0),
        ((6.0, 8.0), 2.0),  # the length does not count
        ((-3.0, -4.0), 0.0),
        ((4.0, -3.0), 1.0),  # a right angle
        ((5.0, 0.0), 1.6),  # 1 + 15 / (5 * 5)
    ],
)
def test_similarity_of_known_vectors(second: tuple[float, float], expected: float) -> None:
    assert float(predictor_similarity(predictor(3.0, 4.0), predictor(*second))) == pytest.approx(expected, abs=1e-6)


def test_minimising_similarity_turns_both_predictors_apart() -> None:
    first, second = predictor(3.0, 4.0), predictor(5.0, 0.0)
    before = predictor_similarity(first, second)
    before.backward()
    for module in (first, second):
        assert module[0].weight.grad is None
        assert module[1].weight.grad.any()
        module[1].weight.data -= module[1].weight.grad
    assert predictor_similarity(first, second) < before


def test_each_predictor_learns_from_the_labels_by_itself() -> None:
    label = torch.tensor([[0, 1], [1, 0]]).view(1, 1, 2, 2)
    each = [torch.randn(1, 2, 2, 2, requires_grad=True) for _ in range(2)]
    total, parts = supervised_losses(each, label, [1.0, 1.0])
    (first, _), (second, second_parts) = (supervised_loss(logits, label) for logits in each)
    torch.testing.assert_close(total, first + second)
    assert set(parts) == set(second_parts)
    torch.testing.assert_close(sum(parts.values()), total)
    alone, parts_alone = supervised_losses(each[:1], label, [1.0])
    assert alone == first
    assert alone == sum(parts_alone.values())


def two_predictors(base: float = 0.4, weight: float = 40.0, d2_weight: float = 0.01) -> DualAlignmentTrainer:
    segmenter = tiny_deeplab(mask_mode="off", predictors=2)
    disagreement = Disagreement(segmenter=segmenter, base=base, weight=weight)
    similarity = PredictorSimilarity(segmenter=segmenter, weight=0.02)
    return dual_trainer(
        segmenter=segmenter,
        d1=OFF,
        d2={"weight": d2_weight, "pixel_weights": disagreement},
        extra_losses=lambda _: {"predictor_similarity": similarity},
    )


def test_two_predictors_vote_by_the_sum_of_their_logits() -> None:
    net = two_predictors().segmenter.eval()
    image = make_batches(1)[0]["image"]
    first, second = net.predict_heads(net.forward_features(image), [32, 32])
    torch.testing.assert_close(net(image), first + second)
    assert not torch.allclose(first, second)
    assert all(any(p is q for q in net.segmenter_parameters()) for p in net.further_predictors.parameters())


def test_one_predictor_is_as_it_ever_was() -> None:
    # The same names, so that earlier weights load.
    settings: dict[str, Any] = {"num_classes": 3, "layers": (1, 1, 1, 1), "width": 4, "feature_channels": 16}
    assert not any("further" in name for name in MaskedDeepLab(**settings).state_dict())
    with pytest.raises(ValueError, match=r"setting 'predictors': 3\. Expected one of 1, 2"):
        MaskedDeepLab(**settings, predictors=3)


def test_the_step_of_two_predictors() -> None:
    trainer = two_predictors(d2_weight=0.5)
    segmenter, d2 = trainer.segmenter, trainer.alignment.d2.network
    both = [segmenter.predictor, *segmenter.further_predictors]
    d2_before = copies(d2.parameters())
    seen = after_update(
        trainer.segmenter_optimizer,
        lambda: (
            all(bool(p.grad.any()) for head in both for p in head.parameters()),
            all(p.grad is None for p in d2.parameters()) and same(d2.parameters(), d2_before),
        ),
    )
    trainer.run()
    assert seen == [(True, True)]
    assert not same(d2.parameters(), d2_before)
    output = trainer.state.output[0]
    plain = output["cross_entropy"] + output["dice"] + 0.02 * output["predictor_similarity"]
    torch.testing.assert_close(output["loss"], plain + 0.5 * output["alignment_d2"])


def test_disagreement_weighs_d2s_game_on_both_sides() -> None:
    # With the same everywhere, a weight of 2, S's and D2's share of the target double; the source's share stays.
    outputs = []
    for base in (1.0, 2.0):
        trainer = two_predictors(base=base, weight=0.0)
        for parameter in trainer.alignment.d2.network.parameters():
            nn.init.zeros_(parameter)  # logits 0: every loss is ln 2
        trainer.run()
        outputs.append({name: float(trainer.state.output[0][name]) for name in ("alignment_d2", "d2")})
    assert outputs[0] == pytest.approx({"alignment_d2": LN2, "d2": LN2})
    assert outputs[1] == pytest.approx({"alignment_d2": 2 * LN2, "d2": 0.5 * (1 + 2) * LN2})


def test_one_predictor_has_no_other_to_disagree_with() -> None:
    for build in (partial(Disagreement, base=0.4, weight=40.0), partial(PredictorSimilarity, weight=0.02)):
        with pytest.raises(InputError, match=r"one predictor.* give --network_def#predictors 2 as well"):
            build(segmenter=tiny_deeplab())


# --- self-training ---------------------------------------------------------------------------------------------------


def test_pseudo_labels_by_hand() -> None:
    # Class 0 wins four pixels; their surer half reaches 0.8, its threshold. Class 1 wins two, the surer with 0.95, over
    # the cap: 0.9 is enough. Of the fourth pixel, the ratios are 0.6 / 0.8 and 0.4 / 0.9: unsure.
    zero = [0.85, 0.8, 0.7, 0.6]
    one = [0.95, 0.92]
    probabilities = pixels(*((p, 1 - p) for p in zero), *((1 - p, p) for p in one))
    labels = pseudo_labels(probabilities, portion=0.5, cap=0.9)
    assert labels.flatten().tolist() == [0, 0, UNSURE, UNSURE, 1, 1]


def test_a_hard_class_keeps_its_share() -> None:
    # Class 1 wins two pixels with little confidence; the surer one sets its threshold at 0.55 and is kept.
    probabilities = pixels((0.99, 0.01), (0.98, 0.02), (0.45, 0.55), (0.49, 0.51))
    assert pseudo_labels(probabilities, portion=0.5, cap=0.9).flatten().tolist() == [0, 0, 1, UNSURE]
    # A class that wins one pixel has no half: its threshold is 1, which nothing short of certainty reaches.
    assert pseudo_labels(probabilities[..., :3], portion=0.5, cap=0.9).flatten().tolist() == [0, 0, UNSURE]


def test_self_training_loss_by_hand() -> None:
    # Half of two pixels is sure of class 0: -ln 1/2 there; nothing of the other, whose gradient is 0.
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    teacher = logits_of((0.8, 0.2), (0.6, 0.4)).requires_grad_()
    loss = SelfTraining(teacher=nn.Identity()).loss(logits, teacher)
    assert float(loss) == pytest.approx(LN2)
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(logits.grad, pixels((-0.5, 0.5), (0.0, 0.0)))
    # No pixel is sure: 0, not 0 / 0.
    assert float(SelfTraining(teacher=nn.Identity(), portion=0.0).loss(logits, teacher)) == 0.0


def test_self_training_begins_when_it_is_time() -> None:
    trainer = dual_trainer(
        iterations=4,
        extra_losses=lambda made: {"self_training": SelfTraining(teacher=made.average.module, weight=2.0, start=0.5)},
    )
    losses: list[float] = []
    totals: list[bool] = []
    adversarial = ("alignment_d1", "alignment_d2")

    def look() -> None:
        output = trainer.state.output[0]
        losses.append(float(output["self_training"]))
        parts = output["cross_entropy"] + output["dice"] + sum(0.01 * output[name] for name in adversarial)
        totals.append(torch.allclose(output["loss"], parts + 2.0 * output["self_training"]))

    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    assert losses[:2] == [0.0, 0.0]
    assert all(loss > 0 for loss in losses[2:])
    assert all(totals)


def test_the_moving_average_teaches_and_does_not_learn() -> None:
    trainer = dual_trainer(
        d1=OFF,
        d2=OFF,
        segmenter=tiny_deeplab(mask_mode="off"),
        extra_losses=lambda made: {"self_training": SelfTraining(teacher=made.average.module)},
    )
    teacher = trainer.average.module
    before = copies(teacher.parameters())
    seen = after_update(
        trainer.segmenter_optimizer,
        lambda: same(teacher.parameters(), before) and all(p.grad is None for p in teacher.parameters()),
    )
    trainer.run()
    assert seen == [True]
    assert float(trainer.state.output[0]["self_training"]) > 0


# --- whole trainings -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clan", "dast"])
def test_a_rivals_weights_are_evaluated_by_their_card(method: str, data: Path, tmp_path: Path) -> None:
    overlay = CONFIGS / "methods" / f"{method}.yaml"
    run_config("training", "segmentation", "train", overlay, bundle_root=tmp_path, dataset_dir=data)
    network = json.loads((tmp_path / "models" / "model.json").read_text())["network"]
    run_config("evaluating", "segmentation", "evaluate", bundle_root=tmp_path, dataset_dir=data, **network)
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["cases"] == 1
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert any(name.startswith("further_predictors.0.") for name in state) == (method == "clan")
