"""The volumes behind a comparison's pictures, as the networks saw them, and square cuts of their slices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import LoadImage, Orientation
from numpy.typing import NDArray
from scipy import ndimage

from scripts.core.errors import InputError
from scripts.data.case_names import Item, case_name
from scripts.data.datalists import read_datalist
from scripts.data.volumes import LabelsToClassesd
from scripts.lab.experiments.results import Comparison, RunResult

__all__ = ["ComparisonVolumes", "Cut", "Volume", "mask_path"]

Intensity = Literal["source_intensity", "target_intensity", "labelled_intensity"]

CUT_PIXELS = 256
"""Edge of a cut: sharp in a picture whose panels are 320 pixels wide."""

TRAINING = Path(__file__).resolve().parents[3] / "configs" / "segmentation" / "train.yaml"
"""Whose ``labelled_intensity`` is that of translated images; a method may have another for its own."""


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in the pictures' frame.

    Attributes:
        voxels: (H, W, D) along the axes of the task's orientation.
        spacing_mm: edge lengths of a voxel along them.
    """

    voxels: NDArray[Any]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A square window on slices, so that slices of any grid can stand beside each other at one scale.

    Attributes:
        slice_axis: the axis the slices are stacked along.
        centre_mm: its centre in the slice, from the first voxel's outer corner.
        side_mm: its edge.
    """

    slice_axis: int
    centre_mm: tuple[float, float]
    side_mm: float

    @classmethod
    def whole(cls, volume: Volume, slice_axis: int) -> Cut:
        """A window on the whole of a volume's slices."""
        extent = [size * edge for size, edge in _in_plane(volume, slice_axis)]
        return cls(slice_axis=slice_axis, centre_mm=(extent[0] / 2, extent[1] / 2), side_mm=max(extent))

    @classmethod
    def around(cls, labels: Volume, slice_axis: int, margin_mm: float) -> Cut:
        """A window on everything that is labelled in a volume, with a margin; the whole of it if nothing is."""
        found = ndimage.find_objects((labels.voxels > 0).astype(np.uint8))
        if not found:
            return cls.whole(labels, slice_axis)
        box = [part for axis, part in enumerate(found[0]) if axis != slice_axis]
        edges = [edge for _, edge in _in_plane(labels, slice_axis)]
        ends = [(part.start * edge, part.stop * edge) for part, edge in zip(box, edges, strict=True)]
        centre = tuple((low + high) / 2 for low, high in ends)
        side = max(high - low for low, high in ends) + 2 * margin_mm
        return cls(slice_axis=slice_axis, centre_mm=(centre[0], centre[1]), side_mm=side)

    def of(self, volume: Volume, index: int, *, is_label: bool = False) -> NDArray[Any]:
        """One slice of a volume within the window, on square pixels; outside the volume it is the slice's minimum.

        Args:
            volume: on any grid.
            index: of the slice.
            is_label: take the nearest voxel rather than interpolate.

        Returns:
            (256, 256).
        """
        plane = np.take(volume.voxels, index, self.slice_axis)
        edges = [edge for _, edge in _in_plane(volume, self.slice_axis)]
        steps = ((np.arange(CUT_PIXELS) + 0.5) / CUT_PIXELS - 0.5) * self.side_mm
        places = [(centre + steps) / edge - 0.5 for centre, edge in zip(self.centre_mm, edges, strict=True)]
        grid = np.meshgrid(*places, indexing="ij")
        plane = plane if is_label else plane.astype(np.float32)
        fill = 0 if is_label else float(plane.min())
        return ndimage.map_coordinates(plane, grid, order=0 if is_label else 1, mode="constant", cval=fill)


