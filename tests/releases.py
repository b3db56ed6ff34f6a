"""Small data sets in the on-disk form of the public releases, made from one truth in world coordinates.

Every voxel of every file is a function of its position in the scanner, so a prepared volume is right exactly if each
of its voxels, put through its own affine, shows the truth at that position: orientation, spacing, order of slices and
pairing are all in that one comparison.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dicom_files import IMPLICIT, stack
from scripts.lab.prepare.tfrecord import masked_crc
from skimage.io import imsave

CENTRES = np.array([[x, y, z] for x in (-11.3, 9.7) for y in (-10.2, 8.8) for z in (-9.6, 11.1)])
"""Centres of eight balls in mm, RAS; no two are mirror images of each other."""

RADII = np.array([8.3, 7.1, 6.6, 7.7, 5.9, 6.3, 8.1, 7.3])

MR_AFFINE = np.array([[-2.0, 0, 0, 22], [0, -2.5, 0, 24], [0, 0, 4.0, -20], [0, 0, 0, 1]])
"""Stored as LPS."""

CT_AFFINE = np.array([[0, 2.25, 0, -24], [2.0, 0, 0, -22], [0, 0, -3.0, 21], [0, 0, 0, 1]])
"""Stored along anterior, right, inferior."""

CHAOS_GREY = [63, 126, 189, 252]
OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.36, 0.48, -0.8], [0.48, 0.64, 0.6]])
"""Directions of a short-axis stack, as rows."""


def world_of(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """RAS position in mm of each voxel, (X, Y, Z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def true_label(world: np.ndarray, values: list[int]) -> np.ndarray:
    """The balls, with one value each."""
    label = np.zeros(world.shape[:-1], np.int16)
    for centre, radius, value in zip(CENTRES, RADII, values, strict=False):
        label[np.linalg.norm(world - centre, axis=-1) < radius] = value
    return label


def true_image(world: np.ndarray, case: int) -> np.ndarray:
    """A ramp of another slope along each axis, some air, and the case's own brightness: -1000 to about 600."""
    ramp = np.floor(world @ np.array([3.0, 5.0, 7.0]) + 0.37) + 100 + case
    return np.where(np.linalg.norm(world, axis=-1) > 36, -1000, ramp).astype(np.int16)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def assert_is_truth(folder: Path, domain: str, case: str, number: int, values: list[int], shift: int = 0) -> Any:
    """A prepared case shows the truth, voxel by voxel, at the places its header names; gives the image's file."""
    image = nib.load(folder / domain / f"{case}_image.nii.gz")
    label = nib.load(folder / domain / f"{case}_label.nii.gz")
    assert np.array_equal(image.affine, label.affine)
    assert np.allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    world = world_of(image.shape, image.affine)
    assert np.abs(np.asarray(image.dataobj) - (true_image(world, number) + shift)).max() <= 1  # floor() at a border
    assert np.array_equal(np.asarray(label.dataobj), true_label(world, values))
    return image


def sections(out: Path, domain: str) -> dict[str, list[str]]:
    """Case names per section of a written datalist, after checking that every file in it is there."""
    content = json.loads((out / f"{domain}.json").read_text())
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    for entry in (entry for entries in lists.values() for entry in entries):
        assert all((out / path).is_file() for path in entry.values())
    return {
        key: [Path(entry["image"]).name.removesuffix("_image.nii.gz") for entry in entries]
        for key, entries in lists.items()
    }


def write_mmwhs(root: Path, ct: list[int], mr: list[int]) -> Path:
    """``ct_train/ct_train_1001_image.nii.gz`` ... with MM-WHS's seven values."""
    values = [205, 420, 500, 550, 600, 820, 850]
    for domain, ids, affine, shape in (("ct", ct, CT_AFFINE, (20, 18, 15)), ("mr", mr, MR_AFFINE, (22, 19, 11))):
        for number in ids:
            world = world_of(shape, affine)
            stem = root / f"{domain}_train" / f"{domain}_train_{number}"
            save(stem.with_name(stem.name + "_image.nii.gz"), true_image(world, number % 100), affine)
            save(stem.with_name(stem.name + "_label.nii.gz"), true_label(world, values), affine)
    return root


def write_btcv(root: Path, ids: list[int]) -> Path:
    """``RawData/Training/img/img0001.nii.gz`` and ``label/label0001.nii.gz``, organs 6, 2, 3, 1 and others."""
    for number in ids:
        world = world_of((20, 18, 15), CT_AFFINE)
        training = root / "RawData" / "Training"
        save(training / "img" / f"img{number:04d}.nii.gz", true_image(world, number), CT_AFFINE)
        label = true_label(world, [6, 2, 3, 1, 4, 8, 11, 13])
        save(training / "label" / f"label{number:04d}.nii.gz", label.astype(np.uint8), CT_AFFINE)
    return root


def write_mscmr(root: Path, labelled: Mapping[str, list[int]], unlabelled: Mapping[str, list[int]]) -> Path:
    """``patient1_C0.nii.gz`` ... without zero padding, oblique, with a qform alone."""
    spacing = {"C0": (2.0, 2.0, 8.0), "T2": (2.5, 2.5, 9.0), "LGE": (1.5, 1.5, 5.0)}
    for sequence in spacing:
        affine = np.eye(4)
        affine[:3, :3] = OBLIQUE.T * spacing[sequence]
        affine[:3, 3] = affine[:3, :3] @ np.array([-10.0, -9.0, -3.0])
        world = world_of((20, 18, 6), affine)
        for number in [*labelled.get(sequence, []), *unlabelled.get(sequence, [])]:
            files = {f"patient{number}_{sequence}": true_image(world, number)}
            if number in labelled.get(sequence, []):
                files[f"patient{number}_{sequence}_manual"] = true_label(world, [200, 500, 600])
            for name, voxels in files.items():
                image = nib.Nifti1Image(voxels, None)
                image.set_qform(affine, code=1)
                image.set_sform(None, code=0)
                root.mkdir(parents=True, exist_ok=True)
                nib.save(image, root / f"{name}.nii.gz")
    return root


def chaos_geometry(slices: int) -> dict[str, Any]:
    """An axial stack whose file order runs downwards, as CHAOS's CT does."""
    axes = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, -1.0]])
    return {"origin": np.array([-22.0, -24.0, 20.0]), "axes": axes, "spacing": (1.5, 2.0, 40.0 / (slices - 1))}


