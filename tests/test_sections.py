"""Sections of a volume: without blank ends, around structures, the abdomen below the lungs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import CropForegroundd, LoadImaged, Orientationd
from scripts.core.errors import InputError
from scripts.data.sections import AroundForeground, BelowLungs, NotBlank, body_mask
from scripts.data.volumes import KeepBodyd

ROOT = Path(__file__).resolve().parents[1]
ABDOMEN = ROOT.parent / "shared" / "data" / "abdomen"


def kept_slices(mask: torch.Tensor, axis: int = 2) -> list[int]:
    return mask[0].movedim(axis, 0).flatten(1).any(1).nonzero().flatten().tolist()


def as_volume(voxels: np.ndarray, spacing_mm: float = 1.0) -> MetaTensor:
    affine = torch.diag(torch.tensor([2, 2, spacing_mm, 1.0]))
    return MetaTensor(torch.from_numpy(voxels.astype(np.float32))[None], affine=affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blank_slices_go_along_the_given_axis(axis: int) -> None:
    image = torch.full((1, 6, 6, 6), 7.0)
    image.movedim(axis + 1, 0)[2:5] += torch.rand(3, 1, 6, 6)
    mask = NotBlank(slice_axis=axis)(image)
    assert mask.shape == image.shape
    assert kept_slices(mask, axis) == [2, 3, 4]
    assert int(mask.sum()) == 3 * 36  # whole slices


def test_a_blank_volume_is_kept_whole() -> None:
    assert bool(NotBlank()(torch.zeros(1, 3, 3, 3)).all())


def test_slices_around_structures_are_kept_by_their_distance() -> None:
    label = np.zeros((4, 4, 20))
    label[1, 1, 8:10] = 3
    # 12 mm at 3 mm a slice are 4 slices either way.
    assert kept_slices(AroundForeground(margin_mm=12.0)(as_volume(label, 3.0))) == list(range(4, 14))
    # Clipped at the volume's ends.
    assert kept_slices(AroundForeground(margin_mm=27.0)(as_volume(label, 3.0))) == list(range(19))
    # Without a position in space a voxel is a millimetre.
    assert kept_slices(AroundForeground(margin_mm=1.0)(torch.from_numpy(label)[None])) == [7, 8, 9, 10]


def test_an_empty_label_keeps_every_slice() -> None:
    assert kept_slices(AroundForeground(margin_mm=1.0)(as_volume(np.zeros((3, 3, 5))))) == list(range(5))


def torso(depth: int, lungs: slice, *, bowel_gas: slice = slice(0)) -> np.ndarray:
    """A CT of a body of 48 x 40 voxels on a table, with air in given slices; axis 2 points to superior."""
    volume = np.full((64, 60, depth), -1000.0)
    volume[8:56, 6:46] = 40.0
    volume[4:60, 52:56] = 200.0  # the table, apart from the body
    volume[14:29, 12:40, lungs] = -800.0
    volume[35:50, 12:40, lungs] = -800.0
    volume[22:42, 18:38, bowel_gas] = -900.0
    return volume


def test_the_body_is_filled_and_without_table() -> None:
    body = body_mask(torso(8, slice(4, 8)), -300.0)
    assert not body[:, 52:56].any()
    # All but the corners, which the opening rounds.
    assert body[10:54, 8:44].all()
    assert not body[:8].any()


def test_the_range_is_measured_from_the_base_of_the_lungs() -> None:
    # Base at slice 30; 20 mm above and 50 mm below it at 5 mm a slice: 4 and 10 slices.
    volume = as_volume(torso(48, slice(30, 48)), 5.0)
    mask = BelowLungs(threshold=-300.0, above_mm=20.0, below_mm=50.0)(volume)
    assert kept_slices(mask) == list(range(20, 35))
    # In plane the body alone.
    assert not mask[0, :, 52:].any()


def test_bowel_gas_is_not_mistaken_for_lungs() -> None:
    volume = as_volume(torso(60, slice(42, 60), bowel_gas=slice(8, 12)), 5.0)
    assert kept_slices(BelowLungs(threshold=-300.0, above_mm=20.0, below_mm=50.0)(volume)) == list(range(32, 47))


def test_a_volume_without_lungs_starts_at_its_top() -> None:
    volume = as_volume(torso(40, slice(0)), 5.0)
    assert kept_slices(BelowLungs(threshold=-300.0, above_mm=20.0, below_mm=50.0)(volume)) == list(range(29, 40))


def test_nothing_but_air_is_kept_whole_and_refused_as_no_ct() -> None:
    """An empty mask would crop the volume to nothing."""
    air = as_volume(np.full((16, 16, 10), -1000.0))
    assert BelowLungs(threshold=-300.0)(air).all()
    crop = CropForegroundd("image", source_key="image", select_fn=BelowLungs(threshold=-300.0), allow_smaller=True)
    with pytest.raises(InputError, match="no patient: no piece of tissue above -300"):
        KeepBodyd("image", threshold=-300.0)(crop({"image": air}))


@pytest.mark.slow
@pytest.mark.skipif(not (ABDOMEN / "dataset.json").is_file(), reason="no real volumes beside the checkout")
def test_the_section_of_a_real_scan_holds_every_labelled_slice() -> None:
    entry = json.loads((ABDOMEN / "dataset.json").read_text())["domains"]["ct"]["training"][0]
    case = LoadImaged(["image", "label"], ensure_channel_first=True, image_only=True)(
        {key: str(ABDOMEN / entry[key]) for key in ("image", "label")}
    )
    case = Orientationd(["image", "label"], axcodes="RAS", labels=None)(case)
    kept = kept_slices(BelowLungs(threshold=-110.0)(case["image"]))
    assert set(kept_slices(case["label"] > 0)) <= set(kept)
