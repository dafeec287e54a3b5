"""The journal: what is appended is what is shipped, in order, once."""

import errno
import struct
import threading
from itertools import chain, count
from unittest import mock

import pytest
from support.journal_folder import folder, on_disk
from support.journals import log, new_journal, payloads, seqs_and_gaps, write

from sidestep.journal import Journal
from sidestep.records import KeySetLayout
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import DTYPE_FLOAT32, DTYPE_FLOAT64, SEGMENT_BYTES_MIN

__all__ = ["folder"]


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
        journal._create_file(SEGMENT_BYTES_MIN)
    assert len(list(folder.glob("*.seg"))) == 1
    journal.close(delivered=True)
