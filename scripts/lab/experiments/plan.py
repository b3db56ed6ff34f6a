"""Plan a comparison: one run per translator and seed, and one or more runs per method and seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from scripts.core.errors import InputError
from scripts.core.schema import SCHEMA, read_yaml
from scripts.core.task_files import read_task
from scripts.core.weights import metadata_file, read_metadata
from scripts.data.case_names import Item
from scripts.data.datalists import read_datalist

__all__ = [
    "LOGGING",
    "ComparisonRequest",
    "PlannedRun",
    "Step",
    "bundle_command",
    "has_labels",
    "named_file",
    "network_options",
    "plan",
    "shown_items",
    "size_files",
    "task_settings",
]

CONFIGS = Path("configs")
SIZES = CONFIGS / "comparison.yaml"
BASE = CONFIGS / "segmentation" / "train.yaml"
LOGGING = ("--logging_file", str(CONFIGS / "logging.conf"))
# Keys that every task file has.
REQUIRED = ("dataset_name", "source_domain", "target_domain", "label_names", "label_values")
Size = Mapping[str, Any]


@dataclass(frozen=True)
class ComparisonRequest:
    """The settings of a comparison."""

    task: str  # name of a file of ``configs/tasks``, or a path
    methods: Sequence[str]  # names of files of ``configs/methods``, or paths
    seeds: Sequence[int]  # of networks and batches; all runs use the same data
    out: Path
    size: str = "small"  # a section of ``configs/comparison.yaml``
    dataset_dir: Path | None = None  # folder with ``<domain>.json``; None to generate the phantom
    translators: Path | None = None  # a comparison of the other direction, whose translators are used
    settings: Mapping[str, str] = field(default_factory=dict)  # of every segmentation training, as on a command line
    overlays: Sequence[Path] = ()  # config files of every segmentation training, merged last
    data_set: str | None = None  # whose files the size adds; None for the task's

    @property
    def data(self) -> Path:
        """The folder with the datalists."""
        return self.dataset_dir or self.out / "data"


@dataclass(frozen=True)
class Step:
    """One command: arguments for Python, and the arguments that continue it after an interruption."""

    name: str
    command: Sequence[str]
    resumed: Sequence[str] = ("--resume", "True")


@dataclass(frozen=True)
class PlannedRun:
    """The commands of one training and its evaluations, with one seed, in one folder."""

    kind: str  # ``translator`` or ``method``
    name: str
    seed: int
    folder: Path  # the bundle root
    steps: Sequence[Step]
    translator: str = "none"  # of a method's training images, or ``none``
    needs: tuple[Path, ...] = ()  # folders of runs that must be done first
    settings: Mapping[str, Any] = field(default_factory=dict)  # merged config of the training; empty without a training
    files: tuple[Path, ...] = ()  # configs that training and inference share: task, size, network

    @property
    def title(self) -> str:
        """Name and seed, as printed."""
        return f"{self.name}, seed {self.seed}"


def plan(request: ComparisonRequest) -> list[PlannedRun]:
    """All runs of a comparison, by seed; a run comes after the runs that it needs."""
    task = named_file("tasks", request.task)
    sized = task_settings(task) if request.data_set is None else {"dataset_name": request.data_set}
    planner = _Planner(request, task, size_files(request.size, sized))
    trainings: dict[str, _Training] = {}
    for method in request.methods:
        trainings |= _trainings(method)
    translators = {name: str(_merged([BASE, *one.overlays])["translator"]) for name, one in trainings.items()}
    used = [name for name in dict.fromkeys(translators.values()) if name != "none"]
    return [
        run
        for seed in request.seeds
        for run in (
            *(planner.translator_run(name, seed) for name in used),
            *(planner.method_run(name, one, translators[name], seed) for name, one in trainings.items()),
        )
    ]


def named_file(kind: str, name: str) -> Path:
    """The file of ``configs/<kind>`` with that name, or the path itself."""
    path = Path(name) if name.endswith(".yaml") else CONFIGS / kind / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in (CONFIGS / kind).glob("*.yaml")))
        raise InputError(
            file=path, found="no such file", expected=f"one of {known}", remedy="name one of them, or add the file"
        )
    return path


def task_settings(task: Path) -> dict[str, Any]:
    """The keys of a task file, checked before data are read or trainings started."""
    values = read_task(task)
    if missing := [key for key in REQUIRED if key not in values]:
        remedy = "add what is missing; configs/tasks has examples"
        raise InputError(file=task, found=f"no {missing[0]}", expected=", ".join(REQUIRED), remedy=remedy)
    return values


def size_files(size: str, task: Mapping[str, Any]) -> Size:
    """The config files by role, and the size of a generated phantom, of a size for a data set, else for ``other``."""
    sizes = read_yaml(SIZES, "the sizes of comparisons", "correct it")
    known = {name: sets.get(task["dataset_name"], sets.get("other")) for name, sets in sizes.items()}
    if known.get(size) is None:
        raise InputError(
            file=SIZES,
            found=f"no size {size} for the data set {task['dataset_name']}",
            expected=f"one of {', '.join(name for name, files in known.items() if files is not None)}",
            remedy="choose another --size, or add the files of this one there",
        )
    return dict(known[size])


def has_labels(datalist: Path) -> bool:
    """Whether there are held-out cases and all have labels; True if it cannot be read, which is reported later."""
    try:
        held_out = json.loads(datalist.read_text(encoding="utf-8")).get("validation")
        return bool(held_out) and all("label" in entry for entry in held_out)
    except (OSError, ValueError):
        return True


def shown_items(datalist: Path) -> list[Item]:
    """The target's cases that results are for: held-out ones, with labels if all have one, else training cases."""
    needs_label = has_labels(datalist)
    held_out = read_datalist(str(datalist), "validation", needs_label=needs_label, may_be_empty=True)
    return held_out or read_datalist(str(datalist), "training")


