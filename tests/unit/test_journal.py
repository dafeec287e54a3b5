"""The journal: what is appended is what is shipped, in order, with every loss declared."""

import errno
import os
import signal
import struct
import threading
from itertools import chain, count
from pathlib import Path
from unittest import mock

import pytest
from support.journals import IDENTITY, log, new_journal, payloads, seqs_and_gaps, write

from sidestep import journal as journal_module
from sidestep import segments
from sidestep.journal import Journal, remove_stream_folder, stream_folder
from sidestep.leftover import LeftoverJournal
from sidestep.records import KeySetLayout
from sidestep.segments import RING_BYTES_MAX
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import DTYPE_FLOAT32, DTYPE_FLOAT64, RECORD_BYTES_MAX, SEGMENT_BYTES_MIN

MEGABYTE = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "stream"


@pytest.fixture
def full_disk(monkeypatch):
    """A switch: while it is set, no disk gives blocks for a file."""
    full = threading.Event()

    def refuse() -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")

    def refuse_or_reserve(descriptor: int, size: int) -> None:
        refuse()
        os.ftruncate(descriptor, size)

    write_bytes = Path.write_bytes

    def refuse_or_write(path: Path, data: bytes) -> int:
        refuse()
        return write_bytes(path, data)

    monkeypatch.setattr(segments, "_reserve", refuse_or_reserve)
    monkeypatch.setattr(Path, "write_bytes", refuse_or_write)
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.0)
    return full


@pytest.fixture
def unreserved(monkeypatch):
    """Reserves nothing, truncates instead: many megabytes cost no time."""
    monkeypatch.setattr(segments, "_reserve", os.ftruncate)
    monkeypatch.setattr(segments, "_prefault", lambda view: view.__setitem__(slice(None), bytes(len(view))))


def on_disk(folder: Path) -> int:
    return sum(found.records for path in folder.glob("*.seg") for found in iter_ranges(path.read_bytes()))


def test_records_are_shipped_as_they_were_appended(folder):
    journal = new_journal(folder)
    for step in range(5):
        log(journal, step, -step, step=step)
    write(journal, 10)
    (shipment,) = journal.shipments()
    records = payloads(shipment)
    assert (shipment.first_seq, shipment.records, journal.seq) == (0, 6, 6)
    assert [fields[3] for fields in records[:5]] == list(range(5))
    assert struct.unpack("<2d", records[4][7]) == (4.0, -4.0)
    assert records[5][5:] == ["text", "name", "x" * 10]
    journal.close(delivered=True)


def test_what_was_shipped_is_not_shipped_again(folder):
    journal = new_journal(folder)
    log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0], [])
    assert list(journal.shipments()) == []
    log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([1], [])
    journal.close(delivered=True)


def test_shipping_goes_on_where_it_was_left_off(folder):
    journal = new_journal(folder)
    for _ in range(3):
        write(journal, 300_000)
    first = next(journal.shipments())
    assert (first.first_seq, first.records) == (0, 1)
    assert seqs_and_gaps(journal.shipments()) == ([1, 2], [])
    journal.close(delivered=True)


def test_float32_values_are_packed_as_such(folder):
    journal = new_journal(folder)
    layout = KeySetLayout(7, 1, DTYPE_FLOAT32)
    assert journal.append_scalars(1, 2, 3.0, layout, (0.5,))
    (fields,) = payloads(next(journal.shipments()))
    assert fields[:5] == [1, 0, 1, 2, 3.0]
    assert (fields[5:7], struct.unpack("<f", fields[7])) == ([7, DTYPE_FLOAT32], (0.5,))
    journal.close(delivered=True)


