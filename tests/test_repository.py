"""Rules for the whole repository. Each test lists every offender at once."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CODE = sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "bundle").rglob("*.py")])
TESTS = sorted((ROOT / "tests").glob("*.py"))

LIBRARIES = {"filelock", "torch", "numpy", "monai", "ignite", "nibabel", "pydicom", "gdcm", "scipy", "skimage"}
LIBRARIES |= {"matplotlib", "tqdm", "yaml", "tensorboard", "fire"}
"""Third-party packages that `scripts` may import, each pinned in requirements.txt."""

LAB_LIBRARIES = {"medpy", "nnunetv2", "jinja2", "markupsafe"}
"""Packages that only `scripts.lab` may import: those that the benchmarks compare with, and the page template."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
TARGETS = "help install install-dev demo test test-fast test-deploy test-monai-deploy lint format bench pack clean"
TARGETS += " results results-check"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tracked_files() -> list[Path]:
    return [ROOT / name for name in run("git", "ls-files", "-z").stdout.split("\0") if name]


def read_pins(name: str) -> dict[str, str]:
    """Names and versions in a requirements file that apply to Python 3.11 and later."""
    lines = (ROOT / name).read_text().splitlines()
    found = (re.match(r"([\w.-]+)==([^;\s]+)\s*(?:;.*>=.*)?$", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_make_help_lists_every_target() -> None:
    shown = run("make").stdout
    assert [target for target in TARGETS.split() if not re.search(rf"make {target} +\S", shown)] == []


def test_ci_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]


def test_one_version_everywhere() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    metadata = [json.loads(file.read_text()) for file in (ROOT / "configs").glob("*/metadata.json")]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {citation["version"], *(content["version"] for content in metadata)} == {version[1]}
    assert all(version[1] in content["changelog"] for content in metadata)
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_requirements_are_pinned_and_agree() -> None:
    """Every line is an exact version; files that name the same package name the same version."""
    files = [path.name for path in ROOT.glob("requirements*.txt")]
    lines = {(name, line) for name in files for line in (ROOT / name).read_text().splitlines() if line}
    assert [pair for pair in sorted(lines) if not re.match(r"#|-r |[\w.-]+(\[\w+\])?==", pair[1])] == []

    pins = read_pins("requirements.txt")
    deploy, monai_deploy = read_pins("requirements-deploy.txt"), read_pins("requirements-monai-deploy.txt")
    assert {name for name, version in pins.items() if deploy[name] != version} == {
        "numpy",
        "pydicom",
    }  # MONAI Label: NumPy 1, pydicom 2
    assert (pins | read_pins("requirements-dicom.txt")).items() <= monai_deploy.items()


def test_every_requirement_covers_every_supported_python() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    older, newer = (
        {line.split("==")[0] for line in lines if f'python_version {sign} "' in line} for sign in ("<", ">=")
    )
    assert older == newer


def test_import_contracts_hold() -> None:
    done = run(str(Path(sys.executable).with_name("lint-imports")), "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_imports_only_its_libraries() -> None:
    graph = grimp.build_graph("scripts", include_external_packages=True, cache_dir=None)
    external = {module for module in graph.modules if module.split(".")[0] != "scripts"}
    offenders = {
        module: sorted(graph.find_modules_that_directly_import(module))
        for module in external - LIBRARIES - set(sys.stdlib_module_names)
    }
    assert {
        module: importers
        for module, importers in offenders.items()
        if module not in LAB_LIBRARIES or any(not name.startswith("scripts.lab.") for name in importers)
    } == {}


def test_files_and_functions_are_short() -> None:
    """Counted without docstrings for functions; ruff limits statements and complexity."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*CODE, *TESTS]}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}
    functions = {f"{name_of(path)}:{name}": lines for path in CODE for name, lines in _functions(path)}
    assert {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES} == {}


def test_module_names_are_unique() -> None:
    """One word has one meaning: handlers and data of pseudo-labels are one subject, in two layers."""
    shared = {"__init__.py", "__main__.py", "pseudo_labels.py"}
    names = Counter(path.name for path in CODE)
    assert {name for name, count in names.items() if count > 1} <= shared


def test_modules_export_their_public_names() -> None:
    offenders = {name_of(path): sorted(_defined(path) - _exported(path)) for path in CODE}
    assert {name: missing for name, missing in offenders.items() if missing} == {}


def test_no_personal_paths_links_or_large_files() -> None:
    offenders = []
    for path in tracked_files():
        if path.is_symlink() or path.stat().st_size > 25e6:
            offenders.append(name_of(path))
        elif path.suffix not in {".png", ".svg"} and path.parent.name != "tests":
            text = path.read_text(encoding="utf-8")
            found = re.search(r"(?<![\w.])/(?:work|tmp|root|home)/\w|\bshared/", text)
            offenders += [f"{name_of(path)}: {found[0]}"] if found else []
    assert offenders == []


@pytest.mark.parametrize(
    "command", ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.slow)]
)
def test_linters_pass(command: str) -> None:
    done = run(sys.executable, "-m", *command.split())
    assert done.returncode == 0, done.stdout + done.stderr


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    """Names of a module's functions with their number of lines, docstrings excluded."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - docstring


def _defined(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in names if not name.startswith("_")}


def _exported(path: Path) -> set[str]:
    found = re.search(r"^__all__ = (\[.*?\])", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return set(ast.literal_eval(found[1])) if found else set()
