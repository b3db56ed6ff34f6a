"""Checkpoints for resuming, final weights, and checks of weights that a run or a server loads."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.handlers import CheckpointLoader
from monai.transforms import MapTransform
from scripts.core.errors import InputError
from scripts.core.files import make_folder, save_tensors
from scripts.core.processes import all_gather, rank
from scripts.core.weights import (
    TRAINING_CASES,
    check_finite,
    check_metadata,
    load_weights,
    network_mismatch,
    read_state,
    save_weights,
    selection_sentence,
)
from scripts.engines.batch_norm import unsynchronised
from scripts.handlers.losses import check_finite_losses, check_finite_weights, scalar_outputs
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

__all__ = [
    "FinalWeights",
    "LastWeights",
    "ResumePoint",
    "ServedWeightsd",
    "WeightsLoader",
    "check_start_weights",
    "content_digest",
    "re_estimate_statistics",
]

logger = logging.getLogger(__name__)

State = Mapping[str, torch.Tensor]

# Key of a checkpoint for :func:`content_digest` of everything else in it.
DIGEST = "content_sha256"


class LastWeights:
    """Keep the last weights; :class:`scripts.handlers.snapshots.Snapshots` selects others.

    ``choice`` says how they were selected, once training is over; it is empty on all processes but the first.
    """

    def __init__(self) -> None:
        self.choice: dict[str, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Nothing happens during training."""

    def choose(self, engine: Engine, last: State) -> tuple[State, int]:
        """At the end of training, return the weights to keep and their iteration, and describe them in ``choice``."""
        self.choice = {"rule": "last", "epoch": engine.state.epoch, "reads_target_labels": False}
        return last, engine.state.iteration


class ResumePoint:
    """Save and load everything that a run needs to continue, every few epochs.

    Losses describe the weights before a step. A new checkpoint is *unproven* until the next iteration has finite
    losses, or the run ends; only then does it replace the earlier one.

    Args:
        path: the checkpoint file; an unproven checkpoint is stored beside it for one iteration.
        save_dict: name -> network, average, optimiser, schedule, batches, trainer.
        interval: epochs between two saves.
        resume: continue from the file if it exists; otherwise start a new run.
        metadata: metadata of the weights, compared on resuming.
        settings: everything else that decides the result, such as learning rates, compared on resuming.

    Raises:
        InputError: on resuming, a checkpoint of another task, of other settings or of networks of another size.
    """

    def __init__(
        self,
        *,
        path: str,
        save_dict: Mapping[str, Any],
        interval: int,
        resume: bool = False,
        metadata: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.save_dict, self.interval, self.resume = Path(path), dict(save_dict), interval, resume
        self.metadata, self.settings = dict(metadata or {}), dict(settings or {})
        self.unproven = self.path.with_name(f"unproven_{self.path.name}")
        self.is_pending = False  # whether it exists, without file access in every step

    def attach(self, engine: Engine) -> None:
        """Load now if the run resumes, and register the saving.

        A new run renames an earlier checkpoint: killed before its first one, it would resume as the earlier run.
        """
        if rank() == 0:
            self.unproven.unlink(missing_ok=True)
        if self.resume and self._is_there_for_all():
            self.load()
            logger.info("continuing from iteration %d of %s", engine.state.iteration, self.path)
        elif self.path.exists() and rank() == 0:
            self.path.replace(self.path.with_name(f"earlier_{self.path.name}"))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.prove)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save_unproven)
        engine.add_event_handler(Events.COMPLETED, self.prove)

    def _is_there_for_all(self) -> bool:
        """Whether the checkpoint exists; processes on several machines must agree."""
        seen = all_gather(self.path.exists())
        if any(seen) and not all(seen):
            found = f"a checkpoint visible to {seen.count(True)} of {len(seen)} processes"
            remedy = "give a --bundle_root on a disk that all machines share"
            raise InputError(file=self.path, found=found, expected="one that all processes can see", remedy=remedy)
        return all(seen)

    def save_unproven(self, engine: Engine) -> None:
        """Write an unproven checkpoint beside the valid one, on rank 0."""
        if rank() == 0:
            states = {name: item.state_dict() for name, item in self.save_dict.items()}
            check_finite_weights(states, engine.state.iteration)
            states |= {"metadata": json.dumps(self.metadata), "settings": json.dumps(self.settings, default=str)}
            save_tensors(self.unproven, states | {DIGEST: content_digest(states)})
            self.is_pending = True

    def prove(self, engine: Engine) -> None:
        """Make the unproven checkpoint valid: the iteration that started from it had finite losses."""
        if self.is_pending:
            check_finite_losses(scalar_outputs(engine.state.output), engine.state.iteration)
            self.unproven.replace(self.path)
            self.is_pending = False

    def load(self) -> None:
        """Restore the saved state of every object."""
        states = read_state(self.path)
        if states.pop(DIGEST, None) != content_digest(states):
            found, remedy = "content other than what was saved", "start a new run without --resume, or restore the file"
            raise InputError(file=self.path, found=found, expected="a checkpoint of a training", remedy=remedy)
        check_finite(self.path, states)
        metadata = "metadata" if "metadata" in states else "card"  # "card" in earlier versions
        check_metadata(_mapping_in(states, metadata, self.path), self.metadata, self.path)
        # Both through JSON, because settings given in Python may be paths or devices.
        now = json.loads(json.dumps(self.settings, default=str))
        _check_settings(_mapping_in(states, "settings", self.path), now, self.path)
        if set(states) != set(self.save_dict):
            found = f"states of {', '.join(sorted(map(str, states)))}"
            raise network_mismatch(self.path, found, ", ".join(sorted(self.save_dict)))
        for name, item in self.save_dict.items():
            try:
                item.load_state_dict(states[name])
            except InputError:
                raise
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                found, expected = f"a {name!r} that does not fit", "the state of this config's networks"
                raise network_mismatch(self.path, found, expected) from error


