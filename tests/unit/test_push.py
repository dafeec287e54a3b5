"""The drain thread against a collector that says what the test wants."""

import os
import tempfile
import threading
import zlib
from pathlib import Path

import msgpack
import pytest
from support.journals import IDENTITY, log, new_journal, write
from support.stand_in import StandIn, gaps, seqs, until

from sidestep import journal as journal_module
from sidestep import push
from sidestep.leftover import LeftoverJournal
from sidestep.push import Pusher, _decode_ack
from sidestep.records import Shipment
from sidestep_schemas.wire import FRAME_ALIVE, FRAME_GAP, FRAME_RECORDS, WIRE_VERSION

STREAM = IDENTITY.stream


@pytest.fixture
def sockets():
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        yield Path(name)


@pytest.fixture
def collector(sockets):
    stand_in = StandIn(sockets)
    yield stand_in
    stand_in.close()


@pytest.fixture
def journal(tmp_path):
    made = new_journal(tmp_path / "run" / "stream")
    yield made
    made.close(delivered=True)


@pytest.fixture
def pusher(journal, sockets):
    made = Pusher(journal, f"ipc://{sockets}/c")
    made.start()
    yield made
    assert made.stop(20.0)


def greet(collector, received: int = 0) -> None:
    """Answer the subscription as a collector does."""
    assert collector.subscription() == b"\x01w" + STREAM
    collector.acknowledge(STREAM, received, rewind=True)


def test_frames_carry_the_stream_and_the_bytes_of_the_journal(collector, journal, pusher):
    log(journal, 1.0, 2.0)
    (frame,) = collector.receive_until(1)
    segment = journal._segments[0]
    body = bytes(segment.view[64 : segment.tail])
    assert frame == [WIRE_VERSION, FRAME_RECORDS, b"r" * 16, 3, 1, STREAM, 0, 1, body, zlib.crc32(body)]


def test_a_process_that_has_nothing_to_send_shows_that_it_lives(collector, journal, pusher, monkeypatch):
    monkeypatch.setattr(push, "ALIVE_SECONDS", 0.05)
    log(journal, 1.0, 2.0)
    (first,) = collector.receive_until(1)
    assert first[1] == FRAME_RECORDS
    for _ in range(3):
        assert collector.frame() == [WIRE_VERSION, FRAME_ALIVE, b"r" * 16, 3, 1, STREAM, 1, 0, b"", 0]
    log(journal, 3.0, 4.0)
    frames = [collector.frame()]
    while frames[-1][1] == FRAME_ALIVE:
        frames.append(collector.frame())
    assert frames[-1][6:8] == [1, 1]


def test_everything_is_shipped_in_order(collector, journal, pusher):
    greet(collector)
    for number in range(500):
        log(journal, number, 0)
        if number % 100 == 0:
            write(journal, 300_000)
    frames = collector.receive_until(journal.seq)
    assert sorted(set(seqs(frames))) == list(range(505))
    collector.acknowledge(STREAM, 505)
    assert pusher.wait(505, 20.0)
    assert (pusher.delivery.shipped, pusher.delivery.committed) == (505, 505)


def test_acknowledged_segments_are_given_back(collector, journal, pusher):
    greet(collector)
    for _ in range(12):
        write(journal, 300_000)
    collector.receive_until(12)
    assert len(journal._segments) > 1
    collector.acknowledge(STREAM, 12)
    assert pusher.wait(12, 20.0)
    until(lambda: len(journal._segments) == 1)


def test_a_rewind_sends_again_from_what_was_received(collector, journal, pusher):
    greet(collector)
    for expected in range(1, 5):
        log(journal)
        collector.receive_until(expected)
    collector.acknowledge(STREAM, 1, 2, rewind=True)
    assert seqs(collector.receive_until(4)) == [2, 3]
    assert pusher.delivery.committed == 1
    until(lambda: pusher.delivery.resent >= 2)


def test_another_collector_is_sent_what_is_not_stored(sockets, collector, journal, pusher):
    greet(collector)
    for expected in range(1, 4):
        log(journal)
        collector.receive_until(expected)
    collector.acknowledge(STREAM, 1)
    assert pusher.wait(1, 20.0)
    collector.close()
    second = StandIn(sockets, b"boot-two")
    try:
        assert second.subscription() == b"\x01w" + STREAM
        second.acknowledge(STREAM, 1)
        frames = second.receive_until(3)
        assert sorted(set(seqs(frames))) == [1, 2]
    finally:
        second.close()


