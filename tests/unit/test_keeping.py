"""Segments in shared memory: what waits goes to disk, takes no memory there, and is removed with what it belongs to."""

import os
import shutil
import time

import pytest
from support.journal_folder import folder, on_disk
from support.journals import IDENTITY, log, new_journal, payloads, seqs_and_gaps, write

from sidestep import journal as journal_module
from sidestep import keeping
from sidestep.keeping import Keeper, remove_abandoned, shared_folder
from sidestep.leftover import LeftoverJournal
from sidestep_schemas.layout import SHARED_LINK, segment_files, shared_root

__all__ = ["folder"]


@pytest.fixture
def journal(folder, monkeypatch):
    """A journal in shared memory whose disk is written when the test says so."""
    monkeypatch.setattr(keeping, "_KEEP_SECONDS", 3600.0)
    monkeypatch.setattr(keeping.Keeper, "hurry", lambda keeper: None)
    journal = new_journal(folder, in_shared_memory=True, bytes_max=3 << 20)
    if journal._keeper is None:
        pytest.skip("the system has no shared memory to spare")
    yield journal
    journal.close(delivered=True)
    assert not folder.exists()


def keep(journal):
    journal._keeper._round(everything=True)


def memory(folder):
    return (folder / SHARED_LINK).readlink()


def test_records_are_in_shared_memory_and_found_by_the_folder_on_disk(journal, folder):
    log(journal, 1.5, 2.5)
    assert on_disk(folder) == 0
    assert on_disk(memory(folder)) == 1
    assert [path.parent.name for path in segment_files(folder)] == [SHARED_LINK]
    assert (memory(folder).stat().st_mode & 0o777, memory(folder).parent) == (0o700, shared_root())


def test_what_waits_is_on_disk_sealed_and_no_longer_in_memory_once_its_segment_is_full(journal, folder):
    for _ in range(11):
        journal.provide()
        write(journal, 100_000)
    keep(journal)
    journal.provide()
    first, second = journal._segments
    assert first.is_parked
    assert not second.is_parked
    assert not first.is_shared
    assert on_disk(folder) == 11
    leftover = LeftoverJournal(shutil.copytree(folder, folder.parent / "copy"), b"an other boot".ljust(8)[:8])
    assert seqs_and_gaps(leftover.shipments())[0][:11] == list(range(11))
    leftover.close(delivered=False)
    assert seqs_and_gaps(journal.shipments()) == (list(range(11)), [])


def test_what_was_parked_is_shipped_again_when_it_is_asked_for(journal):
    for _ in range(11):
        journal.provide()
        write(journal, 100_000)
    shipped = list(journal.shipments())
    before = [payloads(shipment) for shipment in shipped]
    keep(journal)
    journal.provide()
    assert journal._segments[0].is_parked
    assert [payloads(shipment) for shipment in shipped] == before


def test_what_is_stored_is_not_written_to_disk(journal, folder):
    log(journal)
    list(journal.shipments())
    journal.release_below(1)
    keep(journal)
    assert on_disk(folder) == 0
    log(journal)
    keep(journal)
    assert on_disk(folder) == 2  # a file is whole from its first record on


def test_what_is_stored_later_leaves_the_disk(journal, folder):
    for _ in range(11):
        journal.provide()
        write(journal, 100_000)
    keep(journal)
    journal.provide()
    list(journal.shipments())
    journal.release_below(11)
    keep(journal)
    assert [path.name for path in folder.glob("*.seg")] == ["00000001.seg"]
    assert journal._keeper.nbytes < 1 << 20


def test_a_journal_at_its_limit_drops_what_is_new_and_says_so(journal, folder, monkeypatch, caplog):
    monkeypatch.setattr(journal_module, "SHARED_BYTES_MAX", 3 << 20)
    monkeypatch.setattr(journal_module, "RING_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.0)
    monkeypatch.setattr(journal_module, "_SOON_SECONDS", 0.0)
    for _ in range(100):
        journal.provide()
        write(journal, 100_000)
        keep(journal)
    assert sum(path.stat().st_size for path in folder.glob("*.seg")) <= 3 << 20
    [(reason, count)] = journal.dropped.items()
    assert "holds the 3 MB that it may" in reason
    assert "holds the 3 MB that it may" in caplog.text
    seqs, lost = seqs_and_gaps(journal.shipments())
    assert (len(seqs), seqs) == (100 - count, list(range(100 - count)))
    journal.release_below(len(seqs))
    keep(journal)
    journal.provide()
    assert write(journal, 100_000)
    assert seqs_and_gaps(journal.shipments()) == ([100], list(range(100 - count, 100)))
    assert journal.degraded == ""


def test_a_disk_that_takes_nothing_is_said_once_and_tried_again(journal, folder, monkeypatch, caplog):
    log(journal)
    opened = os.open

    def refuse(path, *arguments, **more):
        if str(path).startswith(str(folder)):
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refuse)
    keep(journal)
    for _ in range(3):
        journal.provide()
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.setattr(os, "open", opened)
    keep(journal)
    assert (on_disk(folder), journal._keeper.problem) == (1, "")


def test_a_disk_that_takes_a_part_alone_is_full(journal, folder, monkeypatch):
    log(journal)
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: len(data) - 1)
    keep(journal)
    assert "No space left" in journal._keeper.problem
    monkeypatch.undo()
    keep(journal)
    assert (on_disk(folder), journal._keeper.problem) == (1, "")


