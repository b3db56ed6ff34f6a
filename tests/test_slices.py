"""Slices in memory, their cache on disk, and the batches drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused, write_volume
from monai.transforms import Compose, LoadImaged, MapTransform, ScaleIntensityRanged
from scripts.core.errors import InputError
from scripts.data import slices
from scripts.data.augmentation import BatchAugmentation
from scripts.data.slices import SliceSet, UnpairedSliceBatches, device_with_room, iteration_generator
from scripts.data.volumes import LabelsToClassesd, RequireRanged


class Counted(MapTransform):
    """Does nothing but count its calls."""

    calls = 0

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        type(self).calls += 1
        return dict(data)


@pytest.fixture(autouse=True)
def _no_calls_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "calls", 0)


def loading(*keys: str, highest: float = 100.0) -> Compose:
    return Compose(
        [
            LoadImaged(keys, ensure_channel_first=True, image_only=True),
            ScaleIntensityRanged("image", 0.0, highest, -1.0, 1.0),
            Counted("image"),
        ]
    )


def write_items(folder: Path, *depths: int, size: tuple[int, int] = (4, 6), label: bool = True) -> list[dict[str, str]]:
    """Volumes whose slice z of case c has values about 10 c + z, and labels of class c."""
    folder.mkdir(exist_ok=True)
    items = []
    for case, depth in enumerate(depths):
        voxels = np.random.default_rng(case).random((*size, depth)) * 0.1 + 10 * case + np.arange(depth)
        item = {"image": str(write_volume(folder / f"{case}.nii", voxels.astype(np.float32)))}
        if label:
            item["label"] = str(write_volume(folder / f"{case}_label.nii", np.full((*size, depth), case, np.uint8)))
        items.append(item)
    return items


def fake_set(count: int, offset: float, labels: bool) -> SliceSet:
    """A set without files: slice i is constant at ``offset + i / 100``."""
    made = SliceSet.__new__(SliceSet)
    made.content = f"{count} from {offset}"
    made.window_size, made.sizes = (8, 8), torch.full((count, 2), 8)
    made.images = (offset + torch.arange(count) / 100).view(-1, 1, 1, 1).expand(count, 1, 8, 8).contiguous()
    made.labels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 8, 8) if labels else None
    return made


@pytest.mark.parametrize(("free_bytes", "place"), [(1000, "cuda"), (999, "cpu")])
def test_slices_stay_on_the_host_where_a_gpu_has_no_room(
    free_bytes: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of 1000 bytes is just enough for 250.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 4000))
    assert device_with_room(torch.device("cuda"), 250) == torch.device(place)
    assert device_with_room(torch.device("cpu"), 10**9) == torch.device("cpu")


def test_the_volume_of_a_voxel_is_that_of_the_grid_of_the_slices(tmp_path: Path) -> None:
    # Voxels of 2 x 3 x 5 mm are 30 mm^3, 0.03 ml; whether they are read or come from the cache.
    voxels = np.random.default_rng(0).random((4, 6, 2)).astype(np.float32)
    items = [{"image": str(write_volume(tmp_path / "0.nii", voxels, np.diag([-2.0, 3.0, 5.0, 1.0])))}]
    for _ in range(2):
        made = SliceSet(items, loading("image"), cache_dir=str(tmp_path / "cache"))
        assert made.voxel_ml == pytest.approx([0.03])


def test_all_slices_are_held_in_order(tmp_path: Path) -> None:
    made = SliceSet(write_items(tmp_path, 3, 2), loading("image", "label"))
    assert made.images.shape == (5, 1, 4, 6)
    assert (made.images.dtype, made.labels.dtype) == (torch.float32, torch.uint8)
    assert len(made) == 5
    assert made.case_of.tolist() == [0, 0, 0, 1, 1]
    assert made.labels[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1]
    # Back to the file's values, less their noise: 0, 1, 2 of case 0 and 10, 11 of case 1.
    values = (made.images.mean((1, 2, 3)) + 1) * 50
    assert values.floor().tolist() == [0, 1, 2, 10, 11]


def test_further_entries_have_their_own_transform_and_follow_the_others(tmp_path: Path) -> None:
    first, second = write_items(tmp_path, 3, 2)
    classes, cache = LabelsToClassesd("label", [0, 1]), str(tmp_path / "cache")
    plain = Compose([loading("image", "label"), classes])
    inverted = Compose([loading("image", "label"), classes, ScaleIntensityRanged("image", -1, 1, 1, -1)])
    made = SliceSet([first], plain, more=[([second], inverted)], cache_dir=cache)
    assert (made.data, made.case_of.tolist()) == ([first, second], [0, 0, 0, 1, 1])
    # 0, 1, 2 of case 0; 10 and 11 of case 1 are read from the other end: 100 - 10 - noise.
    assert ((made.images.mean((1, 2, 3)) + 1) * 50).floor().tolist() == [0, 1, 2, 89, 88]
    assert made.volumes_ml(2).tolist() == [[pytest.approx(0.024 * 3), 0], [0, pytest.approx(0.024 * 2)]]
    with pytest.raises(InputError, match="no labelled voxel of a"):  # each list needs every structure
        SliceSet([first], plain, more=[([second], inverted)], cache_dir=cache, structures=["a"])


@pytest.mark.parametrize(("axis", "shape"), [(0, (4, 1, 6, 3)), (1, (6, 1, 4, 3)), (2, (3, 1, 4, 6))])
def test_slices_along_any_axis(tmp_path: Path, axis: int, shape: tuple[int, ...]) -> None:
    made = SliceSet(write_items(tmp_path, 3, label=False), loading("image"), slice_axis=axis)
    assert tuple(made.images.shape) == shape
    assert made.labels is None


def test_blank_slices_are_dropped_with_their_labels(tmp_path: Path) -> None:
    (item,) = write_items(tmp_path, 4)
    voxels = np.random.default_rng(0).random((4, 6, 4)).astype(np.float32)
    voxels[..., [0, 2]] = 5.0
    write_volume(Path(item["image"]), voxels)
    write_volume(Path(item["label"]), np.broadcast_to(np.arange(4, dtype=np.uint8), (4, 6, 4)))
    made = SliceSet([item], loading("image", "label"))
    assert made.labels[:, 0, 0, 0].tolist() == [1, 3]
    assert made.case_of.tolist() == [0, 0]
    np.testing.assert_allclose(made.images[:, 0], np.moveaxis(voxels[..., [1, 3]], 2, 0) / 50 - 1, atol=1e-6)


def test_no_case_gets_a_sentence() -> None:
    with pytest.raises(InputError, match=r"no case\. Expected at least one volume"):
        SliceSet([], loading("image"))


def test_nothing_but_blank_slices_gets_a_sentence(tmp_path: Path) -> None:
    (item,) = write_items(tmp_path, 3, label=False)
    write_volume(Path(item["image"]), np.full((4, 6, 3), 500.0, np.float32))
    with pytest.raises(InputError, match="only constant slices") as caught:
        SliceSet([item], loading("image"))
    assert caught.value.file == item["image"]


def test_a_second_start_transforms_nothing(tmp_path: Path) -> None:
    items, cache = write_items(tmp_path, 3, 2), str(tmp_path / "cache")
    first = SliceSet(items, loading("image", "label"), cache_dir=cache)
    assert Counted.calls == 2
    second = SliceSet(items, loading("image", "label"), cache_dir=cache)
    assert Counted.calls == 2
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_compositions_among_the_transforms_are_cached_and_name_files(tmp_path: Path) -> None:
    """A CT's intensities are a composition of their own: removal of the table, then the window."""
    items = write_items(tmp_path / "in", 3)
    for _ in range(2):
        nested = Compose([*loading("image", "label").transforms[:1], Compose([Counted("image")])])
        SliceSet(items, nested, cache_dir=str(tmp_path / "cache"))
    assert Counted.calls == 1
    refusing = Compose([*nested.transforms[:1], Compose([RequireRanged("image", within=[-2.0, 0.5])])])
    error = refused(SliceSet, items, refusing, cache_dir=str(tmp_path / "cache"))
    assert error.file == items[0]["image"]