class FinalWeights:
    """At the end, write the averaged network to ``model.pt`` (a plain state dict) and its metadata to ``model.json``.

    Args:
        path: the weights file.
        average: the moving average of the trained network.
        metadata: metadata of the weights.
        batches: as for :func:`re_estimate_statistics`.
        chooser: selects other weights than the last; None for the last. The selection is printed and recorded.
        training_cases: :func:`scripts.data.likeness.describe_cases`, whose result is added to the metadata.
    """

    def __init__(
        self,
        *,
        path: str,
        average: AveragedModel,
        metadata: Mapping[str, Any],
        batches: Callable[[], Iterable[torch.Tensor]] | None = None,
        chooser: LastWeights | None = None,
        training_cases: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self.path, self.average, self.metadata, self.batches = Path(path), average, dict(metadata), batches
        self.chooser, self.training_cases = chooser, training_cases

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after verifying that the folder can be written."""
        if rank() == 0:
            make_folder(self.path.parent)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Re-estimate statistics, select and write, on rank 0."""
        if rank() > 0:
            return
        network = self.average.module
        re_estimate_statistics(network, self.batches)
        state: Mapping[str, torch.Tensor] = network.state_dict()
        iterations = engine.state.iteration
        check_finite_weights(state, iterations)
        metadata = self.metadata | ({TRAINING_CASES: self.training_cases()} if self.training_cases else {})
        if self.chooser is not None:
            state, iterations = self.chooser.choose(engine, state)
            metadata["selection"] = self.chooser.choice
            print(selection_sentence(self.chooser.choice), flush=True)
        save_weights(self.path, state, metadata | {"iterations": iterations})


def re_estimate_statistics(network: nn.Module, batches: Callable[[], Iterable[torch.Tensor]] | None) -> None:
    """Re-estimate a network's batch-norm statistics on one process; the norms are no longer synchronised afterwards.

    ``batches`` returns all slices of the domain that the network is used on; None keeps the statistics of training.
    """
    unsynchronised(network)
    if batches is not None:
        with torch.no_grad():
            update_bn(batches(), network, device=next(network.parameters()).device)


class WeightsLoader:
    """Load weights into a network before an evaluator starts, after checking that they belong to this task."""

    def __init__(self, *, path: str, network: nn.Module, metadata: Mapping[str, Any]) -> None:
        self.path, self.network, self.metadata = path, network, dict(metadata)

    def attach(self, engine: Engine) -> None:
        """Load now, before anything runs with weights that do not fit."""
        load_weights(self.path, self.network, self.metadata)


class ServedWeightsd(MapTransform):
    """Refuse to prepare an image for weights that are missing, of another task or of another network.

    MONAI Label loads weights itself: it uses a random network if the file is missing, and weights of another task if
    their shapes fit. Its request names the file in ``model_filename``; data without that key pass unchecked, because
    everything else loads through :class:`WeightsLoader`. MONAI Deploy needs a ``MapTransform`` in this place.

    Args:
        keys: keys of the images; they stay as they are.
        folder: where the server looks for weights.
        network: built as the server builds it; the weights are loaded into it.
        metadata: metadata that this config expects.
    """

    def __init__(
        self, keys: KeysCollection = "image", *, folder: str, network: nn.Module, metadata: Mapping[str, Any]
    ) -> None:
        super().__init__(keys)
        self.folder, self.network, self.metadata = Path(folder), network, dict(metadata)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Check the weights that the request names, and return the data unchanged."""
        named = data.get("model_filename") or []
        first = named if isinstance(named, str) else next(iter(named), None)  # the server takes the first of several
        if first is not None:
            load_weights(str(self.folder / first), self.network, self.metadata)
        return dict(data)


def check_start_weights(*, handlers: Iterable[Any], network: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Refuse a training that starts from weights of another task or network.

    A server adds MONAI's ``CheckpointLoader`` to the handlers. It loads whatever fits, and the training replaces the
    file at its end.
    """
    for handler in handlers:
        if isinstance(handler, CheckpointLoader):
            load_weights(handler.load_path, network, metadata)


def content_digest(content: Any) -> str:
    """SHA-256 of nested mappings, lists, tensors and plain values, which loading and saving again do not change."""
    digest = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, Mapping | list | tuple):
            digest.update(f"{'m' if isinstance(item, Mapping) else 'l'}{len(item)} ".encode())
            for part in chain.from_iterable(item.items()) if isinstance(item, Mapping) else item:
                add(part)
        elif isinstance(item, torch.Tensor):
            digest.update(f"{item.dtype} {tuple(item.shape)} ".encode())
            digest.update(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{item!r} ".encode())

    add(content)
    return digest.hexdigest()


def _mapping_in(states: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    """Take the mapping that a checkpoint holds as JSON under a key."""
    try:
        return dict(json.loads(states.pop(key, "{}")))
    except (TypeError, ValueError, RecursionError) as error:
        found, remedy = f"no JSON object under {key!r}", "start a new run without --resume; this checkpoint is damaged"
        raise InputError(file=path, found=found, expected="a checkpoint of a training", remedy=remedy) from error


def _check_settings(found: Mapping[str, Any], expected: Mapping[str, Any], path: Path) -> None:
    for key in sorted(found.keys() & expected.keys()):
        if found[key] != expected[key]:
            given, now = f"a run with {key}: {found[key]}", f"{key}: {expected[key]}, the current setting"
            remedy = "give the settings that the run was started with, or start a new one without --resume"
            raise InputError(file=path, found=given, expected=now, remedy=remedy)
