"""Divides volumes among processes: each is processed once, and finished ones are skipped after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from scripts.core.errors import InputError, find_input_error
from scripts.core.files import write_json
from scripts.core.processes import all_gather, broadcast_from_rank0, num_processes, rank
from scripts.data.case_names import Item, case_name
from scripts.inference.exported_network import files_of_engine

__all__ = ["Worklist"]

Record = dict[str, Any]


class Worklist:
    """Divide volumes among processes, and record each finished one in ``<folder>/done/<case>.json``.

    A record identifies the settings, the weights, and the size and time of the input files. With ``resume``, a volume
    is skipped if its record is still valid and its results exist. ``own`` are the entries of this process.

    Args:
        items: entries with ``image`` and optionally ``label``, with distinct case names; those of rank 0 are used.
        folder: output folder.
        checkpoint: the weights.
        engine: inference engine; engines other than ``pytorch`` read an exported file instead of the weights.
        resume: skip finished volumes of an interrupted run.
        settings: those that decide the results; without them ``resume`` skips nothing.
    """

    def __init__(
        self,
        *,
        items: Sequence[Item],
        folder: str,
        checkpoint: str,
        engine: str = "pytorch",
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.items, self.notes = broadcast_from_rank0(items), Path(folder) / "done"
        self.key = None if settings is None else _digest(settings, files_of_engine(checkpoint, engine))
        found = {case_name(item["image"]): self._note(item) for item in self.items} if resume and rank() == 0 else {}
        # Rank 0 decides before any process writes: all must agree on the remaining volumes.
        (done,) = broadcast_from_rank0([{name: note for name, note in found.items() if note is not None}])
        self.done: dict[str, Record] = done
        self.at_end: list[Callable[[], None]] = []  # called on every process when all have finished
        left = [item for item in self.items if case_name(item["image"]) not in self.done]
        self.own = left[rank() :: num_processes()]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after the handlers that add results to a case."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def run(self, evaluator: Engine) -> None:
        """Process this rank's volumes, if any are left, and wait for the other ranks.

        A volume that cannot be processed is reported at once, the others are processed, and an error ends the run.
        """
        failed = []
        evaluator.interrupt_resume_enabled = False  # ignite would continue a run that raised, and end it at once
        while self.own:
            before = len(self.done)
            evaluator.state.epoch_length = len(self.own)
            try:
                evaluator.run()
                break
            except Exception as error:
                finding, position = find_input_error(error), len(self.done) - before
                if finding is None or position == len(self.own) or len(self.items) == 1:
                    raise
                if not any(str(file) in str(finding.file) for file in self.own[position].values()):  # a full disk
                    raise
                failed.append(self.own[position]["image"])
                print(f"error: {finding}", file=sys.stderr, flush=True)
                del self.own[: position + 1]  # in place: it is the data of the evaluator's dataset
        else:
            for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED) if not failed else ():
                evaluator.fire_event(event)
        every = [file for part in all_gather(failed) for file in part]
        for call in self.at_end:
            call()
        if every:
            found = f"{len(every)} of {len(self.items)} volumes without a result: {', '.join(sorted(every))}"
            remedy = "correct or remove them as stated above, then start again with --resume True"
            raise InputError(file=self.notes.parent, found=found, expected="a result of every volume", remedy=remedy)

    def note(self, engine: Engine) -> None:
        """Record the cases of one iteration as finished."""
        for case in engine.state.output:
            tensors = [value for value in case.values() if isinstance(value, MetaTensor)]
            written = {str(path): os.path.getsize(path) for part in tensors for path in part.meta.get("saved_to", ())}
            image = str(case["image"].meta["filename_or_obj"])
            item = next((item for item in self.own if item["image"] == image), None)
            if item is None:  # a server replaced dataset#data
                continue
            inputs = {path: _stamp(path) for path in item.values()}
            record = {"made_with": self.key, "inputs": inputs, "written": written, "results": case.get("results")}
            self.done[case_name(image)] = record
            write_json(self.notes / f"{case_name(image)}.json", record)

    def finished(self) -> dict[str, Record]:
        """The records of the volumes that are finished, in the order of the list; waits for all processes."""
        together = {name: record for part in all_gather(self.done) for name, record in part.items()}
        names = [case_name(item["image"]) for item in self.items]
        return {name: together[name] for name in names if name in together}

    def collect(self) -> dict[str, Record]:
        """:meth:`finished`, after refusing a volume without a record."""
        together = self.finished()
        missing = [name for item in self.items if (name := case_name(item["image"])) not in together]
        if missing:
            found, expected = f"no result of {', '.join(missing)}", "a result of every volume"
            raise InputError(file=self.notes, found=found, expected=expected, remedy="run it again with --resume True")
        return together

    def _note(self, item: Item) -> Record | None:
        """The record of a finished volume; None if there is none, or if it is invalid or outdated."""
        try:
            record = json.loads((self.notes / f"{case_name(item['image'])}.json").read_text(encoding="utf-8"))
            same_work = self.key is not None and record["made_with"] == self.key
            holds = same_work and record["inputs"] == {path: _stamp(path) for path in item.values()}
            is_whole = all(os.path.getsize(path) == size for path, size in record["written"].items())
            return record if holds and is_whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def _digest(settings: Mapping[str, Any], weights: Sequence[Path]) -> str:
    """Hash of the settings and the weights. Missing weights are reported by their loader."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    for file in weights:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
