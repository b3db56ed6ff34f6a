"""What a ladder runs: for each method and seed the bundles' own commands, and each translator once for each seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from scripts.errors import InputError

__all__ = ["Order", "Run", "Step", "named_file", "plan", "size_files", "task_settings"]

CONFIGS = Path("configs")
SETTINGS = CONFIGS / "ladder.yaml"
Size = Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What a person asked for.

    Attributes:
        task: name of a file of ``configs/tasks``, or a path.
        methods: names of files of ``configs/methods``.
        seeds: seeds of networks and batches; the data are the same for all.
        out: the ladder's folder.
        size: ``small`` or ``full``, a section of ``configs/ladder.yaml``.
        dataset_dir: folder with ``<domain>.json``; None for the phantom, which is generated.
        translators: folder of a ladder of the other direction, whose translators are used: one serves both directions.
        options: further settings of every segmentation training, as they would stand on its command line.
    """

    task: str
    methods: Sequence[str]
    seeds: Sequence[int]
    out: Path
    size: str = "small"
    dataset_dir: Path | None = None
    translators: Path | None = None
    options: Sequence[str] = ()

    @property
    def data(self) -> Path:
        """The folder with the datalists."""
        return self.dataset_dir or self.out / "data"


@dataclass(frozen=True)
class Step:
    """One command: ``python`` with these arguments, and ``resumed`` after them if it was begun before."""

    name: str
    command: Sequence[str]
    resumed: Sequence[str] = ()


@dataclass(frozen=True)
class Run:
    """The steps of one translator or of one method, with one seed, in one folder.

    Attributes:
        kind: ``translator`` or ``method``.
        name: the name of its file.
        seed: its seed.
        translator: of a method: whose images it trains on, or ``none``.
        folder: where its files go, a bundle's root.
        steps: its commands, in order.
    """

    kind: str
    name: str
    seed: int
    translator: str
    folder: Path
    steps: Sequence[Step]

    @property
    def title(self) -> str:
        """Name and seed, for people."""
        return f"{self.name}, seed {self.seed}"


def plan(order: Order) -> list[Run]:
    """Every run of a ladder, seed by seed, a seed's translators first.

    Raises:
        InputError: an unknown task, method, translator or size, or data that are missing.
    """
    task = named_file("tasks", order.task)
    size = size_files(order.size, task_settings(task))
    methods = {name: yaml.safe_load(named_file("methods", name).read_text()) for name in order.methods}
    translators = dict.fromkeys(method["translator"] for method in methods.values() if method["translator"] != "none")
    return [
        run
        for seed in order.seeds
        for run in (
            *(_translator_run(order, task, size, name, seed) for name in translators),
            *(_method_run(order, task, size, name, method["translator"], seed) for name, method in methods.items()),
        )
    ]


def named_file(kind: str, name: str) -> Path:
    """The file of ``configs/<kind>`` with that name, or the path itself.

    Raises:
        InputError: there is none.
    """
    path = Path(name) if name.endswith(".yaml") else CONFIGS / kind / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (CONFIGS / kind).glob("*.yaml")))
        raise InputError(
            file=path, found="no such file", expected=f"one of {known}", remedy="name one of them, or add the file"
        )
    return path


def task_settings(task: Path) -> dict[str, Any]:
    """The keys of a task file, as they are written."""
    return dict(yaml.safe_load(task.read_text()))


def size_files(size: str, task: Mapping[str, Any]) -> Size:
    """What a size adds for a task's data set: lists of files, and for the phantom what to generate.

    Raises:
        InputError: the size is not known, or not for this data set.
    """
    sizes = yaml.safe_load(SETTINGS.read_text())
    if size not in sizes or task["dataset_name"] not in sizes[size]:
        known = [name for name, sets in sizes.items() if task["dataset_name"] in sets]
        raise InputError(
            file=SETTINGS,
            found=f"no size {size} for the data set {task['dataset_name']}",
            expected=f"one of {', '.join(known)}" if known else "a section for it",
            remedy="choose another --size, or add the files of this one there",
        )
    return dict(sizes[size][task["dataset_name"]])


