"""Segments a DICOM series with a packed bundle and writes a DICOM Segmentation with highdicom.

Each frame of the result refers to a slice of the series, in the same frame of reference.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.valuerep import DS
from scripts.core.errors import InputError, import_optional
from scripts.core.files import atomic_path, check_file_name, make_folder
from scripts.core.run_folder import lock_folder, unlock_folder
from scripts.data.dicom import Series, read_slices
from scripts.inference.predictor import Predictor
from scripts.inference.structure_codes import Concept, structure_code, structure_colour

__all__ = ["Maker", "segment_series", "source_slices", "write_segmentation"]

logger = logging.getLogger(__name__)

# Names of domains that are modalities.
MODALITIES = ("CT", "MR")
# Added to the number of the series, so that viewers list the result below it.
SERIES_NUMBER_OFFSET = 1000
# Largest length of DICOM's long strings.
MAX_TEXT = 64
HASH_DIGITS = 16
# Elements that the standard requires in every image, possibly empty; some anonymisation tools delete them.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName", "SliceThickness"),
)


@dataclass(frozen=True)
class Maker:
    """The maker of a segmentation: a bundle's name, its version, and digits that identify its weights."""

    name: str
    version: str
    weights: str

    @classmethod
    def of_bundle(cls, bundle: Path) -> Maker:
        """The maker for a packed bundle with weights."""
        metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
        return cls(bundle.resolve().name[:MAX_TEXT], str(metadata["version"]), digest[:HASH_DIGITS])


def segment_series(bundle: Path, files: Sequence[Path], *, source: object, out: Path, **settings: Any) -> Path:
    """Segment one series and write ``<SeriesInstanceUID of the series>_seg.dcm``, a DICOM Segmentation, into ``out``.

    The files are in any order; ``source`` names the series in messages; settings are as for :class:`Predictor`.
    """
    _highdicom()
    predict = Predictor(bundle, **settings)
    if (stage := predict.metadata["stage"]) != "segmentation":
        _raise(bundle, f"a {stage} bundle", "a segmentation bundle", "name a packed segmentation bundle")
    series = read_slices(files, source)
    slices = source_slices(series, source)
    _check_modality(source, str(slices[0].get("Modality", "")), predict.metadata["domains"][1])
    path = out / f"{check_file_name(str(slices[0].SeriesInstanceUID), source)}_seg.dcm"
    lock = lock_folder(make_folder(out))  # before the network runs; removes what a killed process left
    try:
        labels, names = predict(series.image, series.affine), predict.label_names[1:]
        return write_segmentation(path, labels, slices, label_names=names, maker=Maker.of_bundle(bundle))
    finally:
        unlock_folder(lock)


def source_slices(series: Series, source: object) -> list[Any]:
    """The headers of a series' slices in the order of its volume, completed so that a segmentation can refer to them.

    Empty SOP UIDs are replaced by those of the file meta information. A missing study, series or frame of reference
    gets a UID derived from those of the slices, with a note in the log. The distance between slices is that of their
    positions; the orientation, which may differ by rounding, is that of the first slice.
    """
    slices = list(series.headers)
    spacing_mm = DS(float(np.linalg.norm(series.affine[:3, 2])), auto_format=True)
    for piece in slices:
        for name in ("SOPClassUID", "SOPInstanceUID"):
            if not piece.get(name):
                setattr(piece, name, getattr(piece, "file_meta", {}).get(f"MediaStorage{name}", ""))
        for name in MAY_BE_EMPTY:
            if name not in piece:
                setattr(piece, name, None)
        piece.SpacingBetweenSlices = spacing_mm
        piece.ImageOrientationPatient = slices[0].ImageOrientationPatient
    _fill_shared_uids(slices, source)
    return slices


def _fill_shared_uids(slices: Sequence[Any], source: object) -> None:
    uids = [str(piece.SOPInstanceUID) for piece in slices]
    if len(set(uids)) < len(uids) or not all(uids):
        expected = "a distinct SOPInstanceUID in each slice, to which the segmentation refers"
        found = f"{len(set(filter(None, uids)))} UIDs for {len(uids)} slices"
        _raise(source, found, expected, "export the series again with its UIDs")
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        found_uids = {str(piece.get(name) or "") for piece in slices}
        if len(found_uids) > 1 and name != "SeriesInstanceUID":  # public releases have a series UID per slice
            remedy = "put the slices of each series into a separate folder"
            _raise(source, f"{len(found_uids)} values of {name}", "one for all slices", remedy)
        if "" in found_uids:
            made = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, name + ''.join(uids)).int}"
            logger.warning("%s: no %s; the segmentation uses %s.", source, name, made)
            for piece in slices:
                setattr(piece, name, piece.get(name) or made)


def write_segmentation(
    path: Path, labels: np.ndarray, slices: Sequence[Any], *, label_names: Sequence[str], maker: Maker
) -> Path:
    """Write a label map on a series' grid as a DICOM Segmentation of binary segments, whole or not at all.

    ``labels`` (X, Y, Z) are class ids 0 (background) to K on the grid of :class:`Series`' ``image``; ``slices`` are the
    series' headers from :func:`source_slices`. Without any labelled voxel the file has one empty frame per segment.
    """
    highdicom = _highdicom()
    if not labels.any():  # highdicom would write each slice for each segment
        logger.warning("%s: no structure was found.", path)
        labels, slices = labels[..., :1], slices[:1]
    segmentation = highdicom.seg.Segmentation(
        source_images=list(slices),
        pixel_array=np.ascontiguousarray(labels.T, dtype=np.uint8),  # (slice, row, column)
        segmentation_type="BINARY",
        segment_descriptions=[_segment(number, name, maker) for number, name in enumerate(label_names, 1)],
        series_instance_uid=highdicom.UID(),
        series_number=int(slices[0].get("SeriesNumber") or 0) + SERIES_NUMBER_OFFSET,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="GLUA",
        manufacturer_model_name=maker.name,
        software_versions=maker.version,
        device_serial_number=maker.weights,
        content_description="Automatic segmentation, for research only",
        series_description=f"Segmentation by {maker.name}"[:MAX_TEXT],
    )
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)
    return path


def _segment(number: int, name: str, maker: Maker) -> Any:
    highdicom = _highdicom()
    code = structure_code(name)
    artificial_intelligence = Concept("123110", "DCM", "Artificial Intelligence")
    kind = _coded(code.kind)
    if code.side is not None:
        kind.SegmentedPropertyTypeModifierCodeSequence = [_coded(code.side)]
    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:MAX_TEXT],
        segmented_property_category=_coded(code.category),
        segmented_property_type=kind,
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=maker.name, family=_coded(artificial_intelligence), version=maker.version
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*bytes.fromhex(structure_colour(number)[1:])),
    )


def _coded(concept: Concept) -> Any:
    highdicom = _highdicom()
    return highdicom.sr.CodedConcept(value=concept.value, scheme_designator=concept.scheme, meaning=concept.meaning)


def _check_modality(source: object, found: str, target_domain: str) -> None:
    expected = target_domain.upper()
    if expected in MODALITIES and found in MODALITIES and found != expected:
        _raise(source, f"modality {found}", f"{expected}, which the bundle was trained for", "name another bundle")


def _highdicom() -> Any:
    return import_optional("highdicom", "a DICOM Segmentation", "requirements-dicom.txt")


def _raise(file: object, found: str, expected: str, remedy: str) -> None:
    raise InputError(file=file, found=found, expected=expected, remedy=remedy)
