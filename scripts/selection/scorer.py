"""Measures the parts of the label-free scores on a fixed sample of slices."""

from __future__ import annotations

import math
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scripts.data.augmentation import BatchAugmentation
from scripts.data.slices import SliceSet, iteration_generator
from scripts.engines.precision import autocast
from scripts.networks.segmenter import Segmenter
from scripts.selection.scores import (
    PARTS,
    foreground_shares,
    mask_patches,
    masked_consistency_loss,
    mean_components,
    mean_dice,
    neighbourhood_density,
    normalised_entropy,
    plausible_areas,
    plausible_share,
    volume_deviation,
)

__all__ = ["SnapshotScorer", "predict_classes"]

SAMPLE_STREAM, CHANGE_STREAM = 101, 102
"""Streams of random numbers that no batch draws from."""


class SnapshotScorer:
    """Score a network on slices drawn once, the same for every snapshot and for a resumed run.

    Args:
        labelled: slices of the labelled domain that training uses, with labels.
        held_out: slices of its held-out cases; None if there are none, and training slices stand in.
        target: slices of the target's training cases; labels, if it has any, are not looked at. None for a training
            without the target: then only the labelled Dice is a number.
        augmentation: changes a slice for the consistency loss, before patches are masked.
        num_structures: K.
        mask_labelled: labelled slices go through the local mask, as in a training that masks its labelled slices too;
            False for the source's road, which S was trained on.
        slices: number of slices sampled from each of the sets.
        pixels: number of pixels sampled for the neighbourhood density.
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
        pixels: int = 2048,
        masked_share: float = 0.3,
        patches_per_side: int = 16,
        batch_size: int = 8,
        seed: int = 0,
        precision: str = "auto",
    ) -> None:
        self.labelled, self.held_out, self.target = labelled, held_out, target
        self.augmentation, self.num_structures = augmentation, num_structures
        self.mask_labelled = mask_labelled
        self.slices, self.pixels, self.batch_size = slices, pixels, batch_size
        self.masked_share, self.patches_per_side = masked_share, patches_per_side
        self.seed, self.precision = seed, precision

    @property
    def labelled_cases(self) -> str:
        """Where the labelled Dice is measured: ``held-out``, or ``training`` for want of held-out cases."""
        return "training" if self.held_out is None else "held-out"

    def parts(self, network: nn.Module) -> dict[str, float]:
        """The numbers named in ``PARTS``, of one network; it is left in evaluation mode."""
        network.eval()
        parts = dict.fromkeys(PARTS, math.nan)
        parts["labelled_dice"] = self._labelled_dice(network)
        return parts if self.target is None else parts | self._target_parts(network, self.target)

    @torch.inference_mode()
    def _labelled_dice(self, network: nn.Module) -> float:
        """Over all sampled slices as one case."""
        slices = self.held_out if self.held_out is not None else self.labelled
        chosen = self._sample(len(slices))
        prediction = predict_classes(
            network, slices.middle(chosen)[0], self.batch_size, self.precision, masked=self.mask_labelled
        )
        return mean_dice(prediction, _labels(slices, chosen), np.zeros(len(chosen), int), self.num_structures)

    @torch.inference_mode()
    def _target_parts(self, network: nn.Module, target: SliceSet) -> dict[str, float]:
        images, _ = target.middle(self._sample(len(target)))
        generator = iteration_generator(self.seed, 0, CHANGE_STREAM)
        entropies, losses, sampled, predictions = [], [], [], []
        share_of_pixels = self.pixels / (len(images) * images[0].numel())
        device = next(network.parameters()).device
        for batch in images.split(self.batch_size):
            batch = batch.to(device)
            probabilities = self._logits(network, batch).softmax(1)
            prediction = probabilities.argmax(1, keepdim=True)
            entropies.append(normalised_entropy(probabilities).flatten(1).mean(1))
            losses += [self._consistency_loss(network, batch, prediction, generator)] * len(batch)
            drawn = torch.rand(batch.numel(), generator=generator) < share_of_pixels
            sampled.append(probabilities.movedim(1, -1).flatten(0, 2)[drawn.to(device)])
            predictions.append(prediction[:, 0].to("cpu", torch.uint8))
        found = torch.cat(predictions).numpy()
        shares = foreground_shares(found, self.num_structures)
        return {
            "entropy": float(torch.cat(entropies).mean()),
            "consistency_loss": float(np.mean(losses)),
            "neighbourhood_density": neighbourhood_density(torch.cat(sampled)),
            "volume_deviation": volume_deviation(shares, self._shares),
            "component_gap": abs(mean_components(found, self.num_structures) - self._components),
            "plausible_share": plausible_share(found, self._plausible_areas),
        }

    def _consistency_loss(
        self, network: nn.Module, image: torch.Tensor, prediction: torch.Tensor, generator: torch.Generator
    ) -> float:
        changed, moved = self.augmentation(image, prediction, generator)
        changed = mask_patches(
            changed, share=self.masked_share, patches_per_side=self.patches_per_side, generator=generator
        )
        return masked_consistency_loss(self._logits(network, changed), prediction if moved is None else moved)

    def _logits(self, network: nn.Module, image: torch.Tensor) -> torch.Tensor:
        return _logits(network, image, self.precision)

    def _sample(self, count: int) -> torch.Tensor:
        order = torch.randperm(count, generator=iteration_generator(self.seed, 0, SAMPLE_STREAM))
        return order[: self.slices].sort().values

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """Shares of the structures in each labelled training case, (cases, K)."""
        labels, case_of = _labels(self.labelled), self.labelled.case_of.numpy()
        return np.array([foreground_shares(labels[case_of == c], self.num_structures) for c in np.unique(case_of)])

    @cached_property
    def _components(self) -> float:
        chosen = self._sample(len(self.labelled))
        return mean_components(_labels(self.labelled, chosen), self.num_structures)

    @cached_property
    def _plausible_areas(self) -> NDArray[np.float64]:
        """Of all labelled training slices."""
        return plausible_areas(_labels(self.labelled), self.num_structures)


@torch.inference_mode()
def predict_classes(
    network: nn.Module, images: torch.Tensor, batch_size: int = 8, precision: str = "auto", *, masked: bool = True
) -> NDArray[np.uint8]:
    """The most probable class of every pixel of some slices, (N, 1, H, W) to (N, H, W) uint8 on the host.

    ``masked``: by the target's road, local mask included; otherwise by the source's, which has none.
    """
    batches = [_logits(network, batch, precision, masked=masked).argmax(1) for batch in images.split(batch_size)]
    found: NDArray[np.uint8] = torch.cat(batches).to("cpu", torch.uint8).numpy()
    return found


def _logits(network: nn.Module, image: torch.Tensor, precision: str, *, masked: bool = True) -> torch.Tensor:
    """On the network's device, wherever the slices are kept."""
    image = image.to(next(network.parameters()).device).contiguous(memory_format=torch.channels_last)
    with autocast(image.device, precision):
        logits: torch.Tensor = network(image) if masked else _unmasked(network, image)
    return logits.float()


def _unmasked(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    segmenter = cast(Segmenter, network)
    return segmenter.predict_unmasked(segmenter.forward_features(image), list(image.shape[2:]))


def _labels(slices: SliceSet, chosen: torch.Tensor | None = None) -> NDArray[np.uint8]:
    """Class ids (N, h, w) of the middle windows, on the host."""
    _, labels = slices.middle(torch.arange(len(slices)) if chosen is None else chosen)
    assert labels is not None, "the labelled domain's cases are read with their labels"
    result: NDArray[np.uint8] = labels[:, 0].cpu().numpy()
    return result
