"""Runs to test with: one at a time in this process, recorded offline, read back from their journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidestep import start
from sidestep.run import Run
from support.journal_reader import Record, read_records


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """`sidestep.init` in a folder of the test, offline unless said otherwise; the run is ended with the test."""
    monkeypatch.setattr(start, "_active", None)

    def init(**given: Any) -> Run:
        return start.init(**{"dir": tmp_path / "data", "mode": "offline", **given})

    yield init
    if start._active is not None:
        start._active.finish(timeout=0.0)


def records(run: Run, kind: str = "") -> list[Record]:
    """What a run recorded so far, of one kind, without its start and its key sets unless asked for."""
    folder = run.stats["journal"] or run.finish().journal
    found = [record for record in read_records(folder) if record.kind == kind or not kind]
    return [record for record in found if record.kind != "lifecycle" or record.fields[0] != "start"]


def scalars(run: Run) -> list[tuple[int, dict[str, float]]]:
    """Steps and values of all scalars, in order."""
    return [(record.step, record.values or {}) for record in records(run, "scalars")]


def events(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """Names and details of what happened to a run, in order."""
    return [(record.fields[0], json.loads(record.fields[1])) for record in records(run, "lifecycle")]
