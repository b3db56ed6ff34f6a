"""The user's folders as datalists: flat or nested, NIfTI or DICOM; links where one file name occurs twice."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from scripts.core.errors import InputError
from scripts.core.files import make_folder
from scripts.data.case_names import case_name, is_nifti, nifti_files, visible_files
from scripts.data.nifti import read_nifti
from scripts.data.volumes import CT_FAT_HU
from scripts.data.written_datalists import write_datalist
from scripts.lab.adapt.grid import read_headers
from scripts.lab.case_lists import folder_datalist, images_of
from scripts.lab.pairing import match_labels
from scripts.lab.prepare.run import Preparation, prepare
from scripts.lab.prepare.source_case import SearchOptions

__all__ = ["DomainFolder", "check_not_exchanged", "domain_names", "modality_of", "with_article", "write_domain"]


@dataclass(frozen=True)
class DomainFolder:
    """The name and the folders of one domain, and the share of its cases that is held out for evaluation."""

    name: str
    images: Path
    labels: Path | None = None
    held_out: float = 0.0


def modality_of(lowest: float) -> str:
    """``CT`` or ``MR``, by the 0.5th percentile of a volume: only a CT has values as low as those of air and fat."""
    return "CT" if lowest < CT_FAT_HU else "MR"


def with_article(modality: str) -> str:
    """``a CT``, ``an MR``."""
    return f"{'an' if modality.startswith('M') else 'a'} {modality}"


def domain_names(source: Path, target: Path) -> tuple[str, str]:
    """Names of both domains: their modalities, with ``source`` and ``target`` where these are the same."""
    first, second = (_first_modality(folder).lower() for folder in (source, target))
    return (first, second) if first != second else (f"{first}_source", f"{second}_target")


def write_domain(folder: DomainFolder, out: Path) -> Path:
    """Write the datalist ``<out>/<name>.json``. NIfTI files stay where they are, DICOM series are converted."""
    path = out / f"{folder.name}.json"
    if not _has_nifti(folder.images):
        find = SearchOptions(folder.name, folder.labels, folder.held_out)
        prepare(Preparation("folder", folder.images, out, find=find))
        return path
    images = _distinctly_named(folder.images, out / folder.name / "images")
    labels = folder.labels
    if labels is not None:
        is_same = labels.resolve() == folder.images.resolve()
        labels = images if is_same else _distinctly_named(labels, out / folder.name / "labels")
    modality = _first_modality(folder.images)
    datalist = folder_datalist(
        str(images),
        None if labels is None else str(labels),
        name=folder.name,
        modality=modality,
        validation_fraction=folder.held_out,
    )
    write_datalist(path, datalist)
    return path


def check_not_exchanged(source: Path, labels: Path, target: Path) -> None:
    """Refuse labels that belong to the target's images: the two image folders are exchanged."""
    if not all(map(_has_nifti, (source, labels, target))) or _fitting(source, labels):
        return
    if count := _fitting(target, labels):
        raise InputError(
            file=labels,
            found=f"label maps that fit {count} of --target_images by name and shape, and none of --source_images",
            expected="label maps of the source's images",
            remedy="exchange --source_images and --target_images, or name the other folder of labels",
        )


def _fitting(images: Path, labels: Path) -> int:
    """How many images have a label map of the same case name and shape."""
    try:
        pairs = match_labels(images_of(images), nifti_files(labels, labels_only=images.resolve() == labels.resolve()))
    except InputError:
        return 0
    shapes = {header.path: header.shape for header in read_headers([*map(str, pairs), *map(str, pairs.values())])}
    return sum(
        Path(image) in shapes and shapes[Path(image)] == shapes.get(Path(label)) for image, label in pairs.items()
    )


def _first_modality(folder: Path) -> str:
    for image in images_of(folder) if _has_nifti(folder) else ():
        with suppress(InputError):  # the check names it
            return modality_of(float(np.nanpercentile(read_nifti(image).voxels, 0.5)))
    for file in visible_files(folder):
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Modality", "Rows"])
        except (InvalidDicomError, OSError):
            continue
        if "Rows" in header:
            return str(header.get("Modality", "MR"))
    raise InputError(
        file=folder,
        found="no NIfTI file and no DICOM slice in it that can be read" if folder.is_dir() else "no such folder",
        expected="a folder with .nii or .nii.gz files, or with DICOM series in folders",
        remedy="name the folder that holds the volumes; python -m scripts check FOLDER says what is wrong with each",
    )


def _has_nifti(folder: Path) -> bool:
    return any(map(is_nifti, visible_files(folder)))


def _distinctly_named(folder: Path, links: Path) -> Path:
    """The folder; one of links if two of its files share a name (``patient 1/CT.nii.gz``), as results are named so."""
    files = nifti_files(folder)
    if len({case_name(str(file)) for file in files}) == len(files):
        return folder
    make_folder(links)
    for file in files:
        link = links / "_".join(file.relative_to(folder.absolute()).parts)
        if not link.is_symlink():
            link.symlink_to(file)
    return links
