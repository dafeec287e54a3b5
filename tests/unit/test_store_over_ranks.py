"""Several ranks as one, by SQL: every reduction against a plain recomputation."""

import math

import numpy as np
import pytest

from sidestep_collector.blocks import Batch, KeySet, Progress, ScalarBlock, Stream
from sidestep_collector.store import Store, connect

NAN = math.nan


def stream(rank: int, attempt: int = 0) -> Stream:
    return Stream(bytes([rank, attempt]) * 4, b"1234567890123456", "r", "p", rank, attempt)


def told(of: Stream, names, values, reductions=(), first_step=0) -> Batch:
    """Records of one stream, one a step, and the declaration of their key set."""
    count = len(values)
    key_set = KeySet(0, 1, "step", tuple(names), tuple(reductions))
    seq = np.arange(1, count + 1)
    steps = np.arange(first_step, first_step + count)
    rows = np.array(values, dtype=np.float64).reshape(count, len(names))
    block = ScalarBlock(of, key_set, seq, seq + 10**18, steps, np.zeros(count), rows)
    return Batch(blocks=[block], key_sets=[(of, key_set)], progress=[Progress(of, count + 1, 0, ended=False)])


@pytest.fixture
def ask(tmp_path):
    """Commits batches to a new store, closes it, and answers a question of it."""

    def ask(query: str, *batches: Batch):
        store = Store.open(tmp_path)
        for each in batches:
            store.commit(each, {})
        store.close()
        with connect(tmp_path) as connection:
            return connection.execute(query).fetchall()

    return ask


def test_ranks_that_say_nothing_combine_as_the_catalogue_has_it(ask):
    names = ("mine", "perf/samples_per_sec", "perf/step_time_ms")
    query = "select metric, step, ranks, reduction, value, vmin, vmax, rank_min, rank_max from points_over_ranks order by all"
    assert ask(query, told(stream(0), names, [(1, 10, 5)]), told(stream(3), names, [(3, 20, 4)])) == [
        ("mine", 0, 2, "mean", 2.0, 1.0, 3.0, 0, 3),
        ("perf/samples_per_sec", 0, 2, "sum", 30.0, 10.0, 20.0, 0, 3),
        ("perf/step_time_ms", 0, 2, "max", 5.0, 4.0, 5.0, 3, 0),
    ]


def test_norms_of_parts_combine_to_the_norm_of_the_whole(ask):
    names = ("train/gradients/global_norm",)
    batches = [told(stream(rank), names, [(value,)], ("l2",)) for rank, value in enumerate((2.0, 3.0, 6.0))]
    assert ask("select value, reduction, ranks from points_over_ranks", *batches) == [(7.0, "l2", 3)]


def test_ratios_combine_by_the_norm_they_are_relative_to(ask):
    rng = np.random.default_rng(1)
    changes, weights = rng.random((2, 8)), rng.random((2, 8))
    ratio, size = np.linalg.norm(changes, axis=1) / np.linalg.norm(weights, axis=1), np.linalg.norm(weights, axis=1)
    batches = [told(stream(rank), ("a", "w"), [(ratio[rank], size[rank])], ("rms:w", "l2")) for rank in (0, 1)]
    found = dict(ask("select metric, value from points_over_ranks", *batches))
    assert found["a"] == pytest.approx(np.linalg.norm(changes) / np.linalg.norm(weights))
    assert found["w"] == pytest.approx(np.linalg.norm(weights))


def test_shares_combine_by_the_number_of_elements_they_are_of(ask):
    batches = [
        told(stream(rank), ("z", "n"), [row], ("mean:n", "sum")) for rank, row in enumerate([(0.5, 10), (0, 30)])
    ]
    assert dict(ask("select metric, value from points_over_ranks", *batches)) == {"z": 0.125, "n": 40.0}


def test_a_weight_of_nothing_leaves_the_ratio_as_it_is(ask):
    batches = [told(stream(rank), ("a", "w"), [(0.0, 0.0)], ("rms:w", "l2")) for rank in (0, 1)]
    assert dict(ask("select metric, value from points_over_ranks", *batches)) == {"a": 0.0, "w": 0.0}


def test_what_is_not_finite_is_left_out_of_means_and_makes_norms_so(ask):
    names, said = ("loss", "norm", "worst"), ("", "l2", "max")
    batches = [told(stream(0), names, [(NAN, NAN, NAN)], said), told(stream(1), names, [(4, 4, 4)], said)]
    found = {
        metric: rest
        for metric, *rest in ask(
            "select metric, value, vmin, vmax, rank_min, rank_max, n_nonfinite, ranks from points_over_ranks", *batches
        )
    }
    assert found["loss"] == found["worst"] == [4.0, 4.0, 4.0, 1, 1, 1, 2]
    assert math.isnan(found["norm"][0])
    assert found["norm"][1:] == [4.0, 4.0, 1, 1, 1, 2]


def test_of_each_rank_its_latest_attempt_counts(ask):
    batches = [
        told(stream(0), ("n",), [(3,), (3,), (3,)], ("l2",)),
        told(stream(1), ("n",), [(4,), (4,), (4,)], ("l2",)),
        told(stream(0, 1), ("n",), [(30,)], ("l2",), first_step=2),
        told(stream(1, 1), ("n",), [(40,)], ("l2",), first_step=2),
    ]
    assert ask("select step, value from points_over_ranks order by step", *batches) == [(0, 5.0), (1, 5.0), (2, 50.0)]


def test_an_attempt_that_is_no_longer_sharded_combines_anew(ask):
    batches = [
        told(stream(0), ("train/loss",), [(3,)], ("l2",)),
        told(stream(1), ("train/loss",), [(4,)], ("l2",)),
        told(stream(0, 1), ("train/loss",), [(3,)], first_step=1),
        told(stream(1, 1), ("train/loss",), [(5,)], first_step=1),
    ]
    assert ask("select step, reduction, value from points_over_ranks order by step", *batches) == [
        (0, "l2", 5.0),
        (1, "mean", 4.0),
    ]


def test_reductions_survive_the_end_of_a_run_a_restart_and_compaction(tmp_path):
    store = Store.open(tmp_path, grace_seconds=0.0)
    for rank in range(16):
        store.commit(told(stream(rank), ("n",), [(1,)], ("l2",)), {})
        store.commit(Batch(progress=[Progress(stream(rank), 2, 0, ended=True)]), {})
    while store.compact():
        pass
    store.close()
    Store.open(tmp_path).close()
    with connect(tmp_path) as connection:
        assert connection.execute("select value, ranks from points_over_ranks").fetchall() == [(4.0, 16)]
        assert connection.execute("select count(*) from parts where table_name = 'reductions'").fetchall() == [(1,)]
        assert connection.execute("select count(*) from key_sets").fetchall() == [(0,)]


def test_a_store_from_before_reductions_learns_them(tmp_path):
    store = Store.open(tmp_path)
    store.commit(told(stream(0), ("perf/samples_per_sec",), [(1,)]), {})
    store.close()
    import duckdb

    with duckdb.connect(str(tmp_path / "store" / "sidestep.duckdb")) as connection:
        connection.execute("drop view points_over_ranks")
        connection.execute("alter table metrics drop column reduction")
    store = Store.open(tmp_path)
    store.commit(told(stream(1), ("perf/samples_per_sec",), [(3,)]), {})
    store.close()
    with connect(tmp_path) as connection:
        assert connection.execute("select value, reduction from points_over_ranks").fetchall() == [(4.0, "sum")]
