"""Labelled slices in the style of target slices: spectra and histograms derived by hand, and what stays."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scripts.core.errors import InputError
from scripts.data.augmentation import BatchAugmentation, Windows
from scripts.data.target_style import TargetStyle, with_histogram, with_low_frequencies

ALL_FREQUENCIES = 1.0


def noise(count: int = 2, height: int = 12, width: int = 16, seed: int = 0, spread: float = 0.2) -> torch.Tensor:
    """Values within ``spread`` of 0, so that no result is clipped."""
    return (torch.rand(count, 1, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * spread


# --- FDA -------------------------------------------------------------------------------------------------------------


def test_the_lowest_frequency_is_the_mean() -> None:
    # At beta 0 the mean alone is replaced: (-0.5, 0.1) of mean -0.2 with that of (0.3, 0.5), 0.4, is (0.1, 0.7).
    image, style = torch.tensor([[[[-0.5, 0.1]]]]), torch.tensor([[[[0.3, 0.5]]]])
    torch.testing.assert_close(with_low_frequencies(image, style, beta=0.0), torch.tensor([[[[0.1, 0.7]]]]))


def test_a_wave_takes_the_styles_height_and_keeps_its_place() -> None:
    # One period over eight columns: beta 0.13 of eight pixels reaches it, and 0.12 does not.
    angle = 2 * torch.pi * torch.arange(8.0) / 8
    image = (0.1 * torch.cos(angle)).expand(1, 1, 8, 8)
    style = (0.4 * torch.sin(angle)).expand(1, 1, 8, 8)
    torch.testing.assert_close(with_low_frequencies(image, style, beta=0.13), 4 * image, atol=1e-6, rtol=0)
    torch.testing.assert_close(with_low_frequencies(image, style, beta=0.12), image, atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.3, ALL_FREQUENCIES])
@pytest.mark.parametrize("size", [(12, 16), (9, 11)])
def test_it_is_the_papers_centred_square(beta: float, size: tuple[int, int]) -> None:
    """Written again with the spectrum's origin shifted to the middle, as the paper draws it."""
    image, style = noise(1, *size), noise(1, *size, seed=1)
    one, other = (np.fft.fftshift(np.fft.fft2(values[0, 0].numpy() + 1.0)) for values in (image, style))
    reach, middle = int(beta * min(size)), [side // 2 for side in size]
    square = tuple(slice(max(at - reach, 0), at + reach + 1) for at in middle)
    amplitude = np.abs(one)
    amplitude[square] = np.abs(other)[square]
    expected = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(one)))).real - 1
    found = with_low_frequencies(image, style, beta=beta)
    np.testing.assert_allclose(found[0, 0].numpy(), expected.clip(-1, 1), atol=1e-5)


def test_an_image_is_its_own_style_and_phases_stay() -> None:
    image, style = noise(), noise(seed=1)
    torch.testing.assert_close(with_low_frequencies(image, image, beta=0.2), image, atol=1e-6, rtol=0)
    restyled = with_low_frequencies(image, style, beta=ALL_FREQUENCIES)
    before, after = (torch.fft.rfft2(values + 1) for values in (image, restyled))
    turned = (after / before).angle().abs()  # a phase of 0 and one of 2 pi are the same
    assert float(turned.max()) < 1e-3
    # Samples do not meet.
    assert torch.equal(
        with_low_frequencies(image[:1], style[:1], beta=0.2), with_low_frequencies(image, style, beta=0.2)[:1]
    )


def test_the_range_stays() -> None:
    bright = with_low_frequencies(noise(spread=1.0), torch.full((2, 1, 12, 16), 1.0), beta=0.1)
    assert -1 <= float(bright.min()) < float(bright.max()) <= 1


# --- histograms ------------------------------------------------------------------------------------------------------


def test_the_third_darkest_pixel_takes_the_third_darkest_value() -> None:
    image = torch.tensor([[[[0.9, -0.3], [0.1, 0.2]]]])
    style = torch.tensor([[[[-0.8, -0.6], [0.0, 0.5]]]])
    assert with_histogram(image, style).flatten().tolist() == pytest.approx([0.5, -0.8, -0.6, 0.0])


def test_a_histogram_is_the_styles_and_order_stays() -> None:
    image, style = noise(), noise(seed=1, spread=0.9)
    matched = with_histogram(image, style)
    for one, before, other in zip(matched, image, style, strict=True):
        torch.testing.assert_close(one.flatten().sort().values, other.flatten().sort().values)
        assert torch.equal(one.flatten().argsort(), before.flatten().argsort())
    assert matched.dtype == image.dtype


# --- in a batch ------------------------------------------------------------------------------------------------------


def target_of(*values: float) -> Any:
    """Constant target slices of 6 x 6 pixels, cut into windows of 4 x 4."""
    images = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)

    class Slices(SimpleNamespace):
        def __len__(self) -> int:
            return len(values)

    def windows(chosen: torch.Tensor, generator: torch.Generator) -> Windows:
        return Windows(torch.zeros(len(chosen), 2, dtype=torch.int64), (4, 4))

    return Slices(images=images, windows=windows)


def styled(seed: int = 0, **changes: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Constant slices of value 0 take the value of a target slice."""
    style = TargetStyle(
        target=target_of(-0.5, 0.25, 0.75),
        augmentation=BatchAugmentation(**changes),
        restyle=lambda image, style: with_low_frequencies(image, style, beta=0.0),
    )
    label = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(60, 1, 1, 1)
    image, moved = style(torch.zeros(60, 1, 4, 4), label, torch.Generator().manual_seed(seed))
    assert moved is not None
    assert torch.equal(moved, label)
    return image, moved


def test_every_slice_has_a_random_target_slices_style() -> None:
    values = styled()[0][:, 0, 0, 0].round(decimals=4)
    # 60 draws of three: 20 of each, with a standard deviation below 4.
    assert all(8 < int((values == value).sum()) < 32 for value in (-0.5, 0.25, 0.75))
    assert torch.equal(styled(0)[0], styled(0)[0])
    assert not torch.equal(styled(0)[0], styled(1)[0])


def test_the_style_comes_after_the_augmentation() -> None:
    # Whatever the brightness was, the mean is the style's.
    values = styled(brightness=0.5)[0][:, 0, 0, 0].round(decimals=4)
    assert set(values.tolist()) <= {-0.5, 0.25, 0.75}


def test_a_style_needs_target_slices() -> None:
    with pytest.raises(InputError, match=r"setting 'target_datalist': none\. Expected target slices"):
        TargetStyle(target=None, augmentation=BatchAugmentation(), restyle=with_histogram)
