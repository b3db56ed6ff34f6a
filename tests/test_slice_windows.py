"""Windows of training slices: slices of several sizes share a frame, and random windows cover them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_volume
from scripts.data.slices import SliceSet
from test_slices import loading


def numbered_set(folder: Path, *sizes: tuple[int, int], window: tuple[int, int]) -> SliceSet:
    """One volume of two slices for each size; pixels of image and label encode their row and column."""
    items = []
    for case, (height, width) in enumerate(sizes):
        place = 10 * np.arange(1, height + 1)[:, None, None] + np.arange(1, width + 1)[:, None] + np.zeros((1, 1, 2))
        item = {"image": str(write_volume(folder / f"{case}.nii", place.astype(np.float32)))}
        item["label"] = str(write_volume(folder / f"{case}_label.nii", place.astype(np.uint8)))
        items.append(item)
    return SliceSet(items, loading("image", "label"), window_size=window)


def test_slices_of_several_sizes_lie_in_the_middle_of_one_frame(tmp_path: Path) -> None:
    made = numbered_set(tmp_path, (5, 6), (3, 4), window=(2, 7))
    assert made.images.shape == made.labels.shape == (4, 1, 5, 7)
    assert made.sizes.tolist() == [[5, 6], [5, 6], [3, 4], [3, 4]]
    # Three rows in five: one above and below. Four columns in seven: one before, two behind.
    small = made.labels[2, 0]
    assert small[1].tolist() == [0, 11, 12, 13, 14, 0, 0]
    assert not small[[0, 4]].any()
    torch.testing.assert_close((made.images + 1) * 50, made.labels.float())


def test_middle_windows_pad_what_fits_and_cut_what_does_not(tmp_path: Path) -> None:
    made = numbered_set(tmp_path, (3, 9), (5, 4), window=(5, 5))
    image, label = made.middle(torch.tensor([0, 2]))
    assert image.shape == label.shape == (2, 1, 5, 5)
    # Columns 3 to 7 of nine, one row of background above and below; then all of 5 x 4, one column behind.
    assert label[0, 0, :, 0].tolist() == [0, 13, 23, 33, 0]
    assert label[0, 0, 1].tolist() == [13, 14, 15, 16, 17]
    assert label[1, 0, 0].tolist() == [11, 12, 13, 14, 0]


def test_random_windows_cover_a_slice_and_touch_its_borders_in_a_third_of_the_draws(tmp_path: Path) -> None:
    made = numbered_set(tmp_path, (4, 9), window=(4, 5))
    windows = made.windows(torch.zeros(3000, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert windows.first[:, 0].unique().tolist() == [0]
    counts = windows.first[:, 1].bincount()
    # Four pixels of room, places [0, 1) to 0, ..., exactly 1 to 4: a sixth at the right border, a third and a quarter
    # of what lies between at the left. Standard deviations are below 26.
    assert len(counts) == 5
    assert counts[4] == pytest.approx(500, abs=100)
    assert counts[0] == pytest.approx(500 + 500, abs=130)
    assert counts[1:4].tolist() == pytest.approx([500] * 3, abs=100)


def test_sets_that_fit_draw_nothing(tmp_path: Path) -> None:
    """Their batches are those of centred frames, number by number."""
    made, generator = numbered_set(tmp_path, (4, 5), window=(6, 6)), torch.Generator().manual_seed(0)
    made.windows(torch.tensor([0, 1]), generator)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=torch.Generator().manual_seed(0)))
