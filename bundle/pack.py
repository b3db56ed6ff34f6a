"""Packs a bundle: collects its files, writes the task's values into the configs, and installs them."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundle.configs import read_configs, read_named_task, read_networks, write_configs, write_metadata, write_values
from bundle.install import build_folder, install, packed_files
from bundle.packed_weights import LARGEST_FILE, copy_weights, read_metrics, read_settings, write_large_files
from bundle.reach import named_modules, reached_modules
from scripts.core.errors import SettingError, check_choice
from scripts.core.files import atomic_path, make_folder
from scripts.networks.translators import TRANSLATORS

__all__ = ["BUNDLES", "ROOT", "PackedBundle", "pack_bundle", "packed_name"]

# Names of the two slices of ``configs/`` and ``docs/``.
BUNDLES = ("synthesis", "segmentation")

# The repository: the folder of ``configs/``, ``scripts/``, ``docs/`` and ``LICENSE``.
ROOT = Path(__file__).resolve().parents[1]

# Modules that Python programs and ``python -m bundle dicom`` import from a packed bundle.
ENTRY_POINTS = {
    "synthesis": ("scripts.inference.predictor",),
    "segmentation": ("scripts.inference.predictor", "scripts.inference.dicom_segmentation", "scripts.data.dicom"),
}

# Applications in this package that serve a packed bundle and import its code.
PROGRAMS = {"synthesis": (), "segmentation": ("deploy_app.py", "label_app.py", "label_tasks.py", "label_dicom.py")}

# Modification time of every archive member, the earliest possible, so that archives are reproducible.
ARCHIVE_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedBundle:
    """A packed bundle, its archive if one was asked for, and whether it has weights."""

    folder: Path
    archive: Path | None
    has_weights: bool

    @property
    def is_too_large_for_the_zoo(self) -> bool:
        """Whether the Model Zoo requires an address for its weights, and none was given."""
        has_address = (self.folder / "large_files.yml").is_file()
        weights = self.folder / "models" / "model.pt"
        return self.has_weights and not has_address and weights.stat().st_size > LARGEST_FILE


def packed_name(task: str, name: str) -> str:
    """Folder name of a packed bundle; MONAI Label infers a bundle's kind from it."""
    return f"glua_{task}_{name}"


def pack_bundle(
    name: str,
    *,
    task: str,
    out: Path,
    weights: Path | None = None,
    weights_url: str | None = None,
    evaluation: Path | None = None,
    archive: bool = False,
    root: Path = ROOT,
) -> PackedBundle:
    """Write the bundle ``<out>/glua_<task>_<name>/``.

    An earlier pack of the same name is replaced file by file; other files in the folder are kept.

    Args:
        name: ``synthesis`` or ``segmentation``.
        task: name of a file in ``configs/tasks``, without ``.yaml``.
        out: output folder; created if needed.
        weights: plain state dict of the bundle's ``network_def``, or None to pack without weights.
        weights_url: download address of the weights, written to ``large_files.yml``.
        evaluation: ``summary.json`` of an evaluation of the weights; its means become the metadata's ``eval_metrics``.
        archive: also write ``<folder>.zip``, reproducibly.
        root: the repository to pack from.

    Raises:
        InputError: the task is unknown or sets a key that a config lacks; the weights cannot be read, belong to another
            task or do not fit; an address without weights; a conflict with a file that packing did not write; ``out``
            cannot be written.
    """
    if weights_url and weights is None:
        remedy = "give --weights too, or omit --weights_url"
        raise SettingError(
            setting="--weights_url", found="no --weights", expected="the weights at this address", remedy=remedy
        )
    metrics = {} if evaluation is None else read_metrics(evaluation)
    values = read_named_task(root / "configs" / "tasks", task)
    configs = read_configs(root / "configs" / name)
    networks = read_networks(configs, root / "configs" / "networks")
    settings, for_inference = (
        {} if weights is None else read_settings(weights, parts, networks)
        for parts in (("grid", "network"), ("inference",))
    )
    write_values(configs, values, origin=root / "configs" / "tasks" / f"{task}.yaml")
    write_values(configs, settings, origin=weights or root)
    write_values({"inference": configs["inference"]}, for_inference, origin=weights or root)
    configs["train"].update(networks.get(settings.get("network_def", {}).get("_target_"), {}))
    target = make_folder(out) / packed_name(task, name)
    with build_folder(target) as building:
        _copy_files(root, name, building, _modules(root, name, configs))
        write_configs(configs, building / "configs")
        write_metadata(building / "configs" / "metadata.json", name, {**values, **settings}, metrics)
        if weights is not None:
            copy_weights(weights, task, building)
        if weights_url:
            write_large_files(building, weights_url)
        install(building, target)
        written = _write_archive(target, building) if archive else None
    return PackedBundle(target, written, has_weights=weights is not None)


def _modules(root: Path, name: str, configs: Mapping[str, Any]) -> list[Path]:
    """Files of ``scripts`` that the configs, ``Predictor`` and the programs for packed bundles reach."""
    names = [*ENTRY_POINTS[name], *named_modules(dict(configs))]
    names += named_modules([Path(__file__).with_name(file).read_text(encoding="utf-8") for file in PROGRAMS[name]])
    translator = configs["inference"].get("translator")
    if translator is not None:
        check_choice("translator", translator, list(TRANSLATORS))
        names.append(f"scripts.networks.{TRANSLATORS[translator]}")
    return reached_modules(root, names)


def _copy_files(root: Path, name: str, building: Path, modules: list[Path]) -> None:
    """Copy files that are packed unchanged; links become files."""
    places = {Path("LICENSE"): root / "LICENSE", Path("configs", "logging.conf"): root / "configs" / "logging.conf"}
    places[Path("configs", "metadata.json")] = root / "configs" / name / "metadata.json"
    places |= {module: root / module for module in modules}
    docs = root / "docs" / name
    places |= {Path("docs", page.relative_to(docs)): page for page in docs.rglob("[!.]*") if page.is_file()}
    for place, source in places.items():
        (building / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, building / place)
    (building / "models").mkdir()


def _write_archive(folder: Path, building: Path) -> Path:
    """``<folder>.zip`` with the folder as its only top entry; names sorted, times and permissions fixed."""
    built = building / f"{folder.name}.zip"
    with atomic_path(built) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in packed_files(folder):
            member = zipfile.ZipInfo(file.relative_to(folder.parent).as_posix(), ARCHIVE_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o100644 << 16
            with file.open("rb") as content, archive.open(member, "w") as entry:
                shutil.copyfileobj(content, entry)
    return built.replace(folder.with_name(built.name))
