"""What sidestep may cost whoever installs or imports it: modules, dependencies, bytes."""

from __future__ import annotations

import email
import email.message
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import sidestep

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch",
    "numpy",
    "duckdb",
    "tensorboard",
    "zmq",
    "msgpack",
    "msgspec",
    "click",
    "pydantic",
    "structlog",
    "psutil",
    "pynvml",
}
#: psutil (0.3 MB) and nvidia-ml-py (0.1 MB, pure Python) read the machine: people expect that of a tracker by default.
BASE_DEPENDENCIES = {"pyzmq", "msgpack", "click", "psutil", "nvidia-ml-py"}
#: Five families of metrics, their probes, analysers and rules are 540 kB of it; files of data would show at once.
WHEEL_LIMIT_BYTES = 660_000
PACKAGES = ("sidestep", "sidestep_collector", "sidestep_schemas")


def _loaded_by(statement: str) -> set[str]:
    """Top-level packages that a statement loads in a fresh interpreter, beyond those it started with."""
    code = f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w-]", requirement, maxsplit=1)[0].lower() for requirement in requirements}


@pytest.mark.parametrize("package", ["sidestep", "sidestep_schemas"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    loaded = _loaded_by(f"import {package}")
    assert package in loaded
    assert not loaded & HEAVY


def test_importing_the_training_side_loads_nothing_of_the_collector() -> None:
    assert "sidestep_collector" not in _loaded_by("import sidestep")


def test_base_dependencies_are_these_five() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert _names(project["dependencies"]) == BASE_DEPENDENCIES


def test_torch_is_never_a_dependency_and_never_locked() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = pyproject["project"]["optional-dependencies"].values()
    groups = pyproject["dependency-groups"].values()
    listed = _names([requirement for group in (*extras, *groups) for requirement in group])
    locked = _names([line for lock in (ROOT / "requirements").glob("*.txt") for line in lock.read_text().splitlines()])
    assert "torch" not in listed | locked


def test_locks_name_no_index_and_no_local_path() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in lines if re.search(r"://|index-url|find-links|^\s*[./]|@ ", line)], lock.name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < WHEEL_LIMIT_BYTES


def test_wheel_holds_the_three_packages_and_nothing_beside_them(wheel: Path) -> None:
    top = {name.partition("/")[0] for name in _files(wheel) if ".dist-info/" not in name}
    assert top == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_marks_each_package_as_typed(wheel: Path, package: str) -> None:
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= _files(wheel)


def test_wheel_holds_the_demo_and_the_licence(wheel: Path) -> None:
    files = _files(wheel)
    assert "sidestep/_examples/digits.py" in files
    assert any(re.fullmatch(r"sidestep-.*\.dist-info/licenses/LICENSE", name) for name in files)


def test_wheel_asks_for_the_base_dependencies_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata: email.message.Message = email.message_from_bytes(archive.read(name))
    requires = metadata.get_all("Requires-Dist") or []
    assert _names([requirement for requirement in requires if "extra ==" not in requirement]) == BASE_DEPENDENCIES


def test_no_module_hides_a_public_name() -> None:
    # Importing `package.name` puts the module into the package, over the function of that name.
    folder = Path(sidestep.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(sidestep.__all__) == set()
