"""Base of the trainers: several optimisers, frozen discriminators, autocast, averaged gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import Trainer
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from scripts.core.errors import InputError
from scripts.core.processes import mean_over_processes, num_processes
from scripts.engines.precision import autocast
from torch import nn

__all__ = ["AdversarialTrainer", "frozen"]

Handlers = Sequence[Any] | None


class AdversarialTrainer(Trainer):
    """A MONAI trainer for steps with several optimisers. Subclasses write the algorithm box in ``_iteration``.

    Args:
        device: where the step runs.
        max_epochs: number of epochs of ``epoch_length`` iterations, because batches are endless.
        epoch_length: iterations per epoch.
        train_data_loader: an iterable of batches, see :class:`scripts.data.slices.UnpairedSliceBatches`.
        train_handlers: ignite handlers.
        precision: ``auto`` (bf16 where it is fast), ``bf16`` or ``float32``.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        max_epochs: int,
        epoch_length: int,
        train_data_loader: Iterable[dict[str, torch.Tensor]],
        train_handlers: Handlers = None,
        precision: str = "auto",
    ) -> None:
        self.precision = precision
        autocast(device, precision)  # refuse an invalid value now, not at the first step
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            handlers=train_handlers,
            decollate=False,
        )

    def run(self) -> None:
        """Train from the current state; a run resumed after its last iteration only fires ``COMPLETED``."""
        if self.state.iteration < self.state.max_epochs * self.state.epoch_length:
            super().run()
        else:
            self.fire_event(Events.COMPLETED)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a checkpoint of a run of the same length: the schedules depend on it."""
        for key in ("max_epochs", "epoch_length"):
            if state_dict[key] != getattr(self.state, key):
                found, expected = f"{key} {state_dict[key]}", str(getattr(self.state, key))
                remedy = "keep the length of the run; a longer training is a new run, without --resume"
                raise InputError(file="the checkpoint to resume from", found=found, expected=expected, remedy=remedy)
        super().load_state_dict(state_dict)

    def autocast(self) -> torch.autocast:
        """The precision context of forward passes and losses."""
        return autocast(self.state.device, self.precision)

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, engine: Engine | None = None) -> None:
        """Backward pass and update of the parameters of ``optimizer`` only.

        Args:
            optimizer: of the parameters to update.
            loss: the loss to minimise.
            engine: fires ``BACKWARD_COMPLETED`` between the two, for handlers that read or clip gradients.
        """
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(optimizer)
        if engine is not None:
            engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        optimizer.step()

    def prepare(self, batch: dict[str, torch.Tensor], *keys: str) -> list[torch.Tensor]:
        """The named tensors of a batch on the trainer's device."""
        return [batch[key].to(self.state.device, non_blocking=True) for key in keys]

    def finish(self, engine: Engine, output: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Store an iteration's output, detached, as MONAI's handlers expect it, and fire the event after an update.

        Scalars are averaged over processes: all log the whole batch, and one that is not finite stops all.
        """
        detached = {key: value.detach() for key, value in output.items()}
        numbers = [key for key, value in detached.items() if value.ndim == 0]
        if num_processes() > 1 and numbers:
            means = mean_over_processes(torch.stack([detached[key].float() for key in numbers]))
            detached |= dict(zip(numbers, means.unbind(), strict=True))
        engine.state.output = [detached]
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def report_forward(self, engine: Engine, **tensors: torch.Tensor) -> None:
        """Make intermediate tensors visible to handlers and fire ``FORWARD_COMPLETED``."""
        engine.state.output = dict(tensors)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

    def report_loss(self, engine: Engine, loss: torch.Tensor) -> None:
        """Add the model's total loss to the output and fire ``LOSS_COMPLETED``."""
        engine.state.output[CommonKeys.LOSS] = loss.detach()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Gradients pass through these modules without reaching their parameters."""
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Average gradients over processes with one all-reduce per step, without wrapping the networks."""
    if num_processes() == 1:
        return
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
