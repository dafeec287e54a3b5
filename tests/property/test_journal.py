"""The journal under any sequence of appends, failures, shipping and acknowledgements."""

import contextlib
import struct
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.journals import IDENTITY, log, new_journal, seqs_and_gaps, write

from sidestep import journal as journal_module
from sidestep import segments
from sidestep.keeping import Keeper
from sidestep.leftover import LeftoverJournal
from sidestep.records import KeySetLayout
from sidestep_schemas.segment import iter_ranges
from sidestep_schemas.wire import DTYPE_FLOAT64, SEGMENT_BYTES_MIN

ACTIONS = st.one_of(
    st.tuples(st.just("scalars"), st.integers(1, 50)),
    st.tuples(st.just("text"), st.one_of(st.integers(0, 100), st.integers(10_000, 600_000))),
    st.tuples(st.just("large"), st.integers(1_100_000, 1_300_000)),
    st.tuples(st.just("bad"), st.integers(1, 200)),
    st.tuples(st.just("provide"), st.just(0)),
    st.tuples(st.just("ship"), st.just(0)),
    st.tuples(st.just("forget"), st.just(0)),
    st.tuples(st.just("keep"), st.just(0)),
)
WIDE = KeySetLayout(1, 200, DTYPE_FLOAT64)


def do(journal, action: str, size: int, shipped: list) -> None:
    if action == "scalars":
        for number in range(size):
            log(journal, number, -number)
    elif action in {"text", "large"}:
        write(journal, size)
    elif action == "bad":
        with pytest.raises(struct.error):
            journal.append_scalars(1, 0, 0.0, WIDE, [1.5] * (size - 1) + ["text"] + [1.5] * (200 - size))
    elif action == "provide":
        journal.provide()
    elif action == "ship":
        shipped.append(seqs_and_gaps(journal.shipments()))
    elif action == "keep":
        if journal._keeper is not None:
            journal._keeper._round(everything=True)
    else:
        journal.release_below(journal._reader.seq)


@contextlib.contextmanager
def by_hand():
    """Shared memory is brought to disk when a test says so, and by its own thread."""

    def close(keeper, last, timeout, *, keep):
        if keep:
            keeper._round(everything=True)
        last()
        return True

    with mock.patch.object(Keeper, "start"), mock.patch.object(Keeper, "close", close):
        yield


def flat(parts: list) -> tuple[list[int], list[int]]:
    return [seq for seqs, _ in parts for seq in seqs], [seq for _, lost in parts for seq in lost]


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=30), st.booleans())
def test_what_is_shipped_is_what_was_appended(actions, is_shared):
    with tempfile.TemporaryDirectory() as name, by_hand():
        journal = new_journal(Path(name) / "run" / "stream", in_shared_memory=is_shared)
        shipped: list = []
        for action, size in actions:
            do(journal, action, size, shipped)
        do(journal, "ship", 0, shipped)
        assert flat(shipped) == (list(range(journal.seq)), [])
        assert journal.dropped == {}
        journal.close(delivered=True)
        assert list(Path(name).iterdir()) == []


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=30))
def test_with_little_memory_and_no_disk_gaps_are_exactly_where_records_were_dropped(actions):
    kept: list[int] = []
    dropped: list[int] = []
    with mock.patch.object(journal_module, "RING_BYTES_MAX", 2 * SEGMENT_BYTES_MIN):
        journal = new_journal(None)
        shipped: list = []
        for action, size in actions:
            before = journal.seq
            if action == "scalars":
                for number in range(size):
                    (kept if log(journal, number, 0) else dropped).append(before + number)
            elif action in {"text", "large"}:
                (kept if write(journal, size) else dropped).append(before)
            elif action != "bad":
                do(journal, action, size, shipped)
        for _ in range(2):
            do(journal, "ship", 0, shipped)
            do(journal, "forget", 0, shipped)
    assert flat(shipped) == (kept, dropped)
    assert sum(journal.dropped.values()) == len(dropped)
    assert journal.fate(journal.seq)[:3] == (journal.seq, len(kept), 0)
    journal.close(delivered=True)


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=30), st.booleans(), st.booleans())
def test_what_is_left_behind_is_read_back_whole(actions, is_full, is_shared):
    with tempfile.TemporaryDirectory() as name, by_hand():
        folder = Path(name) / "run" / "stream"
        journal = new_journal(folder, in_shared_memory=is_shared)
        refuse = mock.Mock(side_effect=OSError(28, "full"))
        with mock.patch.object(segments, "_reserve", refuse if is_full else segments._reserve):
            for action, size in actions:
                if action != "forget":
                    do(journal, action, size, [])
        journal.close(delivered=False)
        assert sum(found.records for path in folder.glob("*.seg") for found in iter_ranges(path.read_bytes())) == (
            journal.seq - sum(journal.dropped.values())
        )
        leftover = LeftoverJournal(folder, IDENTITY.boot)
        seqs, lost = seqs_and_gaps(leftover.shipments())
        assert sorted((*seqs, *lost)) == list(range(leftover.seq))
        assert leftover.seq == journal.seq + 1  # its end, which was not said
        leftover.close(delivered=True)
        assert not folder.exists()
