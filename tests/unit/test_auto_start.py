"""How Python processes below `sidestep run` come to load the capture, and what it costs those that never train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidestep.auto.environment import AUTO_VARIABLE, ON_PATH, variables


def python(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables(os.environ), **more}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, text=True, check=False)


def test_a_path_of_the_users_stays_behind_ours() -> None:
    assert variables({"PYTHONPATH": "/a:/b"})["PYTHONPATH"] == f"{ON_PATH}:/a:/b"
    assert variables({})["PYTHONPATH"] == str(ON_PATH)
    assert variables({"PYTHONPATH": ""})["PYTHONPATH"] == str(ON_PATH)


def test_a_user_turns_it_off_in_the_environment() -> None:
    assert variables({AUTO_VARIABLE: "0"}) == {}


def test_a_process_without_torch_loads_nothing() -> None:
    text = "import sys, argparse; before = set(sys.modules); print(sorted(n for n in before if 'sidestep' in n or n == 'zmq'))"
    assert python("-c", text).stdout.strip() == "[]"
    loaded = python("-c", "import sys; print(' '.join(sorted(sys.modules)))").stdout.split()
    plain = python("-c", "import sys; print(' '.join(sorted(sys.modules)))", PYTHONPATH="").stdout.split()
    assert set(loaded) - set(plain) <= {"sitecustomize", "__future__"}


def test_the_path_of_the_script_is_as_it_would_be() -> None:
    assert str(ON_PATH) not in python("-c", "import sys; print(sys.path)").stdout


def test_a_sitecustomize_of_the_users_is_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('mine')\nhere = __file__\n", encoding="utf-8")
    done = python(
        "-c",
        "import sitecustomize, sys; print(sitecustomize.here); print(type(sys.meta_path[0]).__name__)",
        PYTHONPATH=f"{ON_PATH}{os.pathsep}{tmp_path}",
    )
    assert done.stdout.split() == ["mine", str(tmp_path / "sitecustomize.py"), "AfterImport"]


def test_a_sitecustomize_that_fails_says_so_as_ever(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    done = python("-c", "print('on')", PYTHONPATH=f"{ON_PATH}{os.pathsep}{tmp_path}")
    assert done.stdout == "on\n"
    assert "nothing_of_this_name" in done.stderr


def test_nothing_happens_where_it_is_turned_off() -> None:
    done = python("-c", "import sys; print(type(sys.meta_path[0]).__name__)", **{AUTO_VARIABLE: "0"})
    assert "AfterImport" not in done.stdout


@pytest.mark.parametrize("text", ["import torch_is_not_here", "import torch.nothing_here"])
def test_imports_that_fail_fail_as_ever(text: str) -> None:
    done = python("-c", text)
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr
    assert "sidestep" not in done.stderr


def test_a_torch_that_is_none_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("print('another torch')\n", encoding="utf-8")
    done = python("-c", "import torch; print('on')", PYTHONPATH=f"{ON_PATH}{os.pathsep}{tmp_path}")
    assert done.stdout == "another torch\non\n"
    assert done.returncode == 0


def test_a_python_that_cannot_import_sidestep_goes_on(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    (tmp_path / "sidestep.py").write_text("raise ImportError('not installed here')\n", encoding="utf-8")
    done = python("-c", "import torch; print('on')", PYTHONPATH=f"{ON_PATH}{os.pathsep}{tmp_path}")
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert "not captured" in done.stderr
