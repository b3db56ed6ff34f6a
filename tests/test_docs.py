"""The documentation: its commands run, its links lead somewhere, and the files and settings it names exist.

A ``bash`` block is run unless ``<!-- long -->`` precedes it. A ``yaml`` block whose first line is a comment with a path
is written to that path first. ``$EXTRA`` is empty for the reader; here it makes trainings short.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}

EXTRA = "--max_epochs 1 --iterations_per_epoch 2 --batch_size 2 --device cpu"

HOW_TO = {
    "docs/how-to/step-by-step.md": [
        "my_data/ct.json",
        *[f"runs/heart/segmentation/predictions/ct_{case}_seg.nii.gz" for case in range(3)],
    ],
    "docs/how-to/own-data.md": ["data/phantom/ct.json", "data/lists/mr.json"],
    "docs/how-to/check.md": ["runs/check/check.html", "runs/check/check.json"],
    "docs/how-to/prepare-folder.md": ["data/prepared/mr.json", "data/prepared/prepare.json"],
    "docs/how-to/synthesis.md": [
        "runs/phantom/synthesis/models/model.pt",
        "runs/phantom/synthesis/pictures/losses.png",
        "runs/phantom/synthesis/translated/mr_train_1002_image_translated.nii.gz",
        "runs/phantom/synthesis/translated/datalist.json",
    ],
    "docs/how-to/segmentation.md": [
        "runs/phantom/segmentation/models/model.json",
        "runs/phantom/segmentation/logs/losses.csv",
        "runs/phantom/segmentation/provenance.json",
    ],
    "docs/how-to/inference.md": [
        "predictions/ct_train_1002_image_seg.nii.gz",
        "predictions/ct_train_1002_image_mask.nii.gz",
        "predictions_of_the_run/ct_train_1002_image_seg.nii.gz",
        "runs/phantom/segmentation/eval/metrics.csv",
        "runs/phantom/segmentation/eval/summary.json",
        "runs/phantom/segmentation/eval/median_case.png",
        "runs/phantom/segmentation/eval/predictions/ct_train_1002_image_seg.nii.gz",
    ],
    "docs/how-to/packing.md": [
        "dist/glua_phantom_mr2ct_synthesis/models/model.pt",
        "dist/glua_phantom_mr2ct_segmentation.zip",
        "predictions_of_the_bundle/ct_train_1002_image_seg.nii.gz",
    ],
    "docs/how-to/export.md": [
        "runs/phantom/segmentation/models/model.ts",
        "predictions_of_torchscript/ct_train_1002_image_seg.nii.gz",
    ],
    "docs/how-to/resuming.md": ["runs/phantom/synthesis/models/model.pt"],
}
"""How-to pages with commands, in the order in which they build on each other, and files that each says it writes."""

README = ["runs/mine/report.html", *[f"runs/mine/label_maps/ct/ct_{case}_seg.nii.gz" for case in range(3)]]
WALK = {**HOW_TO, "README.md": README}

OTHER_OPTIONS = {
    "monai.bundle": {"config_file", "logging_file", "meta_file", "net_id", "filepath", "ckpt_file", "tracking"}
    | {"use_trace", "converter_kwargs", "bundle_path"},
    "torchrun": {"standalone", "nnodes", "nproc_per_node", "max_restarts", "rdzv_backend", "rdzv_id", "rdzv_endpoint"},
    "scripts": {"out", "overlay", "cases", "validation", "seed", "dataset", "images", "labels", "domain", "resume"}
    | {"source_images", "source_labels", "target_images", "target_labels", "label_names", "segment", "time", "schedule"}
    | {"plan_only", "despite_errors", "task", "seconds"}
    | {
        "source",
        "protocol",
        "map",
        "trust",
        "workers",
        "methods",
        "seeds",
        "size",
        "jobs",
        "restart",
        "evaluate_snapshots",
        "translators",
        "set",
        "no_check",
    },
    "bundle": {"task", "weights", "weights_url", "zip", "bundle", "source", "out", "evaluation"},
    "others": {"verify_dataset_integrity", "c", "fast", "continue_train"}  # nnU-Net's, TotalSegmentator's, CycleGAN's
    | {"conf", "app", "studies", "host", "port", "logdir", "backend"},  # MONAI Label's, TensorBoard's, MLflow's
    "monai-deploy": {"input", "output", "model", "models", "config", "platform", "tag"},
    "sbatch": {"job", "nodes", "ntasks", "gpus", "cpus", "time", "requeue"},  # up to the first hyphen
}


class Reader:
    """A reader who follows the pages in a fresh copy of the project, with their own volumes in ``my_data``."""

    def __init__(self, folder: Path, volumes: Path) -> None:
        self.folder = folder
        for name in ["bundle", "configs", "docs", "scripts"]:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "LICENSE", folder)
        for file in volumes.glob("*.nii.gz"):
            case, kind = file.name.removesuffix(".nii.gz").rsplit("_", 1)
            place = folder / "my_data" / case.split("_")[0] / f"{kind}s" / f"{case}.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)

    def follow(self, page: str) -> str:
        """Write the YAML files that a page shows, then run its commands; gives what they print."""
        for path, content in yaml_files(TEXTS[page]).items():
            (self.folder / path).write_text(content, encoding="utf-8")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(commands(TEXTS[page]))],
            cwd=self.folder,
            env=os.environ
            | {"EXTRA": EXTRA, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def commands(text: str) -> list[str]:
    """Bash blocks of a page that are not marked as long."""
    blocks = re.findall(r"(<!-- long -->\n)?```bash\n(.*?)```", text, re.DOTALL)
    return [block for long, block in blocks if not long]


def yaml_files(text: str) -> dict[str, str]:
    """Path and content of the YAML files that a page shows in full."""
    blocks = re.findall(r"```yaml\n(# (\S+\.yaml)\n.*?)```", text, re.DOTALL)
    return {path: content for content, path in blocks}


def prose(text: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def unpacked(name: str, page: str) -> list[str]:
    """Paths in this repository for a path in a packed bundle: of the page's own bundle, or of either."""
    readme = re.fullmatch(r"docs/(\w+)/README\.md", page)
    folder, _, rest = name.partition("/")
    names = [rest, rest.replace(".json", ".yaml")]  # packing writes configs as JSON
    bundles = [readme[1]] if readme else ["synthesis", "segmentation"]
    return [f"{folder}/{bundle}/{name}" for bundle in bundles for name in names]


