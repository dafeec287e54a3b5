"""Who may write a data folder, and what is found in it after something went wrong."""

import json
import os
import resource
import shutil

import duckdb
import numpy as np
import pytest

from sidestep_collector.blocks import Batch, Event, KeySet, Moment, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store, connect
from sidestep_schemas.errors import FolderError, StoreWriteError, VersionError

S = Stream(b"k" * 8, b"u" * 16, "run", "project", 0, 0)
KEYS = KeySet(0, 0, "step", ("a",), ("",))


def batch(first=0, records=10):
    seq = np.arange(first, first + records)
    values = np.random.default_rng(first).standard_normal((records, 1))
    block = ScalarBlock(S, KEYS, seq, seq * 1000, seq, np.zeros(records), values)
    return Batch(blocks=[block], progress=[Progress(S, first + records, 0, False)], key_sets=[(S, KEYS)])


def steps(root):
    with connect(root) as connection:
        return [step for (step,) in connection.execute("select step from points order by step").fetchall()]


def part_files(root):
    return {str(path.relative_to(root / "store")) for path in (root / "store" / "parts").glob("*/*")}


def manifest(root):
    with connect(root) as connection:
        return {part for (part,) in connection.execute("select part from parts").fetchall()}


def test_a_second_collector_is_told_who_holds_the_folder_and_what_to_do(tmp_path):
    store = Store.open(tmp_path)
    (tmp_path / "collector.json").write_text(json.dumps({"pid": 4711, "address": "ipc:///x"}))
    with pytest.raises(FolderError, match=r"pid 4711 at ipc:///x.*attach to it.*--dir"):
        Store.open(tmp_path)
    store.close()
    store.close()
    Store.open(tmp_path).close()


@pytest.mark.parametrize("text", ["", "[]", "{", "{}"])
def test_a_second_collector_is_refused_whatever_the_first_wrote_of_itself(tmp_path, text):
    store = Store.open(tmp_path)
    (tmp_path / "collector.json").write_text(text)
    with pytest.raises(FolderError, match="writes this folder already"):
        Store.open(tmp_path)
    store.close()


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"):
        Store.open(tmp_path / "file" / "data")


def test_no_store_is_one_clear_line(tmp_path):
    with pytest.raises(FolderError, match="no store here yet"):
        connect(tmp_path)


def test_something_else_at_the_place_of_the_store_is_refused_untouched(tmp_path):
    path = tmp_path / "store" / "sidestep.duckdb"
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    for opening in (Store.open, connect):
        with pytest.raises(FolderError, match="cannot be read as a store"):
            opening(tmp_path)
    assert path.read_bytes() == b"no database" * 1000


def test_a_store_of_a_newer_version_is_refused_untouched(tmp_path):
    Store.open(tmp_path).close()
    path = tmp_path / "store" / "sidestep.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("update store_info set version = 99")
    before = path.read_bytes()
    with pytest.raises(VersionError, match=r"version 99.*up to 1"):
        Store.open(tmp_path)
    assert path.read_bytes() == before


def test_leftovers_of_a_killed_commit_go_and_named_parts_stay(tmp_path):
    store = Store.open(tmp_path)
    store.commit(batch(), {})
    store.close()
    named = part_files(tmp_path)
    (tmp_path / "store/parts/points/00000009-0-deadbeef.parquet").write_bytes(b"torn")
    (tmp_path / "store/sidestep.duckdb.next").write_bytes(b"torn")
    Store.open(tmp_path).close()
    assert part_files(tmp_path) == named == manifest(tmp_path)
    assert not (tmp_path / "store/sidestep.duckdb.next").exists()


