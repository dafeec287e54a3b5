"""Journals that a process left behind: what it wrote is read back, and nothing that it did not."""

import json
import os
import signal
import subprocess
import sys
import zlib

import pytest
from support.journals import IDENTITY, log, new_journal, payloads, seqs_and_gaps, write

from sidestep.encode import packed
from sidestep.journal import Journal
from sidestep.leftover import LeftoverJournal
from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.errors import SegmentError, VersionError
from sidestep_schemas.host import boot_id
from sidestep_schemas.wire import KIND_LIFECYCLE, RECORD_PREFIX, WIRE_VERSION, aligned

BOOT = IDENTITY.boot
LOGS_FOR_EVER = """
import itertools, os, sys
import sidestep
run = sidestep.init(mode="offline", dir=sys.argv[1])
for step in itertools.count():
    run.log({"loss": float(step), "other": -1.0})
    os.write(1, b"%d\\n" % step)
"""


@pytest.fixture
def folder(tmp_path):
    """A stream of seven records whose process is gone without a word."""
    journal = new_journal(tmp_path / "journal" / "run" / "stream")
    for number in range(7):
        log(journal, number, 0.5)
    journal.close(delivered=False)
    return journal.folder


def segment_file(folder):
    (path,) = folder.glob("*.seg")
    return path


def offset_of(data: bytes, index: int) -> int:
    position = 64
    for _ in range(index):
        position = aligned(position + 8 + RECORD_PREFIX.unpack_from(data, position)[0])
    return position