def anchors(text: str) -> set[str]:
    """Anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"), data)


@pytest.mark.slow
def test_commands_write_what_the_pages_say(reader: Reader) -> None:
    """One test for all how-to pages, as each builds on the one before."""
    for page, written in HOW_TO.items():
        reader.follow(page)
        assert [name for name in written if not (reader.folder / name).is_file()] == [], page


@pytest.mark.slow
def test_the_readmes_one_command_adapts_to_a_target(reader: Reader) -> None:
    """The trial schedule on tiny volumes: every process is real."""
    said = reader.follow("README.md")
    assert [name for name in README if not (reader.folder / name).is_file()] == []
    assert len(list((reader.folder / "runs/mine/label_maps/ct").glob("*_seg.nii.gz"))) == 3
    assert json.loads((reader.folder / "runs/mine/adapt.json").read_text())["expected_s"] > 0
    assert "Schedule trial" in said


def test_every_page_with_commands_is_followed() -> None:
    how_to = {name for name in TEXTS if name == "README.md" or name.startswith("docs/how-to/")}
    assert {name for name in how_to if commands(TEXTS[name])} == set(WALK)


def test_links_lead_somewhere() -> None:
    offenders = []
    for page, text in TEXTS.items():
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(text)):
            file = (ROOT / page).parent / target if target else ROOT / page
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                offenders.append(f"{page}: {target}#{anchor}")
    assert offenders == []


def test_every_data_set_has_its_page() -> None:
    """The command, the task file, the check and its picture; where to ask and the terms, except for own folders."""
    offenders = []
    for dataset in sorted(path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")):
        text = TEXTS[f"docs/how-to/prepare-{dataset}.md"]
        words = [f"python -m scripts prepare {dataset} ", "python -m scripts check ", "**Task file:"]
        words += [f"](../figures/check_{dataset}.png)"]
        words += [] if dataset == "folder" else ["**Where to ask:", "**Terms:"]
        offenders += [f"{dataset}: {word}" for word in words if word not in text]
    assert offenders == []


def test_files_that_are_named_exist() -> None:
    shown = {path for text in TEXTS.values() for path in yaml_files(text)}
    named = {
        (page, name)
        for page, text in TEXTS.items()
        for name in re.findall(r"`((?:\.ci|bundle|configs|docs|scripts|tests)/[\w./-]+)`", prose(text))
    }
    assert [
        f"{page}: {name}"
        for page, name in sorted(named)
        if name not in shown and not any((ROOT / path).exists() for path in [name, *unpacked(name, page)])
    ] == []


def test_settings_that_are_named_exist() -> None:
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs").rglob("*.yaml")]
    known = set().union(*configs, *OTHER_OPTIONS.values())
    named = {(page, name) for page, text in TEXTS.items() for name in re.findall(r"(?<![\w-])--(\w+)", text)}
    assert [f"{page}: --{name}" for page, name in sorted(named) if name not in known] == []


def test_code_that_the_method_page_names_exists() -> None:
    files = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml")]
    code = "\n".join([*(path.read_text(encoding="utf-8") for path in files), *(path.stem for path in files)])
    words = re.findall(r"`(?:\w+\.)?([A-Za-z]\w*_\w+|[A-Z]\w*[a-z]\w*[A-Z]\w*)`", TEXTS["docs/method.md"])
    assert [word for word in words if not re.search(rf"\b{word}\b", code)] == []