def test_a_collector_that_lost_its_store_is_told_what_it_lacks(sockets, collector, journal, pusher):
    greet(collector)
    for expected in range(1, 4):
        log(journal)
        collector.receive_until(expected)
    collector.acknowledge(STREAM, 2)
    assert pusher.wait(2, 20.0)
    collector.close()
    second = StandIn(sockets, b"boot-two")
    try:
        greet(second)
        frames = second.receive_until(3)
        assert (frames[0][1], frames[0][6:8]) == (FRAME_GAP, [0, 2])
        assert "a collector whose store this one does not have" in gaps(frames)[0][2]
        assert seqs(frames)[-1] == 2
    finally:
        second.close()


def test_a_leftover_that_begins_later_tells_a_new_collector_what_it_lacks(tmp_path, sockets, collector):
    journal = new_journal(tmp_path / "run" / "stream")
    while len(journal._segments) < 2:
        write(journal, 300_000)
    first = journal._segments[1].first_seq
    journal.close(delivered=False)
    min(journal.folder.glob("*.seg")).unlink()
    leftover = LeftoverJournal(journal.folder, IDENTITY.boot)
    pusher = Pusher(leftover, collector.address)
    pusher.start()
    greet(collector)
    collector.receive_until(leftover.seq)
    collector.acknowledge(STREAM, 0, rewind=True)
    frames = collector.receive_until(leftover.seq)
    assert gaps(frames)[0][:2] == (0, first)
    collector.acknowledge(STREAM, leftover.seq)
    assert pusher.wait(leftover.seq, 20.0)
    assert pusher.stop(20.0)
    leftover.close(delivered=True)


def test_a_leftover_of_which_the_collector_has_more_is_delivered(tmp_path, collector):
    journal = new_journal(tmp_path / "run" / "stream")
    log(journal)
    journal.close(delivered=False)
    leftover = LeftoverJournal(journal.folder, IDENTITY.boot)
    pusher = Pusher(leftover, collector.address)
    pusher.start()
    greet(collector, received=100)
    assert pusher.wait(leftover.seq, 20.0)
    assert pusher.delivery.committed == leftover.seq
    assert pusher.stop(20.0)
    leftover.close(delivered=True)


def test_a_watermark_beyond_what_was_written_is_no_word_of_a_collector(collector, journal, pusher):
    greet(collector)
    log(journal)
    collector.receive_until(1)
    collector.acknowledge(STREAM, 1000)
    collector.acknowledge(STREAM, 0, message="that was all")  # comes after it
    until(lambda: pusher.delivery.refused)
    assert pusher.delivery.committed == 0
    assert not pusher.wait(1, 0.0)