def test_the_cache_follows_content_not_names(tmp_path: Path) -> None:
    items, cache = write_items(tmp_path, 3, 2), str(tmp_path / "cache")
    SliceSet(items, loading("image", "label"), cache_dir=cache)
    moved = tmp_path / "elsewhere.nii"
    Path(items[0]["image"]).rename(moved)
    SliceSet([items[0] | {"image": str(moved)}, items[1]], loading("image", "label"), cache_dir=cache)
    assert Counted.calls == 2
    # The same name with other voxels is another volume; so is another label.
    write_volume(Path(items[1]["image"]), np.random.default_rng(9).random((4, 6, 2)).astype(np.float32))
    SliceSet([items[1]], loading("image", "label"), cache_dir=cache)
    assert Counted.calls == 3
    write_volume(Path(items[1]["label"]), np.full((4, 6, 2), 4, np.uint8))
    assert int(SliceSet([items[1]], loading("image", "label"), cache_dir=cache).labels.max()) == 4
    assert Counted.calls == 4


def test_the_cache_follows_the_settings(tmp_path: Path) -> None:
    items, cache = write_items(tmp_path, 3, label=False), str(tmp_path / "cache")
    first = SliceSet(items, loading("image"), cache_dir=cache)
    second = SliceSet(items, loading("image", highest=200.0), cache_dir=cache)
    assert Counted.calls == 2
    torch.testing.assert_close(second.images + 1, (first.images + 1) / 2)


