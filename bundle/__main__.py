"""``python -m bundle pack <synthesis|segmentation> --task T [--weights FILE] [--out DIR] [--zip]``.

``python -m bundle export <synthesis|segmentation> --task T --weights FILE --engine ENGINE [--out FILE]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bundle.export import export_network
from bundle.pack import BUNDLES, PackedBundle, pack_bundle
from scripts.errors import show_input_errors_as_sentences
from scripts.exported_network import ENGINES

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack one bundle, or export its network, as the command line says, and tell where it lies.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` when None.

    Raises:
        InputError: an unknown task, a task key that a config lacks, weights that do not fit, a folder not ours, or an
            engine whose package is missing.
    """
    show_input_errors_as_sentences()
    chosen = _command_line().parse_args(arguments)
    chosen.run(chosen)


def _command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bundle", description="Pack a MONAI bundle that runs from anywhere, or export its network."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="write glua_<task>_<bundle>/ with one task's values")
    pack.add_argument("bundle", choices=BUNDLES, help="which of the two bundles")
    pack.add_argument("--task", required=True, help="name of a file in configs/tasks, without .yaml")
    pack.add_argument("--weights", type=Path, help="models/model.pt of a run; without it the bundle has no weights")
    pack.add_argument("--out", type=Path, default=Path("dist"), help="where the folder goes (default: %(default)s)")
    pack.add_argument("--zip", action="store_true", help="also write the folder as a .zip beside it")
    pack.set_defaults(run=_pack)
    export = commands.add_parser("export", help="write the network, weights included, for another engine")
    export.add_argument("bundle", choices=BUNDLES, help="which of the two bundles")
    export.add_argument("--task", required=True, help="name of a file in configs/tasks, without .yaml")
    export.add_argument("--weights", type=Path, required=True, help="models/model.pt of a run")
    export.add_argument("--engine", choices=list(ENGINES), required=True, help="what shall run it")
    export.add_argument("--out", type=Path, help="the file; beside the weights when left out")
    export.set_defaults(run=_export)
    return parser


def _pack(chosen: argparse.Namespace) -> None:
    _tell(pack_bundle(chosen.bundle, task=chosen.task, out=chosen.out, weights=chosen.weights, archive=chosen.zip))


def _export(chosen: argparse.Namespace) -> None:
    file = export_network(chosen.bundle, task=chosen.task, weights=chosen.weights, engine=chosen.engine, out=chosen.out)
    print(f"Exported {file}; run inference with --engine {chosen.engine} --checkpoint {file}")


def _tell(packed: PackedBundle) -> None:
    print(f"Packed {packed.folder}")
    if packed.archive is not None:
        print(f"Packed {packed.archive}")
    if not packed.has_weights:
        print(
            "It carries no weights: it can be trained as it is, but MONAI Label ignores it, and inference stops, "
            "until models/model.pt is there (pack again with --weights FILE)."
        )


if __name__ == "__main__":
    main()
