"""What a captured run takes from the script that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sidestep.auto import naming


@dataclass
class Settings:
    """A configuration as many scripts have it."""

    lr: float = 0.1


def script(**names: Any) -> ModuleType:
    main = ModuleType("__main__")
    vars(main).update(names)
    return main


@pytest.mark.parametrize("given", [{"lr": 0.1}, SimpleNamespace(lr=0.1), Settings()])
def test_a_global_that_is_called_so_is_the_configuration(given: object) -> None:
    assert naming.script_config(script(config=given)) == {"lr": 0.1}


@pytest.mark.parametrize(
    ("file", "project"),
    [
        ("vision/fit.py", "fit"),
        ("vision/train.py", "vision"),
        ("vision/main.py", "vision"),
        ("vision/src/train.py", "vision"),
        ("/train.py", "train"),
    ],
)
def test_a_script_with_a_name_that_all_have_is_called_by_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, project: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert naming.project_name(script(__file__=file)) == project


def test_a_module_is_called_by_its_whole_name_and_what_is_no_script_by_none() -> None:
    assert naming.project_name(script(__spec__=SimpleNamespace(name="pack.train"), __file__="train.py")) == "pack.train"
    assert naming.project_name(script(__spec__=SimpleNamespace(name="pack.__main__"))) == "pack"
    assert naming.project_name(script()) is None


def test_of_several_the_likeliest_is_taken() -> None:
    assert naming.script_config(script(args=SimpleNamespace(seed=1), cfg={"lr": 0.1})) == {"lr": 0.1}


@pytest.mark.parametrize("given", [None, "a.yaml", Settings, 3])
def test_what_holds_no_settings_is_none(given: object) -> None:
    assert naming.script_config(script(config=given)) == {}


def test_arguments_come_before_a_global() -> None:
    assert naming.init_arguments([SimpleNamespace(lr=0.2)], {})["config"] == {"lr": 0.2}
