"""MONAI transforms of volumes that MONAI lacks: loading with checks, labels to classes, units, removal of the table.

Everything else on a volume's road (orientation, resampling, intensity, cropping, inversion) is MONAI's own, listed
in the YAML.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImaged, MapLabelValue, MapTransform

from scripts.core.errors import InputError
from scripts.data.sections import body_mask

__all__ = [
    "KeepBodyd",
    "LabelsToClassesd",
    "LoadVolumed",
    "RequireRanged",
    "affine_gap_mm",
    "check_cases",
    "check_same_grid",
    "check_shape",
    "check_values",
    "header_gap_mm",
    "innermost_message",
]

AFFINE_TOLERANCE_MM = 1e-3
"""Gap of two affines, entry by entry, up to which they are one grid: at the 256th voxel it is a quarter of a
millimetre. Tools that write in single precision stay below a tenth of it."""

QFORM_TOLERANCE_MM = 1e-2
"""The same between qform and sform: a quaternion in single precision turns an axis that is nearly straight by up to
0.0085 mm a voxel of 8 mm."""


CT_FAT_HU = -50.0
"""Every CT in HU shows something below this, if not air then fat; one that does not has another unit."""


class LoadVolumed(LoadImaged):
    """MONAI's ``LoadImaged`` for 3D NIfTI volumes, channel first, that refuses what cannot be segmented.

    A label among the keys must lie on the image's grid: same shape, same affine.

    Raises:
        InputError: the file is missing, truncated or no NIfTI; it is not 3D; it holds NaN, infinite or constant
            values; image and label differ in shape or position.
    """

    def __init__(self, keys: KeysCollection, label_key: str = "label", allow_missing_keys: bool = False) -> None:
        super().__init__(
            keys,
            reader="NibabelReader",
            ensure_channel_first=True,
            image_only=True,
            allow_missing_keys=allow_missing_keys,
        )
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Load and check each key."""
        paths = {key: data[key] for key in self.key_iterator(data)}
        for path in paths.values():
            _check_header(path)
        try:
            loaded = super().__call__(data, reader)
        except Exception as error:
            raise InputError(
                file=", ".join(str(path) for path in paths.values()),
                found=f"data that cannot be read ({innermost_message(error)})",
                expected="complete NIfTI files",
                remedy="copy or export the file again; it may be truncated",
            ) from error
        for key, path in paths.items():
            check_values(loaded[key], path, is_label=key == self.label_key)
        images = [key for key in paths if key != self.label_key]
        if self.label_key in paths and images:
            image, label = loaded[images[0]], loaded[self.label_key]
            grids = (image.shape[1:], image.affine, label.shape[1:], label.affine)
            check_same_grid(*grids, paths[images[0]], paths[self.label_key])
        return loaded


class LabelsToClassesd(MapTransform):
    """Label values as they stand in the files to class ids 0..K; an unknown value stops the run.

    Args:
        keys: keys of label maps.
        label_values: the file's value of class 1, 2, ... K.
        background_values: values that count as background, besides 0.

    Raises:
        InputError: a value that the task does not name.
    """

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
            unknown = sorted(set(np.unique(np.asarray(label)).tolist()) - {float(value) for value in self.known})
            if unknown:
                raise InputError(
                    file=_file_of(label, key),
                    found=f"label value(s) {', '.join(f'{value:g}' for value in unknown[:8])}",
                    expected=f"only {', '.join(map(str, sorted(self.known)))}",
                    remedy="add them to label_values or background_values of the task file, or mend the label map",
                )
            mapped[key] = self.mapper(label)
        return mapped


class KeepBodyd(MapTransform):
    """Set everything outside the patient (table, clothing, air) to a CT's minimum.

    Args:
        keys: keys of CT images (1, H, W, D) in HU.
        threshold: values above it are tissue, in HU.

    Raises:
        InputError: no piece of tissue, or neither air nor fat, such as an image of another unit or pure noise.
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
    """Leave images as they are, and refuse those of another unit: for volumes that are already scaled.

    Args:
        keys: keys of images (1, H, W, D).
        within: lowest and highest value that the percentiles 0.5 and 99.5 of an image may have.

    Raises:
        InputError: values of another unit.
    """

    def __init__(self, keys: KeysCollection, within: Sequence[float], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowest, self.highest = within

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Look at each image."""
        for key in self.key_iterator(dict(data)):
            low, high = np.percentile(np.asarray(data[key]), (0.5, 99.5))
            if low < self.lowest or high > self.highest:
                raise InputError(
                    file=_file_of(data[key], key),
                    found=f"intensities that are not scaled: {low:.4g} to {high:.4g} (percentiles 0.5 and 99.5)",
                    expected=f"values within {self.lowest:g} and {self.highest:g}, scaled to about -1 to 1",
                    remedy="prepare the volumes with the protocol that the task file names, or take the task file for "
                    "volumes in their own unit",
                )
        return dict(data)


