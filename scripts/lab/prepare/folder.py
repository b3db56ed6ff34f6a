"""The user's own folders: NIfTI images or DICOM series (one per folder), and NIfTI label maps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.core.errors import InputError, SettingError
from scripts.core.files import check_file_name
from scripts.data.case_names import is_nifti, natural_order, nifti_files, visible_files
from scripts.data.dicom import FolderScan, read_slices, scan_folder
from scripts.data.volumes import check_values
from scripts.lab.datalists import folder_datalist, training_share
from scripts.lab.pairing import match_labels, pairing_name
from scripts.lab.prepare.nifti_pairs import add_label, read_pair
from scripts.lab.prepare.source_case import Reading, SearchOptions, SourceCase, not_this_data_set

__all__ = ["PlainFolders"]


@dataclass(frozen=True)
class _Series:
    folders: tuple[Path, ...]
    files: tuple[Path, ...]
    left_out: tuple[str, ...]


class PlainFolders:
    """A folder of images of one domain and an optional folder of label maps, paired by case name."""

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """The cases of the images' folder; the last ones in natural order become the validation list.

        Raises:
            InputError: no image, images of both kinds, or an image without its label where labels are given.
        """
        domain = options.domain
        if domain is None:
            found, expected = "no name of the domain", "a name such as mr or ct"
            raise SettingError(setting="--domain", found=found, expected=expected, remedy="add --domain mr")
        check_file_name(domain, "--domain")
        volumes = list(filter(is_nifti, visible_files(source)))
        series = _series_below(source)
        if volumes and series:
            raise InputError(
                file=source,
                found=f"NIfTI files ({volumes[0].name}) and folders of DICOM slices ({series[0].folders[0].name})",
                expected="one kind",
                remedy="put them into two folders and prepare each",
            )
        if not volumes and not series:
            raise not_this_data_set(source, "NIfTI images, or folders of DICOM slices", "a folder of images")
        return _volume_cases(source, domain, options) if volumes else _series_cases(source, series, domain, options)


def _volume_cases(source: Path, domain: str, options: SearchOptions) -> list[SourceCase]:
    labels = str(options.labels) if options.labels else None
    listed = folder_datalist(str(source), labels, name=domain, modality=domain, validation_fraction=options.validation)
    cases = []
    for section in ("training", "validation"):
        for entry in listed[section]:
            image, label = Path(entry["image"]), Path(entry["label"]) if "label" in entry else None
            sources = (image,) if label is None else (image, label)
            read = partial(read_pair, image, label, trust_image=options.trust_image)
            cases.append(SourceCase(domain, pairing_name(image) or domain, None, sources, read, section))
    return cases


def _series_cases(source: Path, series: list[_Series], domain: str, options: SearchOptions) -> list[SourceCase]:
    # A series is named after its folder, its label after the series.
    parts = [one.folders[0].relative_to(source).parts or (source.absolute().name,) for one in series]
    named = {source / "_".join(names): one for names, one in zip(parts, series, strict=True)}
    pairs = match_labels(list(named), nifti_files(options.labels) if options.labels else None)
    kept = training_share(len(series), options.validation)
    cases = []
    for index, (name, one) in enumerate(named.items()):
        label = pairs.get(name)
        sources = (*one.files, *((label,) if label else ()))
        section = "training" if index < kept else "validation"
        read = partial(_read_series, one, label, options.trust_image)
        cases.append(SourceCase(domain, pairing_name(name), None, sources, read, section))
    return cases


def _read_series(one: _Series, label: Path | None, trust_image: bool) -> Reading:
    folder = one.folders[0]
    series = read_slices(one.files, folder)
    check_values(series.image, str(folder), is_label=False)
    others = ", ".join(str(other) for other in one.folders[1:])
    notes = [f"{folder}: one series with the slices of {others}"] * bool(others)
    notes += [f"{folder}: not used, because they are not slices: {', '.join(one.left_out)}"] * bool(one.left_out)
    reading = Reading(series.image, series.affine, notes=tuple(notes))
    return reading if label is None else add_label(reading, folder, label, trust_image=trust_image)


def _series_below(source: Path) -> list[_Series]:
    """The series below a folder; a series may be split into several folders.

    Folders belong to one series if they share SeriesInstanceUID and PatientID and no slice positions, because some
    anonymisation tools give different patients the same UIDs.
    """
    folders = sorted({file.parent for file in visible_files(source)}, key=natural_order) if source.is_dir() else []
    groups: list[list[FolderScan]] = []
    for scan in filter(lambda scan: scan.files, map(scan_folder, folders)):
        group = next((group for group in groups if all(_is_same_series(scan, part) for part in group)), None)
        if group is None:
            groups.append(group := [])
        group.append(scan)
    return [
        _Series(
            tuple(part.files[0].parent for part in group),
            tuple(file for part in group for file in part.files),
            tuple(text for part in group for text in part.left_out),
        )
        for group in groups
    ]


def _is_same_series(first: FolderScan, second: FolderScan) -> bool:
    return bool(first.series & second.series) and not first.positions & second.positions
