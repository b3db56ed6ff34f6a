"""Leakage: images and label maps that occur twice in the lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from scripts.lab.check.cases import Finding, MeasuredCase, Severity
from scripts.lab.check.fingerprints import agreement, similarity
from scripts.lab.check.limits import LIMITS

__all__ = ["find_copies"]

# Number of most similar cases that are compared in detail with each case.
CANDIDATES = 3


def find_copies(cases: Sequence[MeasuredCase]) -> list[Finding]:
    """Images that occur twice, by path, voxels or content, and label maps that belong to two images.

    The comparison of content tolerates other scales, clips and types of the values, other axis orders and small crops.
    A copy in another section or domain is an error (leakage), one in the same section a warning.
    """
    read = [case for case in cases if case.image_digest]
    copies = dict(_alike(read))
    findings = [_leak(first, second, how) for (first, second), how in copies.items()]
    pairs = {(id(first), id(second)) for first, second in copies}
    for first, second in _same(read, "label_digest"):
        if (id(first), id(second)) not in pairs:
            findings.append(_shared_label(first, second))
    return findings


def _alike(cases: Sequence[MeasuredCase]) -> Iterator[tuple[tuple[MeasuredCase, MeasuredCase], str]]:
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


def _candidates(cases: Sequence[MeasuredCase]) -> list[tuple[MeasuredCase, MeasuredCase]]:
    """Pairs of roughly similar images: for each case the few that are most similar."""
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


def _same(cases: Sequence[MeasuredCase], key: str) -> Iterator[tuple[MeasuredCase, MeasuredCase]]:
    groups: dict[str, list[MeasuredCase]] = {}
    for case in cases:
        if getattr(case, key):
            groups.setdefault(getattr(case, key), []).append(case)
    for group in groups.values():
        yield from combinations(group, 2)


def _place(case: MeasuredCase) -> str:
    return f"{case.domain}/{case.files.section}"


def _leak(first: MeasuredCase, second: MeasuredCase, how: str) -> Finding:
    is_leak = _place(first) != _place(second)
    found = f"{how} as {first.name} of {_place(first)} and {second.name} of {_place(second)}"
    expected = "each image in one list, once"
    if _is_published(first, second):
        found = f"{how} in {_place(first)} and {_place(second)}, which protocol '{first.files.protocol}' prescribes"
        remedy = "compare such numbers with published ones only: checkpoints may have been chosen on the test cases"
        return first.finding("warning", "one case in two splits", found, expected, remedy)
    names = tuple(dict.fromkeys((first.name, second.name)))
    if is_leak:
        remedy = "remove it from one of them; an evaluation on training images is invalid"
        return Finding("error", "one case in two splits", _domains(first, second), names, found, expected, remedy)
    return Finding("warning", "one case twice", _domains(first, second), names, found, expected, "remove one of them")


def _domains(first: MeasuredCase, second: MeasuredCase) -> str:
    return first.domain if first.domain == second.domain else f"{first.domain}, {second.domain}"


def _is_published(first: MeasuredCase, second: MeasuredCase) -> bool:
    """Whether a file is in two lists of a domain because its protocol fills both with the same cases."""
    one_file = first.domain == second.domain and first.files.image == second.files.image
    sections = {first.files.section, second.files.section}
    return one_file and len(sections) == 2 and sections <= set(first.files.shared_sections)


def _shared_label(first: MeasuredCase, second: MeasuredCase) -> Finding:
    # Two contrasts of one scan may share a label if they are two domains on one grid.
    is_one_grid = (first.shape, first.orientation) == (second.shape, second.orientation)
    is_one_scan = first.domain != second.domain and is_one_grid
    found = f"the same label map for {first.name} ({_place(first)}) and {second.name} ({_place(second)})"
    remedy = "find out to which image it belongs, and add the label of the other"
    if is_one_scan:
        remedy = "do not adapt between these domains: they are contrasts of the same patient"
    severity: Severity = "warning" if is_one_scan else "error"
    names, expected = (first.name, second.name), "a separate label for each image"
    return Finding(severity, "one label for two images", _domains(first, second), names, found, expected, remedy)
