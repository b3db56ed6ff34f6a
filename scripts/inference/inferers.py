"""From a volume to slices, through a 2D network, and back to a volume."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import MapTransform
from torch.nn import functional as F

from scripts.engines.precision import autocast

__all__ = ["SliceWiseInferer", "SplitMaskd"]


class SliceWiseInferer(Inferer):
    """Run a 2D network over the slices of a volume (paper, section 4: slices in, 3D metrics out).

    The slices' batch keeps the channels_last layout and bf16 where that is fast; with test-time averaging, the
    outputs for flipped and rescaled slices are averaged.

    Args:
        slice_axis: the spatial axis to slice along, 0, 1 or 2.
        slice_batch_size: slices per forward pass.
        softmax: give class probabilities rather than the network's raw output.
        flip_axes: in-plane axes (0, 1) to flip for test-time averaging; empty for none. Left and right organs
            differ: flipping along the left-right axis asks the network about mirrored anatomy.
        scales: zoom factors to average over; ``[1.0]`` for none.
        with_mask: append the local mask (MaskedDeepLab's, 0 to 1) as the last channel.
        precision: ``auto``, ``bf16`` or ``float32``.
        style_seed: for a Translator: seed of the style of each volume, where it draws one. None for other networks.
    """

    def __init__(
        self,
        *,
        slice_axis: int = 2,
        slice_batch_size: int = 8,
        softmax: bool = False,
        flip_axes: Sequence[int] = (),
        scales: Sequence[float] = (1.0,),
        with_mask: bool = False,
        precision: str = "auto",
        style_seed: int | None = None,
    ) -> None:
        super().__init__()
        autocast("cpu", precision)  # a wrong word is refused now, not at the first volume
        self.slice_axis, self.slice_batch_size, self.softmax = slice_axis, slice_batch_size, softmax
        self.style_seed = style_seed
        self.flip_axes, self.scales, self.with_mask, self.precision = (
            tuple(flip_axes),
            tuple(scales),
            with_mask,
            precision,
        )

    @torch.inference_mode()
    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Process one volume or several.

        Args:
            inputs: (B, C, H, W, D).
            network: a module from (N, C, H, W) to (N, K, H, W); with the mask, a MaskedDeepLab.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            (B, K, H, W, D) float32, one channel more with the mask; a MetaTensor, as only these can be inverted.
        """
        return MetaTensor(torch.stack([self._volume(volume, network, *args, **kwargs) for volume in inputs]))

    def _volume(
        self, volume: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        if self.style_seed is not None:
            kwargs |= network.volume_arguments(plain, self.style_seed)  # type: ignore[attr-defined]
        slices = plain.movedim(self.slice_axis + 1, 0)
        result = torch.empty(0)
        for start in range(0, len(slices), self.slice_batch_size):
            batch = slices[start : start + self.slice_batch_size].contiguous(memory_format=torch.channels_last)
            with autocast(batch.device, self.precision):
                output = self._averaged(batch, network, *args, **kwargs)
            if start == 0:
                result = torch.empty(output.shape[1], len(slices), *output.shape[2:], device=output.device)
            result[:, start : start + len(batch)] = output.movedim(1, 0)
        return result.movedim(1, self.slice_axis + 1)

    def _averaged(
        self, batch: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        flips = [(), *((axis,) for axis in self.flip_axes)]
        views = [(flip, scale) for flip in flips for scale in self.scales]
        outputs = [self._view(batch, flip, scale, network, *args, **kwargs) for flip, scale in views]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    def _view(
        self,
        batch: torch.Tensor,
        flip: tuple[int, ...],
        scale: float,
        network: Callable[..., torch.Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        size, axes = batch.shape[2:], [axis + 2 for axis in flip]
        view = batch.flip(axes) if axes else batch
        if scale != 1.0:
            view = F.interpolate(view, scale_factor=scale, mode="bilinear", align_corners=False)
        output = self._forward(view, network, *args, **kwargs)
        if scale != 1.0:
            output = F.interpolate(output, size=size, mode="bilinear", align_corners=False)
        return output.flip(axes) if axes else output

    def _forward(
        self, view: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if not self.with_mask:
            output = network(view, *args, **kwargs).float()
            return output.softmax(1) if self.softmax else output
        # The network's forward in its parts, so that features serve the prediction and the mask.
        size = list(view.shape[2:])
        features = network.forward_features(view)  # type: ignore[attr-defined]
        mask = network.feature_mask(features)  # type: ignore[attr-defined]
        output = network.predict(features, mask, size).float()  # type: ignore[attr-defined]
        wide_mask = F.interpolate(mask.float(), size=size, mode="bilinear", align_corners=False)
        return torch.cat([output.softmax(1) if self.softmax else output, wide_mask], 1)


class SplitMaskd(MapTransform):
    """Move the last channel of a prediction, the local mask, to a key of its own."""

    def __init__(self, keys: str = "pred", mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split (K + 2, H, W, D) into (K + 1, ...) class probabilities and (1, ...) mask."""
        split = dict(data)
        for key in self.key_iterator(split):
            split[key], split[self.mask_key] = split[key][:-1], split[key][-1:]
        return split