MALFORMED = [
    b"",
    b"\xc1",
    b"\x80" * 100,
    msgpack.packb({}),
    msgpack.packb("abcdef"),
    msgpack.packb(7),
    msgpack.packb([1, b"boot", 1, 1, False]),
    msgpack.packb([1, b"boot", 2, 1, False, ""]),
    msgpack.packb([1, b"boot", -1, 1, False, ""]),
    msgpack.packb([1, b"boot", True, 1, False, ""]),
    msgpack.packb([1, b"boot", 1.0, 1, False, ""]),
    msgpack.packb([1, "boot", 1, 1, False, ""]),
    msgpack.packb([1, b"boot", 1, 1, False, b""]),
    msgpack.packb([1, b"boot" * 100, 1, 1, False, ""]),
    msgpack.packb([1, b"boot", 1, 1, False, ""]) + b"more",
    b"\xdd\xff\xff\xff\xff",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_bytes_that_are_no_acknowledgement_are_none(data):
    assert _decode_ack(data) is None


def test_an_acknowledgement_may_have_fields_of_a_later_version():
    ack = _decode_ack(msgpack.packb([2, b"boot", 1, 2, True, "why", "more", 3]))
    assert ack == push.Ack(b"boot", 1, 2, rewind=True, message="why")


def test_malformed_acknowledgements_stop_nothing(collector, journal, pusher):
    greet(collector)
    for data in MALFORMED:
        collector.publish(STREAM, data)
    log(journal)
    collector.receive_until(1)
    collector.acknowledge(STREAM, 1)
    assert pusher.wait(1, 20.0)


def test_a_refusal_stops_shipping_keeps_the_journal_and_is_said_once(collector, journal, pusher, caplog):
    greet(collector)
    log(journal)
    collector.receive_until(1)
    for _ in range(3):
        collector.acknowledge(STREAM, 0, message="upgrade the collector")
    assert not pusher.wait(1, 20.0)
    log(journal)
    assert not pusher.wait(2, 20.0)  # returns at once: refused
    assert collector.frame(patience_ms=100) is None
    assert pusher.stop(20.0)
    assert caplog.text.count("upgrade the collector") == 1
    assert sum(segment.records for segment in journal._segments) == 2


def test_another_collector_may_take_what_one_refused(sockets, collector, journal, pusher):
    greet(collector)
    log(journal)
    collector.receive_until(1)
    collector.acknowledge(STREAM, 0, message="upgrade the collector")
    until(lambda: pusher.delivery.refused)
    collector.close()
    second = StandIn(sockets, b"boot-two")
    try:
        greet(second)
        assert seqs(second.receive_until(1))[-1] == 0
        assert pusher.delivery.refused == ""
    finally:
        second.close()


def test_without_a_collector_waiting_is_bounded_and_nothing_is_lost_or_held(journal, pusher):
    for _ in range(50):
        log(journal)
    assert not pusher.wait(50, 0.05)
    assert pusher.delivery == push.Delivery()
    assert len(pusher._unacked) == 0
    assert journal.fate(0) == (50, 0, 50, {})


def test_what_was_logged_before_a_collector_came_is_shipped_when_it_does(sockets, journal, pusher):
    for _ in range(50):
        log(journal)
    assert not pusher.wait(50, 0.01)
    late = StandIn(sockets)
    try:
        assert sorted(set(seqs(late.receive_until(50)))) == list(range(50))
    finally:
        late.close()


def test_where_nothing_is_shipped_waiting_ends_at_once(journal):
    pusher = Pusher(journal, None)
    pusher.start()
    log(journal)
    until(lambda: journal._spares)
    assert not pusher.wait(1, 3600.0)
    assert pusher.stop(20.0)


def test_what_was_dropped_is_sent_as_a_gap(collector, sockets, monkeypatch):
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", 2 << 20)
    journal = new_journal(None)
    log(journal)
    write(journal, 3 << 20)
    log(journal)
    pusher = Pusher(journal, collector.address)
    pusher.start()
    frames = collector.receive_until(3)
    assert gaps(frames)[0] == (1, 1, "records came faster than segments could be made")
    assert sorted(set(seqs(frames))) == [0, 1, 2]
    collector.acknowledge(STREAM, 3)
    assert pusher.wait(3, 20.0)
    assert pusher.stop(20.0)
    journal.close(delivered=True)


def test_a_collector_that_reads_slowly_gets_all_of_it(sockets, journal):
    slow = StandIn(sockets, receive_high_water=1)
    pusher = Pusher(journal, slow.address)
    pusher.start()
    try:
        for _ in range(60):
            write(journal, 200_000)
            journal.wanted.set()
        frames = slow.receive_until(60)
        assert sorted(set(seqs(frames))) == list(range(60))
        slow.acknowledge(STREAM, 60)
        assert pusher.wait(60, 20.0)
    finally:
        assert pusher.stop(20.0)
        slow.close()


def test_a_stream_that_stands_still_is_sent_again(collector, journal, monkeypatch):
    monkeypatch.setattr(push, "_STALL_SECONDS", (0.05, 0.1))
    pusher = Pusher(journal, collector.address)
    pusher.start()
    greet(collector)
    log(journal)
    for _ in range(3):
        assert collector.frame()[6] == 0
    assert pusher.stop(20.0)
    assert pusher.delivery.resent >= 1


def test_a_tick_that_fails_ends_shipping_with_a_word_and_waiting_with_it(journal, sockets, caplog):
    def fail() -> None:
        raise RuntimeError("broken")

    pusher = Pusher(journal, f"ipc://{sockets}/c", on_tick=fail)
    pusher.start()
    log(journal)
    assert not pusher.wait(1, 3600.0)
    assert "records stay in the journal" in caplog.text
    assert pusher.stop(20.0)


def test_the_end_gives_back_sockets_and_the_thread(journal, sockets, collector):
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    pusher = Pusher(journal, collector.address)
    pusher.start()
    greet(collector)
    assert pusher.stop(20.0)
    assert threading.active_count() == threads
    until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 1)  # the journal's spare


def test_a_rewind_to_what_is_known_asks_for_no_gap(journal):
    pusher = Pusher(journal, None)
    pusher._unacked.extend(Shipment(first, 5, None) for first in (10, 15, 20))
    pusher.delivery.shipped, pusher.delivery.committed = 25, 12
    pusher._rewind(12)
    assert (pusher._resend, len(pusher._unacked)) == (0, 3)
    pusher._rewind(15)
    assert pusher._resend == 1
    pusher._rewind(25)
    assert pusher._resend == 3
    pusher._rewind(3)
    assert (pusher._unacked[0].first_seq, pusher._unacked[0].records, pusher._resend) == (3, 7, 0)
    pusher._rewind(3)
    assert len(pusher._unacked) == 4
