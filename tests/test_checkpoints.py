"""Checkpoints and loss logs: what is saved, what is rejected, and how a non-finite loss ends a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Finished, listed_files
from ignite.engine import Engine
from scripts.core.errors import InputError
from scripts.core.processes import run_and_wait_ns
from scripts.core.weights import digest_of, load_weights, save_weights
from scripts.engines.schedules import averaged_model
from scripts.handlers.checkpoints import FinalWeights, ResumePoint, WeightsLoader
from scripts.handlers.losses import LossLog, NotFiniteError, TrainingProgress, scalar_outputs
from torch import nn
from torch.optim import SGD

METADATA = {"stage": "segmentation", "domains": ["mr", "ct"], "network": {"width": 64, "layers": [3, 4]}}


def train(
    step: Callable[[Engine, Any], list[dict[str, torch.Tensor]]],
    *handlers: Any,
    iterations: int = 4,
    epochs: int = 1,
    start: int = 0,
) -> Engine:
    """Run an engine of nothing but ``step`` under some handlers."""
    engine = Engine(step)
    for handler in handlers:
        handler.attach(engine)
    engine.load_state_dict({"iteration": start, "epoch_length": iterations, "max_epochs": epochs})
    engine.run(range(iterations), max_epochs=epochs, epoch_length=iterations)
    return engine


def losses_of(iteration: int) -> dict[str, torch.Tensor]:
    return {"loss": torch.tensor(1.0 / iteration), "dice": torch.tensor(2.0 * iteration), "pred": torch.zeros(2, 2)}


def finite(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
    return [losses_of(engine.state.iteration)]


def rows(path: Path) -> list[list[str]]:
    with path.open() as file:
        return list(csv.reader(file))


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_every_iteration_is_logged_whatever_the_interval(tmp_path: Path, interval: int) -> None:
    train(finite, LossLog(path=str(tmp_path / "logs" / "a.csv"), interval=interval), iterations=4, epochs=2)
    header, *values = rows(tmp_path / "logs" / "a.csv")
    assert header == ["iteration", "loss", "dice"]
    assert [int(row[0]) for row in values] == list(range(1, 9))
    assert [float(row[2]) for row in values] == [2.0 * i for i in range(1, 9)]


def test_a_new_run_begins_a_new_log(tmp_path: Path) -> None:
    for _ in range(2):
        train(finite, LossLog(path=str(tmp_path / "a.csv")))
    assert len(rows(tmp_path / "a.csv")) == 5


def test_a_resumed_run_keeps_what_came_before_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    train(finite, LossLog(path=str(path)), iterations=4, epochs=2)
    whole = path.read_text()
    # Killed in the middle of row 7, after a checkpoint at iteration 4.
    path.write_text(whole[: whole.index("\n7,") + 3])
    train(finite, LossLog(path=str(path)), iterations=4, epochs=2, start=4)
    assert path.read_text() == whole


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("interval", [1, 100])
def test_a_loss_that_is_not_finite_ends_the_run_with_its_name(tmp_path: Path, bad: float, interval: int) -> None:
    def step(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        output = losses_of(engine.state.iteration)
        return [output | {"dice": torch.tensor(bad)} if engine.state.iteration == 3 else output]

    with pytest.raises(NotFiniteError, match=r"loss 'dice' at iteration 3: .*Expected a finite") as caught:
        train(step, LossLog(path=str(tmp_path / "a.csv"), interval=interval), TrainingProgress(description="a"))
    assert isinstance(caught.value, FloatingPointError)
    assert "start a new run with a lower learning rate" in str(caught.value)
    assert "checkpoint is kept" in str(caught.value)


def test_a_bad_loss_never_reaches_the_checkpoint(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)

    def step(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        nn.init.constant_(network.weight, engine.state.iteration)
        # NaN in the last iteration of the second epoch, the very one that would be saved.
        return [{"loss": torch.tensor(float("nan") if engine.state.iteration == 4 else 1.0)}]

    point = ResumePoint(path=str(tmp_path / "c.pt"), save_dict={"network": network}, interval=1)
    with pytest.raises(NotFiniteError, match="iteration 4"):
        train(step, LossLog(path=str(tmp_path / "a.csv")), point, iterations=2, epochs=2)
    kept = torch.load(tmp_path / "c.pt", weights_only=True)
    assert kept["network"]["weight"].item() == 2.0


def test_a_step_that_ruins_the_weights_never_reaches_the_checkpoint(tmp_path: Path) -> None:
    # Losses are taken before the step: the last of the second epoch ruins the weights, and every loss so far was fine.
    network = nn.Linear(1, 1)

    def step(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        loss = network.weight.detach().flatten()[0] ** 2
        nn.init.constant_(network.weight, 1e30 if engine.state.iteration == 4 else engine.state.iteration)
        return [{"loss": loss}]

    point = ResumePoint(path=str(tmp_path / "c.pt"), save_dict={"network": network}, interval=1)
    with pytest.raises(NotFiniteError, match="loss 'loss' at iteration 5"):
        train(step, LossLog(path=str(tmp_path / "a.csv")), point, iterations=2, epochs=3)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["network"]["weight"].item() == 2.0


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    network = nn.Linear(1, 1)

    def step(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        nn.init.constant_(network.weight, float("inf"))
        return [{"loss": torch.tensor(1.0)}]

    point = ResumePoint(path=str(tmp_path / "c.pt"), save_dict={"network": network}, interval=1)
    with pytest.raises(NotFiniteError, match=r"weights 'network\.weight' at iteration 2: inf"):
        train(step, point, iterations=2)
    average = averaged_model(network, 0.9)
    with pytest.raises(NotFiniteError, match="weights 'weight'"):
        train(step, FinalWeights(path=str(tmp_path / "model.pt"), average=average, metadata=METADATA))
    assert list(listed_files(tmp_path)) == []


def test_single_numbers_among_the_outputs() -> None:
    assert scalar_outputs([losses_of(2)]) == {"loss": 0.5, "dice": 4.0}


def test_a_bar_is_closed_and_exceptions_pass(capsys: pytest.CaptureFixture[str]) -> None:
    train(finite, TrainingProgress(description="toy", interval=1))
    assert "toy: 100%" in capsys.readouterr().err

    def fail(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        raise KeyError("in the step")

    with pytest.raises(KeyError, match="in the step"):
        train(fail, TrainingProgress(description="toy"))


@pytest.mark.parametrize(("wait", "is_reported"), [(24, False), (26, True)])
def test_cores_that_other_programs_use_are_reported_once(
    wait: int, is_reported: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 100 ns since the start of the run it waited for ``wait``; times before the start do not count."""
    times = iter([(1000, 9000), (1000 + 100 - wait, 9000 + wait)])
    monkeypatch.setattr("scripts.handlers.losses.run_and_wait_ns", lambda: next(times))
    engine = Engine(lambda engine, batch: [{"loss": torch.tensor(0.0)}])
    TrainingProgress(description="toy").attach(engine)
    engine.run([0] * 50, max_epochs=1)
    assert ("toy: waits 26 % of its time for a core" in caplog.text) == is_reported
    assert caplog.text.count("Expected idle cores") == is_reported


