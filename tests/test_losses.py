"""Losses of both stages: values computed by hand, independent forms, parts and weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts.core.domains import IGNORED
from scripts.losses.adversarial import ADVERSARIAL_KINDS, discriminator_loss, generator_loss
from scripts.losses.segmentation import alignment_loss, supervised_loss, supervised_losses
from scripts.losses.translation import domain_discriminator_loss, generator_translation_loss

LN2, LN3, LN4 = math.log(2.0), math.log(3.0), math.log(4.0)


def full(value: float) -> torch.Tensor:
    return torch.full((2, 1, 3, 3), value)


@pytest.mark.parametrize(
    ("kind", "discriminator", "generator"),
    [
        # sigmoid(ln 3) = 3/4: real -ln 3/4, fake (logit -ln 3, D = 1/4) -ln(1 - 1/4); half their sum is ln 4/3.
        # The generator's -ln D(fake) = -ln 1/4 = ln 4.
        ("bce", LN4 - LN3, LN4),
        # real (ln 3 - 1)^2, fake (-ln 3 - 0)^2, halved; the generator's (-ln 3 - 1)^2.
        ("lsgan", 0.5 * ((LN3 - 1) ** 2 + LN3**2), (LN3 + 1) ** 2),
        # ln 3 > 1, so both margins are met: 0. The generator's -z = ln 3.
        ("hinge", 0.0, LN3),
    ],
)
def test_adversarial_values_by_hand(kind: str, discriminator: float, generator: float) -> None:
    assert float(discriminator_loss(full(LN3), full(-LN3), kind)) == pytest.approx(discriminator, abs=1e-6)
    assert float(generator_loss(full(-LN3), kind)) == pytest.approx(generator, abs=1e-6)


def test_values_at_logit_zero() -> None:
    # D = 1/2 everywhere: bce ln 2 for both; lsgan (1 + 0) / 2 and 1; hinge (1 + 1) / 2 and 0.
    assert float(discriminator_loss(full(0.0), full(0.0), "bce")) == pytest.approx(LN2)
    assert float(generator_loss(full(0.0), "bce")) == pytest.approx(LN2)
    assert float(discriminator_loss(full(0.0), full(0.0), "lsgan")) == 0.5
    assert float(generator_loss(full(0.0), "lsgan")) == 1.0
    assert float(discriminator_loss(full(0.0), full(0.0), "hinge")) == 1.0
    assert float(generator_loss(full(0.0), "hinge")) == 0.0


@pytest.mark.parametrize("kind", ADVERSARIAL_KINDS)
@settings(max_examples=25, deadline=None)
@given(margin=st.floats(0.01, 0.45), better=st.floats(0.01, 0.5))
def test_a_better_discriminator_has_the_lower_loss_and_a_better_generator_too(
    kind: str, margin: float, better: float
) -> None:
    # Real above 1/2 and fake below it by the same margin; all within [0, 1], where LSGAN, too, is monotone.
    better = min(margin + better, 0.5)
    worse_loss = discriminator_loss(full(0.5 + margin), full(0.5 - margin), kind)
    better_loss = discriminator_loss(full(0.5 + better), full(0.5 - better), kind)
    swapped_loss = discriminator_loss(full(0.5 - margin), full(0.5 + margin), kind)
    assert better_loss < worse_loss < swapped_loss
    assert generator_loss(full(0.5 + margin), kind) < generator_loss(full(0.5 - margin), kind)


@pytest.mark.parametrize("kind", ADVERSARIAL_KINDS)
def test_adversarial_losses_are_float32_and_not_saturating(kind: str) -> None:
    fake = full(-8.0).requires_grad_()  # the discriminator is sure of the fake
    generator_loss(fake, kind).backward()
    assert fake.grad is not None
    assert -fake.grad.sum() > 0.9  # log(1 - D) would leave sigmoid(-8) = 3e-4
    for loss in (
        generator_loss(full(0.3).bfloat16(), kind),
        discriminator_loss(full(0.3).bfloat16(), full(0).bfloat16(), kind),
    ):
        assert loss.dtype == torch.float32
        assert loss.ndim == 0


def test_bce_survives_sure_discriminators() -> None:
    assert float(discriminator_loss(full(-1e4), full(1e4), "bce")) == pytest.approx(1e4)
    assert float(generator_loss(full(-1e4), "bce")) == pytest.approx(1e4)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="got 'wgan'"):
        generator_loss(full(0.0), "wgan")
    with pytest.raises(ValueError, match="got 'wgan'"):
        discriminator_loss(full(0.0), full(0.0), "wgan")


def translation_arguments() -> dict[str, torch.Tensor]:
    return {
        "image": full(0.5),
        "reconstruction": full(0.25),
        "cycle": full(0.0),
        "content": torch.full((2, 4, 1, 1), 2.0),
        "content_of_translation": torch.full((2, 4, 1, 1), -1.0),
        "fake_logits": full(0.0),
    }


def test_translation_loss_by_hand() -> None:
    total, parts = generator_translation_loss(
        **translation_arguments(),
        reconstruction_weight=20.0,
        cycle_weight=20.0,
        content_weight=1.0,
        adversarial_weight=1.0,
        kind="lsgan",
    )
    # |0.25 - 0.5|, |0 - 0.5|, |-1 - 2|, (0 - 1)^2; 20 * 0.25 + 20 * 0.5 + 3 + 1 = 19.
    assert {name: float(part) for name, part in parts.items()} == {
        "reconstruction": 0.25,
        "cycle": 0.5,
        "content": 3.0,
        "adversarial": 1.0,
    }
    assert float(total) == 19.0


def test_content_gradient_flows_through_both_contents() -> None:
    arguments = translation_arguments()
    arguments["content"].requires_grad_()
    arguments["content_of_translation"].requires_grad_()
    total, _ = generator_translation_loss(
        **arguments, reconstruction_weight=0.0, cycle_weight=0.0, content_weight=1.0, adversarial_weight=0.0, kind="bce"
    )
    total.backward()
    # d|a - b| / da = sign / 8 values: +1/8 for the target (2 > -1), -1/8 for the other.
    torch.testing.assert_close(arguments["content"].grad, torch.full((2, 4, 1, 1), 0.125))
    torch.testing.assert_close(arguments["content_of_translation"].grad, torch.full((2, 4, 1, 1), -0.125))


def test_the_domain_discriminators_objective_names_its_part() -> None:
    real, fake = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    expected = discriminator_loss(real, fake, "hinge")
    total, parts = domain_discriminator_loss(real_logits=real, fake_logits=fake, kind="hinge")
    assert total == expected
    assert parts == {"discriminator": expected}


def numpy_supervised(logits: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Cross-entropy and foreground Dice loss by loops over classes, in double precision."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    picked = np.take_along_axis(probabilities, label, axis=1)
    dice = []
    for index in range(1, logits.shape[1]):
        predicted, true = probabilities[:, index], (label[:, 0] == index).astype(float)
        dice.append(2 * (predicted * true).sum() / (predicted.sum() + true.sum()))
    return float(-np.log(picked).mean()), float(1 - np.mean(dice))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_supervised_loss_equals_numpy(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    logits, label = 3 * generator.standard_normal((3, 5, 9, 7)), generator.integers(0, 5, (3, 1, 9, 7))
    total, parts = supervised_loss(torch.from_numpy(logits), torch.from_numpy(label).to(dtype))
    cross_entropy, dice = numpy_supervised(logits, label)
    assert float(parts["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(parts["dice"]) == pytest.approx(dice, rel=1e-5)
    assert float(total) == pytest.approx(cross_entropy + dice, rel=1e-5)
    assert total.dtype == torch.float32


def test_supervised_loss_by_hand() -> None:
    # Two classes, logits equal: p = 1/2 at all four pixels, two of them foreground.
    # Cross-entropy ln 2; Dice 2 * (2 * 1/2) / (4 * 1/2 + 2) = 1/2.
    label = torch.tensor([[0, 0], [1, 1]]).view(1, 1, 2, 2)
    total, parts = supervised_loss(torch.zeros(1, 2, 2, 2), label)
    assert float(parts["cross_entropy"]) == pytest.approx(LN2)
    assert float(parts["dice"]) == pytest.approx(0.5, abs=1e-5)
    assert float(total) == pytest.approx(LN2 + 0.5, abs=1e-5)


def test_ignored_pixels_leave_both_parts_of_the_supervised_loss() -> None:
    # The four pixels of the test above, and two that are ignored: wrong with certainty, they would cost a lot.
    label = torch.tensor([[0, 0, IGNORED], [1, 1, IGNORED]]).view(1, 1, 2, 3)
    logits = torch.zeros(1, 2, 2, 3)
    logits[:, 1, :, 2] = 100.0
    logits.requires_grad_()
    total, parts = supervised_loss(logits, label)
    assert float(parts["cross_entropy"]) == pytest.approx(LN2)
    assert float(parts["dice"]) == pytest.approx(0.5, abs=1e-5)
    total.backward()
    assert logits.grad is not None
    assert (logits.grad[..., 2] == 0).all()
    assert (logits.grad[..., :2] != 0).all()


def test_supervised_loss_of_a_perfect_prediction_and_of_bf16() -> None:
    label = torch.randint(0, 4, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    perfect = 50.0 * torch.nn.functional.one_hot(label[:, 0], 4).permute(0, 3, 1, 2)
    total, _ = supervised_loss(perfect, label)
    assert float(total) == pytest.approx(0.0, abs=1e-5)
    logits = torch.randn(2, 4, 8, 8).bfloat16()
    assert supervised_loss(logits, label)[0] == supervised_loss(logits.float(), label)[0]


def test_alignment_loss_by_hand_and_with_a_discriminator_off() -> None:
    # bce at logit 0: ln 2; lsgan at logit 3: (3 - 1)^2 = 4; 0.01 ln 2 + 0.02 * 4.
    arguments = {"d1_weight": 0.01, "d2_weight": 0.02, "kind_d1": "bce", "kind_d2": "lsgan"}
    total, parts = alignment_loss(d1_logits_target=full(0.0), d2_logits_target=full(3.0), **arguments)
    assert float(parts["alignment_d1"]) == pytest.approx(LN2)
    assert float(parts["alignment_d2"]) == 4.0
    assert float(total) == pytest.approx(0.01 * LN2 + 0.08)

    total, parts = alignment_loss(d1_logits_target=None, d2_logits_target=full(3.0), **arguments)
    assert set(parts) == {"alignment_d2"}
    assert float(total) == pytest.approx(0.08)
    total, parts = alignment_loss(d1_logits_target=None, d2_logits_target=None, **arguments)
    assert parts == {}
    assert float(total) == 0.0


def test_deep_supervision_by_hand() -> None:
    # Nothing is known: p = 1/2 everywhere. Fine head, two of four pixels are foreground: hits 1, false alarms 1,
    # misses 1, Dice 2 / (2 + 1 + 1) = 1/2. Coarse head, its one pixel takes the label of the first, background: Dice 0.
    label = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8).view(1, 1, 2, 2)
    heads = [torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 1, 1)]
    total, parts = supervised_losses(heads, label, [2 / 3, 1 / 3])
    assert float(parts["cross_entropy"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(parts["dice"]) == pytest.approx(2 / 3 * 0.5 + 1 / 3 * 1.0, abs=1e-4)
    assert float(total) == pytest.approx(math.log(2) + 2 / 3, abs=1e-4)
