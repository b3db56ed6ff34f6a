"""DICOM series: geometry from positions, rejection of what is not one series, known problems."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import EXPLICIT, IMPLICIT, compress_dicom, stack, write_slice
from pydicom.uid import JPEGLSLossless, RLELossless
from releases import OBLIQUE
from scripts.core.errors import InputError
from scripts.data.dicom_slice import _coded_size
from scripts.lab.prepare.dicom_folders import read_series

AXIAL = np.eye(3)
SPACING = (1.5, 2.0, 4.0)
"""Between columns, between rows, between slices."""


def volume_of(shape: tuple[int, int, int] = (6, 5, 4)) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape)


def names_of(count: int) -> list[str]:
    return [f"{index}.dcm" for index in range(count)]


def series(folder: Path, volume: np.ndarray, *, names: list[str] | None = None, **settings: object) -> Path:
    given = {"origin": np.array([-10.0, -20.0, 30.0]), "axes": AXIAL, "spacing": SPACING, **settings}
    stack(folder, volume, names=names or names_of(volume.shape[2]), **given)
    return folder


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_a_series_has_its_voxels_and_its_place(syntax: str, tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), syntax=syntax))
    assert np.array_equal(read.image, volume_of())
    # LPS to RAS: x and y change sign.
    expected = [[-1.5, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 4.0, 30], [0, 0, 0, 1]]
    assert np.array_equal(read.affine, np.array(expected))
    assert read.image.dtype == np.int16


def test_pixel_spacing_is_rows_first(tmp_path: Path) -> None:
    write_slice(tmp_path / "0", np.ones((3, 4), np.uint16), position=(0, 0, 0), spacing=(2.0, 1.5))
    write_slice(tmp_path / "1", np.ones((3, 4), np.uint16), position=(0, 0, 1), spacing=(2.0, 1.5))
    read = read_series(tmp_path)
    assert read.image.shape == (4, 3, 2)  # columns, rows, slices
    assert np.linalg.norm(read.affine[:3, :3], axis=0).tolist() == [1.5, 2.0, 1.0]


def test_slices_are_sorted_by_position_not_by_name_or_number(tmp_path: Path) -> None:
    names = ["2.dcm", "10.dcm", "1.dcm", "x"]
    read = read_series(series(tmp_path, volume_of(), names=names, InstanceNumber=7))
    assert np.array_equal(read.image, volume_of())
    assert [read.files[index].name for index in read.order] == names


def test_decreasing_positions_are_stacked_upwards(tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), axes=np.diag([1.0, 1.0, -1.0])))
    assert np.array_equal(read.image, volume_of()[..., ::-1])
    assert read.order == (3, 2, 1, 0)
    assert read.affine[2].tolist() == [0, 0, 4.0, 30.0 - 3 * 4.0]


def test_thickness_and_spacing_tags_are_not_the_distance(tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), SliceThickness=3.2, SpacingBetweenSlices=5.5))
    assert np.linalg.norm(read.affine[:3, 2]) == 4.0


def test_an_oblique_stack_keeps_its_directions(tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), axes=OBLIQUE))
    lps = np.diag([-1.0, -1.0, 1.0]) @ read.affine[:3, :3] / SPACING
    # The third axis is the normal of the first two, and upwards along it.
    normal = np.cross(OBLIQUE[0], OBLIQUE[1])
    assert np.allclose(lps.T, [OBLIQUE[0], OBLIQUE[1], normal], atol=1e-6)


def test_the_rescale_is_applied(tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), intercept=0, RescaleIntercept=-1000))
    assert np.array_equal(read.image, volume_of() - 1000)
    assert read.image.dtype == np.int16


def test_a_broken_slope_gives_real_numbers(tmp_path: Path) -> None:
    read = read_series(series(tmp_path, volume_of(), RescaleSlope=0.25))
    assert np.array_equal(read.image, volume_of() / 4)
    assert read.image.dtype == np.float32


def test_a_later_slice_of_another_pixel_type_is_not_cut_to_the_first_ones(tmp_path: Path) -> None:
    """Scanners may scale each slice by itself: the first one is whole, the last one is not."""
    folder = series(tmp_path, volume_of())
    pixels = volume_of()[..., 3].T.astype(np.uint16)
    write_slice(folder / "3.dcm", pixels, position=(-10, -20, 42), spacing=(2.0, 1.5), RescaleSlope=0.25)
    read = read_series(folder)
    assert read.image.dtype == np.float32
    assert np.array_equal(read.image[..., :3], volume_of()[..., :3])
    assert np.array_equal(read.image[..., 3], volume_of()[..., 3] / 4)


def test_names_against_the_positions(tmp_path: Path) -> None:
    count = 21
    volume = volume_of((6, 5, count))
    shuffled = np.random.default_rng(0).permutation(count)
    read = read_series(series(tmp_path, volume, names=[f"{index}.dcm" for index in shuffled]))
    assert np.array_equal(read.image, volume)
    assert [read.files[index].name for index in read.order] == [f"{index}.dcm" for index in shuffled]


@pytest.mark.parametrize("uids", [["", "", "", ""], ["1.1", "1.2", "1.3", "1.4"]])
def test_uids_that_say_nothing_are_ignored(uids: list[str], tmp_path: Path) -> None:
    for index, uid in enumerate(uids):
        pixels = volume_of()[..., index].T.astype(np.uint16)
        write_slice(tmp_path / str(index), pixels, position=(0, 0, 4 * index), SeriesInstanceUID=uid, SOPInstanceUID="")
    assert np.array_equal(read_series(tmp_path).image, volume_of())


def test_other_files_in_the_folder_are_left_out(tmp_path: Path) -> None:
    folder = series(tmp_path, volume_of())
    (folder / "readme.txt").write_text("slices of a phantom")
    (folder / "._0.dcm").write_bytes(b"junk")
    assert np.array_equal(read_series(folder).image, volume_of())


@pytest.mark.parametrize("syntax", ["JPEG2000Lossless", "JPEGLosslessProcess14_1", "JPEGLSLossless", "RLELossless"])
def test_compressed_series_are_decoded(syntax: str, tmp_path: Path) -> None:
    folder = series(tmp_path, volume_of((32, 32, 4)), intercept=-1000)
    for file in folder.iterdir():
        compress_dicom(file, syntax)
    assert pydicom.dcmread(folder / "0.dcm").file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(read_series(folder).image, volume_of((32, 32, 4)))


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_the_stored_ones_are_no_part_of_a_value(signed: bool, tmp_path: Path) -> None:
    """12 bits of 16: -3 is 0xFFD in them, and an overlay in bit 12 makes 0x1FFD of it."""
    for index in range(2):
        pixels = np.full((3, 4), 0x1FFD, np.uint16)
        write_slice(tmp_path / str(index), pixels, position=(0, 0, index), BitsStored=12, HighBit=11,
                    PixelRepresentation=int(signed))  # fmt: skip
    assert (read_series(tmp_path).image == (-3 if signed else 0xFFD)).all()


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_files_without_preamble_and_meta_information_are_read(syntax: str, tmp_path: Path) -> None:
    folder = series(tmp_path, volume_of(), syntax=syntax)
    for file in folder.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[whole.index(b"\x08\x00\x16\x00") :])  # from the SOP class on
    assert np.array_equal(read_series(folder).image, volume_of())


def test_a_ct_in_monochrome1_keeps_its_hounsfield_units(tmp_path: Path) -> None:
    """It only asks viewers to show high values dark; the numbers are HU."""
    folder = series(tmp_path, volume_of(), intercept=-1000, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_series(folder).image, volume_of())


def test_it_is_what_simpleitk_reads(tmp_path: Path) -> None:
    """An independent reader, on an oblique stack with names against the order."""
    sitk = pytest.importorskip("SimpleITK")
    read = read_series(series(tmp_path, volume_of(), axes=OBLIQUE, names=["b.dcm", "d.dcm", "a.dcm", "c.dcm"]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert np.array_equal(read.image, sitk.GetArrayFromImage(image).T)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    assert np.allclose(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, read.affine, atol=1e-5)


def two_sizes(folder: Path) -> None:
    write_slice(folder / "9.dcm", np.ones((7, 8), np.uint16), position=(-10, -20, 46))


def two_orientations(folder: Path) -> None:
    pixels = np.ones((5, 6), np.uint16)
    write_slice(folder / "9.dcm", pixels, position=(0, 0, 46), orientation=(1, 0, 0, 0, 0, -1), spacing=(2.0, 1.5))


def two_modalities(folder: Path) -> None:
    pixels = np.ones((5, 6), np.uint16)
    write_slice(folder / "9.dcm", pixels, position=(-10, -20, 46), spacing=(2.0, 1.5), Modality="MR")


def two_echoes(folder: Path) -> None:
    series(folder, volume_of(), names=[f"{9 + index}.dcm" for index in range(4)], EchoTime=2.3)


def same_positions(folder: Path) -> None:
    series(folder, volume_of() + 1, names=[f"{9 + index}.dcm" for index in range(4)])


def between_the_slices(folder: Path) -> None:
    """A second series at half distances would make one plausible stack of 2 mm."""
    origin = np.array([-10.0, -20.0, 32.0])
    series(folder, volume_of(), origin=origin, names=[f"{9 + i}.dcm" for i in range(4)], SeriesInstanceUID="1.2.9")


def missing_slice(folder: Path) -> None:
    (folder / "2.dcm").unlink()


def no_position(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=None, spacing=(2.0, 1.5))


def no_spacing(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=(-10, -20, 38), PixelSpacing=None)


def tilted(folder: Path) -> None:
    """Each slice 0.5 mm further towards the feet's back: atan(0.5 / 4) = 7.1 degrees."""
    for index in range(4):
        pixels = np.ones((5, 6), np.uint16)
        write_slice(folder / f"{index}.dcm", pixels, position=(-10, -20 + index / 2, 4 * index), spacing=(2.0, 1.5))


