"""Shipping what was left behind."""

import tempfile
import threading
from pathlib import Path

import pytest
from support.journals import IDENTITY, log, new_journal
from support.stand_in import StandIn

from sidestep.journal import stream_folder
from sidestep.sync import sync
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.wire import WIRE_VERSION


@pytest.fixture
def collector():
    with tempfile.TemporaryDirectory(prefix="s-") as name:
        stand_in = StandIn(Path(name))
        yield stand_in
        stand_in.close()


@pytest.fixture
def leftover(tmp_path):
    journal = new_journal(stream_folder(tmp_path / "journal", IDENTITY))
    for _ in range(5):
        log(journal)
    list(journal.shipments())  # seals them: they were written under another boot id
    journal.close(delivered=False)
    return journal.folder


def take_all(collector, seq: int) -> None:
    collector.subscription()
    collector.acknowledge(IDENTITY.stream, 0, rewind=True)
    collector.receive_until(seq)
    collector.acknowledge(IDENTITY.stream, seq)


def test_a_folder_without_journals_is_synced_at_once(tmp_path):
    report = sync(tmp_path, "ipc:///nowhere", patience=3600.0)
    assert report.as_dict() == {
        **dict.fromkeys(("streams", "records", "bytes", "pending_streams", "damaged"), 0),
        "reasons": (),
    }


def test_what_is_stored_is_removed_and_counted(tmp_path, collector, leftover):
    taker = threading.Thread(target=take_all, args=(collector, 6))
    taker.start()
    told = []
    report = sync(tmp_path, collector.address, patience=30.0, on_progress=lambda *progress: told.append(progress))
    taker.join()
    assert (report.streams, report.records, report.pending_streams, report.damaged) == (1, 6, 0, 0)
    assert 0 < report.bytes < 5000
    assert told[-1] == (6, 6)
    assert list((tmp_path / "journal").iterdir()) == []


def test_a_collector_that_does_not_come_is_waited_for_as_long_as_said(tmp_path, leftover):
    report = sync(tmp_path, "ipc:///tmp/s-nobody", patience=0.01)
    assert (report.streams, report.pending_streams) == (0, 1)
    assert "no collector at ipc:///tmp/s-nobody took it within 0.01 s" in report.reasons[0]
    assert find_leftovers(tmp_path) == [leftover]


def test_a_refusal_is_told_and_keeps_the_journal(tmp_path, collector, leftover):
    def refuse() -> None:
        collector.subscription()
        collector.acknowledge(IDENTITY.stream, 0, message="upgrade the collector")

    taker = threading.Thread(target=refuse)
    taker.start()
    report = sync(tmp_path, collector.address, patience=30.0)
    taker.join()
    assert report.reasons == (f"{leftover}: upgrade the collector",)
    assert find_leftovers(tmp_path) == [leftover]


def test_a_damaged_or_newer_journal_is_told_and_does_not_stop_the_others(tmp_path, collector, leftover):
    other = tmp_path / "journal" / "run" / "other"
    other.mkdir(parents=True)
    (other / "lock").touch()
    (other / "0.seg").write_bytes(b"garbage")
    newer = tmp_path / "journal" / "run" / "newer"
    newer.mkdir()
    (newer / "lock").touch()
    data = bytearray(next(leftover.glob("*.seg")).read_bytes())
    data[8] = WIRE_VERSION + 1
    (newer / "0.seg").write_bytes(data)
    taker = threading.Thread(target=take_all, args=(collector, 6))
    taker.start()
    report = sync(tmp_path, collector.address, patience=30.0)
    taker.join()
    assert (report.streams, report.damaged, len(report.reasons)) == (1, 2, 2)
    assert set(find_leftovers(tmp_path)) == {other, newer}


def test_a_folder_with_unused_spares_alone_is_cleared_away(tmp_path):
    stream = stream_folder(tmp_path / "journal", IDENTITY)
    stream.mkdir(parents=True)
    (stream / "lock").touch()
    (stream / "0.seg").write_bytes(bytes(1 << 20))
    assert sync(tmp_path, "ipc:///nowhere", patience=0.0).damaged == 0
    assert not stream.exists()