@pytest.mark.parametrize(
    ("step", "values"),
    [(0, [1.0] * 99 + ["text"]), (0, [1.0] * 99), (2**70, [1.0] * 100), (0, [1.0] * 99 + [10**400])],
    ids=["a value in the middle", "too few", "a step beyond 64 bits", "an integer beyond float64"],
)
def test_a_failed_append_leaves_nothing_visible_and_later_smaller_records_whole(folder, step, values):
    journal = new_journal(folder)
    layout = KeySetLayout(1, 100, DTYPE_FLOAT64)
    log(journal)
    with pytest.raises((struct.error, OverflowError)):
        journal.append_scalars(2**62, step, 1.5, layout, values)
    assert journal.seq == 1
    assert on_disk(folder) == 1
    for number in range(20):
        write(journal, number)
        assert on_disk(folder) == 2 + number
    assert seqs_and_gaps(journal.shipments()) == (list(range(21)), [])
    journal.close(delivered=True)


def test_a_payload_that_cannot_be_made_leaves_nothing(folder):
    journal = new_journal(folder)
    with pytest.raises(ZeroDivisionError):
        journal.append(lambda seq: bytes(1 // seq))
    assert (journal.seq, list(journal.shipments())) == (0, [])
    assert log(journal)
    journal.close(delivered=True)


def test_a_record_larger_than_the_spare_gets_a_segment_of_its_own(folder, unreserved):
    journal = new_journal(folder)
    journal.provide()
    log(journal)
    assert write(journal, 3 * MEGABYTE)
    log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0, 1, 2], [])
    assert journal.dropped == {}
    journal.close(delivered=False)
    assert on_disk(folder) == 3


def test_a_record_as_large_as_allowed_fits_and_a_larger_one_is_refused(folder, unreserved):
    journal = new_journal(folder)
    assert journal.append(lambda _: b"\xc4" * RECORD_BYTES_MAX)
    with pytest.raises(ValueError, match="do not fit a record"):
        journal.append(lambda _: bytes(RECORD_BYTES_MAX + 1))
    assert log(journal)
    shipped = list(journal.shipments())
    assert [(shipment.first_seq, shipment.records) for shipment in shipped] == [(0, 1), (1, 1)]
    assert shipped[0].stop - shipped[0].start == 8 + RECORD_BYTES_MAX
    journal.close(delivered=True)


def test_a_spare_that_comes_late_is_read_after_what_took_its_place(folder, unreserved):
    journal = new_journal(folder)
    created = journal._create_file

    def slow(where: Path, size: int):
        segment = created(where, size)
        write(journal, 700_000)  # meanwhile the training thread goes on, into memory
        write(journal, 700_000)
        return segment

    with mock.patch.object(journal, "_create_file", slow):
        journal.provide()
    write(journal, 700_000)
    assert [segment.in_memory for segment in journal._segments] == [False, True, False]
    assert seqs_and_gaps(journal.shipments()) == ([0, 1, 2], [])
    journal.close(delivered=True)


def test_two_threads_append_and_a_third_ships_without_a_hole(folder):
    journal = new_journal(folder)
    each = 3000

    def append(thread: int) -> None:
        for number in range(each):
            log(journal, thread, number, step=thread)
            if number % 500 == 0:
                write(journal, 200_000)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    shipped = []
    while any(thread.is_alive() for thread in threads):
        journal.provide()
        shipped.extend(journal.shipments())
    shipped.extend(journal.shipments())
    seqs, lost = seqs_and_gaps(shipped)
    assert len(seqs) + len(lost) == journal.seq == 2 * each + 12
    assert len(lost) == sum(journal.dropped.values())
    records = [fields for shipment in shipped if shipment.segment for fields in payloads(shipment) if fields[0] == 1]
    for thread in range(2):
        numbers = [struct.unpack("<2d", fields[7])[1] for fields in records if fields[3] == thread]
        assert numbers == sorted(numbers)
    journal.close(delivered=True)