def test_a_file_that_is_gone_is_a_gap(journal, folder):
    for _ in range(11):
        journal.provide()
        write(journal, 100_000)
    keep(journal)
    journal.provide()
    next(folder.glob("*.seg")).unlink()
    seqs, lost = seqs_and_gaps(journal.shipments())
    assert sorted((*seqs, *lost)) == list(range(11))
    assert lost


def test_what_is_left_goes_to_disk_when_the_process_ends(folder):
    journal = new_journal(folder, in_shared_memory=True)
    for _ in range(30):
        journal.provide()
        write(journal, 100_000)
    place = memory(folder)
    journal.close(delivered=False)
    assert on_disk(folder) == 30
    assert not place.exists()
    leftover = LeftoverJournal(folder, IDENTITY.boot)
    assert seqs_and_gaps(leftover.shipments())[0][:30] == list(range(30))
    leftover.close(delivered=True)
    assert not folder.exists()


def test_what_found_only_memory_goes_to_disk_too_when_the_process_ends(folder, monkeypatch):
    monkeypatch.setattr(journal_module, "SHARED_BYTES_MAX", 2 << 20)
    monkeypatch.setattr(keeping, "_KEEP_SECONDS", 3600.0)
    monkeypatch.setattr(keeping.Keeper, "hurry", lambda keeper: None)
    journal = new_journal(folder, in_shared_memory=True)
    for _ in range(40):
        journal.provide()
        write(journal, 100_000)
    assert any(segment.in_memory for segment in journal._segments)
    journal.close(delivered=False)
    assert journal.fate(0) == (40, 0, 40, {})
    assert on_disk(folder) == 40
    leftover = LeftoverJournal(folder, IDENTITY.boot)
    assert seqs_and_gaps(leftover.shipments())[0][:40] == list(range(40))
    leftover.close(delivered=True)


def test_what_a_dead_process_left_in_memory_and_on_disk_is_read_once(journal, folder):
    for _ in range(15):
        journal.provide()
        write(journal, 100_000)
    keep(journal)
    write(journal, 10)
    (folder.parent / "dead").mkdir()
    for path in segment_files(folder):
        place = folder.parent / "dead" / (SHARED_LINK if path.parent.name == SHARED_LINK else ".")
        place.mkdir(exist_ok=True)
        shutil.copy(path, place / path.name)
    leftover = LeftoverJournal(folder.parent / "dead", IDENTITY.boot)
    seqs, lost = seqs_and_gaps(leftover.shipments())
    assert (seqs, lost) == (list(range(17)), [])  # with the end that was not said
    leftover.close(delivered=False)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Shared memory of a test's own, and the means to get folders in it."""
    root = tmp_path / "shm" / "sidestep"
    monkeypatch.setattr(keeping, "shared_root", lambda: root)
    root.parent.mkdir()
    for name in ("r0-a0-first", "r0-a0-second"):
        (tmp_path / name).mkdir()
        _, descriptor = shared_folder(tmp_path / name)
        os.close(descriptor)
    return root


def names(root):
    return sorted(entry.name for entry in root.iterdir())


def test_memory_of_a_stream_that_somebody_removed_is_freed(tmp_path, root):
    shutil.rmtree(tmp_path / "r0-a0-first")
    remove_abandoned(root)
    assert names(root) == ["r0-a0-second"]


def test_memory_of_a_living_process_stays(tmp_path, root):
    (tmp_path / "r0-a0-third").mkdir()
    _, descriptor = shared_folder(tmp_path / "r0-a0-third")
    shutil.rmtree(tmp_path / "r0-a0-third")
    remove_abandoned(root)
    assert "r0-a0-third" in names(root)
    os.close(descriptor)
    remove_abandoned(root)
    assert "r0-a0-third" not in names(root)


def test_memory_of_a_container_whose_folders_are_elsewhere_stays_for_a_day(tmp_path, root, monkeypatch):
    shutil.rmtree(tmp_path / "r0-a0-first")
    monkeypatch.setattr(keeping, "_mounts", lambda: "mnt:[1]")
    remove_abandoned(root)
    assert names(root) == ["r0-a0-first", "r0-a0-second"]
    os.utime(root / "r0-a0-first", (0, 0))
    remove_abandoned(root)
    assert names(root) == ["r0-a0-second"]


def test_little_shared_memory_is_left_to_others(folder, monkeypatch):
    monkeypatch.setattr(keeping, "_FREE_BYTES_MIN", 1 << 62)
    journal = new_journal(folder, in_shared_memory=True)
    log(journal)
    assert (journal._keeper, on_disk(folder)) == (None, 1)
    journal.close(delivered=True)


def test_a_write_that_lasts_is_a_disk_that_stands_still(folder, monkeypatch):
    keeper = Keeper(folder, list, 1 << 30)
    assert keeper.problem == ""
    keeper._busy_since = time.monotonic() - 3
    assert "stands still" in keeper.problem


def test_files_that_wait_are_not_kept_in_memory_either_where_there_is_no_shared_memory(folder, monkeypatch):
    monkeypatch.setattr(journal_module, "_MAPPED_BYTES_MAX", 2 << 20)
    journal = new_journal(folder)
    for _ in range(80):
        journal.provide()
        write(journal, 100_000)
    journal.provide()
    mapped = [segment for segment in journal._segments if not segment.is_parked]
    assert sum(segment.size for segment in mapped[:-1]) <= 2 << 20
    assert journal._segments[0].is_parked
    assert seqs_and_gaps(journal.shipments()) == (list(range(80)), [])
    journal.release_below(80)
    journal.close(delivered=True)
    assert not folder.exists()
