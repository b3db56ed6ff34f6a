"""The pictures of the data sets' pages: generated people in each release's own form, prepared, checked, photographed.

    PYTHONPATH=. python tests/release_pictures.py docs/figures [DATASET ...]

It needs Chromium, and about a minute for each data set.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from bodies import Body, make_body
from dicom_files import IMPLICIT, stack
from PIL import Image
from releases import CHAOS_GREY, save, tfrecord, write_masks
from scipy import ndimage
from scripts.lab.check.run_check import run_check
from scripts.lab.phantom.generate import make_case, write_phantom
from scripts.lab.prepare.rules import read_rules
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions

ROOT = Path(__file__).resolve().parents[1]
BTCV_VALUES = np.array([0, 6, 2, 3, 1], np.uint8)
"""Release's values of liver, right kidney, left kidney, spleen."""

WIDTH, HEIGHT = 1180, 1085
"""Pixels of a picture."""

LARGEST_BYTES = 150_000


@dataclass(frozen=True)
class Page:
    """How a page comes about.

    Attributes:
        write: writes a release below a folder.
        task: a task file that fits.
        lists: datalists to check; none for all.
    """

    write: Callable[[Path], None]
    task: str
    lists: tuple[str, ...] = ()


def write_mmwhs(root: Path) -> None:
    """The phantom has MM-WHS's names and values as it is."""
    write_phantom(root, cases=4)


def write_sifa(root: Path) -> None:
    """Coronal crops of the phantom as records of three slices, and volumes with both axes of a slice flipped."""
    write_mmwhs(root.parent / "hearts")
    prepare(Preparation("mmwhs", root.parent / "hearts", root.parent / "crops", "sifa"))
    domains = read_rules("sifa", None).domains
    for domain in ("ct", "mr"):
        for number in (1001, 1002, 1003, 1004):
            image, label = (
                np.asarray(nib.load(root.parent / "crops" / domain / f"{domain}_{number}_{kind}.nii.gz").dataobj)
                for kind in ("image", "label")
            )
            scale = domains[domain].steps[0]
            scores = (image + 1) / 2 * (scale["a_max"] - scale["a_min"]) + scale["a_min"]
            middle = int(np.argwhere(label)[:, 2].mean())
            kept = slice(max(middle - 40, 0), middle + 40)
            if number > 1002:
                (root / f"test_{domain}").mkdir(parents=True, exist_ok=True)
                volumes = [np.flip(volume[..., kept], (0, 1)).astype(np.float32) for volume in (scores, label)]
                np.savez(root / f"test_{domain}" / f"{domain}_{number}.npz", *volumes)
                continue
            section = "train" if number == 1001 else "val"
            folder = root / f"{domain}_{section}_tfs"
            folder.mkdir(parents=True)
            for index in range(kept.start + 1, min(kept.stop, image.shape[2]) - 1):
                near = slice(index - 1, index + 2)
                record = tfrecord(scores[..., near], label[..., near])
                (folder / f"{domain}_{section}_slice{index}.tfrecords").write_bytes(record)


def write_btcv(root: Path) -> None:
    """CT with the release's values, beside CHAOS's MR."""
    for number in (1, 2, 3, 36):
        body = make_body("ct", number, finer=2)
        save(root / "img" / f"img{number:04d}.nii.gz", body.image, body.affine)
        save(root / "label" / f"label{number:04d}.nii.gz", BTCV_VALUES[body.label], body.affine)


def write_chaos(root: Path) -> None:
    """T2-SPIR with four organs and CT with the liver."""
    for number in (1, 2, 3, 36):
        body = make_body("mr", number, finer=2)
        case = root / "Train_Sets" / "MR" / str(number) / "T2SPIR"
        names = [f"IMG-0004-{index + 1:05d}" for index in range(body.image.shape[2])]
        grey = np.array([0, *CHAOS_GREY], np.uint8)[body.label]
        _write_series(case, body, grey, names, names, Modality="MR", SliceThickness=5)
    for number in (5, 6, 10, 29):
        body = make_body("ct", number, finer=2)
        downwards = Body(body.image[..., ::-1], body.label[..., ::-1], body.affine @ np.diag([1, 1, -1, 1]))
        count = body.image.shape[2]
        names, masks = ([form.format(i) for i in range(count)] for form in ("i{:04d},0000b", "liver_GT_{:03d}"))
        case = root / "Train_Sets" / "CT" / str(number)
        _write_series(case, downwards, downwards.label == 1, names, masks, SliceThickness=3.2, syntax=IMPLICIT)


def _write_series(
    case: Path, body: Body, mask: np.ndarray, names: Iterable[str], masks: Iterable[str], **tags: object
) -> None:
    """DICOM_anon and Ground of a body whose rows run to the patient's left and columns to the back or front."""
    steps = (np.diag([-1.0, -1.0, 1.0]) @ body.affine[:3, :3]).T
    spacing = np.linalg.norm(steps, axis=1)
    geometry = {"origin": -body.affine[:3, 3], "axes": steps / spacing[:, None], "spacing": tuple(spacing)}
    files = [f"{name}.dcm" for name in names]
    stack(case / "DICOM_anon", body.image.clip(-1024), **geometry, names=files, intercept=-1024, **tags)
    write_masks(case / "Ground", mask, [f"{name}.png" for name in masks])


