"""SLAug: Bezier curves and shifts derived by hand, structures apart, and fusions that keep what matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripts.data.location_scale import AIR, KEPT_SHARE, LocationScale, bezier
from scripts.losses.saliency_fusion import SaliencyFusion, saliency
from test_trainers import OFF, dual_trainer, tiny_deeplab


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 3, side: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, side, side, generator=generator(seed)) * 2 - 1


# --- curves ----------------------------------------------------------------------------------------------------------


def test_a_curve_by_hand() -> None:
    # Inner points at a third and two thirds: x is t, and y = 3 t (1-t)^2 y1 + 3 t^2 (1-t) y2 + t^3.
    # At 1/2 with y1 = 1, y2 = 0: 3/8 + 1/8. With y1 = y2 = 1: 3/8 + 3/8 + 1/8.
    x = [1 / 3, 2 / 3]
    inner = torch.tensor([[x, x], [x, [1.0, 0.0]], [x, [1.0, 1.0]]])
    found = bezier(torch.tensor([[0.0, 0.5, 1.0]]).expand(3, 3), inner)
    expected = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0], [0.0, 0.875, 1.0]])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_curves_equal_numpys_interpolation_of_a_fine_curve() -> None:
    inner, place = torch.rand(20, 2, 2, generator=generator()), torch.rand(20, 50, generator=generator(1))
    t = np.linspace(0, 1, 10001)
    for points, at, found in zip(inner.numpy(), place.numpy(), bezier(place, inner).numpy(), strict=True):
        x, y = (3 * t * (1 - t) ** 2 * a + 3 * t**2 * (1 - t) * b + t**3 for a, b in points)
        # Within a step of the curve's 256, which matters where it is steep.
        np.testing.assert_allclose(found, np.interp(at, x, y), atol=0.02)


def test_curves_rise_from_corner_to_corner() -> None:
    place = torch.linspace(0, 1, 101).expand(50, 101)
    values = bezier(place, torch.rand(50, 2, 2, generator=generator()))
    assert bool((values.diff(dim=1) >= -1e-6).all())
    torch.testing.assert_close(values[:, [0, -1]], torch.tensor([[0.0, 1.0]]).expand(50, 2))


# --- views -----------------------------------------------------------------------------------------------------------


def test_a_global_view_keeps_the_order_of_values() -> None:
    image = noise()
    view, label = LocationScale()(image, None, generator())
    assert label is None
    assert float(view.min()) >= -1
    assert float(view.max()) <= 1
    for before, after in zip(image, view, strict=True):
        assert bool((after.flatten()[before.flatten().argsort()].diff() >= -1e-5).all())
    assert not torch.equal(view, image)


def test_shifts_leave_a_fifth_of_the_values_within_the_range() -> None:
    view, _ = LocationScale()(noise(200), None, generator())
    clipped = [(view == end).flatten(1).float().mean(1).max() for end in (-1.0, 1.0)]
    # Up to four fifths are clipped, and what a factor of 1.1 adds.
    assert all(0.3 < float(share) < 1 - KEPT_SHARE + 0.15 for share in clipped)


def two_halves(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Ramps from air, through the background, then through one structure: images and labels of one row each."""
    ramp = torch.linspace(-1, 1, 41).expand(count, 1, 1, 41).clone()
    label = (ramp > 0).to(torch.uint8)
    return ramp, label


def test_a_local_view_turns_the_background_over_and_leaves_air() -> None:
    image, label = two_halves()
    local = LocationScale(num_structures=1, falling=0.5, background_falling=1.0)
    view, same = local(image, label, generator())
    assert same is label
    air = (image[0, 0, 0] + 1) / 2 <= AIR
    assert torch.equal(view[..., air], image[..., air])
    background, structure = view[:, 0, 0, ~air & (label[0, 0, 0] == 0)], view[:, 0, 0, label[0, 0, 0] == 1]
    assert bool((background.diff(dim=1) <= 1e-5).all())
    falls = (structure[:, -1] < structure[:, 0]).float().mean()
    assert 0.35 < float(falls) < 0.65  # 200 fair coins have a standard deviation of 0.035


