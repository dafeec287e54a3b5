"""Segments of a journal: what is too large for one, comes late to one, or makes many of them."""

from unittest import mock

import pytest
from support.journal_folder import MEGABYTE, folder, on_disk, unreserved
from support.journals import log, new_journal, seqs_and_gaps, write

from sidestep import journal as journal_module
from sidestep_schemas.wire import RECORD_BYTES_MAX

__all__ = ["folder", "unreserved"]


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

    def slow(size: int):
        segment = created(size)
        write(journal, 700_000)  # meanwhile the training thread goes on, into memory
        write(journal, 700_000)
        return segment

    with mock.patch.object(journal, "_create_file", slow):
        journal.provide()
    write(journal, 700_000)
    assert [segment.in_memory for segment in journal._segments] == [False, True, False]
    assert seqs_and_gaps(journal.shipments()) == ([0, 1, 2], [])
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