def _no_ct(image: Any, key: Hashable, found: str) -> InputError:
    return InputError(
        file=_file_of(image, key),
        found=f"{found}, values {image.min():g} to {image.max():g}",
        expected="a CT in HU",
        remedy="look at the volume; give it in HU, or give a volume of the modality that the task names",
    )


def _check_header(path: str) -> None:
    try:
        shape = nib.load(path).shape
    except FileNotFoundError as error:
        raise InputError(
            file=path, found="no such file", expected="a NIfTI volume", remedy="correct the path"
        ) from error
    except Exception as error:
        remedy = "convert the volume to .nii or .nii.gz, or copy it again if it is damaged"
        raise InputError(
            file=path, found=f"no NIfTI ({innermost_message(error)})", expected="a NIfTI volume", remedy=remedy
        ) from error
    while len(shape) > 3 and shape[-1] == 1:  # some tools write an axis of one time point
        shape = shape[:-1]
    check_shape(shape, path)


def check_shape(shape: Sequence[int], path: str) -> None:
    """Refuse what is no volume.

    Raises:
        InputError: another number of axes than 3, or an axis of fewer than 2 voxels; ``path`` is named in it.
    """
    if len(shape) != 3 or min(shape) < 2:
        remedy = "split a 4D file into its volumes, stack 2D files into one"
        found = f"{len(shape)} dimensions {tuple(shape)}"
        raise InputError(file=path, found=found, expected="a 3D volume, at least 2 voxels each way", remedy=remedy)


def check_values(volume: MetaTensor | np.ndarray, path: str, is_label: bool) -> None:
    """Refuse a volume with values that no training can use.

    Args:
        volume: of any shape.
        path: its file, for the error.
        is_label: whether one value everywhere is legal.

    Raises:
        InputError: NaN or infinite values, or an image of one value.
    """
    lowest, highest = float(volume.min()), float(volume.max())
    if not np.isfinite([lowest, highest]).all():
        remedy = "export the volume again, or replace those values by the background's"
        raise InputError(file=path, found="NaN or infinite values", expected="finite ones", remedy=remedy)
    if not is_label and lowest == highest:
        remedy = "leave this case out or export it again"
        raise InputError(file=path, found=f"one value everywhere ({lowest:g})", expected="an image", remedy=remedy)


def check_cases(dataset: Sequence[Any]) -> None:
    """Prepare each case of a dataset once and let it go: what cannot be used is found now, not in a training's middle.

    Raises:
        InputError: as the dataset's transforms, somewhere among the causes of MONAI's error.
    """
    for index in range(len(dataset)):
        dataset[index]


def check_same_grid(
    image_shape: Sequence[int],
    image_affine: Any,
    label_shape: Sequence[int],
    label_affine: Any,
    image_path: str,
    label_path: str,
) -> None:
    """Refuse a label map that does not lie on its image's grid: same shape (H, W, D), same affine (4, 4).

    Raises:
        InputError: naming both files.
    """
    if tuple(image_shape) != tuple(label_shape):
        found = f"a label of {tuple(label_shape)} voxels"
        expected = f"{tuple(image_shape)} as in {image_path}"
    elif (gap := affine_gap_mm(image_affine, label_affine)) > AFFINE_TOLERANCE_MM:
        found, expected = f"an affine that differs by up to {gap:.3g} mm", f"the affine of {image_path}"
    else:
        return
    remedy = "resample the label to the image's grid, or copy the image's header if only that is wrong"
    raise InputError(file=label_path, found=found, expected=expected, remedy=remedy)


def affine_gap_mm(first: Any, second: Any) -> float:
    """By how much, at most, the entries of two affines (4, 4) differ, wherever the volumes lie."""
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).max())


def header_gap_mm(header: nib.Nifti1Header) -> float:
    """By how much, at most, qform and sform of a header differ; 0 where one of them is not set."""
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    return 0.0 if qform is None or sform is None else affine_gap_mm(qform, sform)


def _file_of(volume: Any, key: Hashable) -> str:
    return str(getattr(volume, "meta", {}).get("filename_or_obj", f"'{key}'"))


def innermost_message(error: BaseException) -> str:
    """Kind and first line of the exception at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".strip(": ")
