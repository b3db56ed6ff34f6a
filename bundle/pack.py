"""The rule of the packing room, step by step: collect, write the task's values, put in place at once."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from bundle.task_values import read_task, write_metadata, write_values
from bundle.weights import LARGEST_FILE, copy_weights, read_settings, write_large_files
from scripts.core.errors import InputError
from scripts.core.files import atomic_path, make_folder

__all__ = ["BUNDLES", "OVERLAYS", "ROOT", "PackedBundle", "pack_bundle", "packed_name"]

BUNDLES = ("synthesis", "segmentation")
"""Names of the two slices of ``configs/`` and ``docs/``."""

ROOT = Path(__file__).resolve().parents[1]
"""The workshop: the folder of ``configs/``, ``scripts/``, ``docs/`` and ``LICENSE``."""

OVERLAYS = ("multi_gpu_train.yaml", "inference_trt.yaml")
"""The configs that are read on top of another and so need not define every task key."""

ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)
"""One time for every archive member, the earliest the format knows, so that equal folders give equal archives."""


@dataclass(frozen=True)
class PackedBundle:
    """What packing made.

    Args:
        folder: the bundle.
        archive: the bundle as one file, if asked for.
        has_weights: whether ``models/model.pt`` is in it.
    """

    folder: Path
    archive: Path | None
    has_weights: bool

    @property
    def is_too_large_for_the_zoo(self) -> bool:
        """Whether its weights need an address to enter MONAI's Model Zoo, and have none."""
        has_address = (self.folder / "large_files.yml").is_file()
        weights = self.folder / "models" / "model.pt"
        return self.has_weights and not has_address and weights.stat().st_size > LARGEST_FILE


def packed_name(task: str, name: str) -> str:
    """Folder name of a packed bundle; MONAI Label guesses a bundle's kind from the word in it."""
    return f"glua_{task}_{name}"


def pack_bundle(
    name: str,
    *,
    task: str,
    out: Path,
    weights: Path | None = None,
    weights_url: str | None = None,
    archive: bool = False,
    root: Path = ROOT,
) -> PackedBundle:
    """Write the bundle ``<out>/glua_<task>_<name>/``, whole or not at all.

    Args:
        name: ``synthesis`` or ``segmentation``.
        task: name of a file in ``configs/tasks``, without ``.yaml``.
        out: folder to put it in; made when missing.
        weights: plain state dict of the bundle's ``network_def``, or None to pack without.
        weights_url: where those weights can be, or will be, downloaded: ``large_files.yml`` will say so.
        archive: also write ``<folder>.zip``, equal bytes for equal content.
        root: the workshop to pack from.

    Returns:
        Where the bundle lies and whether it has weights.

    Raises:
        InputError: the task is unknown or sets a key that a config lacks, the weights cannot be read, are of another
            task or do not fit, an address without weights, a folder that is no bundle stands in the way, or ``out``
            cannot be written.
    """
    if weights_url and weights is None:
        remedy = "give --weights too, or leave --weights_url out"
        raise InputError(file="--weights_url", found="no --weights", expected="the weights it is of", remedy=remedy)
    tasks = root / "configs" / "tasks"
    text, values = read_task(tasks, task)
    target = make_folder(out) / packed_name(task, name)
    with _whole_folder(target) as building:
        _copy_slice(root, name, building)
        _write_into_configs(building, text, origin=tasks / f"{task}.yaml")
        if weights is not None:
            settings = read_settings(weights)
            _write_into_configs(building, settings, origin=weights)
            values |= yaml.safe_load(settings) or {}
        write_metadata(building / "configs" / "metadata.json", name, values)
        if weights is not None:
            copy_weights(weights, task, building)
        if weights_url:
            write_large_files(building, weights_url)
    written = _write_archive(target) if archive else None
    return PackedBundle(target, written, has_weights=weights is not None)


def _write_into_configs(building: Path, values: str, *, origin: Path) -> None:
    for config in sorted((building / "configs").glob("*.yaml")):
        write_values(config, values, origin=origin, every_key=config.name not in OVERLAYS)


def _copy_slice(root: Path, name: str, building: Path) -> None:
    """Copy what the rule names; content is copied even where the workshop holds links."""
    for file in [root / "LICENSE", root / "configs" / "logging.conf"]:
        _copy(file, building / file.relative_to(root))
    for config in sorted((root / "configs" / name).iterdir()):
        if config.suffix in {".yaml", ".json"}:
            _copy(config, building / "configs" / config.name)
    for page in sorted((root / "docs" / name).rglob("[!.]*")):
        if page.is_file():
            _copy(page, building / "docs" / page.relative_to(root / "docs" / name))
    for module in sorted((root / "scripts").rglob("*.py")):
        _copy(module, building / module.relative_to(root))
    (building / "models").mkdir()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@contextmanager
def _whole_folder(target: Path) -> Iterator[Path]:
    """Give a fresh folder beside ``target`` that takes its place if the block succeeds, and goes away if not."""
    _refuse_foreign(target)
    building = target.with_name(f".{target.name}-{os.getpid()}")
    earlier = target.with_name(f".{target.name}-{os.getpid()}-earlier")
    try:
        building.mkdir()
        yield building
        if target.exists():
            target.rename(earlier)
        building.rename(target)
    except OSError as error:
        if earlier.exists() and not target.exists():
            earlier.rename(target)
        raise InputError(
            file=target,
            found=f"that it could not be written ({error})",
            expected="a folder with room for the bundle",
            remedy="free some space or choose another --out; nothing half-written was left",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(earlier, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    """Only an earlier pack may be replaced."""
    ours = target.is_dir() and not target.is_symlink() and (target / "configs" / "metadata.json").is_file()
    if (target.exists() or target.is_symlink()) and not ours:
        raise InputError(
            file=target,
            found="something that is no packed bundle",
            expected="nothing there, or an earlier pack of the same name",
            remedy="move it away or choose another --out",
        )


def _write_archive(folder: Path) -> Path:
    """``<folder>.zip`` with the folder as its only top entry; names sorted, times and permissions fixed."""
    target = folder.with_name(f"{folder.name}.zip")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), ARCHIVE_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            with file.open("rb") as content, archive.open(member, "w") as entry:
                shutil.copyfileobj(content, entry)
    return target
