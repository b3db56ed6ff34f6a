"""Series for DICOM Segmentations, bundles to segment them, and a reader that follows only the standard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bundle.pack import pack_bundle
from conftest import ROOT, write_weights
from dicom_files import stack
from scripts.data.dicom import dicom_files

TASK = "abdomen_mr2ct"
NAMES = ["liver", "right kidney", "left kidney", "spleen"]
FORMATS = ROOT.parent / "shared" / "data" / "formats"
TINY = {"slice_size": [128, 128], "spacing_mm": [3.0, 3.0, -1.0], "seed": 4}
"""Random weights that give a body of one class and a background."""

OBLIQUE = np.array([[0.0, 0.8, -0.6], [1.0, 0.0, 0.0], [0.0, -0.6, -0.8]])
"""Directions of a row, of a column and of the stack: right-handed, none along an axis of the patient."""


def tiny_bundle(folder: Path) -> Path:
    """A packed bundle for abdominal CT with random weights."""
    weights = write_weights(TASK, folder / "weights", **TINY)
    return pack_bundle("segmentation", task=TASK, out=folder / "dist", weights=weights).folder


def write_series(folder: Path, volume: np.ndarray, *, series: int = 1, **tags: object) -> Path:
    """Write (columns, rows, slices) as an oblique series with UIDs, in files whose names are not in its order."""
    names = [f"{(7 * index) % 10}.dcm" for index in range(volume.shape[2])]
    given = {"origin": np.array([-31.0, 12.5, 7.25]), "axes": OBLIQUE, "spacing": (1.5, 2.0, 3.0), "names": names}
    stack(folder, volume, **given, intercept=-1000, SliceThickness=5, SpacingBetweenSlices=5.5)
    uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": f"1.2.3.{series}", "FrameOfReferenceUID": "1.2.9"}
    return retag(folder, **{**uids, "SeriesDescription": f"number {series}", **tags})


def retag(folder: Path, **tags: object) -> Path:
    """Give every slice an instance UID of its own and the elements named; None empties one."""
    import pydicom

    for index, file in enumerate(dicom_files(folder)):
        slice_ = pydicom.dcmread(file)
        slice_.SOPInstanceUID = f"{tags.get('SeriesInstanceUID') or '1.2.77'}.{index + 1}"
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
        for name, value in tags.items():
            setattr(slice_, name, value)
        slice_.save_as(file)
    return folder


def labels_by_slice(segmentation: Path, folder: Path) -> dict[str, np.ndarray]:
    """The class ids (rows, columns) of a Segmentation for each slice of a series, by file name.

    Read as the standard describes it, frame by frame; each frame must lie where the slice lies that it refers to.
    """
    import pydicom

    read = pydicom.dcmread(segmentation)
    slices = {
        slice_.SOPInstanceUID or slice_.file_meta.MediaStorageSOPInstanceUID: slice_ for slice_ in _slices(folder)
    }
    labels = {uid: np.zeros((slice_.Rows, slice_.Columns), np.uint8) for uid, slice_ in slices.items()}
    (shared,) = read.SharedFunctionalGroupsSequence
    pixels = read.pixel_array.reshape(-1, read.Rows, read.Columns)
    for frame, own in zip(pixels, read.PerFrameFunctionalGroupsSequence, strict=True):
        uid = own.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        source = slices[uid]
        assert own.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
        assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
        assert shared.PixelMeasuresSequence[0].PixelSpacing == source.PixelSpacing
        assert read.FrameOfReferenceUID == source.FrameOfReferenceUID
        number = own.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert not labels[uid][frame == 1].any(), "segments overlap"
        labels[uid][frame == 1] = number
    return {Path(slices[uid].filename).name: voxels for uid, voxels in labels.items()}


def _slices(folder: Path) -> list:
    import pydicom

    return [pydicom.dcmread(file, stop_before_pixels=True) for file in dicom_files(folder)]
