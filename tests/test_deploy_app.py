"""The MONAI Deploy app without the SDK, which a stand-in replaces; test_monai_deploy runs it with the real one."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from bundle.pack import ROOT
from scripts.core.errors import InputError

SDK = {
    "conditions": ["CountCondition"],
    "core": ["AppContext", "Application", "Fragment", "Operator", "OperatorSpec", "init_app_context"],
    "operators.dicom_data_loader_operator": ["DICOMDataLoaderOperator"],
    "operators.dicom_series_selector_operator": ["DICOMSeriesSelectorOperator"],
}


class Anything:
    """Stands for a class of the SDK: takes any arguments, and has the attributes of an application's context."""

    argv: tuple[str, ...] = ()
    model_path = input_path = output_path = "."

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def add_flow(self, *args: Any) -> None: ...


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name, classes in SDK.items():
        module = ModuleType(f"monai.deploy.{name}")
        vars(module).update({each: type(each, (Anything,), {}) for each in classes})
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("deploy_app", ROOT / "bundle" / "deploy_app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def test_the_hosts_excepthook_stays(app: ModuleType) -> None:
    before = sys.excepthook
    app.SegmentationApp().compose()
    assert sys.excepthook is before


def test_an_input_error_ends_the_program_with_its_sentence(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: object) -> None:
        raise InputError(file="study", found="2 series", expected="one", remedy="select one")

    monkeypatch.setattr(app.SegmentationApp, "run", run, raising=False)
    with pytest.raises(SystemExit, match=r"error: study: 2 series\. Expected one\. Fix: select one\."):
        app.main()


def test_other_errors_keep_their_traceback(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(app.SegmentationApp, "run", run, raising=False)
    with pytest.raises(RuntimeError, match="no memory"):
        app.main()
