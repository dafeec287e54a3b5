"""What a captured run takes from the script that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
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


def test_of_several_the_likeliest_is_taken() -> None:
    assert naming.script_config(script(args=SimpleNamespace(seed=1), cfg={"lr": 0.1})) == {"lr": 0.1}


@pytest.mark.parametrize("given", [None, "a.yaml", Settings, 3])
def test_what_holds_no_settings_is_none(given: object) -> None:
    assert naming.script_config(script(config=given)) == {}


def test_arguments_come_before_a_global() -> None:
    assert naming.init_arguments([SimpleNamespace(lr=0.2)], {})["config"] == {"lr": 0.2}
