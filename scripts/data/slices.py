"""All slices of a domain in memory, and unpaired batches of windows of both domains drawn from them.

A batch consists of shares, one per process of the run's first start. All random numbers of iteration ``i`` in share
``k`` come from a generator seeded by ``(seed, i, k)``, so a resumed run continues with exactly the batches of an
uninterrupted one, even with another number of processes. A training step needs no worker process and no file access.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from pickle import PicklingError
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Transform
from monai.utils import convert_to_tensor
from scripts.core.errors import InputError, innermost_message
from scripts.core.files import load_tensors, make_folder, save_tensors
from scripts.core.processes import check_ranks_agree, num_processes, rank
from scripts.data import nifti, resampling, sections, volumes
from scripts.data.augmentation import BatchAugmentation, Windows
from scripts.data.case_names import Item
from scripts.data.geometry import check_memory
from scripts.data.volumes import BACKGROUND, check_labelled, check_preprocessed, class_voxels, run_counted
from torch.nn import functional as F
from torch.utils.data import ConcatDataset
from tqdm import tqdm

__all__ = ["SliceSet", "UnpairedSliceBatches", "device_with_room", "iteration_generator"]

logger = logging.getLogger(__name__)

STATISTICS_STREAM = 103  # of random numbers for batch-norm statistics; batches use stream 0
BORDER_STRETCH = 1.5  # positions of windows are drawn from a range wider by this factor, and clipped
GPU_SHARE = 0.25  # of its free memory for the slices of one domain; the other domain and the networks need the rest
JOINED_BYTES = 10  # of a pixel: an image in float32 and a label, each twice while slices are put together


class SliceSet:
    """All slices of several volumes in two tensors, centred in a common frame; training uses windows of them.

    Args:
        data: datalist entries with ``image`` and, in the labelled domain, ``label``.
        transform: from file names to ``image`` (1, H, W, D) in [-1, 1] and ``label`` (1, H, W, D) of class ids.
        more: further entries, each list with a transform of its own (original volumes beside translated ones).
        window_size: height and width of the windows; None for the size of the frame.
        slice_axis: the spatial axis to slice along.
        device: of the slices; the host if they would take more than ``GPU_SHARE`` of a GPU's free memory.
        cache_dir: folder for transformed volumes, keyed by files' content and transforms' settings; None for no cache.
        structures: names of the classes 1, 2, ... that must have labelled voxels in some slice.

    Attributes:
        images: (N, 1, H, W) float32; H and W hold the largest slice and a window.
        labels: (N, 1, H, W) uint8, or None.
        sizes: (N, 2) height and width of each slice.
        content: hash of images and labels.
        case_of: (N,) index into ``data``.
        voxel_ml: volume of a voxel of each case on the grid of the slices.

    Raises:
        InputError: no cases, only constant slices, NaN after preprocessing, no voxel of a class, too little memory.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Transform,
        *,
        more: Sequence[tuple[Sequence[Item], Transform]] = (),
        window_size: Sequence[int] | None = None,
        slice_axis: int = 2,
        device: torch.device | str = "cpu",
        cache_dir: str | None = None,
        structures: Sequence[str] = (),
    ) -> None:
        if not data:
            raise InputError("datalist", "no case", "at least one volume", remedy="check the datalist's training list")
        folder, settings = (make_folder(cache_dir), _settings_hash) if cache_dir else (None, None)
        pairs = [(data, transform), *more]
        lists = [_VolumeCache(part, use, folder, _content_hash, hash_transform=settings) for part, use in pairs]
        dataset: ConcatDataset[dict[str, Any]] = ConcatDataset(lists)
        self.data = [item for part in lists for item in part.data]
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            prepared = pool.map(dataset.__getitem__, range(len(dataset)))
            cases = list(tqdm(prepared, total=len(dataset), desc="volumes", leave=False))
        images = [_as_slices(case["image"], slice_axis) for case in cases]
        for item, stack in zip(self.data, images, strict=True):
            check_preprocessed(stack, item["image"])
        sizes = torch.tensor([stack.shape[-2:] for stack in images])  # (cases, 2)
        frame = sizes.amax(0).maximum(torch.tensor(window_size or (1, 1)))
        self.window_size = (int(frame[0]), int(frame[1])) if window_size is None else tuple(window_size)
        shown = [stack.flatten(1).amax(1) > stack.flatten(1).amin(1) for stack in images]
        if not any(bool(keep.any()) for keep in shown):
            found = "only constant slices, in this volume and all others of its list"
            expected = "slices that are not constant after preprocessing"
            remedy = "check the intensity range, the section and the orientation of the task file"
            raise InputError(file=self.data[0]["image"], found=found, expected=expected, remedy=remedy)
        needed = JOINED_BYTES * int(frame.prod()) * sum(int(keep.sum()) for keep in shown)
        check_memory(needed, "setting 'slice_size'", "give a smaller one", f"a frame of {frame.tolist()} pixels")
        kept = [_framed(stack[keep].float(), frame, BACKGROUND) for stack, keep in zip(images, shown, strict=True)]
        together = torch.cat(kept)
        digest = hashlib.sha256(together.numpy().data)
        device = device_with_room(torch.device(device), together.nbytes)
        self.images = together.to(device)
        self.case_of = torch.cat([torch.full((int(keep.sum()),), index) for index, keep in enumerate(shown)])
        self.sizes = sizes[self.case_of]
        self.voxel_ml = [float(case["voxel_ml"]) for case in cases]
        self.labels: torch.Tensor | None = None
        if all("label" in case for case in cases):
            stacks = [_as_slices(case["label"], slice_axis)[keep] for case, keep in zip(cases, shown, strict=True)]
            labels = torch.cat([_framed(stack.to(torch.uint8), frame, 0) for stack in stacks])
            digest.update(labels.numpy().data)
            self.counts = [
                case["voxels"] | {"leaving out constant slices": class_voxels(stack)}
                for case, stack in zip(cases, stacks, strict=True)
            ]
            for part, end in zip(lists, dataset.cumulative_sizes, strict=True):
                check_labelled(self.counts[end - len(part) : end], structures, part.data)
            self.labels = labels.to(device)
        self.content = digest.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def windows(self, chosen: torch.Tensor, generator: torch.Generator | None = None) -> Windows:
        """Positions of a window in each chosen slice: random, or centred without a generator.

        In a slice larger than the window, a third of the positions touch a border along each axis, as in inference.
        """
        frame, window = torch.tensor(self.images.shape[2:]), torch.tensor(self.window_size)
        room = (self.sizes[chosen] - window).clamp_min(0)  # (B, 2) pixels that the window can move by
        margin = (window - self.sizes[chosen]).clamp_min(0) // 2
        first = (frame - self.sizes[chosen]) // 2 - margin
        place = torch.full(room.shape, 0.5)
        if generator is not None and bool((self.sizes > window).any()):
            drawn = torch.rand(room.shape, generator=generator) * 2 - 1
            place = ((BORDER_STRETCH * drawn).clamp(-1, 1) + 1) / 2
        return Windows(first + (place * room).long(), self.window_size)

    def volumes_ml(self, num_structures: int) -> torch.Tensor:
        """Volume of each structure 1..K in each case, (cases, K)."""
        labels = cast(torch.Tensor, self.labels)
        counts = [
            labels[self.case_of == case].flatten().bincount(minlength=num_structures + 1)
            for case in range(len(self.voxel_ml))
        ]
        return torch.stack(counts)[:, 1:].cpu() * torch.tensor(self.voxel_ml)[:, None]

    def region(self, case: int) -> tuple[torch.Tensor, slice, slice]:
        """The slices of a case in ``images``: their indices, and their rows and columns in the frame."""
        chosen = (self.case_of == case).nonzero()[:, 0]
        height, width = self.sizes[chosen[0]].tolist()
        top, left = (self.images.shape[2] - height) // 2, (self.images.shape[3] - width) // 2
        return chosen, slice(top, top + height), slice(left, left + width)

    def middle(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images and labels of the middle windows of the chosen slices, each (B, 1, h, w)."""
        windows = self.windows(chosen)
        labels = None if self.labels is None else windows.cut(self.labels[chosen])
        return windows.cut(self.images[chosen]), labels


class UnpairedSliceBatches:
    """Endless, augmented batches: ``image``, ``label`` if there is one, ``target_image``, each (B, 1, H, W).

    Args:
        source: slices of the labelled domain.
        batch_size: slices per domain and share.
        augmentation: applied to the slices of both domains, and to the labels.
        target: slices of the unlabelled domain, or None for training on the labelled domain alone.
        source_augmentation: applied to the source's slices (and labels) after that.
        seed: seed of every choice.
        shares: number of shares in the batch of all processes, of which each takes an equal number in order; None for
            one per process.

    Attributes:
        iteration: number of batches drawn so far; restored on resuming, as is ``shares``.
    """

    def __init__(
        self,
        *,
        source: SliceSet,
        batch_size: int,
        augmentation: BatchAugmentation,
        target: SliceSet | None = None,
        source_augmentation: BatchAugmentation | None = None,
        seed: int = 0,
        shares: int | None = None,
    ) -> None:
        self.source, self.target, self.batch_size = source, target, batch_size
        self.augmentation, self.source_augmentation = augmentation, source_augmentation
        self.seed, self.iteration = seed, 0
        self.shares = num_processes() if shares is None else shares
        _check_shares(self.shares, "setting 'train#batches#shares'")
        check_ranks_agree("data", {f"content of list {index}": digest for index, digest in enumerate(self._content())})

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            self.iteration += 1
            yield self.batch(self.iteration - 1)

    def batch(self, index: int) -> dict[str, torch.Tensor]:
        """This process's part of the batch of iteration ``index`` (from 0); deterministic."""
        own = self.shares // num_processes()
        shares = [self._share(index, share) for share in range(rank() * own, (rank() + 1) * own)]
        return shares[0] if own == 1 else {key: torch.cat([share[key] for share in shares]) for key in shares[0]}

    def _share(self, index: int, share: int) -> dict[str, torch.Tensor]:
        generator = iteration_generator(self.seed, index, share=share)
        batch = self._augmented_source(self._draw(self.source, generator), generator)
        if self.target is not None:
            chosen = self._draw(self.target, generator)
            batch["target_image"], _ = self._window(self.target, chosen, generator)
        return batch

    def sample(self, count: int) -> dict[str, torch.Tensor]:
        """``count`` slices of each domain for pictures: fixed, evenly spaced, not augmented, labelled if any is."""
        spread, labels = torch.linspace(0, 1, count + 2)[1:-1], self.source.labels
        is_shown = torch.ones(len(self.source)) if labels is None or not labels.any() else labels.flatten(1).amax(1)
        shown = is_shown.nonzero()[:, 0].cpu()
        image, label = self.source.middle(shown[(spread * (len(shown) - 1)).long()])
        batch = {"image": image} if label is None else {"image": image, "label": label}
        if self.target is not None:
            batch["target_image"], _ = self.target.middle((spread * (len(self.target) - 1)).long())
        return batch

    def statistics_slices(self) -> Iterator[torch.Tensor]:
        """All slices of one domain once, in shuffled batches, to re-estimate batch-norm statistics.

        Target slices are as in inference. Without a target, labelled slices are augmented as in training: statistics of
        slices unlike the training slices make a network worse on every domain.
        """
        slices = self.source if self.target is None else self.target
        order = torch.randperm(len(slices), generator=torch.Generator().manual_seed(self.seed))
        for index, chosen in enumerate(order.split(self.batch_size)):
            generator = iteration_generator(self.seed, index, STATISTICS_STREAM)
            if self.target is None:
                yield self._augmented_source(chosen, generator)["image"]
            else:
                yield slices.windows(chosen, generator).cut(slices.images[chosen])

    def state_dict(self) -> dict[str, Any]:
        """State for resuming: number of batches so far, number of shares, and hashes of the slices."""
        return {"iteration": self.iteration, "shares": self.shares, "content": self._content()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batch at which ``state`` was taken; other slices are refused."""
        if state["content"] != self._content():
            found = "other volumes, or other preprocessing, than those with which the run was started"
            remedy = "give the data that the run was started with, or start a new one without --resume"
            raise InputError(file="the training cases", found=found, expected="the same slices", remedy=remedy)
        shares = state.get("shares", self.shares)  # missing in early checkpoints
        _check_shares(shares, "the checkpoint to resume from")
        self.iteration, self.shares = state["iteration"], shares

    def _augmented_source(self, chosen: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        image, label = self._window(self.source, chosen, generator, self.source.labels)
        if self.source_augmentation is not None:
            image, label = self.source_augmentation(image, label, generator)
        return {"image": image} if label is None else {"image": image, "label": label}

    def _window(
        self, slices: SliceSet, chosen: torch.Tensor, generator: torch.Generator, labels: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """An augmented window of each chosen slice, and of ``labels`` (N, 1, H, W) on the slices' frame."""
        windows = slices.windows(chosen, generator)
        own = None if labels is None else labels[chosen]
        return self.augmentation(slices.images[chosen], own, generator, windows)

    def _content(self) -> list[str]:
        return [slices.content for slices in (self.source, self.target) if slices is not None]

    def _draw(self, slices: SliceSet, generator: torch.Generator) -> torch.Tensor:
        return torch.randint(len(slices), (self.batch_size,), generator=generator)


def device_with_room(device: torch.device, needed_bytes: int) -> torch.device:
    """The device, or the host if ``needed_bytes`` exceed ``GPU_SHARE`` of a GPU's free memory."""
    fits = device.type != "cuda" or needed_bytes <= GPU_SHARE * torch.cuda.mem_get_info(device)[0]
    return device if fits else torch.device("cpu")


def iteration_generator(seed: int, iteration: int, stream: int = 0, share: int = 0) -> torch.Generator:
    """The CPU random generator of one share of an iteration; ``stream`` separates uses within it."""
    state = np.random.SeedSequence([seed, iteration, share, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


def _check_shares(shares: int, where: str) -> None:
    if shares < 1 or shares % num_processes():
        found = f"batches of {shares} share(s) for {num_processes()} process(es)"
        remedy = f"start {' or '.join(str(n) for n in range(1, shares + 1) if shares % n == 0) or 1} process(es)"
        raise InputError(file=where, found=found, expected="shares that the processes divide evenly", remedy=remedy)


class _VolumeCache(PersistentDataset):
    """MONAI's cache of transformed volumes, written atomically on any disk.

    MONAI takes a nested ``Compose`` for random and does not cache what follows; here no transform is random.
    """

    def set_transform_hash(self, hash_xform_func: Callable[..., bytes]) -> None:
        """Of what nothing identifies, such as a function in a task file, there is no hash and no cache."""
        try:
            super().set_transform_hash(hash_xform_func)
        except (PicklingError, AttributeError, TypeError) as error:  # by kinds of objects, and versions of Python
            logger.warning("no cache_dir, which needs transforms without functions (%s)", innermost_message(error))
            self.cache_dir = cast(Any, None)

    def _post_transform(self, item_transformed: Any) -> Any:
        return item_transformed

    def _cachecheck(self, item_transformed: Item) -> Any:
        if self.cache_dir is None:
            return self._loaded(item_transformed)
        path = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if path.is_file() and (cached := _load_cached(path)) is not None:
            return cached
        case = self._loaded(item_transformed)
        save_tensors(path, case)
        return case

    def _loaded(self, item: Item) -> dict[str, Any]:
        """The transformed volumes as plain tensors, the voxel volume, and the voxels of each class after each step."""
        case, voxels = run_counted(self.transform, item)
        plain: dict[str, Any] = convert_to_tensor(case, convert_numeric=False, track_meta=False)
        return plain | {"voxel_ml": MetaTensor(case["image"]).pixdim.prod() / 1000, "voxels": voxels}


def _load_cached(path: Path) -> Any:
    """A volume from the cache; None, with a warning, if its file is damaged."""
    try:
        case = load_tensors(path)
        return {key: case[key] for key in {"image", "voxel_ml", "voxels", *case}}  # another file's content lacks some
    except Exception as error:  # zipfile and torch raise many types
        logger.warning("%s: damaged cache file (%s); its volume is preprocessed again", path, innermost_message(error))
    return None


def _as_slices(volume: torch.Tensor, slice_axis: int) -> torch.Tensor:
    return torch.as_tensor(volume)[0].movedim(slice_axis, 0)[:, None].contiguous()


def _framed(stack: torch.Tensor, frame: torch.Tensor, value: float) -> torch.Tensor:
    """Slices (N, 1, h, w) centred in a frame of (H, W) pixels."""
    before = (frame - torch.tensor(stack.shape[-2:])) // 2
    after = frame - torch.tensor(stack.shape[-2:]) - before
    return F.pad(stack, [int(n) for n in (before[1], after[1], before[0], after[0])], value=value)


def _content_hash(item: Item) -> bytes:
    digest = hashlib.sha256()
    for key in sorted(item):
        digest.update(key.encode())
        digest.update(Path(item[key]).read_bytes())
    return digest.hexdigest()[:24].encode()


def _settings_hash(transforms: Any) -> bytes:
    code = "".join(inspect.getsource(part) for part in (nifti, resampling, sections, volumes, _VolumeCache))
    versions = [version(package) for package in ("monai", "nibabel", "scipy", "torch")]
    return b"-" + pickle_hashing([code, versions, transforms])[:24]
