"""What merging parts changes (how many there are) and what it does not (anything a reader asks)."""

import shutil
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from sidestep_collector.blocks import Batch, EpochRows, Event, KeySet, Moment, Progress, ScalarBlock, Stream, Text
from sidestep_collector.store import Store, connect, local
from sidestep_collector.store.compaction import FAN_IN, PART_BYTES_MAX, choose
from sidestep_collector.store.records import Part
from sidestep_schemas.errors import StoreWriteError

KEYS = KeySet(0, 0, "step", ("b", "a"), ("", ""))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def stream(attempt=0):
    return Stream(bytes([attempt]) * 8, b"u" * 16, "run", "project", 0, attempt)


def batch(number, records=3, attempt=0):
    s = stream(attempt)
    seq = np.arange(number * records, (number + 1) * records)
    values = np.stack([seq * 1.0, seq * -1.0], axis=1)
    block = ScalarBlock(s, KEYS, seq, seq * 1000, seq, np.zeros(records), values)
    one, none = np.ones(2, dtype=np.int64), np.zeros(2, dtype=np.int64)
    low, high, mean = values.min(axis=0), values.max(axis=0), values.mean(axis=0)
    m2 = ((values - mean) ** 2).sum(axis=0)
    seqs = (one * seq[0], one * seq[-1])
    row = EpochRows(s, 0, KEYS.names, one * records, none, low, high, mean, m2, values[0], values[-1], *seqs)
    at = Moment(s, int(seq[0]), 0, int(seq[0]), float("nan"))
    items = [Event(at, "mark", {"n": number}), Text(at, "text", "t", str(number))]
    return Batch(blocks=[block], items=items, epochs=[row], progress=[Progress(s, int(seq[-1]) + 1, 0, False)])


QUESTIONS = [
    f"select * from {table} order by all"
    for table in ("points", "points_current", "snapshots", "epochs", "texts", "events", "ingest")
]


def answers(root):
    with connect(root) as connection:
        return [connection.execute(question).fetchall() for question in QUESTIONS]


def drain(store):
    steps = 0
    while store.compact():
        steps += 1
    return steps


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    opened = Store.open(tmp_path, clock=clock)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A folder with as many commits as are merged at once: each takes its time, so that tests share them."""
    folder = tmp_path_factory.mktemp("committed")
    store = Store.open(folder)
    for number in range(FAN_IN):
        store.commit(batch(number), {})
    store.close()
    return folder


@pytest.fixture
def full(committed, tmp_path, clock):
    """A store of one's own with these commits."""
    shutil.copytree(committed / "store", tmp_path / "store")
    opened = Store.open(tmp_path, clock=clock)
    yield opened
    opened.close()


def test_merged_parts_answer_as_before_sorted_and_in_one_file_a_table(store, tmp_path):
    for number in reversed(range(FAN_IN)):
        store.commit(batch(number, attempt=number % 2), {})
    before = answers(tmp_path)
    assert drain(store) == 5
    assert answers(tmp_path) == before
    with connect(tmp_path) as connection:
        parts = connection.execute(
            "select table_name, level, row_count, part from parts order by table_name"
        ).fetchall()
        assert [part[:3] for part in parts] == [
            ("epochs", 1, 4),
            ("events", 1, 16),
            ("points", 1, 96),
            ("snapshots", 1, 48),
            ("texts", 1, 16),
        ]
        rows = connection.execute(f"select * from read_parquet('{tmp_path / 'store' / parts[2][3]}')").fetchall()
        assert rows == sorted(rows)


def test_too_few_parts_are_left_alone(store):
    for number in range(FAN_IN - 1):
        store.commit(batch(number), {})
    assert store.compact() is False