def test_a_structure_that_is_not_there_and_one_of_one_value_do_no_harm() -> None:
    image, label = two_halves(4)
    image[label == 1] = 0.5
    view, _ = LocationScale(num_structures=3, falling=0.5, background_falling=1.0)(image, label, generator())
    assert bool(view.isfinite().all())
    inside = view[label == 1].view(4, -1)
    torch.testing.assert_close(inside, inside[:, :1].expand_as(inside))


def test_the_same_generator_gives_the_same_view() -> None:
    first, second, other = (LocationScale()(noise(), None, generator(seed))[0] for seed in (2, 2, 3))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# --- fusion ----------------------------------------------------------------------------------------------------------


def test_saliency_by_hand() -> None:
    # Mean magnitudes 0, 1, 2 and 4 of four quadrants: the corners, beyond the cells' middles, have 0, 1/4, 1/2 and 1.
    gradient = torch.zeros(1, 1, 8, 8)
    gradient[..., :4, 4:], gradient[..., 4:, :4], gradient[..., 4:, 4:] = 1.0, -2.0, 4.0
    share = saliency(gradient, grid=2)[0, 0]
    assert share[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == pytest.approx([0.0, 0.25, 0.5, 1.0])
    # Half-way between the middles of the upper cells: the mean of both, up to half a pixel.
    assert float(share[0, 3:5].mean()) == pytest.approx(0.125)


def test_slices_have_their_own_range_and_equal_parts_no_saliency() -> None:
    gradient = torch.rand(2, 1, 12, 12, generator=generator())
    both = saliency(torch.cat([gradient, 1e-6 * gradient]), grid=3)
    torch.testing.assert_close(both[:2], both[2:], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(both.amax((1, 2, 3)), torch.ones(4))
    assert not saliency(torch.ones(1, 1, 6, 6), grid=3).any()


def fusion(segmenter: torch.nn.Module, weight: float = 1.0, seed: int = 0) -> SaliencyFusion:
    local = LocationScale(num_structures=2, falling=0.5, background_falling=1.0)
    return SaliencyFusion(segmenter=segmenter, local=local, grid=3, weight=weight, seed=seed)


def test_a_fusion_lies_between_both_views(monkeypatch: pytest.MonkeyPatch) -> None:
    term = fusion(tiny_deeplab(mask_mode="off"))
    seen: list[torch.Tensor] = []
    plain = term.supervised
    monkeypatch.setattr(term, "supervised", lambda image, label: (seen.append(image.detach()), plain(image, label))[1])
    monkeypatch.setattr(term, "local", lambda image, label, generator: (torch.full_like(image, 0.25), label))
    trainer = dual_trainer(d1=OFF, d2=OFF, segmenter=term.segmenter, extra_losses=lambda _: {"fusion": term})
    trainer.run()
    image, fused = seen
    low, high = image.clamp(max=0.25), image.clamp(min=0.25)
    assert bool(((fused >= low - 1e-6) & (fused <= high + 1e-6)).all())
    # Somewhere it is one view, and somewhere the other.
    for view in (image, torch.full_like(image, 0.25)):
        assert bool(torch.isclose(fused, view, atol=1e-6).flatten(1).any(1).all())


def test_the_term_is_in_the_total_and_follows_its_seed() -> None:
    outputs = []
    for seed in (0, 0, 1):
        segmenter = tiny_deeplab(mask_mode="off")
        term = fusion(segmenter, weight=2.0, seed=seed)
        trainer = dual_trainer(d1=OFF, d2=OFF, segmenter=segmenter, extra_losses=lambda _, term=term: {"fusion": term})
        trainer.run()
        outputs.append(trainer.state.output[0])
    first, second, other = (float(output["fusion"]) for output in outputs)
    assert first == second != other
    total = outputs[0]["cross_entropy"] + outputs[0]["dice"] + 2.0 * outputs[0]["fusion"]
    torch.testing.assert_close(outputs[0]["loss"], total)
