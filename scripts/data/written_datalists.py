"""Writes datalists: of any cases, and of translated volumes with the labels of the original ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist
from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.processes import rank
from scripts.data.case_names import Item, case_name
from scripts.data.datalists import TRANSLATED_TO, existing_item

__all__ = ["TranslatedDatalist", "write_datalist"]


def write_datalist(path: str | os.PathLike[str], datalist: Mapping[str, Any]) -> None:
    """Write a datalist atomically. Paths below its folder become relative, so that the folder can be moved.

    Raises:
        InputError: no training case.
    """
    if not datalist.get("training"):
        raise InputError(path, "no training case", "at least one", "add cases or lower the validation share")
    folder = Path(path).absolute().parent
    lists = {
        section: [{key: _relative(file, folder) for key, file in entry.items()} for entry in value]
        for section, value in datalist.items()
        if isinstance(value, list)
    }
    write_json(path, {**datalist, **lists})


class TranslatedDatalist:
    """The datalist of translated volumes ``<case>_<postfix>.nii.gz``, with the labels of the original ones."""

    def __init__(self, *, datalist: str, folder: str, postfix: str, domain: str) -> None:
        self.datalist, self.folder, self.postfix, self.domain = Path(datalist), Path(folder), postfix, domain

    def write(self) -> Path:
        """Write it on rank 0, with the sections of the source's datalist; entries without a label are skipped."""
        content = json.loads(self.datalist.read_text(encoding="utf-8"))
        translated: dict[str, Any] = {key: value for key, value in content.items() if not isinstance(value, list)}
        translated[TRANSLATED_TO] = self.domain
        for section in (key for key, value in content.items() if isinstance(value, list) and value):
            entries = load_decathlon_datalist(str(self.datalist), is_segmentation=True, data_list_key=section)
            translated[section] = [self._translated(entry) for entry in entries if entry.get("label")]
        path = self.folder / "datalist.json"
        if rank() == 0:
            write_datalist(path, translated)
        return path

    def _translated(self, entry: Item) -> Item:
        item = existing_item(entry, self.datalist, needs_label=True)
        image = self.folder / f"{case_name(item['image'])}_{self.postfix}.nii.gz"
        return {"image": str(image.resolve()), "label": item["label"]}


def _relative(file: str, folder: Path) -> str:
    path = Path(file).absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
