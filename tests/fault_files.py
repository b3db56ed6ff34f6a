"""Damaged files and wrong values for the fault campaign, and whether what is read from them equals the original."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage
from scripts.core.files import save_tensors
from scripts.core.schema import SCHEMA, check_values
from scripts.core.weights import digest_of, load_weights, read_state, save_weights
from scripts.data.nifti import read_nifti
from scripts.handlers.checkpoints import DIGEST, ResumePoint, content_digest
from scripts.lab.prepare.dicom_folders import read_series
from torch import nn

# A row of the table, the fault in words, and what returns whether the result is that without the fault.
Fault = tuple[str, str, Callable[[], bool]]

# Values of which none is right for any setting but a switch or a name.
WRONG_VALUES = [-7, 1.5e300, float("nan"), "banana", [], {}, [[1]], "1e-3", True]

# Values that no machine can hold or finish.
HUGE_VALUES: dict[str, list[Any]] = {
    "batch_size slice_batch_size": [10**5, 10**9],
    "generator_channels discriminator_channels generator_blocks": [10**5, 10**9],
    "max_epochs iterations_per_epoch pseudo_label_rounds": [10**9, 10**12],
    "scales pseudo_label_scales": [[1e3], [1e-6]],
    "slice_size": [[32, 8192], [10**9, 32]],
}

# Values of which none is right for a slice of 12 x 10 pixels of 16 bits; None removes the element.
WRONG_ELEMENTS: dict[str, list[Any]] = {
    "PixelSpacing": [None, "0\\0", "-2\\-2", "1e30\\1", "nan\\1", "1", "banana"],
    "ImagePositionPatient": [None, "0\\0", "inf\\0\\0", "nan\\0\\0", "1e30\\0\\0"],
    "ImageOrientationPatient": [None, "0\\0\\0\\0\\0\\0", "1\\0\\0\\1\\0\\0", "2\\0\\0\\0\\1\\0", "nan\\0\\0\\0\\1\\0"],
    "RescaleSlope": ["0", "1e30", "inf", "nan", "banana"],
    "RescaleIntercept": ["1e30", "inf", "nan", "banana"],
    "Rows": [None, 0, 1, 5, 20, 65535],
    "Columns": [None, 0, 1, 6, 24, 65535],
    "BitsAllocated": [None, 0, 1, 8, 12, 32, 64],
    "BitsStored": [None, 0, 17, 32, 65535],
    "HighBit": [None, 16, 40, 65535],
    "SamplesPerPixel": [0, 3, 65535],
    "PixelRepresentation": [None, 7],
    "PhotometricInterpretation": ["RGB", "PALETTE COLOR", "YBR_FULL", "banana"],
    "NumberOfFrames": ["3", "banana"],
}


def file_faults(folder: Path, volume: Path, rng: random.Random, count: int) -> Iterator[Fault]:
    """Faults of files and settings, ``count`` for each kind of file that holds tensors or voxels."""
    content = volume.read_bytes()
    for changed, what in damaged_contents(gzip.decompress(content)[:348], content, rng, count):
        yield "NIfTI file", what, partial(reads_as, folder / "damaged.nii.gz", changed, volume)
    weights, checkpoint = folder / "weights" / "model.pt", folder / "checkpoint" / "whole.pt"
    network = nn.Linear(64, 64)
    save_weights(weights, network.state_dict(), {"stage": "test"})
    for changed, what in damaged_contents(b"", weights.read_bytes(), rng, count):
        yield "weights", what, partial(_loads_as, weights, changed)
    states = {"network": network.state_dict(), "metadata": "{}", "settings": "{}"}
    save_tensors(checkpoint, states | {DIGEST: content_digest(states)})
    for changed, what in damaged_contents(b"", checkpoint.read_bytes(), rng, count):
        yield "checkpoint", what, partial(_resumes_as, checkpoint, changed, network)
    yield from _slice_faults(folder / "series", rng)
    for name, (_, is_valid) in SCHEMA.items():
        huge = [value for names, values in HUGE_VALUES.items() if name in names.split() for value in values]
        for value in [*(value for value in WRONG_VALUES if not is_valid(value)), *huge]:
            yield "setting", f"{name}: {value!r}", partial(_is_accepted, name, value)


def damaged_contents(header: bytes, content: bytes, rng: random.Random, count: int) -> Iterator[tuple[bytes, str]]:
    """Contents of a damaged file: flipped bits, cut ends, blocks of zeros, and changed headers, packed anew."""
    for number in range(count):
        place = rng.randrange(len(content))
        if number % 4 == 0:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            yield bytes(flipped), f"bit of byte {place} flipped"
        elif number % 4 == 1:
            yield content[:place], f"cut at {place}"
        elif number % 4 == 2 or not header:
            yield content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :], f"zeros at {place}"
        else:
            volume, at = bytearray(gzip.decompress(content)), rng.randrange(40, len(header))
            volume[at] ^= 1 << rng.randrange(8)
            yield gzip.compress(bytes(volume), 1), f"header byte {at} changed, checksum right"


def reads_as(file: Path, content: bytes, original: Path) -> bool:
    """Whether a damaged volume reads as the original does; a header changed on purpose may say something else."""
    file.write_bytes(content)
    found, expected = read_nifti(file), read_nifti(original)
    if content[:2] == b"\x1f\x8b" and gzip.decompress(content)[:348] != gzip.decompress(original.read_bytes())[:348]:
        return True  # a valid file with another header
    return np.array_equal(found.voxels, expected.voxels) and np.array_equal(found.affine, expected.affine)


def _loads_as(weights: Path, content: bytes) -> bool:
    damaged = weights.with_name("damaged.pt")
    damaged.write_bytes(content)
    damaged.with_suffix(".json").write_bytes(weights.with_suffix(".json").read_bytes())
    network = load_weights(str(damaged), nn.Linear(64, 64), {"stage": "test"})
    return digest_of(network.state_dict()) == digest_of(read_state(weights))


def _resumes_as(whole: Path, content: bytes, original: nn.Module) -> bool:
    damaged, network = whole.with_name("damaged.pt"), nn.Linear(64, 64)
    damaged.write_bytes(content)
    ResumePoint(path=str(damaged), save_dict={"network": network}, interval=1).load()
    return digest_of(network.state_dict()) == digest_of(original.state_dict())


def _slice_faults(folder: Path, rng: random.Random) -> Iterator[Fault]:
    """Wrong elements of one slice, or of all slices, of a series."""
    image = np.random.default_rng(rng.randrange(2**32)).integers(-1000, 1000, (10, 12, 4)).astype(np.int16)
    number = 0
    for name, values in WRONG_ELEMENTS.items():
        for value in values:
            for changed in ([rng.randrange(4)], range(4)):
                series, number = folder / str(number), number + 1
                what = f"{name} {value!r} in {len(changed)} of 4 slices"
                yield "DICOM element", what, partial(_series_reads_as, series, image, name, value, changed)


def _series_reads_as(folder: Path, image: np.ndarray, name: str, value: Any, changed: Iterable[int]) -> bool:
    _write_series(folder, image)
    tag, kind = tag_for_keyword(name), dictionary_VR(name)
    for index in changed:
        file = folder / f"{index:04d}.dcm"
        header = pydicom.dcmread(file)
        if value is None:
            del header[tag]
        else:
            content = value.to_bytes(2, "little") if kind == "US" else value.encode() + b" " * (len(value) % 2)
            header[tag] = RawDataElement(Tag(tag), kind, len(content), content, 0, False, True)  # not validated
        header.save_as(file)
    return np.array_equal(read_series(folder).image, image)


def _write_series(folder: Path, image: np.ndarray) -> None:
    """Write a volume (X, Y, Z) int16 as an axial DICOM series."""
    folder.mkdir(parents=True)
    for index in range(image.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, f"1.2.3.{index + 1}"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = "1.2.1", "1.2.2", "CT"
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 3 * index], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing = [0.78, 0.78]
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.set_pixel_data(np.ascontiguousarray(image[..., index].T), "MONOCHROME2", 16)
        slice_.save_as(folder / f"{index:04d}.dcm", enforce_file_format=True)


def _is_accepted(name: str, value: Any) -> bool:
    check_values({name: value})
    return False
