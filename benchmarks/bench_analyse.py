"""Analysers: what one matrix of features costs, and what the stage adds to decoding and aggregating.

    python benchmarks/bench_analyse.py [--json]

`features` is the analyser on a tensor as it was shipped, until its values and histogram are there. `bulk` puts
records of 100 values through the stage in blocks as a backlog brings them, with a flush for each 200 k scalars: where
nobody reads of them, and where one of the 100 is a loss. `100 runs` hands over a block of one record of 10 values
from each of 100 runs in turn. Bar: 10 ms for 256 x 768 features in half precision. Prints CPU time, the
least of 15 repeats: what else runs on the machine only adds to it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from support import Table

from sidestep_collector.analyse import Analysis, load
from sidestep_collector.blocks import Item, KeySet, Moment, ScalarBlock, Stream, Tensor
from sidestep_collector.telemetry import Counters

REPEATS = 15
BULK_RECORDS = 2_000
BULK_VALUES = 100
BULK_FLUSHES = 10
RUNS = 100
RUN_RECORDS = 100


def stream(number: int) -> Stream:
    return Stream(number.to_bytes(8), b"r" * 16, f"run{number}", "bench", 0, 0)


def block(source: Stream, key_set: KeySet, first: int, values: Any) -> ScalarBlock:
    seq = np.arange(first, first + len(values))
    return ScalarBlock(source, key_set, seq, seq * 10**6, seq, seq / 5000, values)


def took(work: Callable[[], object], repeats: int = REPEATS) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def features(rows: int, columns: int, dtype: str) -> float:
    """Seconds a matrix."""
    matrix = np.random.default_rng(0).normal(size=(rows, columns)).astype(dtype)
    at = Moment(stream(0), 0, 0, 0, 0.0)
    tensor = Tensor(at, "train/collapse/level0_features", dtype, matrix.shape, matrix.tobytes())
    return stage_seconds([([], [tensor])])


def stage_seconds(batches: list[tuple[list[ScalarBlock], list[Item]]], flush_after: int = 1) -> float:
    def work() -> None:
        analysis = Analysis(analysers, Counters())
        for number, (blocks, items) in enumerate(batches, 1):
            analysis.add(blocks, items)
            if number % flush_after == 0:
                analysis.take()

    analysers = load()
    return took(work)


def bulk(*, with_loss: bool) -> float:
    """Seconds a million scalars."""
    names = tuple(f"train/metric_{index}" for index in range(BULK_VALUES - 1))
    key_set = KeySet(0, 0, "step", (*names, "train/loss" if with_loss else "train/metric"), ())
    values = np.random.default_rng(0).normal(1, 0.1, (BULK_RECORDS, BULK_VALUES)).astype(np.float32)
    batches: list[Any] = [
        ([block(stream(0), key_set, flush * BULK_RECORDS, values)], []) for flush in range(BULK_FLUSHES)
    ]
    return stage_seconds(batches) / (BULK_FLUSHES * BULK_RECORDS * BULK_VALUES) * 1e6


def small(*, with_loss: bool) -> float:
    """Seconds a record."""
    names = tuple(f"train/metric_{index}" for index in range(9))
    key_set = KeySet(0, 1, "step", (*names, "train/loss" if with_loss else "train/metric"), ())
    values = np.ones((1, 10))
    batches: list[Any] = [
        ([block(stream(run), key_set, record, values) for run in range(RUNS)], []) for record in range(RUN_RECORDS)
    ]
    return stage_seconds(batches, flush_after=RUN_RECORDS // 2) / (RUNS * RUN_RECORDS)


def main() -> None:
    results = {
        "features_256x768_float16_ms": features(256, 768, "float16") * 1e3,
        "features_256x768_float32_ms": features(256, 768, "float32") * 1e3,
        "features_256x4096_float16_ms": features(256, 4096, "float16") * 1e3,
        "features_64x192_float16_ms": features(64, 192, "float16") * 1e3,
        "bulk_unread_ms_per_million_scalars": bulk(with_loss=False) * 1e3,
        "bulk_with_a_loss_ms_per_million_scalars": bulk(with_loss=True) * 1e3,
        "100_runs_unread_microseconds_per_record": small(with_loss=False) * 1e6,
        "100_runs_with_a_loss_microseconds_per_record": small(with_loss=True) * 1e6,
    }
    if "--json" in sys.argv[1:]:
        print(json.dumps(results))
        return
    table = Table("analysers")
    for name, value in results.items():
        most = 10 if name == "features_256x768_float16_ms" else None
        table.add(name.replace("_", " "), value, "", most=most)
    table.print()


if __name__ == "__main__":
    main()