def shifted(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=(-17, -20, 38), spacing=(2.0, 1.5))


def truncated(folder: Path) -> None:
    path = folder / "2.dcm"
    path.write_bytes(path.read_bytes()[:-30])


def short_pixels(folder: Path) -> None:
    change(folder, PixelData=bytes(2 * 5 * 6 - 8))


def long_pixels(folder: Path) -> None:
    """Rows were halved."""
    change(folder, Rows=2)


def change(folder: Path, **elements: object) -> None:
    slice_ = pydicom.dcmread(folder / "2.dcm")
    for name, value in elements.items():
        setattr(slice_, name, value)
    slice_.save_as(folder / "2.dcm")


def colour(folder: Path) -> None:
    change(folder, PhotometricInterpretation="RGB", SamplesPerPixel=3, BitsAllocated=8, PixelData=bytes(90))


def palette(folder: Path) -> None:
    change(folder, PhotometricInterpretation="PALETTE COLOR")


def inverted_mr(folder: Path) -> None:
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.Modality, slice_.PhotometricInterpretation = "MR", "MONOCHROME1"
        slice_.save_as(file)


def inverted_slice(folder: Path) -> None:
    change(folder, PhotometricInterpretation="MONOCHROME1")


def eight_bits(folder: Path) -> None:
    change(folder, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=bytes(30))


