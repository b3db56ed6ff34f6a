"""SIFA's preprocessed hearts: tfrecords of single slices for training, npz volumes for testing.

The records contain no case ids, spacing or position; slices are stacked in the order of their names. Such a stack is
not the volume of a patient.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import nibabel as nib
import numpy as np
from scripts.core.errors import InputError, innermost_message
from scripts.data.case_names import natural_order, visible_files
from scripts.data.volumes import check_values
from scripts.lab.prepare.source_case import Reading, SearchOptions, SourceCase, not_this_data_set
from scripts.lab.prepare.tfrecord import parse_example, read_records

__all__ = ["SifaFiles", "read_record_slice"]

DOMAINS = ("ct", "mr")
SECTIONS = {"train": "training", "val": "validation", "test": "test"}


class SifaFiles:
    """tfrecords and npz files anywhere below a folder, with modality and section in their paths.

    The npz volumes are flipped along ``test_flip_axes`` to match the training slices. ``axis_codes`` are the directions
    of the slices' axes and of the stack, as nibabel writes them.
    """

    def __init__(self, *, slices_per_stack: int, test_flip_axes: Sequence[int], axis_codes: str) -> None:
        self.slices_per_stack, self.test_flip_axes = slices_per_stack, tuple(test_flip_axes)
        orientation = nib.orientations.axcodes2ornt(tuple(axis_codes))
        self.affine = nib.orientations.inv_ornt_aff(orientation, (1, 1, 1))
        self.affine[:3, 3] = 0.0

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """Stacks of training and validation slices, and test volumes."""
        groups: dict[tuple[str, str], list[Path]] = {}
        volumes: list[tuple[str, Path]] = []
        for path in visible_files(source):
            if path.suffix not in (".tfrecords", ".npz"):
                continue
            domain = _domain_of(path, source)
            if not options.wants(domain):
                continue
            if path.suffix == ".npz":
                volumes.append((domain, path))
            else:
                groups.setdefault((domain, _section_of(path, source)), []).append(path)
        if not groups and not volumes:
            raise not_this_data_set(source, "files such as ct_train_slice0.tfrecords or test_ct/ct_1003.npz", "SIFA")
        stacks = [case for key, files in sorted(groups.items()) for case in self._stacks(*key, files)]
        return [*stacks, *(self._volume(*volume) for volume in volumes)]

    def _stacks(self, domain: str, section: str, files: list[Path]) -> list[SourceCase]:
        files = sorted(files, key=natural_order)
        size = self.slices_per_stack
        parts = [tuple(files[start : start + size]) for start in range(0, len(files), size)]
        return [
            SourceCase(domain, f"{domain}_{section}_{index:03d}", None, part, partial(self._read_stack, part), section)
            for index, part in enumerate(parts)
        ]

    def _volume(self, domain: str, path: Path) -> SourceCase:
        digits = re.findall(r"\d+", path.stem)
        name = f"{domain}_{digits[-1] if digits else path.stem}"
        read = partial(self._read_volume, path)
        return SourceCase(domain, name, int(digits[-1]) if digits else None, (path,), read, "test")

    def _read_stack(self, files: Sequence[Path]) -> Reading:
        slices = [read_record_slice(path) for path in files]
        images = [image for image, _ in slices]
        for path, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                expected, remedy = f"{images[0].shape} as in {files[0].name}", "keep slices of one release in a folder"
                raise InputError(file=path, found=f"a slice of {image.shape}", expected=expected, remedy=remedy)
        stack = np.stack(images if len(images) > 1 else images * 2, axis=-1)
        labels = np.stack([label for _, label in (slices if len(slices) > 1 else slices * 2)], axis=-1)
        check_values(stack, str(files[0].parent), is_label=False)
        notes = [f"slices {files[0].name} to {files[-1].name}"]
        notes += ["the single slice was repeated, because a volume has at least two"] * (len(files) == 1)
        return Reading(stack, self.affine, labels, files[0].parent, tuple(notes))

    def _read_volume(self, path: Path) -> Reading:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                image, label = arrays["arr_0"], arrays["arr_1"]
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(
                file=path,
                found=f"no such archive ({innermost_message(error)})",
                expected="an npz file with the image as arr_0 and the label map as arr_1",
                remedy="download the file again",
            ) from error
        if image.ndim != 3 or image.shape != label.shape:
            found, expected = f"an image of {image.shape} and a label map of {label.shape}", "two volumes of one shape"
            raise InputError(file=path, found=found, expected=expected, remedy="download the file again")
        check_values(image, str(path), is_label=False)
        image, label = np.flip(image, self.test_flip_axes), np.flip(label, self.test_flip_axes)
        flipped = f"flipped on axes {' and '.join(map(str, self.test_flip_axes))} to match the training slices"
        return Reading(image.astype(np.float32, copy=False), self.affine, label, path, (flipped,))


def read_record_slice(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image and label, (H, W) float32, of a tfrecord's slice: the middle one of its three."""
    records = list(read_records(path))
    try:
        (record,) = records
        features = parse_example(record)
        return _middle(features, "data_vol", "dsize"), _middle(features, "label_vol", "lsize")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            file=path,
            found=f"{len(records)} records, or one of another kind ({innermost_message(error)})",
            expected="one example with data_vol and label_vol (float32) and their sizes",
            remedy="download the file again, or check whether it belongs to another release",
        ) from error


def _middle(features: dict, data: str, size: str) -> np.ndarray:
    shape = tuple(int(features[f"{size}_dim{axis}"][0]) for axis in range(3))
    volume = np.frombuffer(features[data][0], "<f4").reshape(shape)
    return volume[..., shape[2] // 2]


def _domain_of(path: Path, source: Path) -> str:
    """The modality in the name of the file or, without one, of the nearest folder."""
    for part in _parts(path, source):
        named = {word for word in re.findall("[a-z]+", part) if word in DOMAINS}
        if len(named) == 1:
            return named.pop()
    found = "neither 'ct' nor 'mr' in its name and folders"
    expected = "a path with the modality, such as test_ct/ct_1003.npz"
    raise InputError(file=path, found=found, expected=expected, remedy="put it into a folder named after its modality")


def _section_of(path: Path, source: Path) -> str:
    for part in _parts(path, source):
        for word in re.findall("[a-z]+", part):
            for start, section in SECTIONS.items():
                if word.startswith(start):
                    return section
    found = "neither 'train' nor 'val' in its name and folders"
    expected = "a path with the section, such as ct_train_slice0.tfrecords"
    raise InputError(file=path, found=found, expected=expected, remedy="put it into a folder named train or val")


def _parts(path: Path, source: Path) -> list[str]:
    """The path's parts up to and including the source's name, from the file upwards, in lower case."""
    return [part.lower() for part in reversed((source.absolute().name, *path.relative_to(source).parts))]
