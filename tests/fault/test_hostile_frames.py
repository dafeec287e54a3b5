"""Bytes that nobody should send: the collector lives, counts them, and a good run beside them loses nothing."""

import contextlib
import os
import random
import socket
import zlib
from pathlib import Path

import msgpack
import pytest
import zmq
from support.place import ended, free_ports, said, tell, until

from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import ACK_TOPIC, FRAME_GAP, FRAME_RECORDS, KIND_LIFECYCLE, RECORD_PREFIX, WIRE_VERSION

GOLDEN = Path(__file__).parents[1] / "contract" / "golden"
GOOD = """
import sys, sidestep
run = sidestep.init(id="good")
for part in range(2):
    for step in range(1000):
        run.log({"loss": part * 1000 + step})
    print("logged", flush=True)
    sys.stdin.readline()
report = run.finish(timeout=60)
assert report.complete, report
"""


def record(seq, *fields):
    payload = msgpack.packb((*fields[:1], seq, 1_700_000_000_000_000_000, 0, float("nan"), *fields[1:]))
    return (RECORD_PREFIX.pack(len(payload), 0) + payload).ljust((len(payload) + 15) & ~7, b"\0")


def frame(first=0, count=1, *, body=None, version=WIRE_VERSION, kind=FRAME_RECORDS, stream=b"hostiles", crc=None):
    if body is None:
        details = '{"id": "hostile", "project": "p"}'
        body = b"".join(record(first + at, KIND_LIFECYCLE, "start", details) for at in range(count))
    crc = zlib.crc32(body) if crc is None else crc
    return msgpack.packb((version, kind, b"u" * 16, 0, 0, stream, first, count, body, crc))


@pytest.fixture
def wire(place):
    """A collector on tcp, and the means to send it anything."""
    address = f"tcp://127.0.0.1:{free_ports()}"
    place.up("--listen", address, "--flush-seconds", "0.1")
    context = zmq.Context()
    wire = Wire(place, endpoints(address), context)
    yield wire
    context.destroy(linger=0)


class Wire:
    def __init__(self, place, points, context):
        self.place = place
        self.points = points
        self.context = context
        self.push = context.socket(zmq.PUSH)
        self.push.connect(points.data)

    def send(self, *parts):
        self.push.send_multipart(parts)

    def raw(self, data, point=None):
        """Write to the port what no ZeroMQ peer would, and read until the collector says no more."""
        host, port = (point or self.points.data).removeprefix("tcp://").split(":")
        with socket.create_connection((host, int(port))) as connection, contextlib.suppress(OSError):
            connection.settimeout(0.2)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass

    def counted(self, name, count):
        return until(lambda: self.place.counters()[name] >= count)

    def listen(self, stream):
        socket_ = self.context.socket(zmq.SUB)
        socket_.set(zmq.SUBSCRIBE, ACK_TOPIC + stream)
        socket_.set(zmq.RCVTIMEO, 30_000)
        socket_.connect(self.points.ack)
        return socket_

    def ack(self, listener):
        return msgpack.unpackb(listener.recv()[9:])


def test_no_bytes_harm_the_collector_or_the_run_beside_them(place, wire):
    trainer = place.script(GOOD)
    said(trainer, "logged")
    chance = random.Random(3)
    for size in (0, 1, 7, 100, 5000):
        wire.send(chance.randbytes(size))
        wire.raw(chance.randbytes(size))
        for point in wire.points[1:]:
            wire.raw(chance.randbytes(size), point)
    wire.raw(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    wire.raw(b"\x01\x00" + b"POST / HTTP/1.1\r\n\r\n")
    wire.send(b"one", b"two", b"")
    whole = frame()
    for cut in (1, 20, len(whole) // 2, len(whole) - 1):
        wire.send(whole[:cut])
    wire.send(frame(crc=1))
    wire.send(b"\x80" * 1_000_000)
    wire.send(b"\x91" * 1_000_000)
    wire.send(msgpack.packb([1] * 50))
    wire.counted("rejected_frames", 5 + 3 + 4 + 1 + 3)
    tell(trainer)
    said(trainer, "logged")
    tell(trainer)
    ended(trainer)
    assert place.counters()["records"] == 2003
    assert place.values("good", "train/loss") == [(step, float(step)) for step in range(2000)]
    place.check_whole("good", key_sets=1)
    assert place.rows("select run from runs") == [("good",)]
    samples = list((place.root / "quarantine").iterdir())
    assert 0 < len(samples) <= 32
    assert all(sample.stat().st_size <= 4096 for sample in samples)


def mutated(chance, golden):
    """A golden frame with bytes changed, cut, doubled or spliced; half of them with a sum that fits the new body."""
    data = bytearray(chance.choice(golden))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(max(1, len(data)))
        what = chance.randrange(5)
        if what == 0 and data:
            data[at] = chance.randrange(256)
        elif what == 1:
            del data[at : at + chance.randint(1, 20)]
        elif what == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 20))
        elif what == 3:
            data[at:at] = data[at : at + chance.randint(1, 200)]
        else:
            other = chance.choice(golden)
            data[at:] = other[chance.randrange(len(other)) :]
    if chance.random() < 0.5:
        with contextlib.suppress(Exception):
            fields = msgpack.unpackb(bytes(data))
            if isinstance(fields[8], bytes):
                fields[9] = zlib.crc32(fields[8])
                return msgpack.packb(fields)
    return bytes(data)