def write_mscmr(root: Path) -> None:
    """Short-axis stacks through the phantom's MR hearts; they differ in grid, contrast and, here, person."""

    grids = {"C0": (1.25, 9.0), "T2": (1.35, 12.0), "LGE": (0.9, 5.0)}
    values = {205: 200, 500: 500, 600: 600}
    for number in (1, 2, 6, 31):
        for person, (sequence, (pixel_mm, slice_mm)) in enumerate(grids.items()):
            heart = make_case("mr", 100 * person + number)
            affine, shape = _short_axis(heart.label, heart.affine, pixel_mm, slice_mm)
            inward = np.linalg.inv(heart.affine) @ affine
            image = ndimage.affine_transform(heart.image.astype(float), inward, output_shape=shape, order=1)
            found = ndimage.affine_transform(heart.label, inward, output_shape=shape, order=0)
            label = sum((np.where(found == value, written, 0) for value, written in values.items()), np.int16(0))
            if sequence != "C0":
                image = np.where(found == 205, image * 0.4, image * 0.8)
            rng = np.random.default_rng([number, len(sequence), shape[2]])
            image += rng.normal(0, 0.02 * image.max(), shape)
            stem = root / f"patient{number}_{sequence}"
            save(stem.with_name(f"{stem.name}.nii.gz"), image.clip(0).astype(np.int16), affine)
            save(stem.with_name(f"{stem.name}_manual.nii.gz"), label.astype(np.int16), affine)


def _short_axis(
    label: np.ndarray, affine: np.ndarray, pixel_mm: float, slice_mm: float
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A stack from apex to base whose first axis runs from the right ventricle to the left one."""
    left, right, atrium = (
        affine[:3, :3] @ np.argwhere(label == value).mean(0) + affine[:3, 3] for value in (500, 600, 420)
    )
    upwards = (atrium - left) / np.linalg.norm(atrium - left)
    across = (left - right) - ((left - right) @ upwards) * upwards
    across /= np.linalg.norm(across)
    axes = np.stack([across, np.cross(upwards, across), upwards], axis=1)
    shape = (round(180 / pixel_mm), round(180 / pixel_mm), round(110 / slice_mm))
    stacked = np.eye(4)
    stacked[:3, :3] = axes * (pixel_mm, pixel_mm, slice_mm)
    stacked[:3, 3] = left - stacked[:3, :3] @ ((np.array(shape) - 1) / 2)
    return stacked, shape


def write_folder(root: Path) -> None:
    """Anyone's folders of two domains: the phantom's volumes under names of their own."""
    write_mmwhs(root / "hearts")
    for domain in ("ct", "mr"):
        for kind, folder in (("image", "images"), ("label", "labels")):
            (root / domain / folder).mkdir(parents=True)
            for file in sorted((root / "hearts" / f"{domain}_train").glob(f"*_{kind}.nii.gz")):
                file.rename(root / domain / folder / file.name)


def prepare_release(name: str, source: Path, out: Path) -> None:
    """A release as it is; of anyone's folders, each domain with its labels."""
    if name != "folder":
        prepare(Preparation(name, source, out))
        return
    for domain in ("ct", "mr"):
        find = SearchOptions(domain=domain, labels=source / domain / "labels", validation=0.5)
        label_map = "205:205,420:420,500:500,550:550,600:600,820:820,850:850"
        prepare(Preparation(name, source / domain / "images", out, label_map=label_map, find=find))


PAGES = {
    "mmwhs": Page(write_mmwhs, "cardiac_ct2mr"),
    "sifa": Page(write_sifa, "cardiac_scaled_ct2mr"),
    "btcv": Page(write_btcv, "abdomen_ct2mr", ("ct", "mr")),
    "chaos": Page(write_chaos, "abdomen_ct2mr", ("mr", "ct_liver")),
    "mscmr": Page(write_mscmr, "cmr_bssfp2lge", ("bssfp", "lge")),
    "folder": Page(write_folder, "phantom_ct2mr"),
}


def make_picture(dataset: str, out: Path) -> None:
    """Write ``check_<dataset>.png`` into a folder."""
    page = PAGES[dataset]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("btcv", "chaos") if dataset == "btcv" else (dataset,):
            PAGES[name].write(root / name)
            prepare_release(name, root / name, root / "data")
        lists = [str(root / "data" / f"{name}.json") for name in page.lists] or [str(root / "data")]
        run_check(lists, root / "check", task=str(ROOT / "configs" / "tasks" / f"{page.task}.yaml"))
        html = (
            (root / "check" / "check.html").read_text(encoding="utf-8").replace(f"{root}/", "").replace(f"{ROOT}/", "")
        )
        (root / "check.html").write_text(html, encoding="utf-8")
        photograph(root / "check.html", out / f"check_{dataset}.png")


def photograph(page: Path, out: Path) -> None:
    """The upper part of a page as a picture of few colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("Chromium is needed to photograph pages")
    whole = page.with_suffix(".png")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--user-data-dir=" + str(page.parent),
    ]
    command = [browser, *options, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={whole}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True)
    picture = Image.open(whole).convert("RGB")
    for colours in (256, 128, 64, 32):
        packed = io.BytesIO()
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
            packed, "PNG", optimize=True
        )
        if packed.tell() <= LARGEST_BYTES:
            break
    out.write_bytes(packed.getvalue())


if __name__ == "__main__":
    for dataset in sys.argv[2:] or PAGES:
        make_picture(dataset, Path(sys.argv[1]))
