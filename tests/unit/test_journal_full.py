"""A journal whose ring, disk or file system is full: what it keeps, and what it declares lost."""

import os

import pytest
from support.journal_folder import MEGABYTE, folder, full_disk, on_disk
from support.journals import IDENTITY, log, new_journal, seqs_and_gaps, write

from sidestep import journal as journal_module
from sidestep.leftover import LeftoverJournal
from sidestep.segments import RING_BYTES_MAX
from sidestep_schemas.wire import SEGMENT_BYTES_MIN

__all__ = ["folder", "full_disk"]


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