def test_a_folder_that_moved_is_read_where_it_is_and_repaired_when_it_is_opened(tmp_path):
    old, new = tmp_path / "old", tmp_path / "run=1 [x]'é"
    store = Store.open(old)
    store.commit(batch(), {})
    store.close()
    shutil.move(old, new)
    assert steps(new) == list(range(10))
    with connect(new) as connection:
        assert len(connection.execute("select * from points_current").fetchall()) == 10
    store = Store.open(new)
    with duckdb.connect(str(new / "store" / "sidestep.duckdb"), read_only=True) as connection:
        assert connection.execute("select count(*) from points").fetchone() == (10,)
    assert store.known()[0].watermark == 10
    store.close()


def test_the_catalogue_can_be_attached_under_another_name(tmp_path):
    store = Store.open(tmp_path)
    store.commit(batch(), {})
    with duckdb.connect() as connection:
        connection.execute(f"attach '{tmp_path / 'store' / 'sidestep.duckdb'}' as mine (read_only)")
        assert connection.execute("select count(*) from mine.points_current").fetchone() == (10,)
    store.close()


def test_a_reader_that_stays_open_keeps_what_it_saw_and_a_new_one_sees_more(tmp_path):
    store = Store.open(tmp_path)
    store.commit(batch(), {})
    with connect(tmp_path) as early:
        store.commit(batch(10), {})
        assert early.execute("select count(*) from points").fetchone() == (10,)
        assert steps(tmp_path) == list(range(20))
        store.close()
        store = Store.open(tmp_path)
        assert store.known()[0].watermark == 20
    with connect(tmp_path) as reader, pytest.raises(duckdb.Error, match="read-only"):
        reader.execute("delete from runs")
    store.close()


def full_disk(monkeypatch, where):
    def sync(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(f"sidestep_collector.store.{where}.sync", sync)


@pytest.mark.parametrize("where", ["parts", "catalogue", "local"])
def test_a_commit_on_a_full_disk_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch, where):
    store = Store.open(tmp_path)
    store.commit(batch(), {"f": 1})
    with monkeypatch.context() as patch:
        full_disk(patch, where)
        with pytest.raises(StoreWriteError, match=r"No space left.*make room"):
            store.commit(batch(10), {"f": 2})
    assert store.known()[0].watermark == 10
    assert store.files() == {"f": 1}
    if where != "local":  # there the rename was done, and only its durability is in doubt
        assert steps(tmp_path) == list(range(10))
        assert part_files(tmp_path) == manifest(tmp_path)
    store.commit(batch(10), {"f": 2})
    assert steps(tmp_path) == list(range(20))
    store.close()
    store = Store.open(tmp_path)
    assert store.known()[0].watermark == 20
    assert part_files(tmp_path) == manifest(tmp_path)
    store.close()


@pytest.mark.parametrize("limit", [0, 4096, 100_000])
def test_a_file_that_cannot_grow_fails_the_commit_alone(tmp_path, limit):
    store = Store.open(tmp_path)
    store.commit(batch(), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StoreWriteError):
            store.commit(batch(10, 50_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == list(range(10))
    assert part_files(tmp_path) == manifest(tmp_path)
    store.commit(batch(10, 50_000), {})
    assert steps(tmp_path) == list(range(50_010))
    store.close()


def test_a_closed_store_takes_no_commit(tmp_path):
    store = Store.open(tmp_path)
    store.close()
    with pytest.raises(StoreWriteError, match="closed"):
        store.commit(batch(), {})
    assert store.compact() is False


def test_a_mark_that_could_not_be_committed_is_not_forgotten(tmp_path, monkeypatch):
    store = Store.open(tmp_path)
    store.commit(Batch(items=[Event(Moment(S, 0, 0, 0, 0.0), "start", {})]), {})
    store.set_state(S, "killed")
    with monkeypatch.context() as patch:
        full_disk(patch, "catalogue")
        with pytest.raises(StoreWriteError):
            store.commit(Batch(), {})
    assert [run.state for run in store.runs().values()] == ["running"]
    store.commit(Batch(), {})
    assert [run.state for run in store.runs().values()] == ["killed"]
    store.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FolderError, match="cannot be written"):
        Store.open(tmp_path)
    tmp_path.chmod(0o700)
