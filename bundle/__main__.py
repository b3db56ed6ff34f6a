"""``python -m bundle pack <synthesis|segmentation> --task T [--weights FILE] [--evaluation FILE] [--out DIR] [--zip]``.

``python -m bundle export <synthesis|segmentation> --task T --weights FILE --engine ENGINE [--out FILE]``.
``python -m bundle dicom --bundle FOLDER --source FOLDER [--out DIR] [--device DEVICE]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from scripts.core.errors import show_input_errors_as_sentences

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack a bundle, export its network or segment a DICOM series with it, and print where the result is."""
    show_input_errors_as_sentences()  # before torch is imported, which takes seconds
    chosen = _command_line().parse_args(arguments)
    chosen.run(chosen)


def _command_line() -> argparse.ArgumentParser:
    from bundle.pack import BUNDLES
    from scripts.inference.exported_network import ENGINES

    parser = argparse.ArgumentParser(
        prog="python -m bundle",
        description="Pack a MONAI bundle, export its network, or segment a DICOM series with it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="write the bundle of one task as the folder glua_<task>_<bundle>")
    pack.add_argument("bundle", choices=BUNDLES, help="which of the two bundles")
    pack.add_argument("--task", required=True, help="name of a file in configs/tasks, without .yaml")
    pack.add_argument("--weights", type=Path, help="models/model.pt of a run; without it the bundle has no weights")
    pack.add_argument("--weights_url", help="address of the weights, for large_files.yml of the Model Zoo")
    pack.add_argument(
        "--evaluation", type=Path, help="eval/summary.json of these weights, for eval_metrics in the metadata"
    )
    pack.add_argument("--out", type=Path, default=Path("dist"), help="where to write the folder (default: %(default)s)")
    pack.add_argument("--zip", action="store_true", help="also write the folder as a zip file beside it")
    pack.set_defaults(run=_pack)
    export = commands.add_parser("export", help="write the network with its weights for another engine")
    export.add_argument("bundle", choices=BUNDLES, help="which of the two bundles")
    export.add_argument("--task", required=True, help="name of a file in configs/tasks, without .yaml")
    export.add_argument("--weights", type=Path, required=True, help="models/model.pt of a run")
    export.add_argument("--engine", choices=list(ENGINES), required=True, help="which engine will run the network")
    export.add_argument("--out", type=Path, help="file to write (default: beside the weights)")
    export.set_defaults(run=_export)
    dicom = commands.add_parser("dicom", help="segment a DICOM series and write a DICOM Segmentation")
    dicom.add_argument("--bundle", type=Path, required=True, help="folder of a packed segmentation bundle with weights")
    dicom.add_argument("--source", type=Path, required=True, help="folder with the slices of one series")
    dicom.add_argument("--out", type=Path, default=Path("segmentations"), help="where to write (default: %(default)s)")
    dicom.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
    dicom.set_defaults(run=_dicom)
    return parser


def _pack(chosen: argparse.Namespace) -> None:
    from bundle.pack import pack_bundle

    packed = pack_bundle(
        chosen.bundle,
        task=chosen.task,
        out=chosen.out,
        weights=chosen.weights,
        weights_url=chosen.weights_url,
        evaluation=chosen.evaluation,
        archive=chosen.zip,
    )
    print(f"Packed {packed.folder}")
    if packed.archive is not None:
        print(f"Packed {packed.archive}")
    if packed.is_too_large_for_the_zoo:
        print("Its weights are too large for the Model Zoo's repository; for the zoo, pack with --weights_url URL.")
    if not packed.has_weights:
        print(
            "It contains no weights. You can train it, but MONAI Label ignores it and inference refuses to start "
            "until models/model.pt exists (pack again with --weights FILE)."
        )


def _export(chosen: argparse.Namespace) -> None:
    from bundle.export import export_network

    file = export_network(chosen.bundle, task=chosen.task, weights=chosen.weights, engine=chosen.engine, out=chosen.out)
    print(f"Exported {file}; run inference with --engine {chosen.engine} --checkpoint {file}")


def _dicom(chosen: argparse.Namespace) -> None:
    from scripts.data.dicom import dicom_files
    from scripts.inference.dicom_segmentation import segment_series

    settings = {} if chosen.device is None else {"device": chosen.device}
    files = dicom_files(chosen.source)
    print(f"Wrote {segment_series(chosen.bundle, files, source=chosen.source, out=chosen.out, **settings)}")


if __name__ == "__main__":
    main()