def test_this_thread_has_run() -> None:
    run, wait = run_and_wait_ns()
    assert run >= 0
    assert wait >= 0
    assert (run > 0) == Path("/proc/thread-self/schedstat").exists()


def resume_point(path: Path, network: nn.Module, metadata: dict[str, Any] | None = None, **more: Any) -> ResumePoint:
    save_dict = {"network": network, "optimizer": SGD(network.parameters(), lr=0.1)}
    return ResumePoint(path=str(path), save_dict=save_dict, interval=2, metadata=metadata or METADATA, **more)


def save(point: ResumePoint) -> None:
    """A run of one iteration that saves, and ends well."""
    point.interval = 1
    train(finite, point, iterations=1)


def test_a_checkpoint_is_one_file_saved_every_few_epochs(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)

    def step(engine: Engine, batch: Any) -> list[dict[str, torch.Tensor]]:
        nn.init.constant_(network.weight, engine.state.iteration)
        return [{"loss": torch.tensor(0.0)}]

    train(step, resume_point(tmp_path / "deep" / "c.pt", network), iterations=3, epochs=5)
    assert list(listed_files(tmp_path)) == ["deep/c.pt"]
    # Epoch 4 of 3 iterations is the last even one.
    other = nn.Linear(2, 1)
    resume_point(tmp_path / "deep" / "c.pt", other, resume=True).attach(Engine(step))
    assert other.weight.tolist() == [[12.0, 12.0]]


