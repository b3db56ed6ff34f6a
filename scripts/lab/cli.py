"""The development commands: prepare and check data, run the demo, compare methods, measure speed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingError, show_input_errors_as_sentences

__all__ = ["main"]

REPEATED: dict[str, Any] = {"action": "append", "default": []}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run one command; an input error ends it with one sentence and exit code 1, Ctrl-C with 130."""
    show_input_errors_as_sentences()
    # Before torch is imported, here and in every process that a command starts: a waiting OpenMP thread that spins
    # makes a step several times as long where other programs use the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    if options.run in (_adapt, _segment, _compare, _demo):
        _check_paths(options)
    options.run(options)


def _check_paths(options: argparse.Namespace) -> None:
    """Refuse paths with ``#`` where trainings follow, before any work: MONAI writes to another folder, with ``::``."""
    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and "#" in str(path):
                expected, remedy = "a path without #, which MONAI turns into ::", "choose another name, or use a link"
                raise SettingError(f"--{name}", str(path), expected=expected, remedy=remedy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True)

    _add_adapt(commands)
    _add_segment(commands)
    _add_phantom(commands)

    text = "write the datalists of a folder of volumes, or of a dataset.json with domains"
    add = _command(commands, "datalist", _datalist, text)
    add("--dataset", help="a dataset.json that has its lists under domains.<name>")
    add("--images", help="folder of NIfTI images of one domain")
    add("--labels", help="folder of their label maps, which may be the same; omit it for an unlabelled domain")
    add("--domain", help="name of the domain, such as mr or ct")
    add("--validation", type=float, default=0.2, help="fraction of the cases to hold out")
    add("--out", type=Path, required=True, help="output folder for <domain>.json")

    _add_prepare(commands)
    add = _command(commands, "check", _check, "find errors in data before training")
    add("where", nargs="+", help="datalists, a dataset.json with domains, or folders of volumes")
    add("--task", help="a task file, for the names and values of the structures and the orientation of the slices")
    add("--out", type=Path, default=Path("runs/check"), help="output folder for check.html and check.json")
    add("--workers", type=int, help="number of parallel processes; one per core by default")
    add = _command(commands, "demo", _demo, "train, adapt and evaluate on a generated phantom, and write report.html")
    add("--out", type=Path, default=Path("runs/demo"))
    text = "files of configs/methods (default: %(default)s); the last one is compared with the first"
    add("--methods", default="none_unet,recommended", help=text)
    add("--seed", type=int, default=0)
    add("--resume", action="store_true", help="continue an interrupted demo")

    _add_compare(commands)
    _add_results(commands)

    text = "the same as python -m monai.bundle run, but with clear errors for broken config files and early Ctrl-C"
    add = _command(commands, "run", _run, text)
    add("run_id", help="training, inference or evaluating")
    add("settings", nargs=argparse.REMAINDER, help="--config_file and other settings")

    add = _command(commands, "bench", _bench, "compare the speed of each part with a plain implementation")
    add("--out", type=Path, help="JSON file for times, ratios, versions and peak memory")
    add("--quick", action="store_true", help="tiny sizes, only to test the command")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> Callable[..., Any]:
    """Add a command; return what adds its arguments."""
    parser = commands.add_parser(name, help=text)
    parser.set_defaults(run=run)
    return parser.add_argument


def _add_adapt(commands: Any) -> None:
    text = "from folders of labelled source and unlabelled target volumes to label maps of the target"
    add = _command(commands, "adapt", _adapt, text)
    folders = "NIfTI files or DICOM series, nested folders are searched"
    add("--source_images", type=Path, required=True, help=f"folder of the labelled images: {folders}")
    add("--source_labels", type=Path, required=True, help="folder of their label maps")
    add("--target_images", type=Path, required=True, help=f"folder of the unlabelled images: {folders}")
    add("--target_labels", type=Path, help="folder of label maps of the target, used only for evaluation")
    add("--out", type=Path, required=True, help="output folder; repeat the command to continue")
    add("--label_names", help="names in the order of the label values, or as 1=liver,4=spleen")
    add("--segment", type=Path, nargs="+", default=[], help="further volumes or folders of the target to segment")
    add("--time", help="how long the run may take, such as 1h or 2h30m")
    text = "trial (only tests the sequence), short (the default), untranslated, day or paper: configs/adapt.yaml"
    add("--schedule", help=text)
    add("--task", type=Path, help="a task file of your own instead of the planned one")
    add("--seed", type=int, default=0)
    add("--plan_only", action="store_true", help="write the task file and the check, and stop")
    add("--despite_errors", action="store_true", help="train even if the check finds errors")


