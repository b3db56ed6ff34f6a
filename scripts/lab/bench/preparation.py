"""Speed of preparation: DICOM series relative to SimpleITK's reader, cases relative to decompressing their files."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import torch
from pydicom.uid import CTImageStorage
from scripts.lab.bench.timing import Measurement, Ratio, round_robin
from scripts.lab.cores import available_cores
from scripts.lab.prepare.dicom_folders import read_series
from scripts.lab.prepare.nifti_pairs import write_nifti
from scripts.lab.prepare.run import Preparation, prepare

__all__ = ["compress_dicom", "measure_preparation", "write_series"]

CASES = (2, 3, 4, 5)
SERIES = {"series": "DICOM series", "short_series": "short DICOM series", "jpeg2000_series": "JPEG 2000 series"}
SPACING_MM = (0.78, 0.78, 3.0)


def measure_preparation(*, quick: bool, rounds: int) -> Measurement:
    """Time reading DICOM series, long, short and in JPEG 2000, and preparing CT volumes as `btcv` under `clean`.

    The volumes are generated; both readers are asserted to give the same voxels.
    """
    shape = (48, 48, 10) if quick else (512, 512, 120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, label = _volume(shape)
        quarter = image[..., : shape[2] // 4]
        write_series(folder / "series", image, compress=False)
        write_series(folder / "short_series", quarter, compress=False)
        write_series(folder / "jpeg2000_series", quarter, compress=True)
        files = _write_cases(folder / "btcv", image, label)
        variants: dict[str, Callable[[], object]] = {
            "cases": partial(_prepare_anew, folder),
            "unpacking": lambda: [gzip.decompress(file.read_bytes()) for file in files],
        }
        variants |= {name: partial(read_series, folder / name) for name in SERIES}
        notes: tuple[str, ...] = ("SimpleITK is not installed (it comes with medpy): not compared",)
        if find_spec("SimpleITK"):
            variants |= {f"{name}_simpleitk": partial(_simpleitk, folder / name) for name in SERIES}
            _check_equal(folder)
            notes = ()
        timings = round_robin(variants, rounds=rounds, device=torch.device("cpu"))
    seconds = timings.seconds["cases"]
    cores = available_cores()
    notes = (f"{60 * len(CASES) / seconds:.0f} volumes with their labels a minute on {cores} core(s)", *notes)
    return Measurement(
        size=f"{' x '.join(map(str, shape))} voxels int16, a quarter of that in the other series, {len(CASES)} cases",
        timings=timings,
        ratios=[
            *(
                Ratio(name=f"{what} : SimpleITK", value=timings.ratio(f"{key}_simpleitk", key), target=1.0)
                for key, what in SERIES.items()
                if f"{key}_simpleitk" in variants
            ),
            Ratio(name="preparing : unpacking its files on one core", value=timings.ratio("unpacking", "cases")),
        ],
        notes=notes,
    )


def write_series(folder: Path, image: np.ndarray, *, compress: bool) -> None:
    """Write a volume (X, Y, Z) int16 as a DICOM series, plain or in lossless JPEG 2000."""
    folder.mkdir(parents=True)
    for index in range(image.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, f"1.2.3.{index + 1}"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.Modality = "1.2.1", "1.2.2", "CT"
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, SPACING_MM[2] * index], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing = list(SPACING_MM[:2])
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.set_pixel_data(np.ascontiguousarray(image[..., index].T), "MONOCHROME2", 16)
        file = folder / f"{index:04d}.dcm"
        slice_.save_as(file, enforce_file_format=True)
        if compress:
            compress_dicom(file, "JPEG2000Lossless")


def compress_dicom(file: Path, syntax: str) -> None:
    """Encode the pixels of a DICOM file anew in a transfer syntax, by its name in GDCM."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(file))
    reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    change.Change()
    writer.SetFileName(str(file))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.Write()


def _prepare_anew(folder: Path) -> None:
    """Prepare all cases into a new folder, because finished cases are skipped."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        prepare(Preparation("btcv", folder / "btcv", Path(out)))


def _write_cases(folder: Path, image: np.ndarray, label: np.ndarray) -> list[Path]:
    folder.mkdir()
    affine = np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0])
    files = []
    for number in CASES:
        for name, voxels in ((f"img{number:04d}", image), (f"label{number:04d}", label)):
            files.append(folder / f"{name}.nii.gz")
            write_nifti(files[-1], voxels, affine)
    return files


def _volume(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A noisy CT of a body in air with four spheres, labelled with BTCV's values."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape), indexing="ij")
    body = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    label = np.zeros(shape, np.uint8)
    for value, (a, b, c) in {
        6: (-0.35, -0.1, 0.2),
        2: (-0.3, 0.3, -0.3),
        3: (0.3, 0.3, -0.3),
        1: (0.45, 0, 0.2),
    }.items():
        label[(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < 0.04] = value
    noise = rng.standard_normal(shape, dtype=np.float32)
    image = np.where(body, 40 + 20 * (label > 0) + 14 * noise, -1000 + 6 * noise)
    # Axis by axis as NIfTI files store them.
    return np.asfortranarray(np.clip(image, -1024, 3000).astype(np.int16)), np.asfortranarray(label)


def _check_equal(folder: Path) -> None:
    for name in SERIES:
        if not np.array_equal(read_series(folder / name).image, _simpleitk(folder / name).T):
            raise ValueError(f"SimpleITK reads other voxels from the {name} series: they must be equal")


def _simpleitk(folder: Path) -> np.ndarray:
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())
