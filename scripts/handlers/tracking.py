"""What ``--tracking mlflow`` shows beyond the total loss and the metrics that MONAI's own handler sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from monai.utils import optional_import

from scripts.handlers.losses import scalar_outputs

__all__ = ["TrackedRun"]

PARAMETERS_AT_ONCE = 100
"""The most that MLflow takes in one call."""


class TrackedRun:
    """Send all losses, pictures and settings to the run that an engine's ``MLFlowHandler`` keeps, if it has one.

    Attach it after what draws the pictures and before MONAI's handler, which ends the run when it completes.

    Args:
        pictures: folder whose PNG files are sent, each when it is new.
        settings: gives the settings as they were evaluated; asked once, when the first epoch begins.
        files: other files, sent at the end.
        loss_interval: iterations between two readings of the losses (each makes a GPU wait), besides an epoch's last;
            0 for none.
    """

    def __init__(
        self,
        *,
        pictures: str,
        settings: Callable[[], Mapping[str, Any]],
        files: Sequence[str] = (),
        loss_interval: int = 0,
    ) -> None:
        self.pictures, self.files, self.loss_interval = Path(pictures), list(files), loss_interval
        self.settings = settings
        self.sent: set[tuple[Path, int]] = set()
        self.settings_sent = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or an evaluator."""
        if self.loss_interval:
            engine.add_event_handler(Events.ITERATION_COMPLETED(event_filter=self._is_time), self.send_losses)
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self.send_settings)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, self.send_pictures)
        engine.add_event_handler(Events.COMPLETED, self.send_files)

    def start(self, engine: Engine) -> None:
        """Pictures of an earlier run in the same folder are not this one's."""
        self.sent, self.settings_sent = self._drawn(), False

    def send_settings(self, engine: Engine) -> None:
        """The evaluated settings, once: as a file; those without parts as parameters too, to compare runs by."""
        handler = _handler_of(engine)
        if handler is None or self.settings_sent:
            return
        run_id, settings = handler.cur_run.info.run_id, dict(self.settings())
        handler.client.log_dict(run_id, settings, "settings.yaml")
        parameter, _ = optional_import("mlflow.entities", name="Param")
        of_one_value = [parameter(key, str(value)) for key, value in settings.items() if not isinstance(value, Mapping)]
        for first in range(0, len(of_one_value), PARAMETERS_AT_ONCE):
            handler.client.log_batch(run_id, params=of_one_value[first : first + PARAMETERS_AT_ONCE])
        self.settings_sent = True

    def send_losses(self, engine: Engine) -> None:
        """Every loss by its name."""
        handler = _handler_of(engine)
        if handler is not None:
            for name, value in scalar_outputs(engine.state.output).items():
                handler.client.log_metric(handler.cur_run.info.run_id, name, value, step=engine.state.iteration)

    def send_pictures(self, engine: Engine) -> None:
        """Pictures that were drawn since the last look."""
        handler = _handler_of(engine)
        if handler is not None:
            drawn = self._drawn()
            for path, _ in sorted(drawn - self.sent):
                handler.client.log_artifact(handler.cur_run.info.run_id, str(path), "pictures")
            self.sent = drawn

    def send_files(self, engine: Engine) -> None:
        """The files that describe the run."""
        handler = _handler_of(engine)
        if handler is not None:
            for path in self.files:
                handler.client.log_artifact(handler.cur_run.info.run_id, path)

    def _is_time(self, engine: Engine, iteration: int) -> bool:
        return iteration % self.loss_interval == 0 or iteration % (engine.state.epoch_length or 1) == 0

    def _drawn(self) -> set[tuple[Path, int]]:
        return {(path, path.stat().st_mtime_ns) for path in self.pictures.glob("*.png")}


def _handler_of(engine: Engine) -> MLFlowHandler | None:
    """MONAI's handler on this engine, once it has a run: it is there with ``--tracking``, on the first process."""
    for function, *_ in engine._event_handlers[Events.COMPLETED]:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, MLFlowHandler) and owner.cur_run is not None:
            return owner
    return None
