"""The whole pipeline: frames in, rows committed and sorted in the store, TensorBoard files written.

    python benchmarks/bench_pipeline.py [--quick] [--scalars N] [--records N]

A producer process sends frames that were made before the clock runs to a real collector process, as fast as
it takes them, and waits until the last record of each run is acknowledged. `bulk`: ranges of 256 KiB, 100 values
a record. `100 runs`: one record of 50 values a frame, from 100 sockets in turn. Each case has its own collector and
folder; afterwards the rows in the store are counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from support import Collector, Table, folder

from sidestep_collector.store import connect
from sidestep_schemas.layout import Endpoints, endpoints
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import (
    ACK_TOPIC,
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    FRAME_RECORDS,
    KIND_LIFECYCLE,
    KIND_SCHEMA,
    NO_EPOCH,
    RANGE_BYTES,
    RECORD_PREFIX,
    SCALARS_OFFSETS,
    WIRE_VERSION,
    aligned,
    pack_scalars_header,
)

KEY_SET = 0
RECORDS_AN_EPOCH = 5000
BEGAN_NS = 1_790_000_000 * 10**9
WAIT_SECONDS = 120.0
CPU_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Case:
    """What is sent: `records` scalars records of each run."""

    name: str
    runs: int
    records: int
    values: int
    dtype: int
    range_bytes: int

    @property
    def scalars(self) -> int:
        return self.runs * self.records * self.values


@dataclass(frozen=True)
class Frames:
    """Frames of one stream, and the watermark that says that all are stored."""

    key: bytes
    frames: list[bytes]
    first_seqs: list[int]
    watermark: int


def stream_of(case: Case, number: int) -> Frames:
    """A whole run: its start, its key set, epochs of records, its end; sealed, cut and framed as a trainer does."""
    rng = np.random.default_rng(number)
    uid, key = rng.bytes(16), rng.bytes(8)
    body, seq = bytearray(), 0

    def add(kind: int, step: int, epoch: float, *fields: Any) -> None:
        nonlocal seq
        payload = msgpack.packb((kind, seq, BEGAN_NS + seq, step, epoch, *fields))
        body.extend(sealed(payload))
        seq += 1

    start = {"project": "bench", "id": f"run-{number:03d}", "config": {}, "world_size": 1, "started_ns": BEGAN_NS}
    names = tuple(f"train/metric_{index:03d}" for index in range(case.values))
    add(KIND_LIFECYCLE, -1, NO_EPOCH, "start", json.dumps(start))
    add(KIND_SCHEMA, -1, NO_EPOCH, KEY_SET, case.dtype, "step", names, ())
    for first in range(0, case.records, RECORDS_AN_EPOCH):
        epoch, count = first // RECORDS_AN_EPOCH + 1, min(RECORDS_AN_EPOCH, case.records - first)
        add(KIND_LIFECYCLE, first, epoch, "epoch_begin", json.dumps({"epoch": epoch}))
        body.extend(scalars(case, rng, seq, first, count, epoch))
        seq += count
        add(KIND_LIFECYCLE, first + count, epoch, "epoch_end", json.dumps({"epoch": epoch}))
    add(KIND_LIFECYCLE, case.records, NO_EPOCH, "end", json.dumps({"status": "finished"}))
    pairs = list(framed(body, uid, key, case.range_bytes))
    return Frames(key, [frame for _, frame in pairs], [first for first, _ in pairs], seq)


def sealed(payload: bytes) -> bytes:
    record = RECORD_PREFIX.pack(len(payload), zlib.crc32(payload) or 1) + payload
    return record.ljust(aligned(len(record)), b"\0")


def scalars(case: Case, rng: np.random.Generator, seq: int, step: int, count: int, epoch: float) -> bytes:  # noqa: PLR0917
    """`count` records of scalars, as the journal holds them. Values: noise on a slow fall, as a loss has it."""
    values = (rng.standard_normal((count, case.values)) + 1e3 / (1 + step + np.arange(count)[:, None])).astype(
        "<f4" if case.dtype == DTYPE_FLOAT32 else "<f8"
    )
    nbytes = values[0].nbytes
    payload = pack_scalars_header(0, 0, 0, epoch, KEY_SET, case.dtype, nbytes)
    length = len(payload) + nbytes
    rows = np.zeros((count, aligned(RECORD_PREFIX.size + length)), np.uint8)
    rows[:, : 8 + len(payload)] = np.frombuffer(RECORD_PREFIX.pack(length, 0) + payload, np.uint8)
    order = np.arange(count)
    for field, column in (("seq", seq + order), ("t_ns", BEGAN_NS + (seq + order) * 10**7), ("step", step + order)):
        at = SCALARS_OFFSETS[field]
        rows[:, at : at + 8] = column.astype("<i8").view(np.uint8).reshape(count, 8)
    at = SCALARS_OFFSETS["values"]
    rows[:, at : at + nbytes] = values.view(np.uint8)
    seals = np.array([zlib.crc32(row) or 1 for row in rows[:, 8 : 8 + length]], "<u4")
    rows[:, 4:8] = seals.view(np.uint8).reshape(count, 4)
    return rows.tobytes()


def framed(body: bytearray, uid: bytes, key: bytes, range_bytes: int) -> Iterator[tuple[int, bytes]]:
    seq, view = 0, memoryview(bytes(body))
    for found in iter_ranges(view, start=0, limit=range_bytes):
        part = bytes(view[found.start : found.stop])
        envelope = (WIRE_VERSION, FRAME_RECORDS, uid, 0, 0, key, seq, found.records)
        yield seq, msgpack.packb((*envelope, part, zlib.crc32(part)))
        seq += found.records


def produce(case: Case, address: str, pipe: Connection) -> None:
    """Make frames, say that they are ready, send them when told, and say when all are stored."""
    streams = [stream_of(case, number) for number in range(case.runs)]
    points = endpoints(address)
    context: zmq.Context[Any] = zmq.Context()
    try:
        pushes, acks = connected(context, points, streams)
        pipe.send(sum(len(stream.frames) for stream in streams))
        pipe.recv()
        began = time.monotonic()
        send_all(pushes, streams)
        sent = time.monotonic()
        again = wait_all(acks, pushes, streams)
        pipe.send((began, sent, time.monotonic(), again))
    finally:
        context.destroy(linger=0)


def connected(context: zmq.Context[Any], points: Endpoints, streams: list[Frames]) -> tuple[list[Any], Any]:
    acks = context.socket(zmq.SUB)
    pushes = []
    for stream in streams:
        push = context.socket(zmq.PUSH)
        push.set(zmq.SNDHWM, 16)
        push.connect(points.data)
        pushes.append(push)
        acks.set(zmq.SUBSCRIBE, ACK_TOPIC + stream.key)
    acks.connect(points.ack)
    time.sleep(0.5)
    while acks.poll(0):
        acks.recv()  # greetings
    return pushes, acks


def send_all(pushes: list[Any], streams: list[Frames]) -> None:
    if len(streams) == 1:
        for frame in streams[0].frames:
            pushes[0].send(frame, copy=False)
        return
    waiting = [(push, iter(stream.frames)) for push, stream in zip(pushes, streams, strict=True)]
    held: dict[int, bytes] = {}
    while waiting:
        moved = False
        for entry in list(waiting):
            push, frames = entry
            frame = held.pop(id(entry), None) or next(frames, None)
            if frame is None:
                waiting.remove(entry)
                continue
            try:
                push.send(frame, zmq.NOBLOCK)
                moved = True
            except zmq.Again:
                held[id(entry)] = frame
        if not moved:
            time.sleep(0.001)


def wait_all(acks: Any, pushes: list[Any], streams: list[Frames]) -> int:
    """Wait until all is stored, and send again what is asked for, as a trainer does; returns frames sent again."""
    missing = {stream.key: (push, stream) for push, stream in zip(pushes, streams, strict=True)}
    deadline, again = time.monotonic() + WAIT_SECONDS, 0
    while missing:
        if not acks.poll(1000):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} runs were not acknowledged within {WAIT_SECONDS:.0f} s")
            continue
        message = acks.recv()
        if message[1:9] not in missing:
            continue
        push, stream = missing[message[1:9]]
        _, _, watermark, received, rewind, *_ = msgpack.unpackb(message[9:])
        if watermark >= stream.watermark:
            del missing[stream.key]
        elif rewind:
            for first, frame in zip(stream.first_seqs, stream.frames, strict=True):
                if first >= received:
                    push.send(frame)
                    again += 1
    return again


@dataclass(frozen=True)
class Result:
    """What a case took. `seconds` from the first frame sent to the last record committed."""

    seconds: float
    send_seconds: float
    cpu_seconds: float
    rss_mb: float
    frames: int
    frames_again: int


def measure(case: Case) -> Result:
    with folder() as root:
        with Collector(root) as collector:
            spawn = multiprocessing.get_context("spawn")
            pipe, theirs = spawn.Pipe()
            producer = spawn.Process(target=produce, args=(case, collector.address, theirs), daemon=True)
            producer.start()
            theirs.close()
            try:
                frames = pipe.recv()
                cpu, rss = collector.cpu_seconds(), 0.0
                pipe.send("go")
                while not pipe.poll(CPU_POLL_SECONDS):
                    rss = max(rss, collector.rss_mb())
                began, sent, ended, again = pipe.recv()
                cpu = collector.cpu_seconds() - cpu
                producer.join(30)
            finally:
                producer.kill()
        check(case, root)
        return Result(ended - began, sent - began, cpu, rss, frames, again)


def check(case: Case, root: Path) -> None:
    """Every row is in the store, and TensorBoard's files hold all values."""
    with connect(root) as store:
        points, steps = (
            store.execute(f"select count(*) from {table}").fetchone()[0] for table in ("points", "snapshots")
        )
        lost = store.execute("select count(*) from gaps").fetchone()[0]
    assert points == case.scalars, f"{points:,} points are in the store, {case.scalars:,} were sent"
    assert steps == case.runs * case.records, f"{steps:,} snapshots are in the store"
    assert lost == 0, f"{lost} gaps"
    events = sum(path.stat().st_size for path in root.rglob("*tfevents*"))
    assert events > case.scalars * len("train/metric_000"), (
        f"TensorBoard's files have {events:,} bytes for {case.scalars:,} scalars"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="little data: shows that it works")
    parser.add_argument("--scalars", type=int, default=20_000_000, help="scalars of each bulk case")
    parser.add_argument("--records", type=int, default=2000, help="records of each of the 100 runs")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    given = parser.parse_args()
    scalars, records = (1_000_000, 50) if given.quick else (given.scalars, given.records)
    cases = [
        Case("bulk, 1 run, float32", 1, scalars // 100, 100, DTYPE_FLOAT32, RANGE_BYTES),
        Case("bulk, 1 run, float64", 1, scalars // 100, 100, DTYPE_FLOAT64, RANGE_BYTES),
        Case("bulk, 4 runs, float32", 4, scalars // 400, 100, DTYPE_FLOAT32, RANGE_BYTES),
        Case("100 runs, 1 record a frame", 100, records, 50, DTYPE_FLOAT64, 1),
    ]
    table = Table("whole pipeline, first send to last commit")
    for case in cases:
        if given.only not in case.name:
            continue
        result = measure(case)
        rate = case.scalars / result.seconds / 1e6
        if case.range_bytes == 1:
            table.add(f"{case.name}: records", case.runs * case.records / result.seconds / 1e3, "k/s", least=20)
            table.add(f"{case.name}: scalars", rate, "M/s")
        else:
            table.add(f"{case.name}: scalars", rate, "M/s", least=2)
        table.add("  sent after", result.send_seconds, "s")
        table.add("  committed after", result.seconds, "s")
        table.add("  collector CPU", result.cpu_seconds, "s")
        table.add("  collector CPU per M scalars", result.cpu_seconds / case.scalars * 1e6, "s")
        table.add("  collector memory, highest", result.rss_mb, "MB")
        table.add("  frames", result.frames, "")
        table.add("  frames sent again, a connection was lost", result.frames_again, "")
    table.print()


if __name__ == "__main__":
    main()
