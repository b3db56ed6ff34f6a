"""The user's own folders: NIfTI images or DICOM series (one per folder), and NIfTI label maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.core.errors import InputError, SettingError
from scripts.core.files import check_file_name
from scripts.data.case_names import is_nifti, nifti_files, visible_files
from scripts.data.dicom import read_slices
from scripts.data.volumes import check_values
from scripts.lab.case_lists import folder_datalist, training_share
from scripts.lab.pairing import match_labels, pairing_name
from scripts.lab.prepare.dicom_folders import StoredSeries, series_below
from scripts.lab.prepare.nifti_pairs import add_label, read_pair
from scripts.lab.prepare.source_case import Reading, SearchOptions, SourceCase, not_this_data_set

__all__ = ["PlainFolders"]


class PlainFolders:
    """A folder of images of one domain and an optional folder of label maps, paired by case name."""

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """The cases of the images' folder; the last ones in natural order become the validation list."""
        domain = options.domain
        if domain is None:
            found, expected = "no name of the domain", "a name such as mr or ct"
            raise SettingError(setting="--domain", found=found, expected=expected, remedy="add --domain mr")
        check_file_name(domain, "--domain")
        volumes = list(filter(is_nifti, visible_files(source)))
        series = series_below(source)
        if volumes and series:
            raise InputError(
                file=source,
                found=f"NIfTI files ({volumes[0].name}) and folders of DICOM slices ({series[0].folders[0].name})",
                expected="NIfTI files or DICOM series, not both",
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


def _series_cases(source: Path, series: list[StoredSeries], domain: str, options: SearchOptions) -> list[SourceCase]:
    # A series is named after its folder, its label after the series.
    parts = [one.folders[0].relative_to(source).parts or (source.absolute().name,) for one in series]
    named = {source / "_".join(names): one for names, one in zip(parts, series, strict=True)}
    pairs = match_labels(list(named), nifti_files(options.labels) if options.labels else None)
    kept = training_share(len(series), options.validation)
    cases = []
    for index, (name, one) in enumerate(named.items()):
        label = pairs.get(name)
        sources = (*one.files, *one.copies, *((label,) if label else ()))
        section = "training" if index < kept else "validation"
        read = partial(_read_series, one, label, options.trust_image)
        cases.append(SourceCase(domain, pairing_name(name), None, sources, read, section))
    return cases


def _read_series(one: StoredSeries, label: Path | None, trust_image: bool) -> Reading:
    folder = one.folders[0]
    one.check_copies()
    series = read_slices(one.files, folder)
    check_values(series.image, str(folder), is_label=False)
    reading = Reading(series.image, series.affine, notes=one.notes())
    return reading if label is None else add_label(reading, folder, label, trust_image=trust_image)
