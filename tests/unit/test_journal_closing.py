"""The end of a journal: what it leaves on disk, and what it gives back."""

import os

import pytest
from support.journal_folder import folder, on_disk
from support.journals import IDENTITY, log, new_journal, write

from sidestep.journal import remove_stream_folder, stream_folder

__all__ = ["folder"]


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
