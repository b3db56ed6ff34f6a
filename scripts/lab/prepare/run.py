"""``prepare``: find the cases, prepare them in parallel, write datalists and report when all are complete."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.core.errors import InputError, SettingError, innermost_message
from scripts.lab.cores import available_cores, exclusive
from scripts.lab.prepare.outputs import add_report, read_reports, write_datalists
from scripts.lab.prepare.places import check_files, check_owner, check_places
from scripts.lab.prepare.prepare_case import finished_record, prepare_case, settings_key
from scripts.lab.prepare.rules import DomainRules, Rules, read_label_map, read_rules
from scripts.lab.prepare.source_case import SearchOptions, SourceCase
from scripts.lab.prepare.values import ValueMap
from tqdm import tqdm

__all__ = ["Preparation", "prepare"]


@dataclass(frozen=True)
class Preparation:
    """What to prepare, and how; ``source`` is only read, ``label_map`` is the text of ``--map``."""

    dataset: str
    source: Path
    out: Path
    protocol: str | None = None
    label_map: str | None = None
    find: SearchOptions = field(default_factory=SearchOptions)
    workers: int | None = None


def prepare(request: Preparation) -> dict[str, Any]:
    """Prepare a data set.

    Every usable case is prepared; the others are reported. Datalists and report are written only if no case failed, so
    that no training uses part of a data set unnoticed. A second call prepares the missing cases.
    """
    rules = _rules(request)
    cases = rules.layout.find(request.source, replace(request.find, among=tuple(rules.domains)))
    _check_names(cases)
    domains = sorted({case.domain for case in cases})
    check_places(request.out, domains, (request.source, request.find.labels))
    check_files(request.out, cases, (request.label_map, request.protocol))
    check_owner(request.out, domains, request.dataset)
    read_reports(request.out)  # refuse an unreadable report before the work
    with exclusive(request.out):
        return _prepare_missing(request, rules, cases)


def _prepare_missing(request: Preparation, rules: Rules, cases: Sequence[SourceCase]) -> dict[str, Any]:
    """Prepare the cases that are not finished, and write datalists and report."""
    trusted = request.find.trust_image
    keys = {case: settings_key(rules, rules.domains[case.domain], case, trust_image=trusted) for case in cases}
    finished = {case: record for case in cases if (record := finished_record(request.out, case, keys[case]))}
    left = [case for case in cases if case not in finished]
    for domain in {case.domain for case in left}:
        # A domain has no datalist until all of its cases are complete again.
        (request.out / f"{domain}.json").unlink(missing_ok=True)
    new = _prepare_all(request, rules, left, keys)
    records = {case: finished.get(case) or new[case] for case in cases}
    datalists = write_datalists(request.out, rules, records)
    return add_report(request.out, rules, records, datalists, skipped=len(finished))


def _rules(request: Preparation) -> Rules:
    """The rules of the data set; the domain of a plain folder gets the user's name and label map."""
    rules = read_rules(request.dataset, request.protocol)
    if rules.domains:
        for given, option in ((request.label_map, "--map"), (request.find.labels, "--labels")):
            if given is not None:
                raise InputError(
                    file=option,
                    found=f"given with '{request.dataset}'",
                    expected="only with 'folder': known data sets define their labels",
                    remedy="omit it",
                )
        if request.find.domain not in (None, *rules.domains):
            expected = f"one of {', '.join(rules.domains)}, the domains of protocol '{rules.protocol}'"
            remedy = "correct it, or omit it for all of them"
            raise SettingError(setting="--domain", found=f"'{request.find.domain}'", expected=expected, remedy=remedy)
        wanted = {name: domain for name, domain in rules.domains.items() if request.find.domain in (None, name)}
        return replace(rules, domains=wanted)
    name = request.find.domain or ""
    labels = read_label_map(request.label_map) if request.label_map else ValueMap(keep_all=True)
    return replace(rules, domains={name: DomainRules(name=name, modality=name.upper(), labels=labels)})


def _prepare_all(
    request: Preparation, rules: Rules, cases: Sequence[SourceCase], keys: dict[SourceCase, str]
) -> dict[SourceCase, Any]:
    """Prepare cases in parallel. Threads suffice: compression and array operations release the interpreter lock."""
    records: dict[SourceCase, Any] = {}
    failures: list[InputError] = []
    workers = max(1, min(request.workers or available_cores(), len(cases) or 1))
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        futures: dict[Future[dict[str, Any]], SourceCase] = {
            pool.submit(prepare_case, request.out, case, rules, keys[case]): case for case in cases
        }
        with tqdm(as_completed(futures), total=len(futures), desc=request.dataset, unit="case") as progress:
            for future in progress:
                try:
                    records[futures[future]] = future.result()
                except Exception as error:  # a failure of one case must not stop the others
                    failures.append(_failure(futures[future], error))
                    progress.set_postfix(failed=len(failures))
    finally:
        pool.shutdown(cancel_futures=True)
    if failures:
        raise _summary(request, failures, len(cases))
    return records


def _failure(case: SourceCase, error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    found = f"an error while it was prepared ({innermost_message(error)})"
    remedy = "check its files; report the error if they are correct"
    return InputError(file=case.sources[0], found=found, expected="a readable case", remedy=remedy)


def _summary(request: Preparation, failures: Sequence[InputError], cases: int) -> InputError:
    """The only failure, or the number of failures after printing each."""
    if len(failures) == 1:
        return failures[0]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    found = f"{len(failures)} of {cases} cases that cannot be prepared, listed above"
    remedy = "correct or remove them and repeat the command: finished cases are kept, no datalist was written"
    return InputError(file=request.source, found=found, expected="complete cases", remedy=remedy)


def _check_names(cases: Sequence[SourceCase]) -> None:
    seen: dict[tuple[str, str], SourceCase] = {}
    for case in cases:
        other = seen.setdefault((case.domain, case.name), case)
        if other is not case:
            found, remedy = f"the id '{case.name}', also used by {other.sources[0]}", "remove or rename one of them"
            raise InputError(file=case.sources[0], found=found, expected="one volume per id", remedy=remedy)