@dataclass(frozen=True)
class _Training:
    """One training of a method: its overlays in order, and the name of the training whose weights it starts from."""

    overlays: Sequence[Path]
    previous: str | None = None


def _trainings(method: str) -> dict[str, _Training]:
    """The trainings of a method, in order, by the name of their runs.

    Most methods are one training with one overlay. A file with the key ``trainings`` lists several, each as an overlay
    or a list of overlays: each adds its own to those before it and starts from the weights of the training before it.
    """
    file = named_file("methods", method)
    content = read_yaml(file, "a method file such as those in configs/methods", "name another, or correct it")
    listed = content.get("trainings") or [str(file)]
    trainings: dict[str, _Training] = {}
    overlays: list[Path] = []
    previous = None
    for index, entry in enumerate(listed, start=1):
        overlays = [*overlays, *(named_file("methods", str(one)) for one in ensure_tuple(entry))]
        name = file.stem if index == len(listed) else "+".join(overlay.stem for overlay in overlays)
        trainings[name] = _Training(overlays, previous)
        previous = name
    return trainings


@dataclass(frozen=True)
class _Planner:
    """Builds the commands of a comparison's runs."""

    request: ComparisonRequest
    task: Path
    size: Size

    def translator_run(self, name: str, seed: int) -> PlannedRun:
        folder = self._folder("translators", name, seed)
        shared, network = [self.task, *self._files("both")], self._files("synthesis_network")
        # The schedule comes last: a short training changes the adversarial weight of every translator alike.
        overlays = [named_file("translators", name), *self._files("synthesis_training")]
        training = [CONFIGS / "synthesis/train.yaml", *shared, *network, *overlays]
        inference = [CONFIGS / "synthesis/inference.yaml", *shared, *network]
        trained = _merged(training, {"seed": seed})
        translate = [*self._data_options(), *network_options(trained, inference)]
        if self.request.translators is None:
            options = [*self._data_options(), *self._training_options(seed)]
            steps = [Step("training", bundle_command("training", training, folder, *options))]
        else:
            weights = self.request.translators / "translators" / folder.name / "models" / "model.pt"
            translate += ["--checkpoint", str(weights), "--trained_domains", str(_trained_domains(weights))]
            steps, trained = [], {}
        steps.append(Step("translation", bundle_command("inference", inference, folder, *translate)))
        files = (*shared, *network)
        return PlannedRun("translator", name, seed, folder, steps, name, settings=trained, files=files)

    def method_run(self, name: str, one: _Training, translator: str, seed: int) -> PlannedRun:
        folder = self._folder("methods", name, seed)
        files = [self.task, *self._files("both"), *self._files("segmentation_network")]
        training = [BASE, *files, *self._files("segmentation_training"), *one.overlays, *self.request.overlays]
        options = [*self._data_options(), *self._training_options(seed)]
        options += [word for key, value in self.request.settings.items() for word in (f"--{key}", value)]
        needs = []
        if translator != "none":
            needs.append(self._folder("translators", translator, seed))
            options += ["--labelled_datalist", str(needs[0] / "translated" / "datalist.json")]
        if one.previous is not None:
            needs.append(self._folder("methods", one.previous, seed))
            options += ["--initial_weights", str(needs[-1] / "models" / "model.pt")]
        typed = {key: DefaultParseValue(value) for key, value in self.request.settings.items()}  # as MONAI reads them
        trained = _merged(training, {"seed": seed, **typed})
        steps = [Step("training", bundle_command("training", training, folder, *options))]
        steps += self._uses(folder, files, trained)
        return PlannedRun("method", name, seed, folder, steps, translator, tuple(needs), trained, tuple(files))

    def _uses(self, folder: Path, files: Sequence[Path], trained: Mapping[str, Any]) -> list[Step]:
        """Evaluation with and without post-processing, and inference for masks or unlabelled targets."""
        base = CONFIGS / "segmentation/inference.yaml"
        evaluation, inference = [base, CONFIGS / "segmentation/evaluate.yaml", *files], [base, *files]
        options = [*self._data_options(), *network_options(trained, evaluation)]
        largest = ["--largest_component", "True", "--output_dir", str(folder / "eval_largest_component")]
        segment = ["--dataset_dir", str(self.request.out / "unseen.json"), "--output_dir", str(folder / "inference")]
        segment += [*LOGGING, *network_options(trained, inference)]
        steps = []
        if is_labelled := has_labels(self.request.data / f"{task_settings(self.task)['target_domain']}.json"):
            steps.append(Step("evaluation", bundle_command("evaluating", evaluation, folder, *options)))
            steps.append(
                Step(
                    "evaluation_largest_component", bundle_command("evaluating", evaluation, folder, *options, *largest)
                )
            )
        has_mask = trained["mask_mode"] != "off"
        if has_mask or not is_labelled:
            mask = ["--write_mask", "True"] if has_mask else []
            steps.append(Step("inference", bundle_command("inference", inference, folder, *segment, *mask)))
        return steps

    def _folder(self, kind: str, name: str, seed: int) -> Path:
        return self.request.out / kind / f"{name}_seed{seed}"

    def _files(self, role: str) -> list[Path]:
        return [Path(file) for file in self.size.get(role, ())]

    def _data_options(self) -> list[str]:
        return ["--dataset_dir", str(self.request.data), *LOGGING]

    def _training_options(self, seed: int) -> list[str]:
        return ["--cache_dir", str(self.request.out / "cache"), "--seed", str(seed)]


