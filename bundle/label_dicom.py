"""DICOM in the MONAI Label app: the PACS' series of the right modality, and each structure's code and colour.

Copy it beside ``main.py``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import monailabel.config
import monailabel.datastore.dicom
import monailabel.endpoints.infer
import monailabel.interfaces.app
import numpy as np
from cachetools import TTLCache, cached
from fastapi import HTTPException
from monai.transforms import LoadImage
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import nifti_to_dicom_seg

__all__ = ["ModalityStore", "check_converter", "coded_entries", "load_codes", "refused", "use_codes", "use_modalities"]

logger = logging.getLogger(__name__)

# HTTP status code for invalid input.
NOT_USABLE = 422

# Seconds for which the list of a PACS' series is kept.
LIST_SECONDS = 60

MODALITIES = ("CT", "MR")


class ModalityStore(DICOMWebDatastore):
    """MONAI Label's DICOMweb store, listing series of the models' target modalities instead of CT alone."""

    def __init__(self, *, modalities: Sequence[str], **settings: Any) -> None:
        self.modalities = tuple(modalities)
        super().__init__(**settings)

    @cached(cache=TTLCache(maxsize=16, ttl=LIST_SECONDS))
    def list_images(self) -> list[str]:
        """UIDs of the series."""
        found = [self._client.search_for_series(search_filters={"Modality": name}) for name in self.modalities]
        return [str(series["0020000E"]["Value"][0]) for listed in found for series in listed]


def load_codes(bundles: Sequence[Path]) -> ModuleType | None:
    """The module ``structure_codes`` of the packed bundles, which all have the same; None without bundles.

    It is kept apart from the ``scripts`` that MONAI Label loads and unloads.
    """
    if not bundles:
        return None
    name = "glua_structure_codes"
    spec = importlib.util.spec_from_file_location(name, bundles[0] / "scripts" / "inference" / "structure_codes.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{bundles[0]}: no module structure_codes")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def use_modalities(bundles: Sequence[Path]) -> None:
    """Let MONAI Label list a DICOMweb server's series of the bundles' target modalities; by itself it lists CT alone.

    Sequences that are no modality of DICOM are MR or CT. A filter in ``MONAI_LABEL_DICOMWEB_SEARCH_FILTER`` holds.
    """
    if monailabel.config.settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER != {"Modality": "CT"}:
        return
    files = [bundle / "configs" / "inference.json" for bundle in bundles]
    targets = {json.loads(file.read_text(encoding="utf-8"))["target_domain"].upper() for file in files}
    modalities = sorted(targets) if targets and targets <= set(MODALITIES) else MODALITIES
    monailabel.interfaces.app.DICOMWebDatastore = partial(ModalityStore, modalities=modalities)


def use_codes(codes: ModuleType) -> None:
    """Let MONAI Label write each structure's code and colour into DICOM Segmentations; it codes all as spleen."""

    def convert(series: str, label: str, label_info: Any, *args: Any, **kwargs: Any) -> str:
        numbers = [int(number) for number in np.unique(np.asarray(LoadImage(image_only=True)(label))) if number]
        if not numbers:
            raise refused(
                f"{label}: no labelled voxel. Expected some of a structure. Fix: label it, or do not save it."
            )
        listed = list(label_info or ())
        known = {int(entry.get("idx", place)): str(entry.get("name", "")) for place, entry in enumerate(listed, 1)}
        names = {number: known.get(number) or f"class {number}" for number in numbers}
        # MONAI Label takes the entries for those of the numbers that occur, in order.
        file = nifti_to_dicom_seg(series, label, coded_entries(names, codes, listed), *args, **kwargs)
        if not Path(file).is_file():
            raise HTTPException(500, detail=f"{label}: itkimage2segimage wrote nothing; the server's log says why.")
        return file

    monailabel.datastore.dicom.nifti_to_dicom_seg = convert
    monailabel.endpoints.infer.nifti_to_dicom_seg = convert


def coded_entries(
    names: Mapping[int, str], codes: ModuleType, given: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """MONAI Label's ``label_info``: name, number, colour and segment for dcmqi; a viewer's own segments hold."""
    entries = []
    for number, name in sorted(names.items()):
        code, colour = codes.structure_code(name), list(bytes.fromhex(codes.structure_colour(number)[1:]))
        segment = {
            "labelID": number,
            "SegmentLabel": name[:64],
            "SegmentDescription": name[:64],
            "SegmentAlgorithmType": "SEMIAUTOMATIC",
            "SegmentAlgorithmName": "GLUA in MONAI Label",
            "SegmentedPropertyCategoryCodeSequence": _coded(code.category),
            "SegmentedPropertyTypeCodeSequence": _coded(code.kind),
            "recommendedDisplayRGBValue": colour,  # dcmqi writes it as RecommendedDisplayCIELabValue
        }
        if code.side is not None:
            segment["SegmentedPropertyTypeModifierCodeSequence"] = _coded(code.side)
        own = next((dict(entry) for entry in given if entry.get("name") == name and "segmentAttribute" in entry), {})
        segment |= own.get("segmentAttribute", {})
        entries.append(
            {"name": name, "idx": number, "color": colour, "segmentAttribute": segment | {"labelID": number}}
        )
    return entries


def check_converter() -> None:
    """End the command without dcmqi's converter, which MONAI Label would download."""
    if shutil.which("itkimage2segimage") is None:
        sys.exit(
            "error: itkimage2segimage: not on the path. Expected dcmqi's converter to DICOM Segmentations, which a "
            "DICOMweb server needs. Fix: pip install dcmqi, and start the server with its environment active."
        )


def refused(detail: str) -> HTTPException:
    """An answer of 422 with a sentence, which also goes to the log."""
    logger.error("%s", detail)
    return HTTPException(NOT_USABLE, detail=detail)


def _coded(concept: Any) -> dict[str, str]:
    return {"CodeValue": concept.value, "CodingSchemeDesignator": concept.scheme, "CodeMeaning": concept.meaning}
