"""Further records of ``--tracking mlflow``: all losses, pictures, settings and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import optional_import
from scripts.handlers.losses import scalar_outputs

__all__ = ["TrackedRun"]

# MLflow's limit.
PARAMETERS_PER_CALL = 100


class TrackedRun:
    """Send all losses, pictures and settings to the MLflow run that MONAI's ``MLFlowHandler`` opens.

    Without such a handler, which ``--tracking`` adds, nothing is attached. Attach it after the engine's own handlers:
    the run has to be open when this one starts.

    Args:
        handlers: of the engine, among which the ``MLFlowHandler`` is searched.
        pictures: folder whose new PNG files are sent after each epoch.
        settings: returns the evaluated settings; called once.
        files: other files, sent at the end.
        loss_interval: iterations between two readings of the losses (each makes a GPU wait), besides an epoch's last;
            0 for none.
    """

    def __init__(
        self,
        *,
        handlers: Sequence[object],
        pictures: str,
        settings: Callable[[], Mapping[str, Any]],
        files: Sequence[str] = (),
        loss_interval: int = 0,
    ) -> None:
        self.handler: Any = next((handler for handler in handlers if isinstance(handler, MLFlowHandler)), None)
        self.pictures, self.files, self.loss_interval = Path(pictures), list(files), loss_interval
        self.settings = settings
        self.sent: set[tuple[Path, int]] = set()
        self.run_id = ""

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or an evaluator."""
        if self.handler is None:
            return
        if self.loss_interval:
            engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=self._is_due), self.send_losses)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, self.send_pictures)
        engine.add_event_handler(Events.COMPLETED, self.send_files)

    def start(self, engine: Engine) -> None:
        """Send the evaluated settings: all as a file, scalars also as parameters. Earlier pictures are not sent."""
        self.run_id, self.sent = self.handler.cur_run.info.run_id, self._pictures()
        settings = dict(self.settings())
        self.handler.client.log_dict(self.run_id, settings, "settings.yaml")
        parameter, _ = optional_import("mlflow.entities", name="Param")
        scalars = [parameter(key, str(value)) for key, value in settings.items() if not isinstance(value, Mapping)]
        for first in range(0, len(scalars), PARAMETERS_PER_CALL):
            self.handler.client.log_batch(self.run_id, params=scalars[first : first + PARAMETERS_PER_CALL])

    def send_losses(self, engine: Engine) -> None:
        """Every loss by its name."""
        for name, value in scalar_outputs(engine.state.output).items():
            self.handler.client.log_metric(self.run_id, name, value, step=engine.state.iteration)

    def send_pictures(self, engine: Engine) -> None:
        """Pictures drawn since the last call."""
        drawn = self._pictures()
        for path, _ in sorted(drawn - self.sent):
            self.handler.client.log_artifact(self.run_id, str(path), "pictures")
        self.sent = drawn

    def send_files(self, engine: Engine) -> None:
        """The files that describe the run."""
        for path in filter(os.path.isfile, self.files):
            self.handler.client.log_artifact(self.run_id, path)

    def _is_due(self, engine: Engine, iteration: int) -> bool:
        return iteration % self.loss_interval == 0 or iteration % (engine.state.epoch_length or 1) == 0

    def _pictures(self) -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in self.pictures.glob("*.png")}
