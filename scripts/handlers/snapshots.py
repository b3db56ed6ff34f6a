"""Snapshots of the averaged weights during training, their label-free scores, and the selection at the end."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from scripts.core.errors import InputError
from scripts.core.files import append_text, atomic_path
from scripts.core.processes import rank
from scripts.core.weights import check_weights, load_weights, read_state, save_weights
from scripts.data.slices import SliceSet
from scripts.handlers.checkpoints import LastWeights, re_estimate_statistics
from scripts.handlers.losses import check_finite_weights
from scripts.selection.choice import best_epoch, check_choice_is_possible, read_scores, snapshot_file
from scripts.selection.scorer import SnapshotScorer, predict_classes
from scripts.selection.scores import MEASURED, SCORES, mean_dice
from torch.optim.swa_utils import AveragedModel

__all__ = ["Snapshots"]

State = Mapping[str, torch.Tensor]

COLUMNS = ("epoch", "iteration", *MEASURED)


class Snapshots(LastWeights):
    """Every few epochs, and after the last, store and score the weights that evaluation would use.

    Snapshots are copies with re-estimated batch-norm statistics, so that training is not affected. Attach this handler
    before the checkpoints, so that a resumed run has every snapshot up to its checkpoint and repeats the later ones.

    Args:
        folder: for ``epoch_NNN.pt`` and its metadata ``epoch_NNN.json``.
        log: CSV file of scores and their parts, a row for each snapshot.
        interval: epochs between two snapshots.
        keep: which snapshot becomes the result of the run, one of ``KEPT``.
        average: the moving average of the trained network.
        metadata: of the weights.
        scorer: measures the parts of the scores.
        batches: as in :class:`scripts.handlers.checkpoints.FinalWeights`.
        oracle: slices of the target's held-out cases with their labels, for ``keep: oracle`` only.

    Raises:
        InputError: settings that cannot work; on resuming, a snapshot is missing.
    """

    def __init__(
        self,
        *,
        folder: str,
        log: str,
        interval: int,
        keep: str,
        average: AveragedModel,
        metadata: Mapping[str, Any],
        scorer: SnapshotScorer,
        batches: Callable[[], Iterable[torch.Tensor]] | None = None,
        oracle: SliceSet | None = None,
    ) -> None:
        check_choice_is_possible(keep, interval, has_target=scorer.target is not None)
        self.folder, self.log, self.interval = Path(folder), Path(log), interval
        self.keep, self.scorer = keep, scorer
        self.average, self.metadata, self.batches, self.oracle = average, dict(metadata), batches, oracle
        self.choice: dict[str, Any] = {}  # set on rank 0 only

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.take)

    def start(self, engine: Engine) -> None:
        """On resuming, keep the snapshots up to the checkpoint; otherwise rename the folder of an earlier run.

        Raises:
            InputError: a snapshot from before the checkpoint is missing.
        """
        if rank() > 0:
            return
        kept: dict[int, dict[str, float]] = {}
        if engine.state.iteration == 0:
            _set_aside(self.folder)
        elif self._due(engine.state.epoch, engine.state.max_epochs):
            kept = {epoch: row for epoch, row in read_scores(self.log).items() if epoch <= engine.state.epoch}
            self._check_complete(kept, engine.state.epoch, engine.state.max_epochs)
        with atomic_path(self.log) as temporary:
            temporary.write_text("".join([_line(COLUMNS), *(_line(_cells(row)) for row in kept.values())]))

    def take(self, engine: Engine) -> None:
        """Store and score a snapshot if one is due, on the first process."""
        epoch, iteration = engine.state.epoch, engine.state.iteration
        if rank() > 0 or epoch not in self._due(epoch, engine.state.max_epochs):
            return
        network = copy.deepcopy(self.average.module)
        re_estimate_statistics(network, self.batches)
        check_finite_weights(network.state_dict(), iteration)
        path = snapshot_file(self.folder, epoch)
        selection = {"rule": "snapshot", "epoch": epoch, "reads_target_labels": False}
        save_weights(path, network.state_dict(), self.metadata | {"iterations": iteration, "selection": selection})
        parts = self.scorer.parts(network)
        scores = {f"score_{name}": score(parts) for name, score in SCORES.items()}
        row = {"epoch": epoch, "iteration": iteration} | scores | parts
        append_text(self.log, _line(_cells(row)))

    def choose(self, engine: Engine, last: State) -> tuple[State, int]:
        """See :class:`LastWeights`.

        Raises:
            InputError: a snapshot or the table of scores is missing.
        """
        if self.keep == "last":
            return super().choose(engine, last)
        rows = read_scores(self.log)
        self._check_complete(rows, engine.state.epoch, engine.state.max_epochs)
        if reads_labels := self.keep == "oracle":
            values = {epoch: self._oracle_dice(epoch) for epoch in rows}
            self._log_oracle(values)
            rule = {"rule": "oracle", "score": "target_dice"}
        else:
            values = {epoch: row[f"score_{self.keep}"] for epoch, row in rows.items()}
            rule = {"rule": "label_free", "score": self.keep, "labelled_cases": self.scorer.labelled_cases}
        epoch = best_epoch(values)
        self.choice = {**rule, "epoch": epoch, "value": values[epoch], "reads_target_labels": reads_labels}
        path = snapshot_file(self.folder, epoch)
        state = read_state(path)
        check_weights(path, state, self.metadata)
        return state, int(rows[epoch]["iteration"])

    def _due(self, epoch: int, max_epochs: int) -> list[int]:
        """The epochs up to this one after which there is a snapshot."""
        return [past for past in range(1, epoch + 1) if past % self.interval == 0 or past == max_epochs]

    def _check_complete(self, rows: Mapping[int, Any], epoch: int, max_epochs: int) -> None:
        due = self._due(epoch, max_epochs)
        for past in due:
            path = snapshot_file(self.folder, past)
            if past not in rows or not path.is_file():
                file, what = (path, "snapshot") if past in rows else (self.log, "row")
                expected = f"one for each of the epochs {', '.join(map(str, due))}"
                remedy = "restore it, or start the training anew without --resume"
                raise InputError(file=file, found=f"no {what} of epoch {past}", expected=expected, remedy=remedy)

    def _oracle_dice(self, epoch: int) -> float:
        """Dice in 3D of the centre windows of the slices. Only this function reads target labels."""
        slices, network = self.oracle, copy.deepcopy(self.average.module)
        assert slices is not None, "the config reads these cases for keep: oracle"
        images, labels = slices.middle(torch.arange(len(slices)))
        assert labels is not None, "with their labels"
        load_weights(str(snapshot_file(self.folder, epoch)), network)
        prediction = predict_classes(network.eval(), images, self.scorer.batch_size, self.scorer.precision)
        label = labels[:, 0].cpu().numpy()
        return mean_dice(prediction, label, slices.case_of.numpy(), self.scorer.num_structures)

    def _log_oracle(self, values: Mapping[int, float]) -> None:
        """Write the values to a separate table, because they depend on target labels."""
        lines = [_line(("epoch", "oracle_dice")), *(_line((e, f"{value:.9g}")) for e, value in values.items())]
        with atomic_path(self.log.with_name("oracle.csv")) as temporary:
            temporary.write_text("".join(lines))


def _cells(row: Mapping[str, float]) -> list[object]:
    return [int(row[key]) if key in ("epoch", "iteration") else f"{row[key]:.9g}" for key in COLUMNS]


def _line(cells: Iterable[object]) -> str:
    return ",".join(map(str, cells)) + "\n"


def _set_aside(folder: Path) -> None:
    if folder.exists():
        earlier = folder.with_name(f"earlier_{folder.name}")
        shutil.rmtree(earlier, ignore_errors=True)
        folder.rename(earlier)