def test_the_cache_follows_the_code_of_the_transforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items, cache = write_items(tmp_path, 3, label=False), str(tmp_path / "cache")
    SliceSet(items, loading("image"), cache_dir=cache)
    changed = tmp_path / "volumes.py"
    changed.write_text(Path(slices.volumes.__file__).read_text() + "# changed\n")
    monkeypatch.setattr(slices.volumes, "__file__", str(changed))
    SliceSet(items, loading("image"), cache_dir=cache)
    assert Counted.calls == 2


def test_without_a_cache_nothing_is_written(tmp_path: Path) -> None:
    items = write_items(tmp_path, 2)
    before = sorted(tmp_path.iterdir())
    SliceSet(items, loading("image", "label"))
    assert sorted(tmp_path.iterdir()) == before


def test_a_cache_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="a folder that cannot be written"):
        SliceSet(write_items(tmp_path, 2), loading("image"), cache_dir=str(tmp_path / "file" / "cache"))


def batches(**changes: Any) -> UnpairedSliceBatches:
    settings = {
        "source": fake_set(20, 0.0, labels=True),
        "target": fake_set(30, -0.5, labels=False),
        "batch_size": 4,
        "augmentation": BatchAugmentation(rotation_degrees=10.0, noise=0.01),
        "seed": 3,
    }
    return UnpairedSliceBatches(**settings | changes)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_batch_holds_both_domains() -> None:
    batch = batches(augmentation=BatchAugmentation()).batch(0)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "image": (4, 1, 8, 8),
        "label": (4, 1, 8, 8),
        "target_image": (4, 1, 8, 8),
    }
    # Image i / 100 and label i belong together; the target's values lie below 0.
    torch.testing.assert_close(batch["image"] * 100, batch["label"].float())
    assert float(batch["target_image"].max()) < 0


def test_a_batch_is_the_same_whenever_it_is_asked_for() -> None:
    ours = batches()
    late = ours.batch(7)
    iterator = iter(batches())
    in_turn = [next(iterator) for _ in range(9)]
    assert equal(late, in_turn[7])
    assert equal(ours.batch(7), late)
    assert not equal(ours.batch(8), late)
    assert not equal(batches(seed=4).batch(7), late)


def test_processes_divide_the_batch_that_one_would_draw(as_process: Callable[[int, int], None]) -> None:
    whole = batches(shares=4).batch(3)
    assert {len(part) for part in whole.values()} == {4 * batches().batch_size}
    assert equal({key: part[: batches().batch_size] for key, part in whole.items()}, batches().batch(3))
    plain = batches(shares=4).state_dict()
    for place in range(2):
        as_process(place, 2)
        own = {key: part.chunk(2)[place] for key, part in whole.items()}
        assert equal(batches(shares=4).batch(3), own)
        # A run of one process with four shares goes on with two that have two each.
        resumed = batches()
        assert resumed.shares == 2
        resumed.load_state_dict(plain | {"iteration": 3})
        assert equal(next(iter(resumed)), own)


def test_shares_that_processes_cannot_divide_are_refused(as_process: Callable[[int, int], None]) -> None:
    state = batches(shares=3).state_dict()
    as_process(0, 2)
    with pytest.raises(InputError, match=r"batches of 3 share\(s\) for 2 process\(es\).*start 1 or 3 process"):
        batches().load_state_dict(state)


def test_resuming_on_other_slices_is_refused() -> None:
    first, other = batches(), batches()
    other.source.content = "another"
    with pytest.raises(InputError, match="the training cases: other volumes"):
        other.load_state_dict(first.state_dict())


def test_resuming_continues_with_the_next_batch() -> None:
    whole = iter(batches())
    expected = [next(whole) for _ in range(6)]
    first = batches()
    iterator = iter(first)
    for _ in range(4):
        next(iterator)
    second = batches()
    second.load_state_dict(first.state_dict())
    resumed = iter(second)
    assert equal(next(resumed), expected[4])
    assert equal(next(resumed), expected[5])


