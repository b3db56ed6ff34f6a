"""The benchmark runs, and the variants that it compares compute the same."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from scripts.lab.bench import surface_distance
from scripts.lab.bench.benchmark import run_bench
from scripts.lab.bench.cyclegan import CycleGanStep
from scripts.lab.bench.dual_alignment import dual_alignment_steps
from scripts.lab.bench.style_transfer import style_transfer_steps
from scripts.lab.bench.timing import Ratio, Timings, round_robin
from scripts.lab.cli import main
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.masked_deeplab import MaskedDeepLab
from scripts.networks.prediction_discriminator import PredictionDiscriminator
from scripts.networks.style_transfer_generator import StyleTransferGenerator

CPU = torch.device("cpu")


def batch(size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 1, size, size, generator=generator) * 2 - 1,
        "label": torch.randint(3, (2, 1, size, size), generator=generator, dtype=torch.uint8),
        "target_image": torch.rand(2, 1, size, size, generator=generator) * 2 - 1,
    }


def iterate(trainer: Any, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    trainer.state.iteration += 1
    (output,) = trainer._iteration(trainer, data)
    return output


def test_the_quick_run_returns_and_writes_every_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_bench(tmp_path / "bench.json", quick=True)
    assert json.loads((tmp_path / "bench.json").read_text()) == result
    assert result.keys() == {"provenance", "threads", "quick", "sections"}
    variants = {
        "style_transfer": {"step", "term_by_term", "cyclegan", "cyclegan_without_identity", "batch"},
        "dual_alignment": {"step", "plain", "batch"},
        "inference": {"ours", "slice_inferer"},
        "file_to_labels": {"ours", "monai"} | ({"nnunet", "nnunet_mirrored"} if find_spec("nnunetv2") else set()),
        "surface_distance": {"ours", "monai", "medpy"},
    }
    targets = {"style_transfer": [4, 1.7, None, 0.05], "dual_alignment": [2, 0.05], "inference": [2.5]}
    targets["file_to_labels"] = [4, 3, 12] if find_spec("nnunetv2") else [4]
    targets["surface_distance"] = [50, 4]
    assert result["sections"].keys() == variants.keys()
    for name, section in result["sections"].items():
        assert section["seconds"].keys() == section["peak_memory_mib"].keys() == variants[name]
        assert all(value > 0 for key in ("seconds", "peak_memory_mib") for value in section[key].values())
        assert [ratio["target"] for ratio in section["ratios"]] == targets[name]
    table = capsys.readouterr().out
    assert all(ratio["name"] in table for section in result["sections"].values() for ratio in section["ratios"])


def test_the_command_runs_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Path | None, bool]] = []
    monkeypatch.setattr("scripts.lab.bench.benchmark.run_bench", lambda out, *, quick: calls.append((out, quick)))
    main(["bench", "--out", str(tmp_path / "bench.json"), "--quick"])
    main(["bench"])
    assert calls == [(tmp_path / "bench.json", True), (None, False)]


def test_stage_one_equals_its_terms_one_by_one() -> None:
    torch.manual_seed(0)
    trainer, plain = style_transfer_steps(
        generator=StyleTransferGenerator(channels=4, num_blocks=2),
        discriminator=DomainDiscriminator(channels=4),
        device=CPU,
        precision="float32",
    )
    data = batch(32)
    for _ in range(2):  # the second losses show that the first updates were equal, too
        ours, theirs = iterate(trainer, data), plain(data)
        assert theirs.keys() == {"reconstruction", "cycle", "content", "adversarial", "discriminator"}
        for name, loss in theirs.items():
            torch.testing.assert_close(ours[name], loss, rtol=2e-4, atol=1e-5, msg=name)


def test_stage_two_equals_its_plain_form() -> None:
    torch.manual_seed(0)
    trainer, plain = dual_alignment_steps(
        segmenter=MaskedDeepLab(num_classes=3, layers=(1, 1, 1, 1), width=4, feature_channels=16),
        prediction_discriminator=PredictionDiscriminator(num_classes=3, channels=4),
        device=CPU,
        precision="float32",
    )
    data = batch(64)
    for _ in range(2):
        ours, theirs = iterate(trainer, data), plain(data)
        assert theirs.keys() == {"cross_entropy", "dice", "alignment_d1", "alignment_d2", "d1", "d2"}
        for name, loss in theirs.items():
            torch.testing.assert_close(ours[name], loss, rtol=2e-4, atol=1e-5, msg=name)


def test_cyclegan_learns_a_trivial_task() -> None:
    torch.manual_seed(0)
    step = CycleGanStep(channels=4, num_blocks=1, discriminator_channels=4, device=CPU)
    data = batch(32)
    losses = [step(data) for _ in range(12)]
    assert losses[0].keys() == {"cycle", "identity", "adversarial", "discriminator"}
    assert losses[-1]["cycle"] < losses[0]["cycle"]
    assert losses[-1]["identity"] < losses[0]["identity"]
    without = CycleGanStep(channels=4, num_blocks=1, discriminator_channels=4, identity_weight=0, device=CPU)
    assert "identity" not in without(data)


def test_unequal_distances_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    assd = binary.assd
    monkeypatch.setattr(binary, "assd", lambda *masks, **settings: assd(*masks, **settings) + 1e-4)
    with pytest.raises(ValueError, match="they must be equal"):
        surface_distance.measure_surface_distance(quick=True, rounds=1)


def test_without_medpy_the_rest_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface_distance, "find_spec", lambda name: None)
    measurement = surface_distance.measure_surface_distance(quick=True, rounds=1)
    assert measurement.timings.seconds.keys() == {"ours", "monai"}
    assert "medpy is not installed" in measurement.notes[0]


def test_variants_take_turns_after_one_round_of_warming_up() -> None:
    calls: list[str] = []
    timings = round_robin({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2, device=CPU)
    assert calls == ["a", "b"] * 3
    assert timings.seconds.keys() == {"a", "b"}


def test_ratios_shares_and_targets() -> None:
    timings = Timings(seconds={"slow": 6.0, "fast": 2.0}, peak_memory_mib={})
    assert timings.ratio("slow", "fast") == 3.0
    assert timings.share("fast", "slow") == 0.25
    assert Ratio(name="", value=3.0, target=3.0).reached is True
    assert Ratio(name="", value=2.9, target=3.0).reached is False
    assert Ratio(name="", value=0.04, target=0.05, is_share=True).reached is True
    assert Ratio(name="", value=0.05, target=0.05, is_share=True).reached is False
    assert Ratio(name="", value=1.0).reached is None