def test_acknowledged_segments_are_reused_and_show_nothing_of_their_past(folder):
    journal = new_journal(folder)
    journal.provide()
    while len(journal._segments) == 1:
        write(journal, 100_000)
    last_of_first = journal._segments[0].next_seq
    list(journal.shipments())
    journal._size = SEGMENT_BYTES_MIN
    journal.release_below(last_of_first)
    (spare,) = journal._spares
    assert bytes(spare.view) == bytes(spare.size)
    assert len(list(folder.glob("*.seg"))) == 2
    while journal._current is not spare:
        write(journal, 100_000)
    log(journal)
    assert sum(found.records for found in iter_ranges(spare.view)) == spare.records == 2
    list(journal.shipments())
    journal.close(delivered=True)


def test_nothing_is_released_that_was_not_shipped_or_not_acknowledged(folder):
    journal = new_journal(folder)
    while len(journal._segments) < 3:
        journal.provide()
        write(journal, 400_000)
    journal.release_below(journal.seq)
    assert len(journal._segments) == 3
    list(journal.shipments())
    journal.release_below(journal._segments[0].next_seq - 1)
    assert len(journal._segments) == 3
    journal.release_below(journal.seq)
    assert len(journal._segments) == 1
    journal.close(delivered=True)


def test_a_full_ring_drops_counts_and_declares_a_gap(monkeypatch):
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", 2 * SEGMENT_BYTES_MIN)
    journal = new_journal(None)
    kept = 0
    while write(journal, 200_000):
        kept += 1
    for _ in range(4):
        assert not write(journal, 200_000)
    assert sum(journal.dropped.values()) == 5
    assert journal.seq == kept + 5
    seqs, lost = seqs_and_gaps(journal.shipments())
    assert (seqs, lost) == (list(range(kept)), [])  # what follows may be lost as well: said once the ring has room
    journal.release_below(kept)
    assert write(journal, 200_000)
    assert seqs_and_gaps(journal.shipments()) == ([kept + 5], list(range(kept, kept + 5)))
    journal.close(delivered=True)


def test_a_small_record_after_a_dropped_large_one_keeps_its_seq(monkeypatch):
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", 2 * SEGMENT_BYTES_MIN)
    journal = new_journal(None)
    log(journal)
    assert not write(journal, 3 * MEGABYTE)
    assert log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0, 2], [1])
    journal.close(delivered=True)


def test_what_was_dropped_last_is_declared_when_all_before_it_is_stored(monkeypatch):
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", SEGMENT_BYTES_MIN)
    journal = new_journal(None)
    log(journal)
    write(journal, 2 * MEGABYTE)
    shipped = list(journal.shipments())
    assert seqs_and_gaps(shipped) == ([0], [1])
    assert list(journal.shipments()) == []
    assert journal.fate(2) == (2, 1, 0, journal.dropped)
    journal.close(delivered=True)


def test_a_disk_that_is_full_sends_records_to_memory_and_back_when_it_has_room(folder, full_disk):
    journal = new_journal(folder)
    full_disk.set()
    journal.provide()
    assert "No space left" in journal.degraded
    for _ in range(20):
        write(journal, 100_000)
    assert any(segment.in_memory for segment in journal._segments)
    assert journal.fate(0).lost
    full_disk.clear()
    journal.provide()
    assert journal.degraded == ""
    assert [segment.in_memory for segment in journal._segments][:-1] == [False] * (len(journal._segments) - 1)
    journal.close(delivered=False)
    assert on_disk(folder) == 20
    assert journal.fate(0) == (20, 0, 20, {})


def test_memory_that_was_moved_to_disk_is_free_for_other_records(folder, full_disk):
    journal = new_journal(folder)
    full_disk.set()
    journal.provide()
    while journal._ring_bytes + SEGMENT_BYTES_MIN <= RING_BYTES_MAX:
        write(journal, 500_000)
    full_disk.clear()
    journal.provide()
    assert journal._ring_bytes == SEGMENT_BYTES_MIN  # the one in use
    seqs, lost = seqs_and_gaps(journal.shipments())
    assert (len(seqs), lost) == (journal.seq, [])
    journal.release_below(journal.seq)
    assert len(journal._segments) == 1
    journal.close(delivered=True)
    assert not folder.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system of its own")