def resident(pid):
    """Megabytes that a process holds in memory."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) / 1024


def test_mutated_frames_neither_end_nor_swell_the_collector_and_a_run_beside_them_is_whole(place, wire):
    count = 100_000
    golden = [path.read_bytes() for path in sorted(GOLDEN.glob("*.bin"))]
    chance = random.Random(11)
    trainer = place.script(GOOD)
    said(trainer, "logged")
    for _ in range(count // 10):
        wire.send(mutated(chance, golden))
    until(lambda: place.counters()["rejected_frames"] > count // 100)
    pid, before = place.collector().pid, resident(place.collector().pid)
    for _ in range(count - count // 10):
        wire.send(mutated(chance, golden))
    tell(trainer)
    said(trainer, "logged")
    tell(trainer)
    ended(trainer)
    assert place.collector().pid == pid
    assert resident(pid) - before < 64
    until(lambda: place.counters()["frames"] >= count)
    assert place.counters()["rejected_frames"] > count // 2
    assert place.values("good", "train/loss") == [(step, float(step)) for step in range(2000)]
    place.check_whole("good", key_sets=1)
    assert len(list((place.root / "quarantine").iterdir())) <= 32


def test_frames_that_come_again_are_counted_and_stored_once_and_their_sender_is_told(place, wire):
    listener = wire.listen(b"hostiles")
    wire.ack(listener)  # the greeting
    wire.send(frame(0, 3))
    until(lambda: wire.ack(listener)[2] == 3)
    wire.send(frame(0, 3))
    wire.counted("duplicate_records", 3)
    assert wire.ack(listener)[2] == 3  # the first word may have been lost, so it is said again
    wire.send(frame(1, 4))
    until(lambda: wire.ack(listener)[2] == 5)
    listener.close()
    assert [seq for (seq,) in place.rows("select seq from events order by seq")] == [0, 1, 2, 3, 4]


def test_a_stream_that_starts_in_the_middle_is_asked_for_its_beginning(place, wire):
    listener = wire.listen(b"hostiles")
    wire.ack(listener)
    wire.send(frame(7, 2))
    _, _, watermark, received, rewind, _ = wire.ack(listener)
    assert (watermark, received, rewind) == (0, 0, True)
    wire.send(frame(0, 2))
    wire.send(frame(5, 2))
    until(lambda: wire.ack(listener)[3:5] == [2, True])
    listener.close()
    assert place.counters()["records"] == 2


def test_records_that_cannot_be_decoded_are_a_gap_with_a_reason(place, wire):
    wire.send(frame(0, 1))
    wire.send(frame(1, 2, body=b"\x08\0\0\0\0\0\0\0" + b"\xff" * 8))
    wire.send(frame(3, 1))
    wire.send(frame(4, 3, body=b"the disk was full", kind=FRAME_GAP))
    until(lambda: place.rows("select * from gaps where first_seq = 4"))
    found = place.rows("select first_seq, records, reason from gaps order by first_seq")
    assert [gap[:2] for gap in found] == [(1, 2), (4, 3)]
    assert "could not decode" in found[0][2]
    assert found[1][2] == "the disk was full"
    assert [seq for (seq,) in place.rows("select seq from events order by seq")] == [0, 3]
    assert place.row("select watermark, lost from ingest") == (7, 5)


def test_questions_that_are_none_are_answered_or_left(place, wire):
    asker = wire.context.socket(zmq.DEALER)
    asker.set(zmq.RCVTIMEO, 30_000)
    asker.connect(wire.points.control)
    for question in (b"", b"\xff\xfe", b"[1]", b'{"ask": 3}', b'{"\xff": 1}', b'{"a":' * 100_000, os.urandom(999)):
        asker.send(question)
        assert b"error" in asker.recv()
    asker.send_multipart([b"many", b"parts", b"{}"])
    assert b"error" in asker.recv_multipart()[-1]
    asker.close()
    assert place.status()


def test_a_newer_wire_version_is_refused_with_a_message_and_the_trainer_keeps_its_journal(place):
    place.up()
    process = place.script(
        """
        import logging, sidestep, sidestep.push
        logging.basicConfig()
        sidestep.push.WIRE_VERSION = 99
        run = sidestep.init(id="newer")
        for step in range(10): run.log({"loss": step})
        report = run.finish(timeout=30)
        print(report.committed, report.pending, report.seconds < 25)
        """
    )
    out, errors = process.communicate(timeout=60)
    assert out.split() == ["0", "13", "True"]
    assert "wire version 99" in errors
    assert "upgrade the collector" in errors
    assert place.journals()
    assert place.counters()["refused_versions"] > 0
    # The journal itself is of a version that is read here, so what it holds is shipped after all.
    until(lambda: not place.journals())
    place.check_whole("newer", key_sets=1)
