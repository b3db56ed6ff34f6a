"""Which volumes are left to do, and for whom: each volume once, and none again after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor

from scripts.core.errors import InputError
from scripts.core.files import write_json
from scripts.core.processes import all_gather, broadcast_from_rank0, num_processes, rank
from scripts.data.case_names import Item, case_name
from scripts.inference.exported_network import files_of_engine

__all__ = ["Worklist"]

Record = dict[str, Any]


class Worklist:
    """Share volumes among processes, and note each that is done in ``<folder>/done/<case>.json``.

    A note says what the result was made with: settings, weights, and the volume's size and time. With ``resume``, a
    volume whose note still holds and whose results lie where it says is not done again.

    Args:
        items: entries with ``image`` and perhaps ``label``, of distinct case names; the first process's are taken.
        folder: where results go.
        checkpoint: the weights the results are made with.
        engine: what runs them: another than ``pytorch`` reads a file of its own in their place.
        resume: skip what an interrupted run has done; otherwise do everything.
        settings: what else decides the results; if None, nothing is known to have been made with the same settings, and
            ``resume`` skips nothing.

    Attributes:
        own: the entries that this process has to do.
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
        # One process looks, before any begins to write: all must agree on what is left.
        (done,) = broadcast_from_rank0([{name: note for name, note in found.items() if note is not None}])
        self.done: dict[str, Record] = done
        left = [item for item in self.items if case_name(item["image"]) not in self.done]
        self.own = left[rank() :: num_processes()]

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after what adds to a case's results."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def run(self, evaluator: Engine) -> None:
        """Do this process's share, if any is left, and wait for the others."""
        if self.own:
            evaluator.run()
        else:
            for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
                evaluator.fire_event(event)
        all_gather(None)

    def note(self, engine: Engine) -> None:
        """Write down that the cases of one iteration are done."""
        for case in engine.state.output:
            tensors = [value for value in case.values() if isinstance(value, MetaTensor)]
            written = {str(path) for tensor in tensors for path in tensor.meta.get("saved_to", ())}
            image = str(case["image"].meta["filename_or_obj"])
            item = next((item for item in self.own if item["image"] == image), None)
            if item is None:  # a server put volumes of its own into dataset#data
                continue
            record = {
                "made_with": self.key,
                "inputs": {path: _stamp(path) for path in item.values()},
                "written": sorted(written),
                "results": case.get("results"),
            }
            self.done[case_name(image)] = record
            write_json(self.notes / f"{case_name(image)}.json", record)

    def collect(self) -> dict[str, Record]:
        """What is known of every volume, in the order of the list; all processes wait here for the last one.

        Raises:
            InputError: a volume that nobody did.
        """
        together = {name: record for part in all_gather(self.done) for name, record in part.items()}
        names = [case_name(item["image"]) for item in self.items]
        missing = [name for name in names if name not in together]
        if missing:
            raise InputError(
                file=self.notes,
                found=f"no result of {', '.join(missing)}",
                expected="one of every volume",
                remedy="run it again with --resume True",
            )
        return {name: together[name] for name in names}

    def _note(self, item: Item) -> Record | None:
        """The note of a volume that needs not be done again; anything else in its place is no note."""
        try:
            record = json.loads((self.notes / f"{case_name(item['image'])}.json").read_text(encoding="utf-8"))
            same_work = self.key is not None and record["made_with"] == self.key
            holds = same_work and record["inputs"] == {path: _stamp(path) for path in item.values()}
            return record if holds and all(os.path.isfile(path) for path in record["written"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _digest(settings: Mapping[str, Any], weights: Sequence[Path]) -> str:
    """Of the settings and the weights; weights that are not there are for their loader to report."""
    digest = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    for file in weights:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]