def test_every_slice_comes_up() -> None:
    ours = batches(augmentation=BatchAugmentation())
    seen = torch.cat([ours.batch(index)["label"][:, 0, 0, 0] for index in range(100)])
    # 400 draws of 20: the chance of a given one never coming is 0.95^400 = 1e-9.
    assert seen.unique().numel() == 20


def test_one_patients_two_sequences_are_not_drawn_together() -> None:
    """The same people lie at the same places of both lists; drawing both by one order would pair them."""
    both = [fake_set(20, 0.0, labels=True), fake_set(20, 0.0, labels=False)]
    ours = UnpairedSliceBatches(source=both[0], target=both[1], batch_size=8, augmentation=BatchAugmentation(), seed=3)
    drawn = [ours.batch(index) for index in range(200)]
    source, target = (torch.cat([batch[key][:, 0, 0, 0] for batch in drawn]) for key in ("image", "target_image"))
    # By chance one in twenty meets itself: 80 of 1600, standard deviation 9.
    assert 40 < int((source == target).sum()) < 120
    assert abs(float(torch.corrcoef(torch.stack([source, target]))[0, 1])) < 0.1


def test_the_labelled_domain_alone() -> None:
    ours = batches(target=None)
    assert sorted(ours.batch(0)) == ["image", "label"]


def test_the_source_may_have_an_augmentation_of_its_own() -> None:
    batch = batches(augmentation=BatchAugmentation(), source_augmentation=BatchAugmentation(noise=0.5)).batch(0)
    assert float(batch["image"].std((2, 3)).min()) > 0
    assert float(batch["target_image"].std((2, 3)).max()) == 0


def test_pictures_show_fixed_slices_as_they_are() -> None:
    ours = batches(source=fake_set(21, 0.0, labels=True))
    sample = ours.sample(3)
    # A quarter, half and three quarters of the way: slices 5, 10 and 15 of 0..20; 7, 14, 21 of 0..29.
    assert sample["label"][:, 0, 0, 0].tolist() == [5, 10, 15]
    torch.testing.assert_close(sample["image"][:, 0, 0, 0], torch.tensor([0.05, 0.10, 0.15]))
    torch.testing.assert_close(sample["target_image"][:, 0, 0, 0], torch.tensor([-0.43, -0.36, -0.29]))


def test_pictures_show_labelled_slices() -> None:
    ours = batches(source=fake_set(21, 0.0, labels=True))
    ours.source.labels = ours.source.labels * (torch.arange(21) >= 15).view(-1, 1, 1, 1)
    # A quarter, half and three quarters of the way among slices 15 to 20: positions 1, 2 and 3.
    assert ours.sample(3)["label"][:, 0, 0, 0].tolist() == [16, 17, 18]
    ours.source.labels = torch.zeros_like(ours.source.labels)
    assert ours.sample(3)["image"][:, 0, 0, 0].tolist() == pytest.approx([0.05, 0.10, 0.15])


def test_all_target_slices_are_given_once_and_mixed() -> None:
    ours = batches()
    parts = list(ours.statistics_slices())
    assert [len(part) for part in parts] == [4] * 7 + [2]
    given, kept = torch.cat(parts)[:, 0, 0, 0], ours.target.images[:, 0, 0, 0]
    assert torch.equal(given.sort()[0], kept)
    assert not torch.equal(given, kept)  # neighbours of one volume would make a batch of one sort
    assert torch.equal(given, torch.cat(list(batches().statistics_slices()))[:, 0, 0, 0])


def test_without_a_target_the_labelled_slices_are_given_once_as_training_augments_them() -> None:
    plain = batches(target=None, augmentation=BatchAugmentation())
    given, kept = torch.cat(list(plain.statistics_slices())), plain.source.images
    assert torch.equal(given[:, 0, 0, 0].sort()[0], kept[:, 0, 0, 0])
    # Each is of one grey value: noise spreads it, whichever of the two augmentations brings it.
    noise = BatchAugmentation(noise=0.5)
    for ours in (
        batches(target=None, augmentation=noise),
        batches(target=None, augmentation=BatchAugmentation(), source_augmentation=noise),
    ):
        changed = torch.cat(list(ours.statistics_slices()))
        assert float(changed.std((2, 3)).min()) > 0
        assert torch.equal(changed, torch.cat(list(ours.statistics_slices()))), "the same whenever they are asked for"
        assert ours.iteration == 0


def test_generators_of_iterations_are_independent() -> None:
    numbers = {
        float(torch.rand(1, generator=iteration_generator(seed, iteration, stream)))
        for seed in range(3)
        for iteration in range(50)
        for stream in range(2)
    }
    assert len(numbers) == 300