def test_superseded_parts_stay_for_their_readers_after_a_restart_too(full, tmp_path, clock):
    reader = connect(tmp_path)
    drain(full)
    full.close()
    clock.now += 899
    store = Store.open(tmp_path, clock=clock)
    assert store.compact() is False
    assert reader.execute("select count(*) from points").fetchone() == (96,)
    clock.now += 1
    assert store.compact() is True
    assert store.compact() is False
    files = {str(path.relative_to(tmp_path / "store")) for path in (tmp_path / "store" / "parts").glob("*/*")}
    reader.close()
    with connect(tmp_path) as connection:
        assert files == {part for (part,) in connection.execute("select part from parts").fetchall()}
    store.close()


@pytest.mark.parametrize("where", ["compaction", "catalogue", "folder"])
def test_a_merge_that_fails_leaves_the_old_parts(full, tmp_path, monkeypatch, where):
    before, files = answers(tmp_path), set((tmp_path / "store" / "parts").glob("*/*"))

    def no_room(_path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"sidestep_collector.store.{where}.sync", no_room)
        with pytest.raises(StoreWriteError):
            full.compact()
    assert answers(tmp_path) == before
    assert set((tmp_path / "store" / "parts").glob("*/*")) == files
    assert drain(full) == 5
    assert answers(tmp_path) == before


def test_a_commit_goes_on_while_a_merge_runs(full, tmp_path, monkeypatch):
    merge = full._compactor.merge

    def merge_slowly(chosen, commit):
        merged = merge(chosen, commit)
        full.commit(batch(FAN_IN), {})
        return merged

    monkeypatch.setattr(full._compactor, "merge", merge_slowly)
    assert full.compact()
    monkeypatch.undo()
    assert full.known()[0].watermark == 3 * (FAN_IN + 1)
    with connect(tmp_path) as connection:
        assert connection.execute("select count(*), count(distinct step) from points").fetchone() == (102, 51)


def test_the_lowest_level_is_merged_first_and_large_parts_never():
    def part(number, level=0, nbytes=1):
        return Part(f"{number:03d}", "points", level, 1, nbytes)

    many = [part(n, level=1) for n in range(FAN_IN)] + [part(100 + n) for n in range(FAN_IN + 3)]
    assert [p.part for p in choose(many)] == [f"{n}" for n in range(100, 100 + FAN_IN)]
    assert choose([part(n, nbytes=PART_BYTES_MAX + 1) for n in range(FAN_IN)]) == []
    assert choose([]) == []


def test_epoch_rows_resume_merged_and_from_the_epoch_asked(store, tmp_path):
    for number in range(3):
        store.commit(batch(number), {})
    [rows] = store.epoch_rows({"run": 0})
    assert (rows.stream, rows.epoch, rows.names) == (stream(), 0, ("a", "b"))
    np.testing.assert_allclose(rows.mean, [-4.0, 4.0])
    np.testing.assert_allclose(rows.m2, [60.0, 60.0])
    np.testing.assert_array_equal([rows.n, rows.vfirst, rows.vlast, rows.last_seq], [[9, 9], [0, 0], [-8, 8], [8, 8]])
    assert store.epoch_rows({"run": 1}) == []
    assert store.epoch_rows({"other": 0}) == []


def test_each_run_is_resumed_from_an_epoch_of_its_own(store, monkeypatch):
    monkeypatch.setattr(local, "_RUNS_AT_ONCE", 2)
    plain, since = batch(0).epochs[0], {"a": 2, "b": 0, "c": 5, "d": 1, "e": 3}
    streams = {run: replace(stream(), key=run.encode() * 8, run_uid=run.encode() * 16, run=run) for run in since}
    rows = [replace(plain, stream=one, epoch=epoch) for one in streams.values() for epoch in range(4)]
    store.commit(Batch(epochs=rows, progress=[Progress(one, 9, 0, ended=False) for one in streams.values()]), {})
    found = [(one.stream.run, one.epoch) for one in store.epoch_rows(since)]
    assert found == [(run, epoch) for run, first in since.items() for epoch in range(first, 4)]


def test_the_engine_of_the_store_never_reaches_for_the_network(store):
    with pytest.raises(duckdb.Error):
        store._writer._engine.execute("select * from read_parquet('https://localhost:1/x.parquet')")