def change(path, offset: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(new)


def read(folder, boot: bytes = BOOT):
    leftover = LeftoverJournal(folder, boot)
    shipments = list(leftover.shipments())
    found = seqs_and_gaps(shipments)
    last = payloads(shipments[-1])[-1]
    leftover.close(delivered=False)
    return *found, last


def test_all_records_whose_call_returned_before_a_kill_are_read_back(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", LOGS_FOR_EVER, tmp_path], stdout=subprocess.PIPE)
    with process:
        for line in process.stdout:
            if int(line) == 2000:
                process.send_signal(signal.SIGKILL)
                break
        last = max([2000, *(int(line) for line in process.stdout.read().split(b"\n")[:-1])])
    (folder,) = find_leftovers(tmp_path)
    leftover = LeftoverJournal(folder, boot_id())
    shipments = list(leftover.shipments())
    seqs, lost = seqs_and_gaps(shipments)
    steps = [fields[3] for shipment in shipments for fields in payloads(shipment) if fields[0] == 1]
    assert lost == []
    assert steps[: last + 1] == list(range(last + 1))
    assert len(steps) <= last + 2
    assert len(seqs) == leftover.seq
    leftover.close(delivered=True)
    assert find_leftovers(tmp_path) == []
    assert list((tmp_path / "journal").iterdir()) == []


def test_identity_and_first_seq_are_those_of_the_stream(folder):
    leftover = LeftoverJournal(folder, BOOT)
    assert (leftover.identity, leftover.first_seq, leftover.seq) == (IDENTITY, 0, 8)
    assert not leftover.is_growing
    assert leftover.nbytes < 2000
    leftover.provide()
    leftover.release_below(8)
    assert folder.exists()
    leftover.close(delivered=True)
    assert not folder.exists()


def test_the_end_that_was_not_said_is_said_once(folder):
    for _ in range(2):
        seqs, lost, last = read(folder)
        assert (seqs, lost) == (list(range(8)), [])
        assert (last[0], last[1], last[5], json.loads(last[6])) == (KIND_LIFECYCLE, 7, "end", {"status": "killed"})


def test_an_end_that_was_said_is_not_said_again(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    end = ["end", '{"status":"finished"}']
    journal.append(lambda seq: packed(KIND_LIFECYCLE, seq, 1, 0, 0.0, *end))
    journal.close(delivered=False)
    seqs, lost, last = read(journal.folder)
    assert (seqs, lost, last[5:]) == ([0], [], end)


def test_a_last_record_that_is_no_array_of_ours_ends_like_any_other(tmp_path):
    for name, payload in {"empty": b"\x90", "map": b"\x80", "number": b"\x01", "broken": b"\xdc"}.items():
        journal = new_journal(tmp_path / "run" / name)
        journal.append(lambda _, payload=payload: payload)
        journal.close(delivered=False)
        leftover = LeftoverJournal(journal.folder, BOOT)
        assert leftover.seq == 2
        leftover.close(delivered=True)


@pytest.mark.parametrize("cut", [1, 7, 8, 30, 60, 71])
def test_a_torn_record_at_the_end_is_not_seen(folder, cut):
    path = segment_file(folder)
    data = path.read_bytes()
    os.truncate(path, offset_of(data, 7) - cut)
    seqs, lost, _ = read(folder)
    assert (seqs, lost) == (list(range(7)), [])  # six, and the end


def test_a_record_whose_length_was_not_stored_yet_is_not_seen(folder):
    path = segment_file(folder)
    change(path, offset_of(path.read_bytes(), 5), bytes(4))
    assert read(folder)[0] == list(range(6))


def test_a_seal_that_does_not_fit_ends_reading_and_is_a_gap_before_the_next_segment(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    for _ in range(4):
        write(journal, 400_000)
    list(journal.shipments())
    first = journal._segments[0].records
    journal.close(delivered=False)
    path = min(journal.folder.glob("*.seg"))
    data = path.read_bytes()
    change(path, offset_of(data, 1) + 1000, b"y")
    seqs, lost, _ = read(journal.folder)
    assert lost == list(range(1, first))
    assert seqs == [0, *range(first, 5)]


def test_after_a_machine_crash_only_sealed_records_count(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    for _ in range(3):
        log(journal)
    list(journal.shipments())
    log(journal)
    journal.close(delivered=False)
    assert read(journal.folder, b"reborn!!")[0] == [0, 1, 2, 3]  # three, and the end
    assert read(journal.folder)[0] == [0, 1, 2, 3, 4]


def test_a_segment_that_is_missing_is_a_gap(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    while len(journal._segments) < 3:
        write(journal, 300_000)
    ends = [segment.next_seq for segment in journal._segments]
    journal.close(delivered=False)
    sorted(journal.folder.glob("*.seg"))[1].unlink()
    seqs, lost, _ = read(journal.folder)
    assert lost == list(range(ends[0], ends[1]))
    assert sorted((*seqs, *lost)) == list(range(ends[2] + 1))


def test_a_stream_whose_first_segments_are_stored_begins_where_the_rest_does(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    while len(journal._segments) < 3:
        write(journal, 300_000)
    first = journal._segments[0].next_seq
    journal.close(delivered=False)
    min(journal.folder.glob("*.seg")).unlink()
    leftover = LeftoverJournal(journal.folder, BOOT)
    assert leftover.first_seq == first
    assert next(leftover.shipments()).first_seq == first
    leftover.close(delivered=False)


def test_a_folder_that_its_process_holds_is_refused(tmp_path):
    journal = new_journal(tmp_path / "run" / "stream")
    with pytest.raises(BlockingIOError):
        LeftoverJournal(journal.folder, BOOT)
    journal.close(delivered=False)
    LeftoverJournal(journal.folder, BOOT).close(delivered=True)


def test_a_newer_wire_version_is_refused_and_left_untouched(folder):
    path = segment_file(folder)
    change(path, 8, bytes([WIRE_VERSION + 1]))
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(VersionError, match="upgrade sidestep"):
            LeftoverJournal(folder, BOOT)
    assert path.read_bytes() == before
    assert find_leftovers(folder.parents[2]) == [folder]


GARBAGE = {
    "empty": b"",
    "short": b"SIDE",
    "odd": b"no segment" * 101,
    "text": b"Dear reader, " * 100,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage_beside_segments_is_left_and_the_rest_is_read(folder, kind):
    garbage = folder / "00000099.seg"
    garbage.write_bytes(GARBAGE[kind])
    assert read(folder)[0] == list(range(8))
    LeftoverJournal(folder, BOOT).close(delivered=True)
    assert garbage.exists() is (GARBAGE[kind] != b"")
    assert len(list(folder.glob("*.seg"))) <= 1


def test_a_folder_that_holds_only_garbage_says_so_and_keeps_it(tmp_path):
    stream = tmp_path / "run" / "stream"
    stream.mkdir(parents=True)
    (stream / "0.seg").write_bytes(b"garbage")
    with pytest.raises(SegmentError, match="no segment in it can be read"):
        LeftoverJournal(stream, BOOT)
    assert (stream / "0.seg").read_bytes() == b"garbage"
    with pytest.raises(SegmentError):  # its lock is free again
        LeftoverJournal(stream, BOOT)


def test_a_folder_that_holds_only_unused_spares_is_removed(tmp_path):
    stream = tmp_path / "run" / "stream"
    stream.mkdir(parents=True)
    (stream / "0.seg").write_bytes(bytes(1 << 20))
    with pytest.raises(SegmentError):
        LeftoverJournal(stream, BOOT)
    assert not stream.exists()


def test_reading_gives_back_descriptors_and_maps(folder):
    before = len(os.listdir("/proc/self/fd"))
    for delivered in (False, True):
        leftover = LeftoverJournal(folder, BOOT)
        list(leftover.shipments())
        leftover.close(delivered=delivered)
        assert len(os.listdir("/proc/self/fd")) == before


def test_what_was_dropped_in_the_process_is_a_gap(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "run" / "stream", IDENTITY)
    log(journal)
    monkeypatch.setattr("sidestep.journal.RING_BYTES_MAX", 0)
    journal.degraded = "the disk is full"
    assert not write(journal, 2 << 20)
    journal.provide()
    log(journal)
    journal.close(delivered=False)
    assert read(journal.folder)[:2] == ([0, 2, 3], [1])


def test_the_boot_id_is_eight_bytes_that_stay():
    assert boot_id() == boot_id()
    assert len(boot_id()) == 8


def test_seals_of_what_was_shipped_are_checksums_of_the_payload(folder):
    leftover = LeftoverJournal(folder, BOOT)
    leftover.close(delivered=False)
    data = segment_file(folder).read_bytes()
    length, seal = RECORD_PREFIX.unpack_from(data, 64)
    assert seal in (0, zlib.crc32(data[72 : 72 + length]))
