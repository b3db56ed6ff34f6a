"""Measure a table of docs/how-to/export.md: time and size per engine, and how many labels are PyTorch's.

``PYTHONPATH=. .venv/bin/python tests/engine_table.py --task phantom_mr2ct --weights FILE --images VOLUMES``, or a task
alone: random weights, and a volume of noise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bundle.export import export_network
from bundle.pack import pack_bundle
from monai.bundle import ConfigParser
from scripts.inference.exported_network import ENGINES, ExportedNetwork
from scripts.inference.inferers import SliceWiseInferer

ROUNDS = 3
"""Timed runs of each engine, in turn; the median counts, after one run that warms up."""


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--weights", type=Path, help="of a segmenter of that task; random ones when left out")
    parser.add_argument("--images", help="its target volumes: a file, a folder or a datalist; noise when left out")
    options = parser.parse_args()
    with TemporaryDirectory() as work:
        weights = options.weights or random_weights(options.task, Path(work))
        measure(options.task, weights, Path(work), options.images)


def random_weights(task: str, work: Path) -> Path:
    """Weights of the base config's network as it is initialised."""
    torch.manual_seed(0)
    bundle = pack_bundle("segmentation", task=task, out=work).folder
    torch.save(read(bundle).get_parsed_content("network_def").state_dict(), work / "model.pt")
    return work / "model.pt"


def measure(task: str, weights: Path, work: Path, images: str | None) -> None:
    """One table: every engine in float32 and in what ``precision: auto`` chooses here."""
    bundle = pack_bundle("segmentation", task=task, out=work, weights=weights).folder
    config = read(bundle)
    volumes = list(load(config, images))
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network = network.to(memory_format=torch.channels_last)
    files = {engine: work / f"{task}{suffix}" for engine, suffix in ENGINES.items()}
    for engine, file in files.items():
        export_network("segmentation", task=task, weights=weights, engine=engine, out=file)
    print(f"\n{task}: volumes {[tuple(volume.shape[2:]) for volume in volumes]}, {torch.get_num_threads()} thread(s)\n")
    print("| engine | precision | seconds a volume | largest error | equal labels | MB |\n|---|---|---|---|---|---|")
    exact = [SliceWiseInferer(precision="float32")(volume, network) for volume in volumes]
    for precision in ["float32", "auto"]:
        networks = {"pytorch": network} | {
            engine: ExportedNetwork(engine=engine, path=file, precision=precision) for engine, file in files.items()
        }
        inferer = SliceWiseInferer(precision=precision)
        seconds: dict[str, list[float]] = {name: [] for name in networks}
        found = {name: [inferer(volume, each) for volume in volumes] for name, each in networks.items()}
        for _ in range(ROUNDS):
            for name, each in networks.items():
                start = time.process_time()
                for volume in volumes:
                    inferer(volume, each)
                seconds[name].append((time.process_time() - start) / len(volumes))
        for name, outputs in found.items():
            error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(outputs, exact, strict=True))
            same = min((a.argmax(1) == b.argmax(1)).float().mean().item() for a, b in zip(outputs, exact, strict=True))
            size = size_mb(weights if name == "pytorch" else files[name])
            spent = statistics.median(seconds[name])
            print(f"| {name} | {precision} | {spent:.2f} | {error:.0e} | {same:.3%} | {size:.1f} |", flush=True)


def read(bundle: Path) -> ConfigParser:
    """The inference config of a packed bundle, on the CPU."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"device": "cpu"})
    return parser


def load(config: ConfigParser, images: str | None) -> Iterator[torch.Tensor]:
    """Volumes as the network meets them, (1, 1, H, W, D); noise of 4 slices without images."""
    if images is None:
        yield torch.rand(1, 1, *config["slice_size"], 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return
    config.update({"dataset_dir": images})
    for item in config.get_parsed_content("dataset"):
        yield item["image"].as_tensor()[None]


def size_mb(file: Path) -> float:
    """Size of an engine's file, or of both of OpenVINO's."""
    files = [file, *([file.with_suffix(".bin")] if file.suffix == ".xml" else [])]
    return sum(each.stat().st_size for each in files) / 1e6


if __name__ == "__main__":
    main()
