"""Slice-wise inference: a 2D network applied to the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, sliding_window_inference
from monai.transforms import MapTransform
from scripts.core.errors import InputError, SettingError, check_choice
from scripts.data.geometry import check_memory
from scripts.data.resampling import restore_grid
from scripts.data.volumes import BACKGROUND, check_preprocessed
from scripts.engines.precision import autocast
from torch.nn import functional as F

__all__ = ["SliceWiseInferer", "SplitMaskd"]

Forward = Callable[[torch.Tensor], torch.Tensor]


class SliceWiseInferer(Inferer):
    """Run a 2D network over the slices of a volume, in windows of the size it was trained on.

    Slices smaller than the window are padded with the background and take one pass. Larger ones are covered by
    overlapping windows, whose outputs are averaged (MONAI's sliding window). With test-time averaging, each flipped or
    rescaled slice goes the same way.

    Args:
        window_size: height and width of the slices that the network was trained on; None for whole slices in one pass.
        overlap: of adjacent windows, as a share of their size.
        blending: ``gaussian`` gives the centre of a window more weight than its border, ``constant`` does not.
        slice_axis: the spatial axis to slice along.
        slice_batch_size: windows per forward pass.
        softmax: return class probabilities instead of the network's raw output.
        flip_axes: in-plane axes (0, 1) to flip for test-time averaging, which may show mirrored anatomy.
        scales: zoom factors to average over.
        with_mask: append the local mask of a segmenter (0 to 1) as the last channel.
        precision: ``auto``, ``bf16`` or ``float32``.
        style_seed: for a Translator, seed of the style of each volume; None for other networks.
        smoothing: an EdgeAwareSmoothing of the class probabilities.
        decide: return class ids on the image's original grid. Each batch of slices is resampled and decided at once, so
            that memory does not grow with the number of classes and slices.
    """

    def __init__(
        self,
        *,
        window_size: Sequence[int] | None,
        overlap: float = 0.5,
        blending: str = "gaussian",
        slice_axis: int = 2,
        slice_batch_size: int = 8,
        softmax: bool = False,
        flip_axes: Sequence[int] = (),
        scales: Sequence[float] = (1.0,),
        with_mask: bool = False,
        precision: str = "auto",
        style_seed: int | None = None,
        smoothing: Any = None,
        decide: bool = False,
    ) -> None:
        super().__init__()
        autocast("cpu", precision)  # refuse an invalid value now, not at the first volume
        check_choice("window_blending", blending, ["gaussian", "constant"])
        if not 0 <= overlap < 1:
            expected, remedy = "a share from 0 up to, but not including, 1", "give 0.5, or 0.25 for fewer windows"
            raise SettingError("setting 'window_overlap'", f"{overlap}", expected, remedy)
        self.window_size = None if window_size is None else tuple(window_size)
        self.overlap, self.blending = overlap, blending
        self.slice_axis, self.slice_batch_size, self.softmax = slice_axis, slice_batch_size, softmax
        self.style_seed, self.smoothing, self.decide = style_seed, smoothing, decide
        self.flip_axes, self.scales = tuple(flip_axes), tuple(scales)
        self.with_mask, self.precision = with_mask, precision

    @torch.inference_mode()
    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Process volumes (B, C, H, W, D) in [-1, 1] with a network from (N, C, h, w) to (N, K, h, w), or a segmenter.

        Returns:
            (B, K, H, W, D) float32, one channel more with the mask, or (B, 1, H0, W0, D0) uint8 class ids; a
            MetaTensor, as the evaluator expects.
        """
        volumes = [self._volume(volume, network, *args, **kwargs) for volume in inputs]
        return MetaTensor(volumes[0][None] if len(volumes) == 1 else torch.stack(volumes))

    def _volume(
        self, volume: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        plain = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
        if self.style_seed is not None:
            kwargs |= network.volume_arguments(plain, self.style_seed)  # type: ignore[attr-defined]

        def forward(windows: torch.Tensor) -> torch.Tensor:
            return self._forward(windows.contiguous(memory_format=torch.channels_last), network, *args, **kwargs)

        slices = plain.movedim(self.slice_axis + 1, 0)  # (D, C, H, W)
        file = getattr(volume, "meta", {}).get("filename_or_obj", "the image")
        check_preprocessed(slices, file)
        outputs = self._blocks(slices, forward, file)
        first = next(outputs)
        is_decided = self.decide and isinstance(volume, MetaTensor) and bool(volume.applied_operations)
        values = first[:, 0].numel()
        needed = 0 if is_decided else 4 * values * len(slices)
        blocks: Iterator[torch.Tensor] = (block.movedim(1, self.slice_axis + 1) for block in chain([first], outputs))
        if self.smoothing is not None:
            channels, spacing_mm = -1 if self.with_mask else None, MetaTensor(volume).pixdim.tolist()
            needed += self.smoothing.held_bytes(values, len(slices), spacing_mm[self.slice_axis])
            blocks = self.smoothing(blocks, plain[0], spacing_mm, self.slice_axis, channels)
        if first.device.type == "cpu":
            check_memory(needed, file, "segment it with smoothing_mm 0, or crop it")
        if is_decided:
            return restore_grid(blocks, volume, axis=self.slice_axis, argmax=True).as_tensor()
        result, start = first.new_empty(len(first), *plain.shape[1:]), 0
        for block in blocks:
            count = block.shape[self.slice_axis + 1]
            result.narrow(self.slice_axis + 1, start, count).copy_(block)
            start += count
        return result

    def _blocks(self, slices: torch.Tensor, forward: Forward, file: object) -> Iterator[torch.Tensor]:
        """Outputs (K, N, H, W) of consecutive slices (N, C, H, W) of a file."""
        for batch in slices.split(self.slice_batch_size):
            with autocast(batch.device, self.precision):
                output = self._averaged(batch, forward)
            if not bool(output.isfinite().all()):
                found, remedy = "NaN or infinite values in the network's output for it", "take other weights"
                raise InputError(file=file, found=found, expected="finite ones", remedy=f"{remedy}; these overflow")
            yield output.movedim(1, 0)

    def _averaged(self, batch: torch.Tensor, forward: Forward) -> torch.Tensor:
        flips = [(), *((axis,) for axis in self.flip_axes)]
        views = [(flip, scale) for flip in flips for scale in self.scales]
        outputs = [self._view(batch, flip, scale, forward) for flip, scale in views]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)

    def _view(self, batch: torch.Tensor, flip: tuple[int, ...], scale: float, forward: Forward) -> torch.Tensor:
        size, axes = batch.shape[2:], [axis + 2 for axis in flip]
        view = batch.flip(axes) if axes else batch
        if scale != 1.0:
            view = F.interpolate(view, scale_factor=scale, mode="bilinear", align_corners=False)
        output = self._windowed(view, forward)
        if scale != 1.0:
            output = F.interpolate(output, size=size, mode="bilinear", align_corners=False)
        return output.flip(axes) if axes else output

    def _windowed(self, slices: torch.Tensor, forward: Forward) -> torch.Tensor:
        if self.window_size is None:
            return forward(slices)
        (height, width), (rows, columns) = self.window_size, slices.shape[2:]
        if rows > height or columns > width:
            return sliding_window_inference(
                slices,
                self.window_size,
                self.slice_batch_size,
                forward,
                overlap=self.overlap,
                mode=self.blending,
                cval=BACKGROUND,
            )
        # One window: no weights to divide by, and the same margins as MONAI's.
        top, left = (height - rows) // 2, (width - columns) // 2
        margins = (left, width - columns - left, top, height - rows - top)
        output = forward(F.pad(slices, margins, value=BACKGROUND) if any(margins) else slices)
        return output[..., top : top + rows, left : left + columns]

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
    """Move the last channel of a prediction, the local mask, to a separate key."""

    def __init__(self, keys: str = "pred", mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Split (K + 2, H, W, D) into (K + 1, ...) class probabilities and (1, ...) mask."""
        split = dict(data)
        for key in self.key_iterator(split):
            split[key], split[self.mask_key] = split[key][:-1], split[key][-1:]
        return split
