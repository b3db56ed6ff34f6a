"""The house: what must be where, and the shape that every file keeps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "bundle").rglob("*.py")])
FOLDERS = ["bundle", "configs", "docs", "scripts", ".ci"]
SUFFIXES = {".py", ".md", ".yaml", ".json", ".conf", ".toml", ".txt", ".cff"}
TEXTS = sorted(
    path
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]
    if path.is_file() and (path.suffix in SUFFIXES or path.name in {"Makefile", "run"})
)

LIBRARIES = "filelock torch numpy monai ignite nibabel scipy skimage matplotlib tqdm yaml tensorboard"
ALLOWED = {"scripts", *sys.stdlib_module_names, *LIBRARIES.split()}
"""What `scripts` may import anywhere."""

LAZY = {"itk", "medpy", "SimpleITK", "onnxruntime", "openvino"}
"""What it may import inside a function only: DICOM reading, what the benchmark compares with, other engines."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def pin_of(line: str) -> tuple[str, str] | None:
    """Name and version of a requirement that holds on the newest Pythons, else None."""
    found = re.match(r"^([\w.-]+)==([^;\s]+)\s*(?:;\s*(.*))?$", line)
    return (found[1], found[2]) if found and "<" not in (found[3] or "") else None


PINS = dict(filter(None, map(pin_of, (ROOT / "requirements.txt").read_text().splitlines())))


@pytest.mark.parametrize(
    "name",
    [
        *["README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml"],
        *[
            "requirements.txt",
            "requirements-dev.txt",
            "requirements-deploy.txt",
            "requirements-dicom.txt",
            "requirements-monai-deploy.txt",
            ".pre-commit-config.yaml",
            ".editorconfig",
            ".gitignore",
        ],
        *[".ci/run", "models/README.md", "configs/logging.conf", "docs/synthesis/README.md"],
        *["docs/segmentation/README.md", "configs/synthesis/metadata.json", "configs/segmentation/metadata.json"],
    ],
)
def test_the_house_has(name: str) -> None:
    assert (ROOT / name).is_file()


def test_make_explains_itself() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in [
        "help",
        "install",
        "install-dev",
        "demo",
        "test",
        "test-deploy",
        "test-monai-deploy",
        "lint",
        "format",
        "bench",
        "pack",
        "clean",
    ]:
        assert re.search(rf"make {target} +\S", shown), target


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_one_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version[1]
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()
    for name in ["synthesis", "segmentation"]:
        metadata = json.loads((ROOT / "configs" / name / "metadata.json").read_text())
        assert metadata["version"] == version[1]
        assert metadata["changelog"][version[1]]


@pytest.mark.parametrize("name", ["synthesis", "segmentation"])
def test_metadata_names_the_pins(name: str) -> None:
    metadata = json.loads((ROOT / "configs" / name / "metadata.json").read_text())
    own = {"torch": metadata["pytorch_version"], "monai": metadata["monai_version"], "numpy": metadata["numpy_version"]}
    assert {**metadata["required_packages_version"], **own} == PINS


def test_every_requirement_is_pinned_for_every_python() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    older = {line.split("==")[0] for line in lines if "<" in line}
    newer = {line.split("==")[0] for line in lines if ">=" in line}
    assert all("==" in line for line in lines)
    assert older == newer


@pytest.mark.parametrize(
    ("name", "others"),
    [("deploy", {"numpy"}), ("monai-deploy", set())],  # MONAI Label needs NumPy 1
)
def test_the_deploy_environments_have_the_same_pins(name: str, others: set[str]) -> None:
    lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
    deploy = dict(filter(None, map(pin_of, lines)))
    assert {pinned for pinned, version in PINS.items() if deploy[pinned] != version} == others
    assert all("==" in line for line in lines if not line.startswith("#"))


def test_monai_deploys_environment_has_the_pins_of_dicom() -> None:
    dicom, deploy = (
        dict(filter(None, map(pin_of, (ROOT / f"requirements-{name}.txt").read_text().splitlines())))
        for name in ("dicom", "monai-deploy")
    )
    assert dicom.items() <= deploy.items()


@pytest.mark.parametrize("path", [path for path in CODE if path.is_relative_to(ROOT / "scripts")], ids=name_of)
def test_scripts_imports_only_what_it_may(path: Path) -> None:
    for node, is_lazy in _imports(parse(path)):
        assert node in ALLOWED or (is_lazy and node in LAZY), f"{node} in {name_of(path)}"


def test_scripts_itself_is_only_a_docstring() -> None:
    body = parse(ROOT / "scripts" / "__init__.py").body
    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("path", [*CODE, *sorted((ROOT / "tests").glob("*.py"))], ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_functions_are_short_and_documented(path: Path) -> None:
    tree = parse(path)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _code_lines(node) <= MAX_FUNCTION_LINES, node.name
    for node in _public(tree):
        assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_modules_list_what_is_public(path: Path) -> None:
    tree = parse(path)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    listed = next(
        (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and _assigns_all(node)), []
    )
    assert {name for name in defined if not name.startswith("_")} <= set(listed)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_speaks_of_one_machine(path: Path) -> None:
    found = re.search(r"(?<![\w.])/(?:work|tmp|root|home)/\w|\bshared/", path.read_text(encoding="utf-8"))
    assert found is None, found


def test_no_links_in_the_house() -> None:
    folders = ["bundle", "configs", "docs", "scripts", "tests", ".ci"]
    assert not [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff_is_content(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_is_content() -> None:
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _imports(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Top names of all imported packages, and whether each is imported inside a function."""
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or "scripts" if node.level == 0 else "scripts"]
        yield from ((name.split(".")[0], id(node) in inside) for name in names)


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    first = node.body[0]
    is_documented = ast.get_docstring(node) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_documented else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def _public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes of a module, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    item for item in node.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")
                )


def _assigns_all(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
