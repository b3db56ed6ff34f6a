"""Finds the modules of ``scripts`` that a bundle's configs, ``Predictor`` and applications import."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["named_modules", "reached_modules"]

DOTTED_NAME = re.compile(r"\bscripts(?:\.\w+)+")


def named_modules(item: Any) -> Iterator[str]:
    """Dotted names of ``scripts`` in the strings of a config, or in the text of an application."""
    if isinstance(item, str):
        yield from DOTTED_NAME.findall(item)
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
    for part in parts:
        yield from named_modules(part)


def reached_modules(root: Path, names: Iterable[str]) -> list[Path]:
    """Files (relative to ``root``) of all modules reached from dotted names by imports, and of their packages.

    Imports inside functions count, those for type checkers do not. Strings that name a module count, for ``importlib``.
    """
    reached: set[Path] = set()
    waiting = list(names)
    while waiting:
        file = _module_file(root, waiting.pop())
        if file is None or file in reached:
            continue
        reached.add(file)
        waiting += [".".join(package.parts) for package in file.parents if package.parts]
        waiting += _imports((root / file).read_text(encoding="utf-8"))
    return sorted(reached)


def _module_file(root: Path, name: str) -> Path | None:
    """The file of the longest part of a dotted name that is a module; None outside ``scripts``."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = Path(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if parts[0] == "scripts" and (root / file).is_file():
                return file
    return None


def _imports(text: str) -> Iterator[str]:
    for node in _executed(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED_NAME.fullmatch(node.value):
            yield node.value


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _executed(child)
