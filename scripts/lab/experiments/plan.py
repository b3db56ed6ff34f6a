"""The runs of a comparison: one per method and seed, and one per translator and seed."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from scripts.core.errors import InputError
from scripts.core.weights import card_file, read_card

__all__ = ["ComparisonRequest", "PlannedRun", "Step", "named_file", "plan", "size_files", "task_settings"]

CONFIGS = Path("configs")
SETTINGS = CONFIGS / "comparison.yaml"
Size = Mapping[str, Any]


@dataclass(frozen=True)
class ComparisonRequest:
    """What a person asked for.

    Attributes:
        task: name of a file of ``configs/tasks``, or a path.
        methods: names of files of ``configs/methods``.
        seeds: seeds of networks and batches; the data are the same for all.
        out: the comparison's folder.
        size: ``small`` or ``full``, a section of ``configs/comparison.yaml``.
        dataset_dir: folder with ``<domain>.json``; None for the phantom, which is generated.
        translators: folder of a comparison of the other direction, whose translators are used instead of training.
        settings: further settings of every segmentation training, by key, as they would be typed.
    """

    task: str
    methods: Sequence[str]
    seeds: Sequence[int]
    out: Path
    size: str = "small"
    dataset_dir: Path | None = None
    translators: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The folder with the datalists."""
        return self.dataset_dir or self.out / "data"


@dataclass(frozen=True)
class Step:
    """One command: ``python`` with these arguments, and ``resumed`` after them if it was begun before."""

    name: str
    command: Sequence[str]
    resumed: Sequence[str] = ("--resume", "True")


@dataclass(frozen=True)
class PlannedRun:
    """The steps of one translator or of one method, with one seed, in one folder.

    Attributes:
        kind: ``translator`` or ``method``.
        name: the name of its file.
        seed: its seed.
        translator: of a method: whose images it trains on, or ``none``.
        folder: where its files go, a bundle's root.
        steps: its commands, in order.
        settings: the merged config of its training, as the files give it now; empty if it trains nothing.
    """

    kind: str
    name: str
    seed: int
    translator: str
    folder: Path
    steps: Sequence[Step]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and seed, for people."""
        return f"{self.name}, seed {self.seed}"


def plan(request: ComparisonRequest) -> list[PlannedRun]:
    """Every run of a comparison, seed by seed, a seed's translators first.

    Raises:
        InputError: an unknown task, method, translator or size, or data that are missing.
    """
    task = named_file("tasks", request.task)
    size = size_files(request.size, task_settings(task))
    merged = {
        name: _merged([CONFIGS / "segmentation/train.yaml", named_file("methods", name)]) for name in request.methods
    }
    needed = {name: str(config["translator"]) for name, config in merged.items()}
    translators = dict.fromkeys(translator for translator in needed.values() if translator != "none")
    return [
        run
        for seed in request.seeds
        for run in (
            *(_translator_run(request, task, size, name, seed) for name in translators),
            *(_method_run(request, task, size, name, translator, seed) for name, translator in needed.items()),
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


def _translator_run(request: ComparisonRequest, task: Path, size: Size, name: str, seed: int) -> PlannedRun:
    folder = request.out / "translators" / f"{name}_seed{seed}"
    shared = [task, *_files(size, "both")]
    network = _files(size, "synthesis_network")
    overlay = named_file("translators", name)
    # The schedule comes last: how much a short training needs of the adversary is the same for every translator.
    training = [CONFIGS / "synthesis/train.yaml", *shared, *network, overlay, *_files(size, "synthesis_training")]
    inference = [CONFIGS / "synthesis/inference.yaml", *shared, *network]
    places = ["--dataset_dir", str(request.data), "--logging_file", str(CONFIGS / "logging.conf")]
    train = _bundle(
        "training", training, folder, *places, "--cache_dir", str(request.out / "cache"), "--seed", str(seed)
    )
    trained = _merged(training, {"seed": seed})
    translate = _bundle("inference", inference, folder, *places, *_network_options(trained, inference))
    if request.translators is None:
        steps = [Step("training", train), Step("translation", translate)]
    else:
        trained = {}
        weights = request.translators / "translators" / folder.name / "models" / "model.pt"
        domains = ["--trained_domains", str(_trained_domains(weights))]
        steps = [Step("translation", [*translate, "--checkpoint", str(weights), *domains])]
    return PlannedRun("translator", name, seed, name, folder, steps, trained)


def _trained_domains(weights: Path) -> list[str]:
    card = card_file(weights)
    if not card.is_file():
        remedy = "run the other direction first, with a method that uses this translator and the same seeds"
        raise InputError(file=card, found="no such file", expected="the card of a trained translator", remedy=remedy)
    return list(read_card(weights)["domains"])


def _method_run(
    request: ComparisonRequest, task: Path, size: Size, name: str, translator: str, seed: int
) -> PlannedRun:
    folder = request.out / "methods" / f"{Path(name).stem}_seed{seed}"
    shared = [task, *_files(size, "both")]
    network = _files(size, "segmentation_network")
    overlay = named_file("methods", name)
    training = [CONFIGS / "segmentation/train.yaml", *shared, *network, *_files(size, "segmentation_training"), overlay]
    evaluation = [CONFIGS / "segmentation/evaluate.yaml", *shared, *network]
    inference = [CONFIGS / "segmentation/inference.yaml", *shared, *network]
    logging = ["--logging_file", str(CONFIGS / "logging.conf")]
    places = ["--dataset_dir", str(request.data), *logging]
    options = [*places, "--cache_dir", str(request.out / "cache"), "--seed", str(seed)]
    options += [word for key, value in request.settings.items() for word in (f"--{key}", value)]
    if translator != "none":
        translated = request.out / "translators" / f"{translator}_seed{seed}" / "translated" / "datalist.json"
        options += ["--labelled_datalist", str(translated)]
    trained = _merged(training, {"seed": seed, **{key: _typed(value) for key, value in request.settings.items()}})
    evaluate = _bundle("evaluating", evaluation, folder, *places, *_network_options(trained, evaluation))
    steps = [Step("training", _bundle("training", training, folder, *options)), Step("evaluation", evaluate)]
    if trained["mask_mode"] != "off":
        mask = ["--write_mask", "True", "--output_dir", str(folder / "masks"), *logging]
        unseen = ["--dataset_dir", str(request.out / "unseen.json")]
        masks = _bundle("inference", inference, folder, *unseen, *mask, *_network_options(trained, inference))
        steps.append(Step("masks", masks))
    return PlannedRun("method", Path(name).stem, seed, translator, folder, steps, trained)


def _network_options(trained: Mapping[str, Any], use: Sequence[Path]) -> list[str]:
    """The settings of a trained network's card that another config, as its files leave it, has otherwise."""
    used = _merged(use)
    options = []
    for reference in trained["card"]["network"].values():
        key = str(reference).removeprefix("@")
        if trained[key] != used[key]:
            options += [f"--{key}", str(trained[key])]
    return options


def _typed(text: str) -> Any:
    """What a command line makes of a word: a Python literal, or else the word (YAML would take off for false)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _merged(files: Sequence[Path], typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Config files, the later ones over the earlier, and what a command line sets beside them."""
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    parser.update(dict(typed or {}))
    return dict(parser.get())


def _files(size: Size, role: str) -> list[Path]:
    return [Path(file) for file in size.get(role, ())]


def _bundle(run_id: str, files: Sequence[Path], root: Path, *options: str) -> list[str]:
    listed = "[" + ",".join(f"'{file}'" for file in files) + "]"
    return ["-m", "monai.bundle", "run", run_id, "--config_file", listed, "--bundle_root", str(root), *options]
