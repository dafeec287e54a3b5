"""What a commit stores, and what a reader finds."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from sidestep_collector.blocks import (
    Batch,
    EpochRows,
    Event,
    Finding,
    Gap,
    Histogram,
    Image,
    KeySet,
    Moment,
    Progress,
    ScalarBlock,
    Stream,
    Tensor,
    Text,
)
from sidestep_collector.store import Store, connect
from sidestep_schemas.catalog import Metric
from sidestep_schemas.tables import DERIVED_VIEWS, TABLES

T0 = 1_700_000_000_123_456_789
NAN = math.nan
EVIDENCE = '{"values": [1.0, null]}'


def stream(run="run-a", rank=0, attempt=0):
    key = hashlib.sha256(f"{run}/{rank}/{attempt}".encode()).digest()[:8]
    uid = hashlib.sha256(run.encode()).digest()[:16]
    return Stream(key, uid, run, "project", rank, attempt)


def block(of, names=("a", "b"), steps=(0, 1, 2), *, first=0, values=None, tier="step", epoch=0.5, dtype=np.float32):
    n = len(steps)
    seq = np.arange(first, first + n)
    if values is None:
        values = np.arange(n * len(names), dtype=dtype).reshape(n, len(names))
    key_set = KeySet(1, 0, tier, tuple(names), ("",) * len(names))
    return ScalarBlock(of, key_set, seq, T0 + seq * 1000, np.array(steps), np.full(n, epoch), np.asarray(values, dtype))


def batch(*blocks, items=(), **more):
    streams = {b.stream: b for b in blocks} | {item.at.stream: None for item in items}
    progress = [Progress(s, int(b.seq[-1]) + 1 if b else 1, 0, False) for s, b in streams.items()]
    more.setdefault("progress", progress)
    return Batch(blocks=list(blocks), items=list(items), **more)


def at(of, seq=0, step=3, epoch=NAN):
    return Moment(of, seq, T0, step, epoch)


def start(of, **details):
    return Event(at(of), "start", {"started_ns": T0, "host": "h", "pid": 7, **details})


def end(of, status="finished"):
    return Event(at(of, seq=9), "end", {"status": status})


def finding(**given):
    made = Finding(
        *("run-a", "project", "hot/a@3", "hot", "mine", "a", "heat/a", 1, "warning", "firing"),
        *(3, 5, T0, T0 + 2000, 2, math.inf, NAN, "it is hot", ("cool it", "wait")),
        {"values": [1.0, NAN]},
    )
    return replace(made, **given)


def ask(root, query):
    with connect(root) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path, clock=lambda: 1000.0)
    yield opened
    opened.close()


def assert_tables(root):
    with connect(root) as connection:
        for table in TABLES:
            found = connection.execute(f'describe "{table.name}"').fetchall()
            assert [(name, type_) for name, type_, *_ in found] == [(c.name, c.type) for c in table.columns], table.name
        for view in DERIVED_VIEWS:
            connection.execute(f"select * from {view}").fetchall()


def test_an_empty_store_has_every_table_with_its_columns_and_types(store, tmp_path):
    assert_tables(tmp_path)


def test_a_store_with_rows_in_every_table_has_the_same_columns_and_types(store, tmp_path):
    s = stream()
    fill(store, s)
    assert_tables(tmp_path)
    for table in TABLES:
        if table.name != "gaps":
            assert ask(tmp_path, f'select count(*) from "{table.name}"')[0][0] > 0, table.name


def fill(store, s):
    items = [
        start(s),
        Tensor(at(s), "t", "float32", (2, 1), b"\0\1\2\3\4\5\6\7"),
        Image(at(s), "i", b"\x89PNG\0"),
        Histogram(at(s, epoch=2.5), "h", np.array([-np.inf, 0.0, np.nan]), np.array([1.0, 2.0])),
        Text(at(s), "text", "note", 'a\0"é\U0001f600'),
    ]
    row = EpochRows(
        s, 0, ("a",), *(np.array([1]), np.array([0])), *(np.array([1.0]) for _ in range(6)), *(np.array([0]),) * 2
    )
    key_sets = [(s, KeySet(1, 0, "step", ("a", "b"), ("", "sum")))]
    made = batch(block(s), items=items, epochs=[row], key_sets=key_sets, findings=[finding()])
    store.commit(made, {"runs/x": 12})


def test_items_come_back_as_they_went_in(store, tmp_path):
    fill(store, stream())
    assert ask(tmp_path, "select dtype, shape, data from tensors") == [("float32", [2, 1], b"\0\1\2\3\4\5\6\7")]
    assert ask(tmp_path, "select png, epoch from images") == [(b"\x89PNG\0", None)]
    [(edges, counts, epoch)] = ask(tmp_path, "select edges, counts, epoch from histograms")
    assert edges[:2] == [-math.inf, 0.0]
    assert math.isnan(edges[2])
    assert (counts, epoch) == ([1.0, 2.0], 2.5)
    assert ask(tmp_path, "select text from texts") == [('a\0"é\U0001f600',)]
    assert ask(tmp_path, "select event, details->>'host' from events") == [("start", "h")]


def test_a_finding_is_a_row_that_changes_and_goes(store, tmp_path):
    fill(store, stream())
    columns = "run, finding, subject, rank, state, first_step, last_step, epoch_us(first_time), count, value, threshold"
    assert ask(tmp_path, f"select {columns}, advice, evidence::varchar from findings") == [
        ("run-a", "hot/a@3", "a", 1, "firing", 3, 5, T0 // 1000, 2, math.inf, None, ["cool it", "wait"], EVIDENCE)
    ]
    store.commit(Batch(findings=[finding(state="resolved", count=7)]), {})
    assert ask(tmp_path, "select state, count from findings") == [("resolved", 7)]
    store.commit(Batch(findings=[finding(state="gone")]), {})
    assert ask(tmp_path, "select * from findings") == []


def test_a_metric_of_a_runs_profile_has_its_unit(store, tmp_path):
    declared = {"a": Metric("a", "rank of a", "dimensions", "step", "M.", "higher")}
    store.commit(batch(block(stream()), metrics=declared), {})
    found = ask(tmp_path, "select metric, name, unit, better from metrics order by metric")
    assert found == [("a", "rank of a", "dimensions", "higher"), ("b", "b", "", None)]


def test_points_lie_in_the_order_of_the_table_whatever_order_they_came_in(store, tmp_path):
    late, early = stream("b"), stream("a", rank=1)
    store.commit(
        batch(
            block(late, ("z", "é", "a"), (5, 6)), block(early, ("q",), (3, 1, 2)), block(late, ("z",), (4,), first=2)
        ),
        {},
    )
    [(part,)] = ask(tmp_path, "select part from parts where table_name = 'points'")
    rows = ask(tmp_path, f"select run, metric, rank, attempt, step from read_parquet('{tmp_path / 'store' / part}')")
    assert rows == sorted(rows)
    assert len(rows) == 10
    assert ask(tmp_path, "select value from points where metric = 'q'") == [(1.0,), (2.0,), (0.0,)]


def test_values_keep_nan_and_infinities_and_float64_keeps_every_bit(store, tmp_path):
    values = np.array([[NAN], [np.inf], [-np.inf], [2.0**53 + 2], [0.1]])
    store.commit(batch(block(stream(), ("v",), range(5), values=values, dtype=np.float64)), {})
    found = [value for (value,) in ask(tmp_path, "select value from points order by step")]
    np.testing.assert_array_equal(found, values.ravel())


def test_epochs_that_are_nan_are_null_and_times_are_utc_to_the_microsecond(store, tmp_path):
    store.commit(batch(block(stream(), steps=(0,), epoch=NAN, tier="periodic")), {})
    assert ask(tmp_path, "select epoch, tier, epoch_us(wall_time), seq from snapshots") == [
        (None, "periodic", T0 // 1000, 0)
    ]


@pytest.mark.parametrize("name", ["a'b\"c", "größe/😀", "a b;--", "", "nul\0", "\udc80", "[x](y)*?"])
def test_any_name_is_a_metric(store, tmp_path, name):
    store.commit(batch(block(stream("r'\"é"), (name, "other"), (0,))), {})
    expected = name.replace("\0", "\ufffd").replace("\udc80", "\ufffd")
    assert {m for (m,) in ask(tmp_path, "select metric from points")} == {expected, "other"}
    assert {m for (m,) in ask(tmp_path, "select metric from metrics")} == {expected, "other"}


def test_metrics_say_what_the_catalogue_of_metrics_says(store, tmp_path):
    store.commit(batch(block(stream(), ("val/acc", "train/gradients/layer1", "mine"), (0,))), {})
    assert ask(tmp_path, "select * from metrics order by metric") == [
        ("mine", "mine", "scalar", None, "", None, "mean"),
        ("train/gradients/layer1", "gradient norm of a block", "scalar", "layer1", "", None, "mean"),
        ("val/acc", "validation accuracy", "scalar", None, "fraction", "higher", "mean"),
    ]


def test_a_start_describes_the_run(store, tmp_path):
    details = {
        "name": "n",
        "group": "g",
        "tags": ["x", "y"],
        "notes": "",
        "config": {"lr": NAN, "b": 2},
        "profile": "p",
        "world_size": 2,
    }
    store.commit(batch(items=[start(stream(), **details)]), {})
    store.commit(
        batch(items=[Text(at(stream()), "config", "", '{"c": Infinity}'), Text(at(stream()), "notes", "", "hi")]), {}
    )
    assert ask(
        tmp_path, 'select run, project, name, "group", state, world_size, config, tags, notes, profile, ended from runs'
    ) == [("run-a", "project", "n", "g", "running", 2, '{"lr": null, "b": 2, "c": null}', ["x", "y"], "hi", "p", None)]
    assert ask(tmp_path, "select host, pid, start_step, cause from attempts") == [("h", 7, None, None)]
    assert ask(tmp_path, "select * from texts") == []


def test_a_run_whose_start_was_lost_has_a_row_all_the_same(store, tmp_path):
    store.commit(batch(block(stream(), steps=(-1, 4))), {})
    assert ask(tmp_path, "select run, name, state from runs") == [("run-a", "run-a", "running")]
    assert ask(tmp_path, "select start_step, epoch_us(started) from attempts") == [(4, T0 // 1000)]


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "details",
    [
        {"world_size": NAN, "pid": 2**80, "started_ns": -(10**30)},
        {"world_size": 2**40, "pid": "x", "started_ns": "y", "host": {"a": 1}, "tags": [1, None], "name": ["n"]},
        {"config": {"a": "\ud800", "b": 10**400, "c": {1, 2}, "d": b"x"}, "notes": "\ud800\0"},
        {"config": [1, 2], "group": "\udfff"},
    ],
)
def test_no_details_of_a_start_can_stop_the_commits(store, tmp_path, details):
    s = stream()
    store.commit(batch(items=[Event(at(s), "start", details), Text(at(s), "config", "", '{"x": "\\ud800"}')]), {})
    store.commit(
        batch(items=[Text(at(s), "config", "", NESTED), Text(at(s), "tags", "", "{"), Event(at(s), "e", {"n": NAN})]),
        {},
    )
    assert ask(tmp_path, "select count(*), any_value(run) from runs") == [(1, "run-a")]
    assert ask(tmp_path, "select details->>'n', json_valid(details) from events where event = 'e'") == [(None, True)]


def test_names_that_differ_in_case_alone_are_two(store, tmp_path):
    store.commit(batch(block(stream(), ("Loss", "loss"), (0,)), block(stream("RUN-A"), ("loss",), (0,))), {})
    found = ask(tmp_path, "select run, metric, value from points")
    assert found == [("RUN-A", "loss", 0.0), ("run-a", "Loss", 0.0), ("run-a", "loss", 1.0)]


@pytest.mark.parametrize(
    ("causes", "state"),
    [
        (["finished", None], "running"),
        (["finished", "finished"], "finished"),
        (["finished", "failed"], "failed"),
        (["killed", "failed"], "failed"),
        (["lost", "finished"], "lost"),
    ],
)
def test_the_state_of_a_run_follows_from_its_ranks(store, tmp_path, causes, state):
    items = [start(stream(rank=rank)) for rank in range(2)]
    items += [end(stream(rank=rank), cause) for rank, cause in enumerate(causes) if cause]
    store.commit(batch(items=items), {})
    assert ask(tmp_path, "select state, ended is null from runs") == [(state, state == "running")]


def test_a_resumed_run_runs_again(store, tmp_path):
    store.commit(batch(items=[end(stream(), "failed")]), {})
    store.commit(batch(items=[start(stream(attempt=1))]), {})
    assert [run.state for run in store.runs().values()] == ["running"]


def test_a_stream_found_dead_is_marked_with_the_next_commit_and_the_lost_may_come_back(store, tmp_path):
    dead, quiet = stream("dead"), stream("quiet")
    store.commit(batch(block(dead), block(quiet)), {})
    store.set_state(dead, "killed")
    store.set_state(quiet, "lost")
    store.commit(Batch(), {})
    assert ask(tmp_path, "select run, state, epoch_us(ended) from runs order by run") == [
        ("dead", "killed", 10**9),
        ("quiet", "lost", 10**9),
    ]
    store.commit(batch(block(dead, first=3), block(quiet, first=3)), {})
    assert ask(tmp_path, "select run, state from runs order by run") == [("dead", "killed"), ("quiet", "running")]


def test_a_lost_stream_may_be_marked_as_running_again_without_a_record_and_a_dead_one_may_not(store, tmp_path):
    dead, quiet = stream("dead"), stream("quiet")
    store.commit(batch(block(dead), block(quiet)), {})
    store.set_state(dead, "killed")
    store.set_state(quiet, "lost")
    store.commit(Batch(), {})
    assert sorted((known.stream.run, known.cause) for known in store.known()) == [("dead", "killed"), ("quiet", "lost")]
    for each in (dead, quiet):
        store.set_state(each, "running")
    store.commit(Batch(), {})
    assert ask(tmp_path, "select run, state from runs order by run") == [("dead", "killed"), ("quiet", "running")]
    assert ask(tmp_path, "select ended is null from attempts where run = 'quiet'") == [(True,)]


def test_known_streams_survive_a_restart_with_key_sets_until_they_end(tmp_path):
    s, key_set = stream(), KeySet(4, 1, "epoch", ("x", "y"), ("", "sum"))
    with_keys = batch(block(s), key_sets=[(s, key_set)])
    store = Store.open(tmp_path)
    store.commit(with_keys, {"runs/p/f": 10, "g": 3})
    store.close()
    store = Store.open(tmp_path)
    [known] = store.known()
    assert (known.stream, known.watermark, known.lost, known.ended, known.key_sets) == (s, 3, 0, False, (key_set,))
    assert store.files() == {"runs/p/f": 10, "g": 3}
    assert [(run.run, run.project, run.started_ns) for run in store.runs().values()] == [
        ("run-a", "project", T0 // 1000 * 1000)
    ]
    store.commit(Batch(progress=[Progress(s, 4, 1, True)], gaps=[Gap(s, 3, 1, "full")]), {"g": 4})
    [known] = store.known()
    assert (known.watermark, known.lost, known.ended, known.key_sets) == (4, 1, True, ())
    assert ask(tmp_path, "select first_seq, records, reason from gaps") == [(3, 1, "full")]
    assert store.files()["g"] == 4
    store.close()


def test_points_current_leaves_out_what_a_resume_went_over_again(store, tmp_path):
    store.commit(batch(block(stream(), ("a",), (0, 1, 2, 3)), block(stream(rank=1), ("a",), (0,))), {})
    store.commit(batch(block(stream(attempt=1), ("a",), (2, 3, 4))), {})
    current = ask(tmp_path, "select rank, step, attempt from points_current order by rank, step")
    assert current == [(0, 0, 0), (0, 1, 0), (0, 2, 1), (0, 3, 1), (0, 4, 1), (1, 0, 0)]


def test_many_large_blobs_are_written_in_portions(store, tmp_path):
    images = [Image(at(stream(), seq=n), "i", bytes([n]) * (5 << 20)) for n in range(6)]
    store.commit(batch(items=images), {})
    assert ask(tmp_path, "select count(*), min(octet_length(png)) from images") == [(6, 5 << 20)]
    assert ask(tmp_path, "select count(*) > 1 from parts where table_name = 'images'") == [(True,)]