def too_many_bits(folder: Path) -> None:
    change(folder, BitsStored=17)


def high_bit(folder: Path) -> None:
    change(folder, HighBit=40)


def no_orientation(folder: Path) -> None:
    change(folder, ImageOrientationPatient=[0, 0, 0, 0, 0, 0])


def parallel_axes(folder: Path) -> None:
    change(folder, ImageOrientationPatient=[1, 0, 0, 1, 0, 0])


def no_pixels(folder: Path) -> None:
    slice_ = pydicom.dcmread(folder / "2.dcm")
    del slice_.PixelData
    slice_.save_as(folder / "2.dcm")


def infinite_intercept(folder: Path) -> None:
    series(folder, volume_of(), RescaleIntercept="inf")


def no_slope(folder: Path) -> None:
    series(folder, volume_of(), RescaleSlope=0)


def slope_is_no_number(folder: Path) -> None:
    series(folder, volume_of(), RescaleSlope="nan")


def zero_spacing(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=(-10, -20, 38), spacing=(0.0, 1.5))


def negative_spacing(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=(-10, -20, 38), spacing=(2.0, -2.0))


def vast_spacing(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((5, 6), np.uint16), position=(-10, -20, 38), spacing=(1e30, 1.5))


def multi_frame(folder: Path) -> None:
    write_slice(folder / "2.dcm", np.ones((3, 5, 6), np.uint16), position=(-10, -20, 38), spacing=(2.0, 1.5))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (two_sizes, r"several series: size 5 x 6 in 0.dcm and 7 x 8 in 9.dcm"),
        (two_orientations, "several series: orientation"),
        (two_modalities, "several series: modality CT in 0.dcm and MR in 9.dcm"),
        (two_echoes, "several series: echo time"),
        (same_positions, r"several series: .* at the same position \(30.00 mm\)"),
        (between_the_slices, "several series: 2 series UIDs, 1.2.3 and 1.2.9"),
        (missing_slice, "slices 8.00 mm apart between 1.dcm and 3.dcm, 4.00 mm elsewhere"),
        (no_position, r"2.dcm: no ImagePositionPatient\. Expected 3 numbers"),
        (no_spacing, r"2.dcm: no PixelSpacing\. Expected 2 numbers"),
        (tilted, "a gantry tilt of 7.1 degrees"),
        (shifted, "a slice shifted in plane by 7.00 mm from the first"),
        (truncated, r"2.dcm: DICOM data that cannot be decoded"),
        (short_pixels, r"2.dcm: DICOM data that cannot be decoded \(52 bytes of pixels, 60 in the header's size"),
        (long_pixels, r"2.dcm: DICOM data that cannot be decoded \(60 bytes of pixels, 24 in the header's size"),
        (colour, r"2.dcm: pixels of kind RGB\. Expected MONOCHROME2"),
        (palette, r"2.dcm: pixels of kind PALETTE COLOR\. Expected MONOCHROME2"),
        (inverted_mr, r"dcm: pixels of kind MONOCHROME1\. Expected MONOCHROME2"),
        (inverted_slice, r"several series: kind MONOCHROME2 in 0.dcm and MONOCHROME1 in 2.dcm"),
        (eight_bits, r"several series: bits 16 in 0.dcm and 8 in 2.dcm"),
        (too_many_bits, r"2.dcm: DICOM data that cannot be decoded \(17 bits stored of 16, the highest at 15\)"),
        (high_bit, r"2.dcm: DICOM data that cannot be decoded \(16 bits stored of 16, the highest at 40\)"),
        (no_orientation, r"2.dcm: ImageOrientationPatient 0.*\. Expected two perpendicular directions of length 1"),
        (parallel_axes, r"2.dcm: ImageOrientationPatient 1.*\. Expected two perpendicular directions of length 1"),
        (no_pixels, r"2.dcm: DICOM data that cannot be decoded"),
        (infinite_intercept, r"0.dcm: RescaleIntercept 'inf'\. Expected 1 number"),
        (slope_is_no_number, r"0.dcm: RescaleSlope 'nan'\. Expected 1 number"),
        (no_slope, r"0.dcm: RescaleSlope '0'\. Expected a number other than 0"),
        (zero_spacing, r"2.dcm: PixelSpacing '0.*1.5'\. Expected 2 numbers of 0.0001 to 1000"),
        (negative_spacing, r"2.dcm: PixelSpacing '2.*-2.*'\. Expected 2 numbers"),
        (vast_spacing, r"2.dcm: PixelSpacing '1e\+30.*'\. Expected 2 numbers"),
        (multi_frame, r"2.dcm: a multi-frame file of 3 frames"),
        (empty, "0 DICOM files. Expected the slices of one series"),
    ],
)
def test_files_that_are_not_one_series_are_refused(damage, message: str, tmp_path: Path) -> None:
    folder = series(tmp_path / "case", volume_of((6, 5, 5) if damage is missing_slice else (6, 5, 4)))
    damage(folder)
    with pytest.raises(InputError, match=message):
        read_series(folder)