def test_a_small_file_system_that_fills_up_kills_nobody(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {small} 2>/dev/null") != 0:
        pytest.skip("cannot mount")
    try:
        journal = new_journal(small / "stream")
        for _ in range(60):
            journal.provide()
            write(journal, 100_000)
        assert "No space left" in journal.degraded
        assert seqs_and_gaps(journal.shipments()) == (list(range(60)), [])
        journal.release_below(60)
        journal._retry_at = 0.0
        journal.provide()
        assert journal.degraded == ""
        journal.close(delivered=True)
        assert list(small.iterdir()) == []
    finally:
        os.system(f"umount -l {small}")


def test_a_folder_that_cannot_be_made_leaves_records_in_memory_and_says_why(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    journal = new_journal(tmp_path / "file" / "stream")
    assert "cannot be written: Not a directory" in journal.degraded
    assert "records are kept in memory" in caplog.text
    log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0], [])
    journal.close(delivered=False)
    assert journal.fate(0) == (1, 0, 0, {"neither the collector nor a disk took them": 1})


def test_a_folder_that_can_be_made_later_gets_what_was_kept_in_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "stream"
    journal = new_journal(folder)
    log(journal)
    (tmp_path / "file").unlink()
    journal._retry_at = 0.0
    journal.provide()
    assert journal.degraded == ""
    journal.close(delivered=False)
    leftover = LeftoverJournal(folder, IDENTITY.boot)
    assert seqs_and_gaps(leftover.shipments()) == ([0, 1], [])  # with the end that was not said
    leftover.close(delivered=True)
    assert not folder.exists()


def test_closing_a_delivered_journal_removes_its_folder_and_the_run_that_is_empty(tmp_path):
    folder = stream_folder(tmp_path, IDENTITY)
    journal = new_journal(folder)
    journal.provide()
    log(journal)
    journal.close(delivered=True)
    assert list(tmp_path.iterdir()) == []


def test_closing_keeps_the_folder_of_a_run_that_has_other_streams(tmp_path):
    folder = stream_folder(tmp_path, IDENTITY)
    (folder.parent / "r9-a0-other").mkdir(parents=True)
    new_journal(folder).close(delivered=True)
    assert [entry.name for entry in folder.parent.iterdir()] == ["r9-a0-other"]
    remove_stream_folder(folder.parent / "r9-a0-other")
    assert list(tmp_path.iterdir()) == []


def test_closing_an_undelivered_journal_leaves_all_of_it_readable(folder):
    journal = new_journal(folder)
    for _ in range(30):
        write(journal, 100_000)
    journal.provide()
    journal.close(delivered=False)
    assert on_disk(folder) == 30
    assert list(folder.glob("*.tmp")) == []


@pytest.mark.parametrize("delivered", [True, False])
def test_closing_gives_back_descriptors_and_maps(folder, delivered):
    before = len(os.listdir("/proc/self/fd"))
    journal = new_journal(folder)
    for _ in range(30):
        journal.provide()
        write(journal, 200_000)
    journal.close(delivered=delivered)
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_can_be_appended_after_the_end_and_nothing_is_counted(folder):
    journal = new_journal(folder)
    log(journal)
    assert journal.end() == 1
    assert not log(journal)
    assert not write(journal, 10)
    assert (journal.seq, journal.dropped) == (1, {})
    journal.close(delivered=True)
    assert not log(journal)


def test_a_signal_handler_that_logs_in_the_middle_of_an_append_is_refused_and_does_not_hang(folder):
    journal = new_journal(folder)
    refused = []

    def handler(*_: object) -> None:
        with pytest.raises(RuntimeError, match="signal handler"):
            log(journal)
        with pytest.raises(RuntimeError, match="signal handler"):
            write(journal, 1)
        refused.append(True)

    def values():
        yield 1.0
        signal.raise_signal(signal.SIGUSR1)
        yield 2.0

    previous = signal.signal(signal.SIGUSR1, handler)
    try:
        assert journal.append_scalars(1, 0, 0.0, KeySetLayout(0, 2, DTYPE_FLOAT64), values())
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert refused
    assert log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0, 1], [])
    journal.close(delivered=True)


