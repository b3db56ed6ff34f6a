"""The volumes of a comparison's pictures, preprocessed as for the networks, and square windows on their slices."""

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
from scripts.data.geometry import spacing_of
from scripts.data.volumes import LabelsToClassesd
from scripts.evaluation.montage import edge_marks
from scripts.lab.experiments.plan import shown_items
from scripts.lab.experiments.results import Comparison, RunResult

__all__ = ["ComparisonVolumes", "Cut", "Volume"]

Intensity = Literal["source_intensity", "target_intensity", "translated_intensity"]

# Edge of a cut in pixels; panels are 320 pixels wide.
CUT_PIXELS = 256

# Has ``translated_intensity``, which no task file sets.
TRAINING = Path(__file__).resolve().parents[3] / "configs" / "segmentation" / "train.yaml"


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume in the orientation of the pictures: voxels (H, W, D) and their spacing along these axes."""

    voxels: NDArray[Any]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A square window in mm, so that slices of different grids are shown at the same scale."""

    slice_axis: int  # along which slices are stacked
    centre_mm: tuple[float, float]  # in the slice, from the outer corner of the first voxel
    side_mm: float

    @classmethod
    def whole(cls, volume: Volume, slice_axis: int) -> Cut:
        """A window on whole slices."""
        extent = [size * edge for size, edge in _in_plane(volume, slice_axis)]
        return cls(slice_axis=slice_axis, centre_mm=(extent[0] / 2, extent[1] / 2), side_mm=max(extent))

    @classmethod
    def around(cls, labels: Volume, slice_axis: int, margin_mm: float) -> Cut:
        """A window on all labelled voxels with a margin; on whole slices if there are none."""
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
        """A slice within the window as (256, 256) square pixels; outside the volume it is the slice's minimum."""
        plane = np.take(volume.voxels, index, self.slice_axis)
        edges = [edge for _, edge in _in_plane(volume, self.slice_axis)]
        offsets = ((np.arange(CUT_PIXELS) + 0.5) / CUT_PIXELS - 0.5) * self.side_mm
        axes = [(centre + offsets) / edge - 0.5 for centre, edge in zip(self.centre_mm, edges, strict=True)]
        grid = np.meshgrid(*axes, indexing="ij")
        plane = plane if is_label else plane.astype(np.float32)
        fill = 0 if is_label else float(plane.min())
        return ndimage.map_coordinates(plane, grid, order=0 if is_label else 1, mode="constant", cval=fill)


