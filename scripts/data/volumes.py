"""Volume transforms that MONAI lacks: checked loading, labels to class ids, unit checks, removal of the CT table."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapLabelValue, MapTransform
from monai.utils import convert_to_tensor
from scripts.core.errors import InputError
from scripts.core.schema import LARGEST_LABEL
from scripts.data.geometry import check_same_grid
from scripts.data.nifti import NiftiReader
from scripts.data.sections import COUNTED_VOXELS, body_mask

__all__ = [
    "CheckedLoadImaged",
    "KeepBodyd",
    "LabelsToClassesd",
    "RequireRanged",
    "check_cases",
    "check_labelled",
    "check_preprocessed",
    "check_values",
    "class_voxels",
    "odd_intensities",
    "report_structures",
    "run_counted",
    "whole_values",
]

logger = logging.getLogger(__name__)

LABEL_TOLERANCE = 1e-3  # label values this close to a whole number differ from it by a rounding error
CT_FAT_HU = -50.0  # air and fat, which every CT contains, lie below it; a volume without such values is not in HU
BACKGROUND = -1.0  # value of preprocessed images outside their field of view
ENDS, MOST_CLIPPED = 0.999, 0.5  # absolute intensity from which a voxel is clipped; share of a structure that may be
LEAST_SPAN = 0.1  # between the 5th and 95th percentiles of all structures; below it the window is too wide for them


class CheckedLoadImaged(LoadImaged):
    """MONAI's ``LoadImaged`` for 3D NIfTI volumes; an InputError refuses values and grids that no task can use.

    An image of at most 2 bytes a voxel keeps its type, which resampling converts slab by slab; others and labels become
    float32. A label must have its image's shape and affine. Its values are rounded if a scale factor in the header
    turned 1 into 1.0000001. The channel axis is added by another transform, because MONAI Deploy, which passes volumes
    in memory, skips every transform whose class name contains ``LoadImage``.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label", allow_missing_keys: bool = False) -> None:
        logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI starts every reader it knows, and each says what it lacks
            super().__init__(keys, NiftiReader, dtype=None, image_only=True, allow_missing_keys=allow_missing_keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Load and check each key."""
        paths = {key: data[key] for key in self.key_iterator(data)}
        loaded = super().__call__(data, reader or NiftiReader())
        if self.label_key in paths:
            label = loaded[self.label_key]
            loaded[self.label_key] = whole_values(label) if label.is_floating_point() else label.float()
        for key, path in paths.items():
            check_values(loaded[key], path, is_label=key == self.label_key)
        images = [key for key in paths if key != self.label_key]
        if self.label_key in paths and images:
            image, label = loaded[images[0]], loaded[self.label_key]
            grids = (image.shape, image.affine, label.shape, label.affine)
            check_same_grid(*grids, paths[images[0]], paths[self.label_key])
        return loaded


class LabelsToClassesd(MapTransform):
    """Map ``label_values`` of files to class ids 1..K, ``background_values`` to 0; another value is an InputError."""

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int],
        background_values: Sequence[int] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        background = [0, *(value for value in background_values if value != 0)]
        self.known = [*background, *label_values]
        classes = [0] * len(background) + list(range(1, len(label_values) + 1))
        self.mapper = MapLabelValue(self.known, classes, dtype=torch.uint8)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map each label key."""
        mapped = dict(data)
        for key in self.key_iterator(mapped):
            label = mapped[key]
            slabs = label.split(max(COUNTED_VOXELS // label[0, 0].numel(), 1), 1)  # or every step copies the volume
            values = {value for slab in slabs for value in np.unique(np.asarray(slab)).tolist()}
            unknown = sorted(values - {float(value) for value in self.known})
            if unknown:
                found = f"label value(s) {', '.join(f'{value:.9g}' for value in unknown[:8])}"
                expected = f"only {', '.join(map(str, sorted(self.known)))}"
                remedy = "add them to label_values or background_values of the task file, or correct the label map"
                raise InputError(file=_file_of(label, key), found=found, expected=expected, remedy=remedy)
            mapped[key] = torch.cat([self.mapper(slab) for slab in slabs], 1)
        return mapped


class KeepBodyd(MapTransform):
    """Set everything outside the patient (table, clothing, air) to the CT's minimum.

    Images (1, H, W, D) are in HU, and tissue lies above ``threshold``. An image without tissue, or without air and fat,
    is an InputError: it is not in HU, or is noise.
    """

    def __init__(self, keys: KeysCollection, threshold: float, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.threshold = threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Blank the surroundings in each image."""
        kept = dict(data)
        for key in self.key_iterator(kept):
            image = kept[key]
            body = body_mask(np.asarray(image[0]), self.threshold)
            if not body.any():
                raise _no_ct(image, key, f"no patient: no piece of tissue above {self.threshold:g}")
            if float(image.min()) >= CT_FAT_HU:
                raise _no_ct(image, key, f"no air and no fat: no value below {CT_FAT_HU:g}")
            kept[key] = image.masked_fill(torch.from_numpy(~body)[None], float(image.min()))
        return kept


class RequireRanged(MapTransform):
    """Refuse images (1, H, W, D) that are not scaled: the percentiles 0.5 and 99.5 must lie ``within`` a range."""

    def __init__(self, keys: KeysCollection, within: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowest, self.highest = within

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check each image."""
        for key in self.key_iterator(dict(data)):
            low, high = np.percentile(np.asarray(data[key]), (0.5, 99.5))
            if low < self.lowest or high > self.highest:
                found = f"intensities that are not scaled: {low:.4g} to {high:.4g} (percentiles 0.5 and 99.5)"
                expected = f"values within {self.lowest:g} and {self.highest:g}, scaled to about -1 to 1"
                remedy = "prepare the volumes with the task's protocol, or take the task file for volumes in their unit"
                raise InputError(file=_file_of(data[key], key), found=found, expected=expected, remedy=remedy)
        return dict(data)


def _no_ct(image: Any, key: Hashable, found: str) -> InputError:
    found, expected = f"{found}, values {image.min():g} to {image.max():g}", "a CT in HU"
    remedy = "look at the volume; give it in HU, or give a volume of the modality that the task names"
    return InputError(file=_file_of(image, key), found=found, expected=expected, remedy=remedy)


def check_values(volume: MetaTensor | np.ndarray, path: str, is_label: bool) -> None:
    """Refuse NaN and infinite values, a constant volume unless it is a label map, and labels that float32 rounds."""
    lowest, highest = float(volume.min()), float(volume.max())
    if not np.isfinite([lowest, highest]).all():
        remedy = "export the volume again, or replace those values by the background's"
        raise InputError(file=path, found="NaN or infinite values", expected="finite ones", remedy=remedy)
    if is_label and max(-lowest, highest) > LARGEST_LABEL:
        found, expected = f"label values from {lowest:.9g} to {highest:.9g}", f"values within {LARGEST_LABEL} of 0"
        raise InputError(file=path, found=found, expected=expected, remedy="number the structures from 1")
    if not is_label and lowest == highest:
        remedy = "leave this case out or export it again"
        raise InputError(file=path, found=f"one value everywhere ({lowest:g})", expected="an image", remedy=remedy)


def run_counted(transform: Any, item: Mapping[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """Run a ``Compose``, or one transform, on a datalist entry, and count the voxels of the classes 0 to 255.

    Returns the case, and the counts after each step, from the one that makes class ids on.
    """
    case: Any = dict(item)
    counts: dict[str, torch.Tensor] = {}
    for step in getattr(transform, "transforms", (transform,)):
        case = step(case)
        if "label" in case and (counts or isinstance(step, LabelsToClassesd)):
            counts["reading" if not counts else type(step).__name__] = class_voxels(case["label"])
    return case, counts


def class_voxels(label: torch.Tensor) -> torch.Tensor:
    """The number of voxels of each class id, (256,)."""
    return convert_to_tensor(label, track_meta=False).flatten().int().bincount(minlength=256)  # plain, for the cache


def check_labelled(
    counts: Sequence[Mapping[str, torch.Tensor]], structures: Sequence[str], data: Sequence[Mapping[str, str]]
) -> None:
    """Refuse structures without a voxel to learn from, naming the step that lost it; warn of those that a case loses.

    ``counts`` are those of :func:`run_counted` for each case in ``data``; ``structures`` are the classes 1, 2, ...
    """
    steps = counts[0] if structures else {}
    totals = {step: torch.stack([case[step] for case in counts]).sum(0) for step in steps}
    for number, name in enumerate(structures, 1):
        voxels = ", ".join(f"{int(total[number])} after {step}" for step, total in totals.items())
        logger.info("Labelled voxels of %s: %s", name, voxels)
        if not any(list(case.values())[-1][number] for case in counts):
            lost = next(step for step, total in totals.items() if not total[number])
            found = f"no labelled voxel of {name} to learn from: {voxels.split(f'after {lost}')[0]}after {lost}"
            expected = "some of every structure in label_names"
            remedy = "correct label_values, section or orientation in the task file, or add labelled cases"
            raise InputError(file=os.path.dirname(data[0]["label"]), found=found, expected=expected, remedy=remedy)
        for case, item in zip(counts, data, strict=True):
            left = [int(count[number]) for count in case.values()]
            if left[0] and not left[-1]:
                lost = list(case)[left.index(0)]
                logger.warning("%s: all %d voxels of %s are lost in %s.", item["label"], left[0], name, lost)


def check_preprocessed(slices: torch.Tensor, file: object) -> None:
    """Refuse slices (D, C, H, W) of a file that preprocessing made NaN or infinite: a network would spread them."""
    usable = slices.isfinite().flatten(1).all(1)
    if not bool(usable.all()):
        found = f"NaN or infinite values in slice {int((~usable).nonzero()[0])} after preprocessing"
        remedy = "check the intensity transforms of the task file against this volume's values"
        raise InputError(file=file, found=found, expected="finite ones", remedy=remedy)


def report_structures(slices: Any, label_names: Sequence[str] = ()) -> None:
    """Log what the network sees of each labelled structure, and warn of :func:`odd_intensities`."""
    where, remedy = f"{len(slices.data)} labelled volume(s)", "correct the window and the output range (-1 to 1)"
    for finding in odd_intensities(slices, label_names):
        logger.warning("%s: %s. Expected structures that differ in intensity. Fix: %s.", where, finding, remedy)


def odd_intensities(slices: Any, label_names: Sequence[str]) -> list[str]:
    """Intensities of a ``SliceSet`` outside the network's range, or in which structures (1..K) cannot be told."""
    images, where = slices.images, f"{len(slices.data)} labelled volume(s)"
    odd, spans = [], []
    for number, name in enumerate(label_names, start=1):
        inside = slices.labels == number
        values = images[inside].cpu().numpy()
        if len(values) == 0:
            continue
        clipped, span = float((np.abs(values) >= ENDS).mean()), np.percentile(values, (5, 95))
        spans.append(span)
        seen = f"{int(inside.flatten(1).any(1).sum())} slices, {100 * clipped:.0f} % of it clipped"
        logger.info("%s: %s: %s, intensities %.2f to %.2f", where, name, seen, *span)
        odd += [f"{100 * clipped:.0f} % of {name} is clipped"] if clipped > MOST_CLIPPED else []
    if spans and (width := float(np.max(spans) - np.min(spans))) < LEAST_SPAN:
        odd.append(f"all structures lie within {width:.2f} of the intensity range, which is 2 wide")
    if not bool(((images > -ENDS) & (images < 0)).any()):
        odd.append("no intensity between -1, the lowest, and 0")
    if float(images.abs().max()) > 1.001:
        odd.append(f"intensities from {float(images.min()):.2f} to {float(images.max()):.2f}")
    return odd


def whole_values(label: Any) -> Any:
    """Round a label map, array or tensor, if all of its values are whole numbers up to a rounding error."""
    rounded = label.round()
    return rounded if bool((abs(label - rounded) <= LABEL_TOLERANCE).all()) else label


def check_cases(dataset: Sequence[Any]) -> None:
    """Preprocess each case of a dataset once and discard it, to find unusable cases before a training starts."""
    for index in range(len(dataset)):
        dataset[index]


def _file_of(volume: Any, key: Hashable) -> str:
    return str(getattr(volume, "meta", {}).get("filename_or_obj", f"{key!r}"))