def _add_phantom(commands: Any) -> None:
    add = _command(commands, "phantom", _phantom, "generate the built-in cardiac MR/CT data set, with its datalists")
    add("--out", type=Path, required=True, help="output folder")
    add("--cases", type=int, default=10, help="volumes per domain")
    add("--validation", type=float, default=0.2, help="fraction of the cases to hold out")
    add("--seed", type=int, default=0)


def _add_segment(commands: Any) -> None:
    text = "segment volumes with the weights and the settings of a finished training"
    add = _command(commands, "segment", _segment, text)
    add("run_folder", type=Path, help="folder of a segmentation training (its --bundle_root)")
    add("volumes", type=Path, help="a NIfTI file, a folder of them, or a datalist")
    add("--out", type=Path, required=True, help="folder for the label maps")
    text = "a further setting of inference, such as largest_component=true; may be repeated"
    add("--set", **REPEATED, type=_setting, metavar="KEY=VALUE", help=text)


def _add_compare(commands: Any) -> None:
    add = _command(commands, "compare", _compare, "train and evaluate several methods and seeds on the same data")
    add("--task", required=True, help="a file of configs/tasks, by name or path")
    add("--methods", required=True, help="files of configs/methods, such as none,glua,supervised")
    add("--seeds", type=_numbers, default=[0], help="such as 0,1,2")
    add("--out", type=Path, required=True, help="output folder; repeat the command to continue")
    add("--size", default="small", help="small (two CPU cores) or full (a GPU): configs/comparison.yaml")
    add("--dataset_dir", type=Path, help="folder with <domain>.json of both domains; not needed for the phantom")
    add("--translators", type=Path, help="output folder of a comparison of the other direction, to use its translators")
    text = "a setting for every segmentation training, such as ema_decay=0.99; may be repeated"
    add("--set", **REPEATED, type=_setting, metavar="KEY=VALUE", help=text)
    text = "a config file for every segmentation training, such as configs/selection/snapshots.yaml; may be repeated"
    add("--overlay", **REPEATED, type=Path, metavar="FILE", help=text)
    add("--jobs", type=int, default=1, help="number of runs at a time, for instance one per core")

    add = _command(commands, "report", _report, "write tables, figures and report.html of a comparison from its files")
    add("folder", type=Path, help="output folder of compare")
    add(
        "--evaluate_snapshots",
        action="store_true",
        help="evaluate every snapshot WITH TARGET LABELS and show which label-free score finds the best one; FOLDER "
        "may be any folder with runs that were trained with configs/selection/snapshots.yaml",
    )


