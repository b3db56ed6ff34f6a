"""Releases of NIfTI files with case ids in their names: MM-WHS, BTCV, MS-CMRSeg."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from scripts.core.errors import InputError
from scripts.data.case_names import case_name, is_nifti, log_left_out, visible_files
from scripts.lab.prepare.nifti_pairs import read_pair
from scripts.lab.prepare.source_case import Reading, SearchOptions, SourceCase, not_this_data_set

__all__ = ["NiftiTree"]


class NiftiTree:
    """Images and label maps anywhere below a folder, paired by id.

    Args:
        pattern: regular expression of a file name without suffix, with the groups ``id`` (the case's number), ``kind``
            (distinguishes domains; may be absent) and ``label`` (in label maps only).
        domains: ``kind`` -> name of the domain.
        digits: of an id in the case's name.
        example: file names for the error.
        may_lack_labels: whether the release has cases without a label map.
        left_out: folders of the release that are ignored.
        ids: first and last of each range of ids; others are refused, because published splits list ids. Empty for any.
    """

    def __init__(
        self,
        *,
        pattern: str,
        domains: Mapping[str, str],
        digits: int,
        example: str,
        may_lack_labels: bool = False,
        left_out: Sequence[str] = (),
        ids: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.pattern, self.domains, self.digits = re.compile(pattern), domains, digits
        self.example, self.may_lack_labels, self.left_out = example, may_lack_labels, set(left_out)
        self.ids = ids

    def find(self, source: Path, options: SearchOptions) -> list[SourceCase]:
        """The cases below ``source``, sorted by domain and id."""
        files: dict[tuple[str, int, bool], Path] = {}
        for path in filter(is_nifti, visible_files(source)):
            key = self._key(path)
            if not self.left_out.isdisjoint(path.relative_to(source).parts[:-1]):
                continue
            if key is None or not options.wants(key[0]):
                continue
            if key in files:
                self._raise_twice(key, files[key], path)
            self._check_id(key[1], path)
            files[key] = path
        for domain, number, is_label in files:
            if is_label and (domain, number, False) not in files:
                found, remedy = "no image of its id", "unpack the images too, below the same folder"
                file, expected = files[domain, number, True], f"names such as {self.example}"
                raise InputError(file=file, found=found, expected=expected, remedy=remedy)
        if not files:
            raise not_this_data_set(source, self.example, options.domain or "files of it")
        log_left_out(source, files.values())
        return [
            self._case(domain, number, image, files.get((domain, number, True)), options)
            for (domain, number, is_label), image in sorted(files.items())
            if not is_label
        ]

    def _key(self, path: Path) -> tuple[str, int, bool] | None:
        """Domain, id and whether it is a label map; None for another kind of file."""
        match = self.pattern.fullmatch(case_name(str(path)))
        if match is None:
            return None
        groups = match.groupdict()
        return self.domains[groups.get("kind") or ""], int(groups["id"]), bool(groups["label"])

    def _case(self, domain: str, number: int, image: Path, label: Path | None, options: SearchOptions) -> SourceCase:
        read = partial(self._read, image, label, options.trust_image)
        sources = (image,) if label is None else (image, label)
        return SourceCase(domain, f"{domain}_{number:0{self.digits}d}", number, sources, read)

    def _read(self, image: Path, label: Path | None, trust_image: bool) -> Reading:
        if label is None and not self.may_lack_labels:
            found, remedy = "no label map of its id", "unpack the label maps too, below the same folder"
            raise InputError(file=image, found=found, expected=f"names such as {self.example}", remedy=remedy)
        return read_pair(image, label, trust_image=trust_image)

    def _check_id(self, number: int, path: Path) -> None:
        if self.ids and not any(first <= number <= last for first, last in self.ids):
            raise InputError(
                file=path,
                found=f"case {number}",
                expected=f"ids {' and '.join(f'{first} to {last}' for first, last in self.ids)}, as in the release",
                remedy="name its training folder; with renumbered files the published splits would select other "
                "patients: restore their names, or prepare them as 'folder'",
            )

    def _raise_twice(self, key: tuple[str, int, bool], first: Path, second: Path) -> None:
        found = f"a second {'label map' if key[2] else 'image'} of {key[0]} case {key[1]}, beside {first}"
        remedy = "remove one of them, or name a folder with one copy"
        raise InputError(file=second, found=found, expected="one file per id", remedy=remedy)
