"""The development commands: prepare and check data, run the demo, compare methods, measure speed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import SettingError, show_input_errors_as_sentences

__all__ = ["main"]


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
                expected, remedy = "a path without #, which MONAI makes ::", "choose another name, or use a link"
                raise SettingError(f"--{name}", str(path), expected=expected, remedy=remedy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m scripts", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", required=True)

    _add_adapt(commands)
    _add_segment(commands)
    _add_phantom(commands)

    datalist = commands.add_parser(
        "datalist", help="write datalists for a folder of volumes, or for a dataset.json with domains"
    )
    datalist.add_argument("--dataset", help="a dataset.json with its lists under domains.<name>")
    datalist.add_argument("--images", help="folder of NIfTI images of one domain")
    datalist.add_argument(
        "--labels", help="folder of their label maps (may be the same folder); omit it for an unlabelled domain"
    )
    datalist.add_argument("--domain", help="name of the domain, such as mr or ct")
    datalist.add_argument("--validation", type=float, default=0.2, help="fraction of the cases to hold out")
    datalist.add_argument("--out", type=Path, required=True, help="output folder for <domain>.json")
    datalist.set_defaults(run=_datalist)

    _add_prepare(commands)
    check = commands.add_parser("check", help="find errors in data before training")
    check.add_argument("where", nargs="+", help="datalists, a dataset.json with domains, or folders of volumes")
    check.add_argument("--task", help="a task file: names and values of the structures")
    check.add_argument(
        "--out", type=Path, default=Path("runs/check"), help="output folder for check.html and check.json"
    )
    check.add_argument("--workers", type=int, help="number of processes")
    check.set_defaults(run=_check)

    demo = commands.add_parser("demo", help="train, adapt and evaluate on a generated phantom, and write report.html")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument(
        "--methods", default="none_unet,recommended", help="of configs/methods; the last is compared with the first"
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--resume", action="store_true", help="continue an interrupted demo")
    demo.set_defaults(run=_demo)

    _add_compare(commands)
    _add_results(commands)

    faults = commands.add_parser("faults", help="inject faults into files, settings and trainings, and count results")
    faults.add_argument("--out", type=Path, default=Path("runs/faults"), help="folder for data and runs")
    faults.add_argument("--seed", type=int, default=0)
    faults.add_argument("--seconds", type=float, default=900, help="time for all faults")
    faults.set_defaults(run=_faults)

    bench = commands.add_parser("bench", help="compare the speed of each part with a plain implementation")
    bench.add_argument("--out", type=Path, help="JSON file for times, ratios, versions and peak memory")
    bench.add_argument("--quick", action="store_true", help="tiny sizes, only to test the command")
    bench.set_defaults(run=_bench)
    return parser


def _add_adapt(commands: Any) -> None:
    adapt = commands.add_parser(
        "adapt", help="from folders of labelled source and unlabelled target volumes to label maps of the target"
    )
    folders = "NIfTI files or DICOM series, nested folders are searched"
    adapt.add_argument("--source_images", type=Path, required=True, help=f"folder of the labelled images: {folders}")
    adapt.add_argument("--source_labels", type=Path, required=True, help="folder of their label maps")
    adapt.add_argument("--target_images", type=Path, required=True, help=f"folder of the other images: {folders}")
    adapt.add_argument("--target_labels", type=Path, help="folder of label maps of the target, only to evaluate with")
    adapt.add_argument("--out", type=Path, required=True, help="output folder; repeat the command to continue")
    adapt.add_argument("--label_names", help="names in the order of the label values, or as 1=liver,4=spleen")
    adapt.add_argument(
        "--segment", type=Path, nargs="+", default=[], help="further volumes or folders of the target to segment"
    )
    adapt.add_argument("--time", help="time that it may take, such as 1h or 2h30m")
    adapt.add_argument("--schedule", help="trial (only to test the sequence), short, day or paper: configs/adapt.yaml")
    adapt.add_argument("--task", type=Path, help="a task file of your own in place of the planned one")
    adapt.add_argument("--seed", type=int, default=0)
    adapt.add_argument("--plan_only", action="store_true", help="write the task file and the check, and stop")
    adapt.add_argument("--despite_errors", action="store_true", help="train even if the check finds errors")
    adapt.set_defaults(run=_adapt)


def _add_phantom(commands: Any) -> None:
    phantom = commands.add_parser("phantom", help="generate the built-in cardiac MR/CT data set, with its datalists")
    phantom.add_argument("--out", type=Path, required=True, help="output folder")
    phantom.add_argument("--cases", type=int, default=10, help="volumes per domain")
    phantom.add_argument("--validation", type=float, default=0.2, help="fraction of the cases to hold out")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.set_defaults(run=_phantom)


def _add_segment(commands: Any) -> None:
    segment = commands.add_parser("segment", help="segment volumes with a trained run; its settings are known")
    segment.add_argument("run_folder", type=Path, help="folder of a segmentation training (its --bundle_root)")
    segment.add_argument("volumes", type=Path, help="a NIfTI file, a folder of them, or a datalist")
    segment.add_argument("--out", type=Path, required=True, help="folder for the label maps")
    segment.add_argument(
        "--set",
        action="append",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="another setting of inference, such as largest_component=true; may be repeated",
    )
    segment.set_defaults(run=_segment)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser("compare", help="train and evaluate several methods and seeds on the same data")
    compare.add_argument("--task", required=True, help="a file of configs/tasks, by name or path")
    compare.add_argument("--methods", required=True, help="files of configs/methods, such as none,glua,supervised")
    compare.add_argument("--seeds", type=_numbers, default=[0], help="such as 0,1,2")
    compare.add_argument("--out", type=Path, required=True, help="output folder; repeat the command to continue")
    compare.add_argument(
        "--size", default="small", help="small (two CPU cores) or full (a GPU): configs/comparison.yaml"
    )
    compare.add_argument("--dataset_dir", type=Path, help="folder with <domain>.json; the phantom is generated")
    compare.add_argument("--translators", type=Path, help="a comparison of the other direction: use its translators")
    compare.add_argument(
        "--set",
        action="append",
        type=_setting,
        default=[],
        metavar="KEY=VALUE",
        help="another setting for every segmentation training, such as ema_decay=0.99; may be repeated",
    )
    compare.add_argument(
        "--overlay",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="another config file for every segmentation training, such as configs/selection/snapshots.yaml; may be "
        "repeated",
    )
    compare.add_argument("--jobs", type=int, default=1, help="number of parallel runs, for instance one per core")
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="write tables, figures and report.html of a comparison from its files")
    report.add_argument("folder", type=Path, help="output folder of compare")
    report.add_argument(
        "--evaluate_snapshots",
        action="store_true",
        help="evaluate every snapshot WITH TARGET LABELS and show which label-free score finds the best; FOLDER "
        "may be any that contains runs trained with configs/selection/snapshots.yaml",
    )
    report.set_defaults(run=_report)


def _add_results(commands: Any) -> None:
    results = commands.add_parser(
        "results", help="write the numbers of README.md and docs/results.md from docs/results"
    )
    results.add_argument("--check", action="store_true", help="write nothing; fail if a number differs")
    results.add_argument(
        "--runs", type=Path, help="folder of the runs: compare docs/results with them, fill empty cells"
    )
    results.set_defaults(run=_results)


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _setting(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _add_prepare(commands: Any) -> None:
    prepare = commands.add_parser(
        "prepare", help="convert a public data set, or your own folders, to NIfTI and datalists"
    )
    prepare.add_argument("dataset", help="mmwhs, btcv, chaos, mscmr, sifa, or folder for your own volumes")
    prepare.add_argument(
        "--source", type=Path, required=True, help="folder of the unpacked download; it is not changed"
    )
    prepare.add_argument(
        "--out",
        type=Path,
        required=True,
        help="output folder for volumes, datalists, prepare.json and check/check.html",
    )
    prepare.add_argument("--protocol", help="clean (the default), disjoint, sifa, dar, or your own YAML file")
    prepare.add_argument("--domain", help="prepare only this domain; for folder: its name, such as mr")
    prepare.add_argument("--labels", type=Path, help="for folder: folder of the label maps")
    prepare.add_argument("--map", help="for folder: old:new label values, such as 63:1,126:2, or a YAML file")
    prepare.add_argument("--validation", type=float, default=0.2, help="for folder: fraction of the cases to hold out")
    prepare.add_argument(
        "--trust", choices=["image"], help="use the image's header for a label with another one, if the shapes agree"
    )
    prepare.add_argument("--workers", type=int, help="number of parallel cases; one per core by default")
    prepare.add_argument("--no_check", action="store_true", help="do not check the volumes")
    prepare.set_defaults(run=_prepare)


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
    order = Preparation(
        options.dataset, options.source, options.out, options.protocol, options.map, find, options.workers
    )
    print_report(options.out, prepare(order))
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


def _faults(options: argparse.Namespace) -> None:
    from scripts.lab.bench.faults import run_faults

    if run_faults(options.out, seed=options.seed, seconds=options.seconds).missed:
        raise SystemExit(1)


def _bench(options: argparse.Namespace) -> None:
    from scripts.lab.bench.benchmark import run_bench

    run_bench(options.out, quick=options.quick)
