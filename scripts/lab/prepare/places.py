"""Checks of the output folder, so that neither source files nor datalists of other data sets are overwritten."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from scripts.core.errors import InputError
from scripts.lab.prepare.outputs import REPORT
from scripts.lab.prepare.prepare_case import output_files, record_file
from scripts.lab.prepare.source_case import SourceCase

__all__ = ["check_files", "check_owner", "check_places"]


def check_places(out: Path, domains: Sequence[str], read: Sequence[Path | None]) -> None:
    """Refuse an output folder inside a source folder, or one that contains it."""
    for folder in (path for path in read if path is not None):
        source = folder.resolve()
        for place in [out, *(out / domain for domain in domains)]:
            inside = place.resolve().is_relative_to(source)
            if inside or (place != out and source.is_relative_to(place.resolve())):
                raise _written_over(out, f"{place} would be written into the source {folder}")


def check_files(out: Path, cases: Sequence[SourceCase], read: Sequence[str | None]) -> None:
    """Refuse to overwrite a source file, links resolved."""
    sources = {os.path.realpath(path): path for case in cases for path in case.sources}
    sources |= {os.path.realpath(path): Path(path) for path in read if path}
    outputs = [out / REPORT, *(out / f"{domain}.json" for domain in {case.domain for case in cases})]
    outputs += [path for case in cases for path in (*output_files(out, case).values(), record_file(out, case))]
    for path in outputs:
        source = sources.get(os.path.realpath(path))
        if source is not None:
            raise _written_over(out, f"{path} would overwrite the source {source}")


def check_owner(out: Path, domains: Sequence[str], dataset: str) -> None:
    """Refuse to overwrite a datalist of another data set."""
    for domain in domains:
        path = out / f"{domain}.json"
        if not path.exists():
            continue
        try:
            owner = json.loads(path.read_text(encoding="utf-8")).get("dataset")
        except (OSError, ValueError, AttributeError):
            owner = None
        if owner != dataset:
            found = f"a datalist of {f'{owner!r}' if owner else 'something else'}"
            expected = f"none, or that of an earlier preparation of '{dataset}'"
            raise InputError(file=path, found=found, expected=expected, remedy="choose another --out")


def _written_over(out: Path, found: str) -> InputError:
    return InputError(
        file=out, found=found, expected="an output folder outside all sources", remedy="choose another --out"
    )
