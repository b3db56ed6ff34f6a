"""DACS: which structures are pasted, what the mixed slices are, and how much their pixels count."""

from __future__ import annotations

import math

import pytest
import torch
from scripts.losses.class_mix import ClassMix, half_of_the_structures, weighted_cross_entropy
from test_trainers import OFF, after_update, copies, dual_trainer, same, tiny_deeplab
from torch import nn

LN2 = math.log(2.0)


def row(*values: float) -> torch.Tensor:
    """One row of pixels, (1, 1, 1, W)."""
    return torch.tensor(values).view(1, 1, 1, -1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what is pasted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "expected"), [([0, 0, 0], 0), ([0, 2, 2], 1), ([0, 1, 3], 1), ([1, 2, 4], 2), ([1, 2, 3, 4], 2)]
)
def test_half_of_the_structures_that_are_there_are_pasted(present: list[int], expected: int) -> None:
    label = torch.tensor(present, dtype=torch.uint8).view(1, 1, 1, -1).repeat(50, 1, 1, 1)
    pasted = half_of_the_structures(label, 5, generator())
    for own, mask in zip(label, pasted, strict=True):
        chosen = set(own[mask].tolist())
        assert 0 not in chosen
        assert len(chosen) == expected
        # A structure is pasted whole or not at all.
        assert torch.equal(mask, torch.isin(own, torch.tensor(sorted(chosen), dtype=torch.uint8)))


def test_every_slice_has_its_own_choice_and_each_structure_its_chance() -> None:
    label = torch.tensor([1, 2, 3, 4], dtype=torch.uint8).view(1, 1, 1, 4).repeat(400, 1, 1, 1)
    counts = half_of_the_structures(label, 5, generator()).sum((0, 1, 2))
    # Of 400 slices 200 each, with a standard deviation of 10.
    assert bool(((counts > 160) & (counts < 240)).all())
    first, second, other = (half_of_the_structures(label, 5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_mixed_slices_by_hand() -> None:
    # Pixels 0 and 1 are pasted, of classes 2 and 1. Of the four target pixels, the teacher is sure (0.968) of three.
    source = {"image": row(0.1, 0.2, 0.3, 0.4), "label": row(2, 1, 1, 0).to(torch.uint8)}
    taught = torch.tensor([[0.97, 0.02, 0.01], [0.0, 0.01, 0.99], [0.3, 0.6, 0.1], [0.0, 1.0, 0.0]])
    taught = taught.T.view(1, 3, 1, 4)
    term = ClassMix(segmenter=tiny_deeplab(), teacher=nn.Identity())
    is_pasted = torch.tensor([True, True, False, False]).view(1, 1, 1, 4)
    image, label, weights = term.mixed(source, row(-0.1, -0.2, -0.3, -0.4), taught, is_pasted)
    torch.testing.assert_close(image, row(0.1, 0.2, -0.3, -0.4))
    assert label.flatten().tolist() == [2, 1, 1, 1]
    torch.testing.assert_close(weights, row(1.0, 1.0, 0.75, 0.75))


def test_a_teacher_that_is_never_sure_teaches_nothing() -> None:
    source = {"image": row(0.1, 0.2), "label": row(0, 0).to(torch.uint8)}
    term = ClassMix(segmenter=tiny_deeplab(), teacher=nn.Identity())
    nothing = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    *_, weights = term.mixed(source, row(0.0, 0.0), torch.full((1, 3, 1, 2), 1 / 3), nothing)
    assert not weights.any()


def test_weighted_cross_entropy_by_hand() -> None:
    # Two equal logits: ln 2 in each pixel; weights 1 and 0.5 over two pixels. Weights of 1 are the plain mean.
    logits, label = torch.zeros(1, 2, 1, 2, requires_grad=True), row(0, 1).long()
    loss = weighted_cross_entropy(logits, label, row(1.0, 0.5))
    assert loss.item() == pytest.approx(0.75 * LN2)
    loss.backward()
    # (softmax - truth) x weight / 2 pixels.
    torch.testing.assert_close(logits.grad, torch.tensor([[[[-0.25, 0.125]], [[0.25, -0.125]]]]))


# --- in a training ---------------------------------------------------------------------------------------------------


def test_the_student_learns_from_mixed_slices_and_the_teacher_does_not() -> None:
    segmenter = tiny_deeplab(mask_mode="off")
    trainer = dual_trainer(
        d1=OFF,
        d2=OFF,
        segmenter=segmenter,
        extra_losses=lambda made: {
            "class_mix": ClassMix(segmenter=made.segmenter, teacher=made.average.module, weight=2.0, min_confidence=0.0)
        },
    )
    teacher = trainer.average.module
    before = copies(teacher.parameters())
    seen = after_update(
        trainer.segmenter_optimizer,
        lambda: same(teacher.parameters(), before) and all(p.grad is None for p in teacher.parameters()),
    )
    trainer.run()
    assert seen == [True]
    output = trainer.state.output[0]
    assert float(output["class_mix"]) > 0
    torch.testing.assert_close(output["loss"], output["cross_entropy"] + output["dice"] + 2.0 * output["class_mix"])


def test_the_same_iteration_has_the_same_mixture() -> None:
    losses = []
    for seed in (0, 0, 1, 2, 3, 4, 5):
        trainer = dual_trainer(
            d1=OFF,
            d2=OFF,
            segmenter=tiny_deeplab(mask_mode="off"),
            extra_losses=lambda made, seed=seed: {
                "class_mix": ClassMix(segmenter=made.segmenter, teacher=made.average.module, seed=seed)
            },
        )
        trainer.run()
        losses.append(float(trainer.state.output[0]["class_mix"]))
    assert losses[0] == losses[1]
    assert len(set(losses)) > 1  # two slices of two structures have four choices