def _translator_run(order: Order, task: Path, size: Size, name: str, seed: int) -> Run:
    folder = order.out / "translators" / f"{name}_seed{seed}"
    shared = [task, *_files(size, "both")]
    network = _files(size, "synthesis_network")
    overlay = named_file("translators", name)
    training = [CONFIGS / "synthesis/train.yaml", *shared, *network, *_files(size, "synthesis_training"), overlay]
    inference = [CONFIGS / "synthesis/inference.yaml", *shared, *network]
    places = ["--dataset_dir", str(order.data), "--logging_file", str(CONFIGS / "logging.conf")]
    train = _bundle("training", training, folder, *places, "--cache_dir", str(order.out / "cache"), "--seed", str(seed))
    translate = _bundle("inference", inference, folder, *places, *_network_options(training, inference))
    if order.translators is None:
        steps = [Step("training", train, ("--resume", "True")), Step("translation", translate)]
    else:
        weights = order.translators / "translators" / folder.name / "models" / "model.pt"
        domains = ["--trained_domains", str(_trained_domains(weights))]
        steps = [Step("translation", [*translate, "--checkpoint", str(weights), *domains])]
    return Run("translator", name, seed, name, folder, steps)


def _trained_domains(weights: Path) -> list[str]:
    card = weights.with_suffix(".json")
    if not card.is_file():
        remedy = "run the other direction first, with a method that uses this translator and the same seeds"
        raise InputError(file=card, found="no such file", expected="the card of a trained translator", remedy=remedy)
    return list(json.loads(card.read_text())["domains"])


def _method_run(order: Order, task: Path, size: Size, name: str, translator: str, seed: int) -> Run:
    folder = order.out / "methods" / f"{name}_seed{seed}"
    shared = [task, *_files(size, "both")]
    network = _files(size, "segmentation_network")
    overlay = named_file("methods", name)
    training = [CONFIGS / "segmentation/train.yaml", *shared, *network, *_files(size, "segmentation_training"), overlay]
    evaluation = [CONFIGS / "segmentation/evaluate.yaml", *shared, *network]
    inference = [CONFIGS / "segmentation/inference.yaml", *shared, *network]
    logging = ["--logging_file", str(CONFIGS / "logging.conf")]
    places = ["--dataset_dir", str(order.data), *logging]
    options = [*places, "--cache_dir", str(order.out / "cache"), "--seed", str(seed), *order.options]
    if translator != "none":
        translated = order.out / "translators" / f"{translator}_seed{seed}" / "translated" / "datalist.json"
        options += ["--labelled_datalist", str(translated)]
    steps = [
        Step("training", _bundle("training", training, folder, *options), ("--resume", "True")),
        Step(
            "evaluation",
            _bundle("evaluating", evaluation, folder, *places, *_network_options(training, evaluation)),
        ),
    ]
    if _merged(training)["mask_mode"] != "off":
        mask = ["--write_mask", "True", "--output_dir", str(folder / "masks"), *logging]
        unseen = ["--dataset_dir", str(order.out / "unseen.json")]
        masks = _bundle("inference", inference, folder, *unseen, *mask, *_network_options(training, inference))
        steps.append(Step("masks", masks))
    return Run("method", name, seed, translator, folder, steps)


def _network_options(training: Sequence[Path], use: Sequence[Path]) -> list[str]:
    """The settings of a trained network's card that another config, as its files leave it, has otherwise."""
    trained, used = _merged(training), _merged(use)
    options = []
    for reference in trained["card"]["network"].values():
        key = str(reference).removeprefix("@")
        if trained[key] != used[key]:
            options += [f"--{key}", str(trained[key])]
    return options


def _merged(files: Sequence[Path]) -> dict[str, Any]:
    return dict(ConfigParser.load_config_files([str(file) for file in files]))


def _files(size: Size, role: str) -> list[Path]:
    return [Path(file) for file in size.get(role, ())]


def _bundle(run_id: str, files: Sequence[Path], root: Path, *options: str) -> list[str]:
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    return ["-m", "monai.bundle", "run", run_id, "--config_file", listed, "--bundle_root", str(root), *options]
