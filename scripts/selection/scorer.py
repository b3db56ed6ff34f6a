"""Measures the parts of the scores of a network on a fixed sample of slices."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scripts.data.augmentation import BatchAugmentation
from scripts.data.slices import SliceSet, iteration_generator
from scripts.engines.precision import autocast
from scripts.networks.segmenter import Segmenter
from scripts.selection.scores import PARTS, mask_patches, masked_consistency_loss, mean_dice
from torch import nn

__all__ = ["SnapshotScorer", "predict_classes"]

# Random number streams that batches do not use.
SAMPLE_STREAM, CHANGE_STREAM = 101, 102


class SnapshotScorer:
    """Score a network on a sample of slices that is the same for every snapshot and for a resumed run.

    Args:
        labelled: slices of the labelled domain that training uses, with labels.
        held_out: slices of its held-out cases; None to use training slices.
        target: slices of the target's training cases, without labels; None to measure only the labelled Dice.
        augmentation: changes a slice for the consistency loss, before patches are masked.
        num_structures: K.
        mask_labelled: apply the local mask to labelled slices, as in a training that does so.
        slices: number of slices sampled from each of the sets.
        masked_share: share of the patches that are masked.
        patches_per_side: rows and columns of patches.
        batch_size: slices in a forward pass.
        seed: seed of every draw.
        precision: ``auto``, ``bf16`` or ``float32``.
    """

    def __init__(
        self,
        *,
        labelled: SliceSet,
        augmentation: BatchAugmentation,
        num_structures: int,
        mask_labelled: bool = False,
        held_out: SliceSet | None = None,
        target: SliceSet | None = None,
        slices: int = 64,
        masked_share: float = 0.3,
        patches_per_side: int = 16,
        batch_size: int = 8,
        seed: int = 0,
        precision: str = "auto",
    ) -> None:
        self.labelled, self.held_out, self.target = labelled, held_out, target
        self.augmentation, self.num_structures = augmentation, num_structures
        self.mask_labelled = mask_labelled
        self.slices, self.batch_size = slices, batch_size
        self.masked_share, self.patches_per_side = masked_share, patches_per_side
        self.seed, self.precision = seed, precision

    @property
    def labelled_cases(self) -> str:
        """Cases of the labelled Dice: ``held-out``, or ``training`` if there are no held-out cases."""
        return "training" if self.held_out is None else "held-out"

    def parts(self, network: nn.Module) -> dict[str, float]:
        """The values of ``PARTS`` for a network, which is set to evaluation mode."""
        network.eval()
        parts = dict.fromkeys(PARTS, math.nan)
        parts["labelled_dice"] = self._labelled_dice(network)
        if self.target is not None:
            parts["consistency_loss"] = self._consistency(network, self.target)
        return parts

    @torch.inference_mode()
    def _labelled_dice(self, network: nn.Module) -> float:
        """Over all sampled slices together."""
        slices = self.held_out if self.held_out is not None else self.labelled
        chosen = self._sample(len(slices))
        prediction = predict_classes(
            network, slices.middle(chosen)[0], self.batch_size, self.precision, masked=self.mask_labelled
        )
        return mean_dice(prediction, _labels(slices, chosen), np.zeros(len(chosen), int), self.num_structures)

    @torch.inference_mode()
    def _consistency(self, network: nn.Module, target: SliceSet) -> float:
        images, _ = target.middle(self._sample(len(target)))
        generator = iteration_generator(self.seed, 0, CHANGE_STREAM)
        device, losses = next(network.parameters()).device, []
        for batch in images.split(self.batch_size):
            batch = batch.to(device)
            prediction = self._logits(network, batch).argmax(1, keepdim=True)
            losses += [self._consistency_loss(network, batch, prediction, generator)] * len(batch)
        return float(np.mean(losses))

    def _consistency_loss(
        self, network: nn.Module, image: torch.Tensor, prediction: torch.Tensor, generator: torch.Generator
    ) -> float:
        seen, moved = self.augmentation(image, prediction, generator)
        seen = mask_patches(seen, share=self.masked_share, patches_per_side=self.patches_per_side, generator=generator)
        return masked_consistency_loss(self._logits(network, seen), prediction if moved is None else moved)

    def _logits(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return _logits(network, image, self.precision)

    def _sample(self, count: int) -> torch.Tensor:
        order = torch.randperm(count, generator=iteration_generator(self.seed, 0, SAMPLE_STREAM))
        return order[: self.slices].sort().values


@torch.inference_mode()
def predict_classes(
    network: nn.Module, images: torch.Tensor, batch_size: int = 8, precision: str = "auto", *, masked: bool = True
) -> NDArray[np.uint8]:
    """The most probable class of every pixel, (N, 1, H, W) to (N, H, W) uint8 on the host.

    ``masked`` applies the local mask, as for target slices.
    """
    batches = [_logits(network, batch, precision, masked=masked).argmax(1) for batch in images.split(batch_size)]
    found: NDArray[np.uint8] = torch.cat(batches).to("cpu", torch.uint8).numpy()
    return found


def _logits(network: nn.Module, image: torch.Tensor, precision: str, *, masked: bool = True) -> torch.Tensor:
    """The logits, computed on the network's device."""
    image = image.to(next(network.parameters()).device).contiguous(memory_format=torch.channels_last)
    with autocast(image.device, precision):
        logits: torch.Tensor = network(image) if masked else _unmasked(network, image)
    return logits.float()


def _unmasked(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    segmenter = cast(Segmenter, network)
    return segmenter.predict_unmasked(segmenter.forward_features(image), list(image.shape[2:]))


def _labels(slices: SliceSet, chosen: torch.Tensor) -> NDArray[np.uint8]:
    """Class ids (N, h, w) of the centre windows, on the host."""
    _, labels = slices.middle(chosen)
    assert labels is not None, "the labelled domain's cases are read with their labels"
    result: NDArray[np.uint8] = labels[:, 0].cpu().numpy()
    return result