def test_nothing_is_loaded_unless_asked_for(tmp_path: Path) -> None:
    saved, fresh = nn.Linear(2, 1), nn.Linear(2, 1)
    save(resume_point(tmp_path / "c.pt", saved))
    before = fresh.weight.clone()
    resume_point(tmp_path / "c.pt", fresh).attach(Engine(finite))
    assert torch.equal(fresh.weight, before)
    # Nor is it an error to ask where there is nothing yet: a run killed before its first checkpoint starts anew.
    resume_point(tmp_path / "none.pt", fresh, resume=True).attach(Engine(finite))
    assert torch.equal(fresh.weight, before)


def test_a_checkpoint_of_another_task_gets_a_sentence(tmp_path: Path) -> None:
    save(resume_point(tmp_path / "c.pt", nn.Linear(2, 1)))
    other = METADATA | {"domains": ["ct", "mr"]}
    with pytest.raises(InputError, match=r"domains: \['mr', 'ct'\]\. Expected domains: \['ct', 'mr'\]\. Fix: choose"):
        resume_point(tmp_path / "c.pt", nn.Linear(2, 1), other, resume=True).attach(Engine(finite))


def test_a_checkpoint_of_another_size_gets_a_sentence(tmp_path: Path) -> None:
    save(resume_point(tmp_path / "c.pt", nn.Linear(2, 1)))
    with pytest.raises(InputError, match=r"a 'network' that does not fit\. Expected the state of this config"):
        resume_point(tmp_path / "c.pt", nn.Linear(3, 1), resume=True).attach(Engine(finite))
    other = METADATA | {"network": {"width": 32, "layers": [3, 4]}}
    with pytest.raises(InputError, match=r"made with width: 64\. Expected width: 32"):
        resume_point(tmp_path / "c.pt", nn.Linear(2, 1), other, resume=True).attach(Engine(finite))


def test_a_checkpoint_of_other_parts_gets_a_sentence(tmp_path: Path) -> None:
    save(
        ResumePoint(
            path=str(tmp_path / "c.pt"), save_dict={"generator": nn.Linear(2, 1)}, interval=1, metadata=METADATA
        )
    )
    with pytest.raises(InputError, match=r"states of generator\. Expected network, optimizer"):
        resume_point(tmp_path / "c.pt", nn.Linear(2, 1), resume=True).attach(Engine(finite))


