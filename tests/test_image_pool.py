"""The pool of earlier translations: it fills, then exchanges, and each image keeps its domain."""

from __future__ import annotations

import pytest
import torch
from scripts.engines.image_pool import ImagePool


def images(*values: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images constant at the values; the domain is 1 for odd ones."""
    batch = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return batch, torch.tensor(values) % 2


def values(batch: torch.Tensor) -> list[int]:
    return batch[:, 0, 0, 0].int().tolist()


def test_a_pool_of_nothing_hands_images_through() -> None:
    pool = ImagePool(size=0)
    batch, domains = images(1, 2)
    shown, shown_domains = pool.query(batch, domains, 0)
    assert shown is batch
    assert shown_domains is domains


def test_a_pool_fills_before_it_exchanges() -> None:
    pool = ImagePool(size=5)
    for start in (0, 2, 4):
        assert values(pool.query(*images(start, start + 1), start)[0]) == [start, start + 1]
    # There was room for one of the last two.
    assert values(pool.images) == [0, 1, 2, 3, 4]
    assert pool.domains.tolist() == [0, 1, 0, 1, 0]


def test_a_full_pool_exchanges_half_of_the_time_and_loses_nothing() -> None:
    pool = ImagePool(size=8)
    pool.query(*images(*range(8)), 0)
    given, returned, exchanged = list(range(8)), [], 0
    for iteration in range(1, 201):
        new = [100 + 2 * iteration, 101 + 2 * iteration]
        shown, domains = pool.query(*images(*new), iteration)
        assert domains.tolist() == [value % 2 for value in values(shown)]
        exchanged += sum(a != b for a, b in zip(values(shown), new, strict=True))
        given += new
        returned += values(shown)
    # Everything given is either returned or still kept, once.
    assert sorted(returned + values(pool.images)) == sorted(given)
    assert pool.domains.tolist() == [value % 2 for value in values(pool.images)]
    # 400 fair coins: within 4 standard deviations of 10 of 200.
    assert 160 <= exchanged <= 240


def test_a_choice_depends_on_seed_and_iteration_alone() -> None:
    def shown(seed: int, iteration: int) -> list[int]:
        pool = ImagePool(size=16, seed=seed)
        pool.query(*images(*range(16)), 0)
        return values(pool.query(*images(*range(100, 116)), iteration)[0])

    assert shown(1, 5) == shown(1, 5)
    assert shown(1, 5) != shown(2, 5)
    assert shown(1, 5) != shown(1, 6)


def test_the_images_given_are_not_changed() -> None:
    pool = ImagePool(size=4)
    pool.query(*images(0, 1, 2, 3), 0)
    batch, domains = images(10, 11, 12, 13)
    pool.query(batch, domains, 1)
    assert values(batch) == [10, 11, 12, 13]
    assert domains.tolist() == [0, 1, 0, 1]


def test_a_saved_pool_goes_on_in_the_same_way() -> None:
    first, second = ImagePool(size=4), ImagePool(size=4)
    first.query(*images(0, 1, 2, 3), 0)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for iteration in range(1, 6):
        batch = images(10 * iteration, 10 * iteration + 1)
        assert values(first.query(*batch, iteration)[0]) == values(second.query(*batch, iteration)[0])
    assert values(first.images) == values(second.images)


@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_may_be_larger_than_the_pool(size: int) -> None:
    pool = ImagePool(size=size)
    given, returned = [], []
    for iteration in range(20):
        new = list(range(10 * iteration, 10 * iteration + 8))
        shown, _ = pool.query(*images(*new), iteration)
        returned += values(shown)
        given += new
    # What filled the pool was shown as well, once more than it was given if it is ever exchanged.
    assert len(returned) == len(given)
    assert set(returned) <= set(given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_pool_loaded_on_the_host_serves_the_device() -> None:
    pool = ImagePool(size=4)
    batch, domains = images(0, 1, 2, 3)
    pool.load_state_dict({"images": batch, "domains": domains})
    shown, _ = pool.query(*(tensor.cuda() for tensor in images(10, 11, 12, 13)), 1)
    assert shown.is_cuda