class ComparisonVolumes:
    """The volumes of a comparison, by case.

    Args:
        comparison: what was read of its folder.

    Raises:
        InputError: no run left its settings, which say how volumes are turned and scaled.
    """

    def __init__(self, comparison: Comparison) -> None:
        if not comparison.settings:
            raise InputError(
                file=comparison.folder,
                found="no config.yaml of any run",
                expected="the settings of one, for the orientation and the intensity of its volumes",
                remedy="run more of the comparison",
            )
        self.comparison, self.settings = comparison, comparison.settings
        self.slice_axis = int(self.settings.get("slice_axis", 2)) % 3

    def held_out(self) -> dict[str, Item]:
        """The target's held-out cases with labels, by name.

        Raises:
            InputError: the datalist or a volume is not there.
        """
        items = read_datalist(str(self.comparison.datalist("target")), "validation", needs_label=True)
        return {case_name(item["image"]): item for item in items}

    def labelled(self) -> dict[str, Item]:
        """The source's labelled cases, training and validation, by name.

        Raises:
            InputError: the datalist or a volume is not there.
        """
        path = str(self.comparison.datalist("source"))
        sections = ("training", "validation")
        items = [item for name in sections for item in read_datalist(path, name, needs_label=True, may_be_empty=True)]
        return {case_name(item["image"]): item for item in items}

    def image(self, path: str | Path, intensity: Intensity) -> Volume:
        """An image as the networks see it, in [-1, 1].

        Args:
            path: NIfTI file.
            intensity: the rule of the domain it belongs to.

        Raises:
            InputError: the file cannot be read.
        """
        volume = self._oriented(path)
        base = ConfigParser.load_config_file(str(TRAINING)) if intensity == "labelled_intensity" else self.settings
        rule = base[intensity]
        transform = ConfigParser({"rule": rule, "slice_axis": self.slice_axis}).get_parsed_content("rule")
        scaled = transform({"image": torch.from_numpy(volume.voxels.astype(np.float32))[None]})["image"][0]
        return Volume(voxels=np.asarray(scaled), spacing_mm=volume.spacing_mm)

    def truth(self, path: str | Path) -> Volume:
        """A label map as class ids 0..K.

        Raises:
            InputError: the file cannot be read, or holds values that the task does not name.
        """
        volume = self._oriented(path)
        to_classes = LabelsToClassesd("label", self.settings["label_values"], self.settings["background_values"])
        classes = to_classes({"label": torch.from_numpy(volume.voxels.astype(np.int32))[None]})["label"][0]
        return Volume(voxels=np.asarray(classes), spacing_mm=volume.spacing_mm)

    def prediction(self, run: RunResult, case: str) -> Volume:
        """A run's label map of a held-out case, as class ids 0..K.

        Raises:
            InputError: the file cannot be read.
        """
        volume = self._oriented(run.folder / "eval" / "predictions" / f"{case}_seg.nii.gz")
        return Volume(voxels=volume.voxels.astype(np.uint8), spacing_mm=volume.spacing_mm)

    def mask(self, run: RunResult, case: str) -> Volume:
        """A run's local mask of a held-out case, in [0, 1].

        Raises:
            InputError: the file cannot be read.
        """
        volume = self._oriented(mask_path(run, case))
        return Volume(voxels=volume.voxels.astype(np.float32), spacing_mm=volume.spacing_mm)

    def field_of_view(self, volume: Volume) -> Cut:
        """A window on what the network sees of a volume's slices: their middle, ``slice_size`` of its pixels wide."""
        whole = Cut.whole(volume, self.slice_axis)
        spacing = [
            edge for axis, edge in enumerate(self.settings.get("spacing_mm", [-1.0] * 3)) if axis != self.slice_axis
        ]
        sizes = self.settings.get("slice_size", [math.inf, math.inf])
        seen = [size * edge for size, edge in zip(sizes, spacing, strict=True) if edge > 0]
        return replace(whole, side_mm=min([whole.side_mm, *([max(seen)] if seen else [])]))

    def feature_voxels(self, volume: Volume) -> tuple[int, ...]:
        """Edge of one feature, and so of one pixel of the local mask, in voxels of a volume's grid; 1 across slices."""
        stride = int(self.settings.get("output_stride", 8))
        return tuple(
            1 if axis == self.slice_axis else max(1, round(stride * self._network_pixel(volume, axis)))
            for axis in range(3)
        )

    def network_voxels(self, volume: Volume) -> tuple[int, ...]:
        """Edge of one of the network's pixels in voxels of a volume's own grid; 1 across slices."""
        return tuple(
            1 if axis == self.slice_axis else max(1, round(self._network_pixel(volume, axis))) for axis in range(3)
        )

    def _network_pixel(self, volume: Volume, axis: int) -> float:
        asked = float(self.settings.get("spacing_mm", [-1.0] * 3)[axis])
        return asked / volume.spacing_mm[axis] if asked > 0 else 1.0

    def _oriented(self, path: str | Path) -> Volume:
        try:
            volume = _loader()(path)
        except Exception as error:
            raise InputError(
                file=path,
                found="no volume that can be read",
                expected="NIfTI, as the comparison wrote it",
                remedy="run that part of the comparison again",
            ) from error
        axes = self.settings.get("orientation")
        volume = Orientation(axes, labels=None)(volume) if axes else volume
        spacing = np.linalg.norm(np.asarray(volume.affine)[:3, :3], axis=0)
        return Volume(voxels=np.asarray(volume[0]), spacing_mm=tuple(spacing.tolist()))


@cache
def _loader() -> LoadImage:
    """One for all volumes: each that is made tries every reader of MONAI's, and some warn of what is not installed."""
    return LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True)


def mask_path(run: RunResult, case: str) -> Path:
    """Where inference writes the local mask of a case."""
    return run.folder / "masks" / f"{case}_mask.nii.gz"


def _in_plane(volume: Volume, slice_axis: int) -> list[tuple[int, float]]:
    """Size and voxel edge of the two axes of a slice."""
    pairs = zip(volume.voxels.shape, volume.spacing_mm, strict=True)
    return [pair for axis, pair in enumerate(pairs) if axis != slice_axis]
