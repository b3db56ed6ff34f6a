"""Rounds of pseudo-labels during self-training, with a table and a picture of each round."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from scripts.core.domains import IGNORED
from scripts.core.files import atomic_path
from scripts.core.processes import rank
from scripts.data.pseudo_labels import PseudoLabels
from scripts.evaluation.montage import NORMALISED, Panel, slice_montage
from torch import nn

__all__ = ["PseudoLabelRounds"]


class PseudoLabelRounds:
    """Renew pseudo-labels at the start of the first epochs, while a structure is too small.

    Each round that changes them leaves rows in a table and a picture.

    Args:
        pseudo_labels: of the target's training slices.
        network: the moving average that predicts them.
        rounds: largest number of rounds, one per epoch.
        log: CSV file: for each round and structure, the number of cases in use, the share of the predicted volume that
            was kept, and the minimum, median and maximum volume in ml, of all cases.
        folder: where ``pseudo_labels_<round>.png`` goes.
        label_names: of the classes 1..K.
        count: slices in a picture.
        marks: as for :class:`scripts.handlers.panels.PeriodicPicture`.
    """

    def __init__(
        self,
        *,
        pseudo_labels: PseudoLabels,
        network: nn.Module,
        rounds: int,
        log: str,
        folder: str,
        label_names: Sequence[str],
        count: int = 4,
        marks: Sequence[str] = (),
    ) -> None:
        self.pseudo_labels, self.network, self.rounds = pseudo_labels, network, rounds
        self.log, self.folder = Path(log), Path(folder)
        self.label_names, self.count, self.marks = list(label_names), count, marks

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.renew_if_due)

    def renew_if_due(self, engine: Engine) -> None:
        """Start a round, unless a resumed run has restored its pseudo-labels."""
        if self.pseudo_labels.rounds >= min(engine.state.epoch, self.rounds):
            return
        if self.pseudo_labels.renew(self.network) and rank() == 0:
            self.write_table()
            self.draw()

    def write_table(self) -> None:
        """Write this round's rows; later rows of an interrupted run are dropped."""
        earlier: list[dict[str, Any]] = []
        if self.log.exists() and self.pseudo_labels.rounds > 1:
            with self.log.open(newline="", encoding="utf-8") as file:
                earlier = [row for row in csv.DictReader(file) if int(row["round"]) < self.pseudo_labels.rounds]
        rows = [*earlier, *(self._row(index, name) for index, name in enumerate(self.label_names))]
        with atomic_path(self.log) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def draw(self) -> None:
        """Show the slice with most labelled voxels of several cases in use, with pseudo-labels and ignored voxels."""
        labels, images = self.pseudo_labels.labels.cpu().numpy()[:, 0], self.pseudo_labels.slices.images.cpu().numpy()
        is_labelled = (labels > 0) & (labels != IGNORED)  # (N, H, W)
        case_of = self.pseudo_labels.slices.case_of.numpy()
        used = self.pseudo_labels.used_cases if len(self.pseudo_labels.used_cases) else self.pseudo_labels.cases
        cases = used.numpy()[np.unique(np.linspace(0, len(used) - 1, self.count).round().astype(int))]
        rows = []
        for case in cases:
            own = np.flatnonzero(case_of == case)
            index = own[is_labelled[own].sum((1, 2)).argmax()]
            plain = Panel(image=images[index, 0], limits=NORMALISED, style="area")
            labelled = replace(plain, labels=np.where(is_labelled[index], labels[index], 0))
            rows.append([plain, labelled, Panel(image=(labels[index] == IGNORED).astype(np.float32), heat=True)])
        slice_montage(
            rows,
            self.folder / f"pseudo_labels_{self.pseudo_labels.rounds:02d}.png",
            column_titles=("image", "pseudo-label", "ignored"),
            label_names=self.label_names,
            title=f"round {self.pseudo_labels.rounds}",
            marks=self.marks,
        )

    def _row(self, structure: int, name: str) -> dict[str, Any]:
        volumes_ml, kept_ml = (of[:, structure] for of in (self.pseudo_labels.volumes_ml, self.pseudo_labels.kept_ml))
        return {
            "round": self.pseudo_labels.rounds,
            "structure": name,
            "cases": len(self.pseudo_labels.used_cases),
            "kept_share": f"{kept_ml.sum() / volumes_ml.sum().clamp_min(1e-6):.4f}",
            "least_ml": f"{volumes_ml.min():.2f}",
            "median_ml": f"{volumes_ml.quantile(0.5):.2f}",
            "greatest_ml": f"{volumes_ml.max():.2f}",
        }