def test_positions_may_be_rounded(tmp_path: Path) -> None:
    for index in range(5):
        position = (0, 0, round(index * 7 / 3, 2))  # 0, 2.33, 4.67, 7, 9.33
        write_slice(tmp_path / str(index), np.full((3, 3), index, np.uint16), position=position)
    assert np.linalg.norm(read_series(tmp_path).affine[:3, 2]) == pytest.approx(7 / 3, abs=0.01)


def test_the_size_in_a_code_stream_of_jpeg_2000() -> None:
    """Markers, length and capabilities of 8 bytes; 7 columns and 9 rows, of which the first 1 and 4 are left out."""
    assert _coded_size(b"\xff\x4f\xff\x51" + bytes(4) + struct.pack(">4I", 7, 9, 1, 4)) == (5, 6)
    assert _coded_size(b"") is None


@pytest.mark.parametrize("size", [{}, {"Rows": 2}, {"Columns": 3}, {"Rows": 10}, {"Rows": 65535}])
@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_compressed_pixels_of_another_size(syntax: str, size: dict[str, int], tmp_path: Path) -> None:
    """Decoders would cut off the rest, or GDCM end the whole process."""
    folder = series(tmp_path / "case", volume_of())
    for file in folder.iterdir():
        slice_ = pydicom.dcmread(file)
        slice_.compress(syntax)
        for name, value in size.items():
            setattr(slice_, name, value)
        slice_.save_as(file)
    if size:
        with pytest.raises(InputError, match=r"0.dcm: DICOM data that cannot be decoded"):
            read_series(folder)
    else:
        assert np.array_equal(read_series(folder).image, volume_of())