def _add_results(commands: Any) -> None:
    text = "write the numbers of README.md and docs/results.md from docs/results"
    add = _command(commands, "results", _results, text)
    add("--check", action="store_true", help="write nothing; fail if a number differs")
    add("--runs", type=Path, help="folder of the runs: compare docs/results with them and fill empty cells")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _setting(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _add_prepare(commands: Any) -> None:
    text = "convert a public data set, or your own folders, to NIfTI and datalists"
    add = _command(commands, "prepare", _prepare, text)
    add("dataset", help="mmwhs, btcv, chaos, mscmr, sifa, or folder for your own volumes")
    add("--source", type=Path, required=True, help="folder of the unpacked download; it is not changed")
    add("--out", type=Path, required=True, help="output folder for volumes, datalists, prepare.json and the check")
    add("--protocol", help="clean (the default), disjoint, sifa, dar, or your own YAML file")
    add("--domain", help="prepare only this domain; for folder: its name, such as mr")
    add("--labels", type=Path, help="for folder: folder of the label maps")
    add("--map", help="for folder: old:new label values, such as 63:1,126:2, or a YAML file")
    add("--validation", type=float, default=0.2, help="for folder: fraction of the cases to hold out")
    add("--trust", choices=["image"], help="if the headers of image and label differ but shapes agree, use the image's")
    add("--workers", type=int, help="number of cases at a time; one per core by default")
    add("--no_check", action="store_true", help="do not check the volumes")


def _adapt(options: argparse.Namespace) -> None:
    from scripts.lab.adapt.request import AdaptRequest
    from scripts.lab.adapt.run_adapt import run_adapt
    from scripts.lab.adapt.training_lengths import parse_duration

    given = {key: value for key, value in vars(options).items() if key not in ("run", "time")}
    run_adapt(AdaptRequest(**given, time_s=None if options.time is None else parse_duration(options.time)))


def _segment(options: argparse.Namespace) -> None:
    from scripts.lab.segment import run_segment

    run_segment(options.run_folder, options.volumes, options.out, dict(options.set))


def _phantom(options: argparse.Namespace) -> None:
    from scripts.data.written_datalists import write_datalist
    from scripts.lab.case_lists import folder_datalist, training_share
    from scripts.lab.cores import exclusive
    from scripts.lab.phantom.generate import write_phantom

    training_share(options.cases, options.validation)  # before anything is written
    with exclusive(options.out):
        write_phantom(options.out, cases=options.cases, seed=options.seed)
        for domain in ("mr", "ct"):
            folder = str(options.out / f"{domain}_train")
            datalist = folder_datalist(
                folder, folder, name=domain, modality=domain.upper(), validation_fraction=options.validation
            )
            write_datalist(options.out / f"{domain}.json", datalist)
    print(f"{options.out}: {options.cases} cases per domain, datalists mr.json and ct.json")


def _datalist(options: argparse.Namespace) -> None:
    from scripts.core.files import check_file_name
    from scripts.data.written_datalists import write_datalist
    from scripts.lab.case_lists import datalists_of_domains, folder_datalist
    from scripts.lab.cores import exclusive

    if options.dataset:
        datalists = datalists_of_domains(options.dataset)
    elif options.images and options.domain:
        domain, share = check_file_name(options.domain, "--domain"), options.validation
        datalists = {
            domain: folder_datalist(
                options.images, options.labels, name=domain, modality=domain.upper(), validation_fraction=share
            )
        }
    else:
        raise SystemExit("give --dataset, or --images and --domain (and --labels)")
    with exclusive(options.out):
        for name, datalist in datalists.items():
            write_datalist(options.out / f"{name}.json", datalist)
            counts = ", ".join(f"{len(value)} {key}" for key, value in datalist.items() if isinstance(value, list))
            print(f"{options.out / name}.json: {counts}")


def _prepare(options: argparse.Namespace) -> None:
    from scripts.lab.prepare.outputs import print_report
    from scripts.lab.prepare.run import Preparation, prepare
    from scripts.lab.prepare.source_case import SearchOptions

    find = SearchOptions(options.domain, options.labels, options.validation, options.trust == "image")
    request = Preparation(
        options.dataset, options.source, options.out, options.protocol, options.map, find, options.workers
    )
    print_report(options.out, prepare(request))
    if not options.no_check:
        _run_check([str(options.out)], options.out / "check", None, options.workers)


def _check(options: argparse.Namespace) -> None:
    _run_check(options.where, options.out, options.task, options.workers)


def _run_check(where: list[str], out: Path, task: str | None, workers: int | None) -> None:
    from scripts.lab.check.run_check import run_check

    findings = run_check(where, out, task=task, workers=workers)
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(1)


def _demo(options: argparse.Namespace) -> None:
    from scripts.lab.experiments.demo import run_demo

    run_demo(options.out, methods=options.methods.split(","), seed=options.seed, resume=options.resume)


def _compare(options: argparse.Namespace) -> None:
    from scripts.lab.experiments.compare import run_comparison
    from scripts.lab.experiments.comparison_report import write_comparison_report
    from scripts.lab.experiments.plan import ComparisonRequest

    request = ComparisonRequest(
        options.task,
        options.methods.split(","),
        options.seeds,
        options.out,
        options.size,
        dataset_dir=options.dataset_dir,
        translators=options.translators,
        settings=dict(options.set),
        overlays=options.overlay,
    )
    complete = run_comparison(request, jobs=options.jobs)
    print(f"Report: {write_comparison_report(options.out)}")
    if not complete:
        raise SystemExit(1)


def _results(options: argparse.Namespace) -> None:
    from scripts.lab.experiments.published_pages import update_pages

    if found := update_pages(check=options.check, runs=options.runs):
        raise SystemExit("\n".join(found))


def _report(options: argparse.Namespace) -> None:
    from scripts.lab.experiments.comparison_record import COMPARISON, writing_alone
    from scripts.lab.experiments.comparison_report import write_comparison_report

    if options.evaluate_snapshots:
        from scripts.lab.experiments.selection_accuracy import measure_selection
        from scripts.lab.experiments.selection_page import accuracy_table, write_selection_page

        runs, rules = measure_selection(options.folder)
        with writing_alone(options.folder):
            write_selection_page(options.folder, runs, rules)
        print(f"{accuracy_table(rules).as_text()}\n\nDetails: {options.folder / 'selection.md'}")
        if not (options.folder / COMPARISON).is_file():  # runs of other commands have no table to redraw
            return
    print(f"Report: {write_comparison_report(options.folder)}")


def _run(options: argparse.Namespace) -> None:
    import runpy
    import sys

    import monai.bundle
    from scripts.core.settings import current_settings

    # What MONAI's own command finds, to read the files of settings before it does.
    sys.argv = [str(Path(monai.bundle.__file__).with_name("__main__.py")), "run", options.run_id, *options.settings]
    if not any(word.startswith(("--config_file", "--args_file")) for word in options.settings):
        raise SettingError("--config_file", "none", "files of settings", remedy="name them, as in the README")
    current_settings()
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _bench(options: argparse.Namespace) -> None:
    from scripts.lab.bench.benchmark import run_bench

    run_bench(options.out, quick=options.quick)
