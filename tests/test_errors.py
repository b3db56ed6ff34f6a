"""An input error ends a command with its message; every other error keeps its traceback."""

from __future__ import annotations

import sys

import pytest
from scripts.core.errors import InputError, find_input_error, show_input_errors_as_sentences


def test_the_hook_prints_one_sentence_and_leaves_other_errors_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    monkeypatch.delenv("GLUA_TRACEBACK", raising=False)
    show_input_errors_as_sentences()
    show_input_errors_as_sentences()
    inner = InputError(file="a.nii", found="b", expected="c", remedy="d")
    outer = RuntimeError("applying transform")
    outer.__cause__ = inner
    sys.excepthook(RuntimeError, outer, None)
    assert capsys.readouterr().err == "error: a.nii: b. Expected c. Fix: d.\n"
    other = KeyError("a bug")
    sys.excepthook(KeyError, other, None)
    assert seen == [other]


def test_the_hook_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLUA_TRACEBACK", "1")
    before = sys.excepthook
    show_input_errors_as_sentences()
    assert sys.excepthook is before


def test_an_error_raised_while_handling_another_is_found() -> None:
    def work() -> None:
        try:
            raise InputError(file="a", found="b", expected="c", remedy="d")
        except InputError:
            raise KeyError from None

    with pytest.raises(KeyError) as caught:
        work()
    # `from None` hides a cause from the reader of a traceback, not from the search.
    found = find_input_error(caught.value)
    assert found is not None
    assert found.file == "a"
    assert find_input_error(KeyError()) is None