def test_final_weights_are_a_plain_state_dict_with_a_card(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    average = averaged_model(network, 0.9)
    slices = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 5
    handler = FinalWeights(
        path=str(tmp_path / "model.pt"), average=average, metadata=METADATA, batches=lambda: slices.split(3)
    )
    train(finite, handler)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert sorted(state) == sorted(network.state_dict())
    # The statistics are those of the slices given: the mean over both batches.
    expected = network[0](slices).mean((0, 2, 3))
    torch.testing.assert_close(state["1.running_mean"], expected.detach(), atol=1e-4, rtol=1e-4)
    metadata = METADATA | {"iterations": 4, "weights_sha256": digest_of(state)}
    assert json.loads((tmp_path / "model.json").read_text()) == metadata
    assert sorted(listed_files(tmp_path)) == ["model.json", "model.pt"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a small network, with their metadata."""
    save_weights(tmp_path / "model.pt", nn.Linear(2, 1).state_dict(), METADATA | {"iterations": 7})
    return tmp_path / "model.pt"


def test_weights_are_loaded_before_anything_runs(weights: Path) -> None:
    network = nn.Linear(2, 1)
    WeightsLoader(path=str(weights), network=network, metadata=METADATA).attach(Engine(finite))
    assert torch.equal(network.weight, torch.load(weights, weights_only=True)["weight"])


def test_weights_without_metadata_load_with_a_warning(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Linear(2, 1)
    load_weights(str(weights), network, METADATA)
    assert caplog.messages == []
    weights.with_suffix(".json").unlink()
    load_weights(str(weights), network, METADATA)
    assert torch.equal(network.weight, torch.load(weights, weights_only=True)["weight"])
    assert caplog.messages == [
        f"{weights}: UNVERIFIED WEIGHTS, no metadata beside it (model.json): task and content are not checked"
    ]


def test_weights_beside_the_card_of_others_get_a_sentence(weights: Path) -> None:
    """Weights of another task may have the same shapes: only the metadata of these weights distinguish them."""
    torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, weights)
    with pytest.raises(InputError, match=r"model\.pt: weights other than those that model\.json describes"):
        load_weights(str(weights), nn.Linear(2, 1), METADATA)


def test_a_card_knows_its_weights_after_they_were_saved_again(weights: Path) -> None:
    before, state = weights.read_bytes(), torch.load(weights, weights_only=True)
    torch.save(dict(reversed(state.items())), weights, _use_new_zipfile_serialization=False)
    assert weights.read_bytes() != before
    load_weights(str(weights), nn.Linear(2, 1), METADATA)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor(2)},  # a value
        {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(2)},  # a shape
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(2)},  # a type
        {"a": torch.tensor([1.0, 2.0]), "c": torch.tensor(2)},  # a name
        {"a": torch.tensor([1.0, 2.0])},
    ],
)
def test_a_digest_is_of_names_types_shapes_and_values(other: dict[str, torch.Tensor]) -> None:
    state = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(2)}
    assert digest_of(state) == digest_of({"b": torch.tensor(2), "a": torch.tensor([9.0, 1.0, 2.0])[1:]})
    assert digest_of(state) != digest_of(other)


def write_bad_weights(path: Path, kind: str) -> None:
    if kind == "no weights":
        path.write_text("text")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "a tensor":
        torch.save(torch.zeros(2), path)
    elif kind == "pickled":
        torch.save({"weight": Finished(0, "", "")}, path)
    elif kind == "missing":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "no such file. Expected the weights of a finished training. Fix: train first"),
        ("no weights", "no weights .*Expected a PyTorch state dict. Fix: name another file"),
        ("truncated", "no weights .*Expected a PyTorch state dict. Fix: name another file"),
        ("pickled", "no weights .*holds more than tensors"),
        ("a tensor", "Tensor. Expected a state dict"),
    ],
)
def test_files_other_than_state_dicts_are_refused(weights: Path, kind: str, match: str) -> None:
    write_bad_weights(weights, kind)
    with pytest.raises(InputError, match=match) as caught:
        load_weights(str(weights), nn.Linear(2, 1), METADATA)
    assert caught.value.file == str(weights)


def test_a_damaged_card_gets_a_sentence(weights: Path) -> None:
    weights.with_suffix(".json").write_text("{")
    with pytest.raises(InputError, match=r"model\.json: no JSON object"):
        load_weights(str(weights), nn.Linear(2, 1), METADATA)


def test_weights_of_another_task_get_a_sentence(weights: Path) -> None:
    with pytest.raises(InputError, match=r"made with stage: segmentation\. Expected stage: synthesis"):
        load_weights(str(weights), nn.Linear(2, 1), METADATA | {"stage": "synthesis"})


@pytest.mark.parametrize("network", [nn.Linear(3, 1), nn.Sequential(nn.Linear(2, 1))])
def test_weights_of_another_size_get_a_sentence(weights: Path, network: nn.Module) -> None:
    with pytest.raises(InputError, match=r"other parameters \(.+\)\. Expected those of this config's network_def"):
        load_weights(str(weights), network, METADATA)
