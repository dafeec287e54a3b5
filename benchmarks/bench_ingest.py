"""Decode, analyse, aggregate and judge on one core: scalars a second in bulk, frames a second with one record each.

    python benchmarks/bench_ingest.py [--json]

Bulk is what a drain thread ships when it has much to say: bodies of 256 KiB with 100 values a record; `judged` is the
same where rules read 61 of them, all within bounds. One
record a frame is what 100 quiet runs send; a flush of the collector falls on each 4000 frames.
Bars: 50 million scalars a second, 40 thousand frames a second. Prints the median of five.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import time
import zlib

import msgpack
import numpy as np
import structlog

from sidestep_collector.aggregate import EpochAggregator, Live
from sidestep_collector.analyse import Analysis, load
from sidestep_collector.blocks import KeySet, Stream
from sidestep_collector.decode import Decoder, decode_frame
from sidestep_collector.profiles import Choices
from sidestep_collector.rules import Rules
from sidestep_collector.telemetry import Counters
from sidestep_schemas.wire import (
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    FRAME_RECORDS,
    RANGE_BYTES,
    RECORD_PREFIX,
    WIRE_VERSION,
    aligned,
    pack_scalars_header,
)

REPEATS = 5
BULK_FRAMES = 80
BULK_FRAMES_A_FLUSH = 40
SMALL_STREAMS = 100
SMALL_FRAMES = 12_000
SMALL_FRAMES_A_FLUSH = 4_000
SMALL_VALUES = 10
RECORDS_AN_EPOCH = 5_000


def record(seq: int, values: bytes, dtype: int) -> bytes:
    payload = pack_scalars_header(seq, seq * 10**6, seq, seq / RECORDS_AN_EPOCH, 1, dtype, len(values)) + values
    return (RECORD_PREFIX.pack(len(payload), 0) + payload).ljust(aligned(RECORD_PREFIX.size + len(payload)), b"\0")


def frame(stream: Stream, first_seq: int, records: list[bytes]) -> bytes:
    body = b"".join(records)
    envelope = (WIRE_VERSION, FRAME_RECORDS, stream.run_uid, stream.rank, 0, stream.key)
    return msgpack.packb((*envelope, first_seq, len(records), body, zlib.crc32(body)))


def stream(number: int) -> Stream:
    return Stream(number.to_bytes(8), b"r" * 16, f"run{number}", "bench", 0, 0)


def key_set(values: int, dtype: int) -> KeySet:
    return KeySet(1, dtype, "step", tuple(f"train/metric_{index}" for index in range(values)), ())


def judged_key_set(values: int, dtype: int) -> KeySet:
    """Names of which rules read the loss, and 30 blocks by their gradient and update."""
    read = ["train/loss_total"]
    read += [f"train/{group}/block_{index}" for group in ("gradients", "updates") for index in range(30)]
    names = [*read, *(f"train/metric_{index}" for index in range(values - len(read)))]
    return KeySet(1, dtype, "step", tuple(names), ())


def bulk(dtype: int) -> tuple[list[tuple[Stream, bytes]], int]:
    source = stream(0)
    values = (
        np.random.default_rng(0).uniform(0.001, 1, size=(1000, 100)).astype("<f4" if dtype == DTYPE_FLOAT32 else "<f8")
    )
    per_frame = RANGE_BYTES // len(record(0, values[0].tobytes(), dtype))
    frames = []
    for first in range(0, BULK_FRAMES * per_frame, per_frame):
        records = [record(seq, values[seq % 1000].tobytes(), dtype) for seq in range(first, first + per_frame)]
        frames.append((source, frame(source, first, records)))
    return frames, BULK_FRAMES * per_frame * 100


def small() -> tuple[list[tuple[Stream, bytes]], int]:
    streams = [stream(number) for number in range(SMALL_STREAMS)]
    values = np.arange(SMALL_VALUES, dtype="<f8").tobytes()
    frames = [
        (source, frame(source, seq, [record(seq, values, DTYPE_FLOAT64)]))
        for seq in range(SMALL_FRAMES // SMALL_STREAMS)
        for source in streams
    ]
    return frames, len(frames)


def seconds(frames: list[tuple[Stream, bytes]], names: KeySet, frames_a_flush: int) -> float:
    decoder, aggregator, live = Decoder(), EpochAggregator(), Live()
    analysis, rules = Analysis(load(), Counters()), Rules(Choices())
    for source in {source.key: source for source, _ in frames}.values():
        decoder.restore(source, [names])
    start = time.perf_counter()
    for index, (source, data) in enumerate(frames, 1):
        opened = decode_frame(data)
        decoder.add(source, opened.body, opened.first_seq, opened.count)
        if index % frames_a_flush == 0:
            decoded = decoder.take()
            analysis.add(decoded.blocks, decoded.items)
            derived, _ = analysis.take()
            blocks = decoded.blocks + derived
            aggregator.add(blocks, decoded.items)
            rules.add(blocks, decoded.items)
            live.add(blocks)
            _, summaries = aggregator.take()
            rules.add_epochs(summaries)
            assert rules.take() == []
    return time.perf_counter() - start


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    results: dict[str, float] = {}
    for name, dtype in (("float32", DTYPE_FLOAT32), ("float64", DTYPE_FLOAT64)):
        frames, scalars = bulk(dtype)
        took = statistics.median(seconds(frames, key_set(100, dtype), BULK_FRAMES_A_FLUSH) for _ in range(REPEATS))
        results[f"bulk_{name}_scalars_per_second"] = scalars / took
        names = judged_key_set(100, dtype)
        took = statistics.median(seconds(frames, names, BULK_FRAMES_A_FLUSH) for _ in range(REPEATS))
        results[f"bulk_{name}_judged_scalars_per_second"] = scalars / took
    frames, count = small()
    names = key_set(SMALL_VALUES, DTYPE_FLOAT64)
    took = statistics.median(seconds(frames, names, SMALL_FRAMES_A_FLUSH) for _ in range(REPEATS))
    results["small_frames_per_second"] = count / took
    results["small_microseconds_per_frame"] = took / count * 1e6
    if "--json" in sys.argv[1:]:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:36} {value:16,.1f}")


if __name__ == "__main__":
    main()
