"""A store that is written with DuckDB 1.5 is read by DuckDB 2.0."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sidestep_collector.blocks import Batch, EpochRows, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store
from sidestep_schemas.tables import DERIVED_VIEWS, TABLES

VERSION = "2.0.0"
KEYS = KeySet(0, 0, "step", ("a", "b"), ("", ""))

READER = """
import sys, duckdb
assert duckdb.__version__ == sys.argv[2], duckdb.__version__
with duckdb.connect(sys.argv[1], read_only=True) as connection:
    for name in sys.argv[3:]:
        print(name, len(connection.execute(f'select * from "{name}"').fetchall()))
    print(connection.execute("select n, mean, m2 from epochs where metric = 'a'").fetchall())
"""


@pytest.fixture(scope="module")
def duckdb2():
    """A folder with DuckDB 2.0, kept between runs; skipped where the index cannot be reached."""
    folder = Path(tempfile.gettempdir()) / f"sidestep-tests-{os.getuid()}" / f"duckdb-{VERSION}"
    if not (folder / "duckdb").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, f"duckdb=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"duckdb {VERSION} cannot be installed: {done.stderr.strip()[-200:]}")
    return folder


@pytest.mark.duckdb2
def test_duckdb_2_reads_every_table_and_view(tmp_path, duckdb2):
    store = Store.open(tmp_path)
    for attempt in range(2):
        stream = Stream(bytes([attempt]) * 8, b"u" * 16, "run", "project", 0, attempt)
        seq = np.arange(10)
        block = ScalarBlock(stream, KEYS, seq, seq * 1000, seq, np.zeros(10), np.ones((10, 2)))
        one, zero = np.ones(2), np.zeros(2)
        row = EpochRows(stream, 0, ("a", "b"), one * 1.0, zero, one, one, one * attempt, zero, one, one, zero, zero)
        made = Batch(blocks=[block], epochs=[row, row], progress=[Progress(stream, 10, 0, False)])
        store.commit(made, {})
    store.close()
    names = [*(table.name for table in TABLES), *DERIVED_VIEWS]
    command = [sys.executable, "-c", READER, str(tmp_path / "store" / "sidestep.duckdb"), VERSION, *names]
    environment = {**os.environ, "PYTHONPATH": str(duckdb2)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *counts, epochs = done.stdout.splitlines()
    rows = dict(line.split() for line in counts)
    assert {rows[name] for name in ("points", "snapshots", "points_current")} == {"40", "20"}
    assert epochs == "[(2, 0.0, 0.0), (2, 1.0, 0.0)]"
