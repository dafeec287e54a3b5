"""What all tests share: a clean environment, and hypothesis without a clock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.place import Place

# Tests run side by side, and so do the processes that they start: threads beyond the cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines that run tests are shared and slow at times; what is slow is not wrong.
settings.register_profile("sidestep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sidestep")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes away SIDESTEP_* variables: a user's own collector or folder must not reach into a test. Samples of the
    machine come when they come, so that tests which count records have none."""
    for name in os.environ:
        if name.startswith("SIDESTEP_") and not name.startswith("SIDESTEP_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIDESTEP_SYSTEM_SECONDS", "0")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A data folder with nothing in it; whatever is started around it ends with the test."""
    place = Place(tmp_path / "data")
    yield place
    place.close()


@pytest.fixture(scope="session")
def duckdb2() -> Path:
    """A folder that holds DuckDB 2; first on PYTHONPATH of a new interpreter, `import duckdb` gives that one."""
    folder = os.environ.get("SIDESTEP_TEST_DUCKDB2")
    if not folder:
        pytest.skip("SIDESTEP_TEST_DUCKDB2 names no folder with duckdb 2; `make test` installs one")
    return Path(folder)
