"""Anyone's own folders: NIfTI images, or one folder of DICOM slices per case, and NIfTI label maps."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.core.errors import InputError
from scripts.data.case_names import NIFTI_SUFFIXES, labels_by_case, natural_order, pairing_name
from scripts.data.datalists import folder_datalist, training_share
from scripts.data.dicom import dicom_files, read_series
from scripts.data.volumes import check_values
from scripts.lab.prepare.case import Case, FindOptions, Reading, not_this_data_set, visible_files
from scripts.lab.prepare.nifti import add_label, read_pair

__all__ = ["PlainFolders"]


class PlainFolders:
    """A folder of images of one domain and, perhaps, a folder of label maps, paired by the case's name."""

    def find(self, source: Path, options: FindOptions) -> list[Case]:
        """The cases of the images' folder; the last ones in natural order become the validation list.

        Raises:
            InputError: no image, images of both kinds, or an image without its label where labels are given.
        """
        domain = options.domain
        if domain is None:
            raise InputError(
                file="--domain",
                found="no name of the domain",
                expected="a name such as mr or ct",
                remedy="add --domain mr",
            )
        direct = source.iterdir() if source.is_dir() else ()
        volumes = [path for path in direct if path.name.endswith(NIFTI_SUFFIXES) and not path.name.startswith(".")]
        series = _series_folders(source)
        if volumes and series:
            raise InputError(
                file=source,
                found=f"NIfTI files ({volumes[0].name}) and folders of DICOM slices ({series[0].name})",
                expected="one kind",
                remedy="put them into two folders and prepare each",
            )
        if not volumes and not series:
            raise not_this_data_set(source, "NIfTI images, or folders of DICOM slices", "a folder of images")
        return _volume_cases(source, domain, options) if volumes else _series_cases(source, series, domain, options)


def _volume_cases(source: Path, domain: str, options: FindOptions) -> list[Case]:
    labels = str(options.labels) if options.labels else None
    listed = folder_datalist(str(source), labels, name=domain, modality=domain, validation_fraction=options.validation)
    cases = []
    for section in ("training", "validation"):
        for entry in listed[section]:
            image, label = Path(entry["image"]), Path(entry["label"]) if "label" in entry else None
            sources = (image,) if label is None else (image, label)
            read = partial(read_pair, image, label, trust_image=options.trust_image)
            cases.append(Case(domain, pairing_name(image) or domain, None, sources, read, section))
    return cases


def _series_cases(source: Path, series: list[Path], domain: str, options: FindOptions) -> list[Case]:
    labels = labels_by_case(options.labels, labels_only=False) if options.labels else {}
    kept = training_share(len(series), options.validation)
    cases = []
    for index, folder in enumerate(series):
        relative = folder.relative_to(source)
        name = "_".join(relative.parts).lower() or folder.absolute().name.lower()
        label = labels.get(pairing_name(Path(name)))
        if label is None and options.labels:
            raise InputError(
                file=folder,
                found=f"no label for case '{name}' in {options.labels}",
                expected="one label per folder of slices, named after it",
                remedy="add the label, or leave --labels out for an unlabelled domain",
            )
        sources = (*dicom_files(folder), *((label,) if label else ()))
        section = "training" if index < kept else "validation"
        read = partial(_read_series, folder, label, options.trust_image)
        cases.append(Case(domain, name, None, sources, read, section))
    return cases


def _read_series(folder: Path, label: Path | None, trust_image: bool) -> Reading:
    series = read_series(folder)
    check_values(series.image, str(folder), is_label=False)
    reading = Reading(series.image, series.affine)
    return reading if label is None else add_label(reading, folder, label, trust_image=trust_image)


def _series_folders(source: Path) -> list[Path]:
    folders = sorted({file.parent for file in visible_files(source)}, key=natural_order) if source.is_dir() else []
    return [folder for folder in folders if dicom_files(folder)]