class ComparisonVolumes:
    """The volumes of a comparison, by case; their orientation and intensity are those of a run's ``config.yaml``."""

    def __init__(self, comparison: Comparison) -> None:
        if not comparison.settings:
            expected = "the settings of one, for the orientation and the intensity of its volumes"
            found, remedy = "no config.yaml of any run", "run more of the comparison"
            raise InputError(file=comparison.folder, found=found, expected=expected, remedy=remedy)
        self.comparison, self.settings = comparison, comparison.settings
        self.slice_axis = int(self.settings.get("slice_axis", 2))
        self.marks = edge_marks(self.settings.get("orientation"), self.slice_axis)

    def held_out(self) -> dict[str, Item]:
        """The target's held-out cases by name, with labels if all have one; its training cases if none is held out."""
        return {case_name(item["image"]): item for item in shown_items(self.comparison.datalist("target"))}

    def labelled(self) -> dict[str, Item]:
        """The source's labelled cases, training and validation, by name."""
        path = str(self.comparison.datalist("source"))
        sections = ("training", "validation")
        items = [item for name in sections for item in read_datalist(path, name, needs_label=True, may_be_empty=True)]
        return {case_name(item["image"]): item for item in items}

    def image(self, path: str | Path, intensity: Intensity) -> Volume:
        """An image as the networks see it, in [-1, 1], by the intensity transform of its domain."""
        volume = self._oriented(path)
        base = ConfigParser.load_config_file(str(TRAINING)) if intensity == "translated_intensity" else self.settings
        parser = ConfigParser({"transform": base[intensity], "slice_axis": self.slice_axis})
        transform = parser.get_parsed_content("transform")
        scaled = transform({"image": torch.from_numpy(volume.voxels.astype(np.float32))[None]})["image"][0]
        return Volume(voxels=np.asarray(scaled), spacing_mm=volume.spacing_mm)

    def truth(self, path: str | Path) -> Volume:
        """A label map as class ids 0..K."""
        volume = self._oriented(path)
        to_classes = LabelsToClassesd("label", self.settings["label_values"], self.settings["background_values"])
        classes = to_classes({"label": torch.from_numpy(volume.voxels.astype(np.int32))[None]})["label"][0]
        return Volume(voxels=np.asarray(classes), spacing_mm=volume.spacing_mm)

    def prediction(self, run: RunResult, case: str) -> Volume:
        """A run's label map of a held-out case, as class ids 0..K."""
        volume = self._oriented(run.result_file(case, "seg"))
        return replace(volume, voxels=volume.voxels.astype(np.uint8))

    def mask(self, run: RunResult, case: str) -> Volume:
        """A run's local mask of a held-out case, in [0, 1]."""
        volume = self._oriented(run.result_file(case, "mask"))
        return replace(volume, voxels=volume.voxels.astype(np.float32))

    def field_of_view(self, volume: Volume) -> Cut:
        """A window on the centre of the slices, with the size of the network's window."""
        whole = Cut.whole(volume, self.slice_axis)
        spacing = [
            edge for axis, edge in enumerate(self.settings.get("spacing_mm", [-1.0] * 3)) if axis != self.slice_axis
        ]
        sizes = self.settings.get("slice_size", [math.inf, math.inf])
        seen = [size * edge for size, edge in zip(sizes, spacing, strict=True) if edge > 0]
        return replace(whole, side_mm=min([whole.side_mm, *([max(seen)] if seen else [])]))

    def network_voxels(self, volume: Volume, pixels: int = 1) -> tuple[int, ...]:
        """Length of ``pixels`` of the network in voxels of a volume's own grid; 1 across slices."""
        asked = self.settings.get("spacing_mm", [-1.0] * 3)
        ratios = [new / old if new > 0 else 1.0 for new, old in zip(asked, volume.spacing_mm, strict=True)]
        edges = [max(1, round(pixels * ratio)) for ratio in ratios]
        return tuple(1 if axis == self.slice_axis else edge for axis, edge in enumerate(edges))

    def feature_voxels(self, volume: Volume) -> tuple[int, ...]:
        """Length of one feature pixel, which is one pixel of the local mask, in voxels; 1 across slices."""
        network = self.settings.get("network_def", {})
        return self.network_voxels(volume, int(network.get("output_stride", 2 ** network.get("alignment_level", 3))))

    def _oriented(self, path: str | Path) -> Volume:
        try:
            volume = _loader()(path)
        except Exception as error:
            expected, remedy = "NIfTI, as the comparison wrote it", "run that part of the comparison again"
            raise InputError(file=path, found="no volume that can be read", expected=expected, remedy=remedy) from error
        axes = self.settings.get("orientation")
        volume = Orientation(axes, labels=None)(volume) if axes else volume
        return Volume(voxels=np.asarray(volume[0]), spacing_mm=spacing_of(volume.affine))


@cache
def _loader() -> LoadImage:
    """One loader for all volumes: each new one tries all of MONAI's readers, some of which log warnings."""
    return LoadImage(reader="NibabelReader", image_only=True, ensure_channel_first=True)


def _in_plane(volume: Volume, slice_axis: int) -> list[tuple[int, float]]:
    """Size and voxel edge of the two axes of a slice."""
    pairs = zip(volume.voxels.shape, volume.spacing_mm, strict=True)
    return [pair for axis, pair in enumerate(pairs) if axis != slice_axis]
