"""Wrapping functions of others, and faults that stay on our side of it."""

from __future__ import annotations

import sys
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

from sidestep.auto import patching
from sidestep.auto.patching import Faults, wrap


def doubled(original: Any) -> Any:
    def wrapper(*args: Any) -> Any:
        return 2 * original(*args)

    return wrapper


def test_a_function_is_wrapped_once_and_keeps_its_name() -> None:
    def three() -> int:
        """Three."""
        return 3

    owner = SimpleNamespace(three=three)
    wrap(owner, "three", doubled)
    wrap(owner, "three", doubled)
    assert owner.three() == 6
    assert (owner.three.__name__, owner.three.__doc__, owner.three.__wrapped__) == ("three", "Three.", three)


def test_what_is_not_there_is_left_out() -> None:
    owner = SimpleNamespace()
    wrap(owner, "nothing", doubled)
    assert not vars(owner)


def fail() -> None:
    raise ValueError("broken")


def test_a_fault_is_counted_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    faults = Faults()
    for _ in range(3):
        faults.guard(fail)
    assert faults.count == 3
    assert capsys.readouterr().err.count("broken") == 1


def test_a_fault_is_raised_in_strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    with pytest.raises(ValueError, match="broken"):
        Faults().guard(fail)


def test_tracebacks_show_the_script_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append("".join(traceback.format_exception(*error))))
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    patching.hide_wrappers()

    def wrapped_twice() -> None:
        try:
            Faults().guard(fail)
        except ValueError as error:
            raise RuntimeError("after") from error

    try:
        Faults().guard(wrapped_twice)
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    assert "in fail" in shown[0]
    assert "in wrapped_twice" in shown[0]
    assert patching.__file__ not in shown[0]
