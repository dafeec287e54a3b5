"""What a commit costs: 100 k points as 1000 records of 100 metrics, over one run and over many.

Run: python benchmarks/bench_store_commit.py [SECONDS]
"""

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from sidestep_collector.blocks import Batch, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store, connect

NAMES = tuple(f"train/metric_{number:03d}" for number in range(100))
KEYS = KeySet(0, 0, "step", NAMES, ("",) * len(NAMES))


def batch(streams, records, flush, noise):
    made = Batch()
    for number, stream in enumerate(streams):
        seq = np.arange(flush * records, (flush + 1) * records)
        t_ns = 1_700_000_000_000_000_000 + seq * 10_000_000
        values = (
            np.roll(noise, number * 100)[: records * len(NAMES)].reshape(records, len(NAMES))
            / np.sqrt(seq + 1.0)[:, None]
        )
        epoch = np.full(records, float(flush))
        made.blocks.append(ScalarBlock(stream, KEYS, seq, t_ns, seq, epoch, values.astype(np.float32)))
        made.progress.append(Progress(stream, int(seq[-1]) + 1, 0, False))
        if flush == 0:
            made.key_sets.append((stream, KEYS))
    return made


def streams(count):
    return [Stream(n.to_bytes(8), n.to_bytes(16), f"run-{n:04d}", "bench", 0, 0) for n in range(count)]


def measure(root, runs, seconds):
    noise = np.random.default_rng(0).standard_normal(100_000)
    who, records = streams(runs), max(1, 1000 // runs)
    store, done, merges = Store.open(root, grace_seconds=0.0), threading.Event(), [0]

    def tidy():
        while not done.is_set():
            merges[0] += store.compact() or bool(done.wait(0.1))

    tidying = threading.Thread(target=tidy)
    tidying.start()
    times, start, flush = [], time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        ready = batch(who, records, flush, noise)
        before = time.perf_counter()
        store.commit(ready, {})
        times.append(time.perf_counter() - before)
        flush += 1
    took = time.perf_counter() - start
    done.set()
    tidying.join()
    while store.compact():
        pass
    store.close()
    total = flush * records * runs * len(NAMES)
    with connect(root) as connection:
        stored = connection.execute("select count(*) from points").fetchone()[0]
        nbytes, merged, files = connection.execute(
            """select sum(bytes) filter (level > 0), sum(row_count) filter (level > 0), count(*)
            from parts where table_name = 'points'"""
        ).fetchone()
    assert stored == total, (stored, total)
    times = sorted(times[2:] or times)
    p50, p99 = times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3
    size_kib = (root / "store" / "sidestep.duckdb").stat().st_size // 1024
    size = f"{nbytes / merged:.2f}" if merged else "-"
    print(
        f"{runs:>5} {flush:>8} {p50:>8.1f} {p99:>8.1f} {total / took / 1e6:>12.2f} {size:>13} {files:>6} {size_kib:>8}"
    )


if __name__ == "__main__":
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else 8.0
    print(" runs  commits   p50 ms   p99 ms   M points/s   bytes/point  parts  catalogue KiB")
    for runs in (1, 100, 1000):
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), runs, budget)
