"""Several processes: gradients are averaged, and both trainings run under torchrun (on the CPU, by gloo)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import CONFIGS, bundle_command, run_command

from scripts.engines.adversarial_trainer import AdversarialTrainer


def _step_in_a_process(rank: int, rendezvous: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    trainer = AdversarialTrainer(device="cpu", max_epochs=1, epoch_length=1, train_data_loader=[])
    # Gradients of rank 0 and 1 are (1, 1) and (3, 3): their mean is (2, 2).
    trainer.step(torch.optim.SGD([weight], lr=0.5), (1 + 2 * rank) * weight.sum())
    torch.save(weight.detach(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_a_step_takes_the_mean_gradient_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(_step_in_a_process, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        # 1 - 0.5 * 2 = 0 and 2 - 0.5 * 2 = 1
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == [0.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["synthesis", "segmentation"])
def test_two_processes_train(stage: str, data: Path, tmp_path: Path) -> None:
    overlay = CONFIGS / stage / "multi_gpu_train.yaml"
    settings = {"bundle_root": tmp_path, "dataset_dir": data, "cache_dir": tmp_path / "cache"}
    if stage == "segmentation":
        settings |= {"labelled_datalist": data / "mr.json", "labelled_intensity": "@source_intensity"}
    command = bundle_command("training", stage, "train", overlay, **settings)
    command[command.index("--device") : command.index("--device") + 2] = []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc_per_node=2"]
    done = run_command(torchrun + command[1:])
    assert done.code == 0, done.stderr[-2000:]
    assert (tmp_path / "models" / "model.pt").exists()
    assert len((tmp_path / "logs" / "losses.csv").read_text().splitlines()) == 1 + 2
