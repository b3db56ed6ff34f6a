"""Leakage: one image, or one label map, in two places of the lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from scripts.lab.check.cases import Case, Finding
from scripts.lab.check.fingerprints import agreement, similarity
from scripts.lab.check.limits import LIMITS

__all__ = ["find_copies"]

CANDIDATES = 3
"""Most alike cases of each case that are compared closely, so that large sets stay quick."""


def find_copies(cases: Sequence[Case]) -> list[Finding]:
    """Images that are one, by path, voxels or content, and label maps that belong to two images.

    Content is robust to another scale or clip of the values, another data type, axis order or a small crop. A copy in
    another section or domain is an error (leakage), one in the same section a warning.
    """
    read = [case for case in cases if case.image_digest]
    copies = dict(_alike(read))
    findings = [_leak(first, second, how) for (first, second), how in copies.items()]
    pairs = {(id(first), id(second)) for first, second in copies}
    for first, second in _same(read, "label_digest"):
        if (id(first), id(second)) not in pairs:
            findings.append(_shared_label(first, second))
    return findings


def _alike(cases: Sequence[Case]) -> Iterator[tuple[tuple[Case, Case], str]]:
    exact = {}
    for first, second in _same(cases, "image_digest"):
        is_file = first.files.image == second.files.image
        exact[id(first), id(second)] = "the same file" if is_file else "the same voxels"
        yield (first, second), exact[id(first), id(second)]
    for first, second in _candidates(cases):
        if first.detail is None or second.detail is None or (id(first), id(second)) in exact:
            continue
        value = agreement(first.detail, second.detail)
        if value >= LIMITS.duplicate:
            yield (first, second), f"nearly the same image (correlation {value:.2f})"


def _candidates(cases: Sequence[Case]) -> list[tuple[Case, Case]]:
    """Pairs of coarsely alike images: for each case the few that are most alike."""
    near: dict[int, list[tuple[float, int, int]]] = {}
    for (i, first), (j, second) in combinations(enumerate(cases), 2):
        if first.spectrum is None or second.spectrum is None:
            continue
        alike = similarity(first.spectrum, second.spectrum)
        if alike >= LIMITS.duplicate_candidate:
            for one in (i, j):
                near.setdefault(one, []).append((alike, i, j))
    chosen = {pair[1:] for pairs in near.values() for pair in sorted(pairs, reverse=True)[:CANDIDATES]}
    return [(cases[i], cases[j]) for i, j in sorted(chosen)]


def _same(cases: Sequence[Case], key: str) -> Iterator[tuple[Case, Case]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        if getattr(case, key):
            groups.setdefault(getattr(case, key), []).append(case)
    for group in groups.values():
        yield from combinations(group, 2)


def _place(case: Case) -> str:
    return f"{case.domain}/{case.files.section}"


def _leak(first: Case, second: Case, how: str) -> Finding:
    is_leak = _place(first) != _place(second)
    if _is_published(first, second):
        return _published(first, second, how)
    return Finding(
        severity="error" if is_leak else "warning",
        kind="one case in two splits" if is_leak else "one case twice",
        domain=first.domain if first.domain == second.domain else f"{first.domain}, {second.domain}",
        cases=tuple(dict.fromkeys((first.name, second.name))),
        found=f"{how} as {first.name} of {_place(first)} and {second.name} of {_place(second)}",
        expected="each image in one list, once",
        remedy="take it out of one of them; an evaluation on images that were trained on says nothing"
        if is_leak
        else "take one of them out",
    )


def _is_published(first: Case, second: Case) -> bool:
    """Whether one file stands in two lists of a domain because its protocol fills both with the same cases."""
    one_file = first.domain == second.domain and first.files.image == second.files.image
    sections = {first.files.section, second.files.section}
    return one_file and len(sections) == 2 and sections <= set(first.files.shared_sections)


def _published(first: Case, second: Case, how: str) -> Finding:
    return Finding(
        severity="warning",
        kind="one case in two splits",
        domain=first.domain,
        cases=(first.name,),
        found=f"{how} in {_place(first)} and {_place(second)}, as protocol '{first.files.protocol}' has it: the "
        "published set-up validates on its test cases",
        expected="each image in one list, once",
        remedy="put such numbers beside published ones alone: checkpoints may be chosen on the test cases",
    )


def _shared_label(first: Case, second: Case) -> Finding:
    # Two contrasts of one scan share a label rightly, if they lie on one grid and are two domains.
    is_one_scan = first.domain != second.domain and (first.shape, first.orientation) == (
        second.shape,
        second.orientation,
    )
    return Finding(
        severity="warning" if is_one_scan else "error",
        kind="one label for two images",
        domain=first.domain if first.domain == second.domain else f"{first.domain}, {second.domain}",
        cases=(first.name, second.name),
        found=f"the same label map for {first.name} ({_place(first)}) and {second.name} ({_place(second)})",
        expected="a label of its own for each image",
        remedy="take the two as one patient: no pair of domains to adapt between"
        if is_one_scan
        else "look which image it belongs to, and find the other's",
    )
