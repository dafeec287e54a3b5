"""Other processes read the store while it is written, with DuckDB alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from sidestep_collector.blocks import Batch, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store

S = Stream(b"k" * 8, b"u" * 16, "run", "project", 0, 0)
KEYS = KeySet(0, 0, "step", ("a", "b"), ("", ""))
RECORDS = 50

#: Reads until it is told to end; every answer must be that of one commit.
READER = f"""
import sys, threading, duckdb
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), end.set()), daemon=True).start()
reads, seen = 0, 0
while not end.is_set() or not reads:
    with duckdb.connect(sys.argv[1], read_only=True) as connection:
        (watermark,) = connection.execute("select coalesce(max(watermark), 0) from ingest").fetchone()
        points, steps = connection.execute("select count(*), count(distinct step) from points").fetchone()
        records, = connection.execute("select count(*) from snapshots").fetchone()
    assert (points, steps, records) == (watermark * 2, watermark, watermark), (watermark, points, steps, records)
    assert watermark >= seen, (watermark, seen)
    assert watermark % {RECORDS} == 0
    seen = watermark
    if not reads:
        print("reading", flush=True)
    reads += 1
print(reads, seen, flush=True)
"""


def batch(number):
    seq = np.arange(number * RECORDS, (number + 1) * RECORDS)
    values = np.random.default_rng(number).standard_normal((RECORDS, 2))
    block = ScalarBlock(S, KEYS, seq, seq * 1000, seq, np.zeros(RECORDS), values)
    return Batch(blocks=[block], progress=[Progress(S, int(seq[-1]) + 1, 0, False)])


def test_readers_of_other_processes_see_whole_commits_and_never_an_error(tmp_path: Path):
    store = Store.open(tmp_path)
    command = [sys.executable, "-c", READER, str(tmp_path / "store" / "sidestep.duckdb")]
    readers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [reader.stdout.readline() for reader in readers] == ["reading\n"] * 2
    for number in range(40):
        store.commit(batch(number), {})
        while store.compact():
            pass
    store.close()
    for reader in readers:
        said, errors = reader.communicate(timeout=60)
        assert reader.returncode == 0, errors
        assert int(said.split()[0]) > 0
