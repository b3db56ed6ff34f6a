"""Which modules a bundle needs: followed from names in configs and programs through every import."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundle.reach import named_modules, reached_modules


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "a/__init__.py": "",
        "a/start.py": "import math\nfrom scripts.a.near import f\nimport scripts.b.whole\n",
        "a/near.py": "def f():\n    from scripts.b import late\n",
        "a/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from scripts.a import far\n",
        "a/far.py": "",
        "b/__init__.py": "from scripts.c import always\n",
        "b/whole.py": "import importlib\nimportlib.import_module('scripts.c.by_name')\n",
        "b/late.py": '"""Like scripts.a.far, which a docstring alone names."""\n',
        "c/__init__.py": "",
        "c/always.py": "",
        "c/by_name.py": "from scripts.a.start import anything\n",
    }
    for name, text in files.items():
        (tmp_path / "scripts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scripts" / name).write_text(text)
    return tmp_path


def test_names_in_configs_and_programs() -> None:
    config = {
        "network": {"_target_": "scripts.networks.x.Net", "width": 3},
        "list": ["$scripts.core.y.f(1) + scripts.z", {"_target_": "Compose"}],
        "text": "descripts.no and scripts alone",
    }
    assert list(named_modules(config)) == ["scripts.networks.x.Net", "scripts.core.y.f", "scripts.z"]


def test_imports_are_followed(root: Path) -> None:
    """A class's module, functions' imports, packages' own imports, names for importlib, and circles."""
    found = reached_modules(root, ["scripts.a.start.Class.method"])
    expected = ["a/near", "a/start", "b/late", "b/whole", "c/always", "c/by_name"]
    packages = ["__init__", "a/__init__", "b/__init__", "c/__init__"]
    assert {path.as_posix() for path in found} == {f"scripts/{name}.py" for name in expected + packages}


def test_types_and_other_packages_are_not_reached(root: Path) -> None:
    found = reached_modules(root, ["scripts.a.typed", "torch.nn", "scripts.nowhere"])
    assert [path.as_posix() for path in found] == ["scripts/__init__.py", "scripts/a/__init__.py", "scripts/a/typed.py"]