def test_an_append_waits_for_another_threads_however_long_it_takes(folder):
    journal = new_journal(folder)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def slowly(seq: int) -> bytes:
        is_inside.set()
        assert may_go_on.wait(20.0)
        return bytes([0xCC, seq])

    slow = threading.Thread(target=journal.append, args=(slowly,))
    slow.start()
    assert is_inside.wait(20.0)
    waiting = threading.Thread(target=log, args=(journal,))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    may_go_on.set()
    slow.join()
    waiting.join()
    assert [shipment.records for shipment in journal.shipments()] == [2]
    journal.close(delivered=True)


def test_an_interrupt_in_the_middle_of_an_append_leaves_a_journal_that_goes_on(folder):
    journal = new_journal(folder)

    def values():
        yield 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.append_scalars(1, 0, 0.0, KeySetLayout(0, 2, DTYPE_FLOAT64), values())
    assert log(journal)
    assert seqs_and_gaps(journal.shipments()) == ([0], [])
    journal.close(delivered=True)


def test_segments_grow_when_many_wait_so_that_descriptors_stay_few(folder, unreserved, monkeypatch):
    monkeypatch.setattr(journal_module, "_SOON_SECONDS", 0.0)
    journal = new_journal(folder)
    for _ in range(60):
        journal.provide()
        write(journal, 900_000)
    assert len(journal._segments) < 20
    assert journal.pending_bytes() > 60 * 900_000
    journal.close(delivered=False)
    assert on_disk(folder) == 60


def test_what_is_lost_is_told_apart_from_what_is_stored_and_what_waits(monkeypatch):
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", SEGMENT_BYTES_MIN)
    journal = new_journal(None)
    for _ in range(4):
        log(journal)
    write(journal, 2 * MEGABYTE)
    assert journal.fate(2).committed == 2
    assert journal.fate(2).pending == 0
    assert sum(journal.fate(2).lost.values()) == 3  # one without room, two that only memory holds
    assert journal.fate(5)[:3] == (5, 4, 0)
    journal.close(delivered=False)


def test_a_second_journal_cannot_have_the_same_folder(folder):
    first = new_journal(folder)
    with mock.patch.object(Journal, "_claim", side_effect=BlockingIOError(errno.EAGAIN, "taken")):
        second = new_journal(folder)
    assert "taken" in second.degraded
    log(second)
    assert on_disk(folder) == 0
    second.close(delivered=True)
    first.close(delivered=True)


def test_seals_are_put_on_what_is_shipped_alone(folder):
    journal = new_journal(folder)
    log(journal)
    list(journal.shipments())
    log(journal)
    data = next(folder.glob("*.seg")).read_bytes()
    assert sum(found.records for found in iter_ranges(data, sealed_only=True)) == 1
    assert sum(found.records for found in iter_ranges(data)) == 2
    journal.close(delivered=True)


def test_ranges_are_cut_near_their_limit(folder):
    journal = new_journal(folder)
    for _ in range(9):
        write(journal, 100_000)
    shipped = list(journal.shipments())
    assert [shipment.records for shipment in shipped] == [2, 2, 2, 2, 1]
    assert list(chain.from_iterable(range(s.first_seq, s.next_seq) for s in shipped)) == list(range(9))
    journal.close(delivered=True)


def test_names_of_files_never_meet(folder):
    journal = new_journal(folder)
    journal._file_numbers = count()
    with pytest.raises(FileExistsError):
        journal._create_file(folder, SEGMENT_BYTES_MIN)
    assert len(list(folder.glob("*.seg"))) == 1
    journal.close(delivered=True)