def _trained_domains(weights: Path) -> list[str]:
    file = metadata_file(weights)
    if not file.is_file():
        remedy = "run the other direction first, with a method that uses this translator and the same seeds"
        raise InputError(file=file, found="no such file", expected="metadata of a trained translator", remedy=remedy)
    domains = read_metadata(weights).get("domains")
    if not isinstance(domains, list) or not all(isinstance(domain, str) for domain in domains):
        found, remedy = f"domains {domains!r}", "take the file that was written with the weights"
        raise InputError(file=file, found=found, expected="a list of their names", remedy=remedy)
    return domains


def network_options(trained: Mapping[str, Any], use: Iterable[Path]) -> list[str]:
    """Options for what a training's config sets or recommends otherwise than the files that use its network."""
    used = _merged(use)
    metadata = trained["weights_metadata"]
    keys = [*metadata["network"], *metadata.get("inference", {})]
    return [word for key in keys if trained[key] != used[key] for word in (f"--{key}", str(trained[key]))]


def _merged(files: Iterable[Path], typed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Config files merged in order, and settings from the command line."""
    listed = list(files)
    try:
        merged = ConfigParser.load_config_files([str(file) for file in listed])
    except Exception:  # MONAI's errors do not always name the file
        for file in listed:
            read_yaml(file, "a config file, such as those in configs", "correct it, or name another")
        raise
    parser = ConfigParser(merged)
    parser.update(dict(typed or {}))
    return dict(parser.get())


def bundle_command(run_id: str, files: Sequence[Path], root: Path, *options: str) -> list[str]:
    """Arguments for Python that run a bundle's config."""
    listed = "[" + ",".join(repr(str(file)) for file in files) + "]"
    words = ["--bundle_root", str(root), *options]
    quoted = [_path_word(option, word) for option, word in zip(["", *words], words, strict=False)]
    return ["-m", "monai.bundle", "run", run_id, "--config_file", listed, *quoted]


def _path_word(option: str, word: str) -> str:
    """A word of the command line, in quotes if it is a path that Fire would read as something else."""
    is_path = SCHEMA.get(option.removeprefix("--")) == SCHEMA["bundle_root"]
    return repr(word) if is_path and DefaultParseValue(word) != word else word