def chaos_truth(geometry: dict[str, Any], shape: tuple[int, int, int]) -> np.ndarray:
    """World position (RAS) of each voxel in file order."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    lps = (index * geometry["spacing"]) @ geometry["axes"] + geometry["origin"]
    return lps * (-1, -1, 1)


def write_chaos_mr(root: Path, number: int, slices: int = 11, shape: tuple[int, int] = (30, 24)) -> Path:
    """``Train_Sets/MR/<id>``: T2-SPIR, and T1 in both phases with one set of masks."""
    geometry = chaos_geometry(slices)
    world = chaos_truth(geometry, (*shape, slices))
    label = true_label(world, CHAOS_GREY).astype(np.uint8)
    case = root / "Train_Sets" / "MR" / str(number)
    for folder, offset, step in (
        ("T2SPIR/DICOM_anon", 0, 1),
        ("T1DUAL/DICOM_anon/InPhase", 0, 2),
        ("T1DUAL/DICOM_anon/OutPhase", 1, 2),
    ):
        # In and out of phase alternate in the numbers of one series.
        names = [f"IMG-0004-{offset + 1 + step * index:05d}.dcm" for index in range(slices)]
        tags = {"Modality": "MR", "EchoTime": 2.3 if offset else 4.6, "SliceThickness": 6, "SpacingBetweenSlices": 9}
        image = true_image(world, number) + 1000 + (50 if offset else 0)
        stack(case / folder, image, **geometry, names=names, **tags)
    # Those of T1 are named after the in-phase images, so that their numbers have gaps.
    for folder, step in (("T2SPIR", 1), ("T1DUAL", 2)):
        write_masks(case / folder / "Ground", label, [f"IMG-0004-{1 + step * i:05d}.png" for i in range(slices)])
    return root


def write_chaos_ct(root: Path, number: int, slices: int = 12, shape: tuple[int, int] = (30, 24)) -> Path:
    """``Train_Sets/CT/<id>``: names that sort by number alone, decreasing positions, thickness 3.2, one-bit masks."""
    geometry = chaos_geometry(slices)
    world = chaos_truth(geometry, (*shape, slices))
    case = root / "Train_Sets" / "CT" / str(number)
    names = [f"i{index},0000b.dcm" for index in range(slices)]  # i10 sorts before i2 as text
    tags = {"SliceThickness": 3.2, "syntax": IMPLICIT, "intercept": -1000}
    stack(case / "DICOM_anon", true_image(world, number), **geometry, names=names, **tags)
    mask = true_label(world, [1]) > 0
    write_masks(case / "Ground", mask, [f"liver_GT_{index}.png" for index in range(slices)])
    return root


def write_masks(folder: Path, label: np.ndarray, names: list[str]) -> None:
    """One PNG per slice of (X, Y, Z), rows along Y; one-bit pictures for a boolean label."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        picture = label[..., index].T
        if picture.dtype == bool:
            from PIL import Image

            Image.fromarray(picture).save(folder / name)
        else:
            imsave(folder / name, np.ascontiguousarray(picture), check_contrast=False)


def tfrecord(image: np.ndarray, label: np.ndarray, mask_vol: np.ndarray | None = None, **int64s: int) -> bytes:
    """A record as in SIFA's release: float32 volumes as bytes, sizes and further numbers as packed int64s."""
    volumes = {"data_vol": image, "label_vol": label} | ({} if mask_vol is None else {"mask_vol": mask_vol})
    shapes = {"dsize": image.shape, "lsize": label.shape}
    sizes = {f"{name}_dim{axis}": size for name, shape in shapes.items() for axis, size in enumerate(shape)}
    features = {name: _list(1, volume.astype("<f4").tobytes()) for name, volume in volumes.items()}
    features |= {
        name: _list(3, b"".join(map(_varint, [value & (1 << 64) - 1]))) for name, value in (sizes | int64s).items()
    }
    entries = b"".join(_field(1, _field(1, name.encode()) + _field(2, feature)) for name, feature in features.items())
    payload = _field(1, entries)
    head = struct.pack("<Q", len(payload))
    return head + struct.pack("<I", masked_crc(head)) + payload + struct.pack("<I", 0)


def _list(kind: int, value: bytes) -> bytes:
    return _field(kind, _field(1, value))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
