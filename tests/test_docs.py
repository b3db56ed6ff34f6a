"""The pages: their commands run, their links lead somewhere, and what they name is there.

A block marked ``bash`` is run unless ``<!-- long -->`` stands before it. A block marked ``yaml`` whose first line is a
comment with a path is written there first. ``$EXTRA``, which the pages leave to the reader, makes trainings short.
"""

from __future__ import annotations

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

ROAD = {
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
    "README.md": [
        "my_data/ct.json",
        *[f"runs/heart/segmentation/predictions/ct_{case}_seg.nii.gz" for case in range(3)],
    ],
}
"""Pages with commands, in the order in which one builds on the other, and files each says it writes."""

OTHER_OPTIONS = {
    "monai.bundle": {"config_file", "logging_file", "meta_file", "net_id", "filepath", "ckpt_file", "tracking"}
    | {"use_trace", "converter_kwargs", "bundle_path"},
    "torchrun": {"standalone", "nnodes", "nproc_per_node", "max_restarts", "rdzv_backend", "rdzv_id", "rdzv_endpoint"},
    "scripts": {"out", "cases", "validation", "seed", "dataset", "images", "labels", "domain", "resume"}
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
    "bundle": {"task", "weights", "weights_url", "zip", "bundle", "source", "out"},
    "others": {"conf", "app", "studies", "host", "port", "logdir", "backend"},  # MONAI Label's, TensorBoard's, MLflow's
    "monai-deploy": {"input", "output", "model", "models", "config", "platform", "tag"},
    "sbatch": {"job", "nodes", "ntasks", "gpus", "cpus", "time", "requeue"},  # up to the first hyphen
}


class Reader:
    """Someone who follows the pages in a fresh copy of the project, with volumes of their own in ``my_data``."""

    def __init__(self, folder: Path, volumes: Path) -> None:
        self.folder, self.done = folder, set[str]()
        for name in ["bundle", "configs", "docs", "scripts"]:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "LICENSE", folder)
        for file in volumes.glob("*.nii.gz"):
            case, kind = file.name.removesuffix(".nii.gz").rsplit("_", 1)
            place = folder / "my_data" / case.split("_")[0] / f"{kind}s" / f"{case}.nii.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)

    def follow(self, page: str) -> None:
        """Do what a page says, after the pages it builds on."""
        order = list(ROAD)
        for name in [page] if page == "README.md" else order[: order.index(page) + 1]:
            if name not in self.done:
                self.done.add(name)
                self._do(name)

    def _do(self, page: str) -> None:
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


def commands(text: str) -> list[str]:
    """The bash blocks of a page that are not marked as long."""
    blocks = re.findall(r"(<!-- long -->\n)?```bash\n(.*?)```", text, re.DOTALL)
    return [block for long, block in blocks if not long]


def yaml_files(text: str) -> dict[str, str]:
    """Path and content of the YAML files that a page shows whole."""
    blocks = re.findall(r"```yaml\n(# (\S+\.yaml)\n.*?)```", text, re.DOTALL)
    return {path: content for content, path in blocks}


def prose(text: str) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def unpacked(name: str, page: str) -> list[str]:
    """Where a file of a packed bundle stands here: a card speaks of its own bundle, other pages of either."""
    card = re.fullmatch(r"docs/(\w+)/README\.md", page)
    folder, _, rest = name.partition("/")
    return [f"{folder}/{bundle}/{rest}" for bundle in ([card[1]] if card else ["synthesis", "segmentation"])]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Reader:
    return Reader(tmp_path_factory.mktemp("reader"), data)


@pytest.mark.slow
@pytest.mark.parametrize("page", ROAD)
def test_a_reader_gets_what_the_page_says(reader: Reader, page: str) -> None:
    reader.follow(page)
    missing = [name for name in ROAD[page] if not (reader.folder / name).is_file()]
    assert not missing


def test_every_page_with_commands_is_followed() -> None:
    how_to = {name for name in TEXTS if name == "README.md" or name.startswith("docs/how-to/")}
    assert {name for name in how_to if commands(TEXTS[name])} == set(ROAD)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", prose(TEXTS[page])):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("dataset", sorted(path.stem for path in (ROOT / "configs" / "datasets").glob("*.yaml")))
def test_every_data_set_has_its_page(dataset: str) -> None:
    """The command, the task file, the check and its picture; where to ask and terms, but of one's own folders."""
    text = TEXTS[f"docs/how-to/prepare-{dataset}.md"]
    assert f"python -m scripts prepare {dataset} " in text
    words = ("Task file:",) if dataset == "folder" else ("Where to ask:", "Terms:", "Task file:")
    assert all(f"**{word}" in text for word in words)
    assert "python -m scripts check " in text
    assert f"](../figures/check_{dataset}.png)" in text
    assert (ROOT / "docs" / "figures" / f"check_{dataset}.png").stat().st_size <= 150_000


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_are_named_exist(page: str) -> None:
    shown = {path for text in TEXTS.values() for path in yaml_files(text)}
    for name in re.findall(r"`((?:\.ci|bundle|configs|docs|scripts|tests)/[\w./-]+)`", prose(TEXTS[page])):
        assert any((ROOT / path).exists() for path in [name, *unpacked(name, page)]) or name in shown, name


@pytest.mark.parametrize("page", TEXTS)
def test_settings_that_are_named_exist(page: str) -> None:
    configs = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "configs").rglob("*.yaml")]
    known = set().union(*configs, *OTHER_OPTIONS.values())
    named = set(re.findall(r"(?<![\w-])--(\w+)", TEXTS[page]))
    assert named <= known


def test_code_that_the_method_page_names_exists() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.py"))
    code += "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml"))
    code += "\n".join(path.stem for path in (ROOT / "configs").rglob("*.yaml"))  # methods are files
    words = re.findall(r"`(?:\w+\.)?([A-Za-z]\w*_\w+|[A-Z]\w*[a-z]\w*[A-Z]\w*)`", TEXTS["docs/method.md"])
    assert [word for word in words if not re.search(rf"\b{word}\b", code)] == []
