import math

import numpy as np
import pytest

from sidestep_collector.aggregate import EpochAggregator
from sidestep_collector.blocks import Batch, EpochRows, Event, KeySet, Moment, ScalarBlock, Stream
from sidestep_collector.store import Store, connect

STREAM = Stream(b"12345678", b"1234567890123456", "r", "p", 0, 0)


def rows_of(names, values) -> list[EpochRows]:
    return aggregated(names, values)[0]


def aggregated(names, values):
    """Rows and summaries of an epoch of one stream."""
    count = len(values)
    block = ScalarBlock(
        STREAM,
        KeySet(0, 1, "step", names, ()),
        seq=np.arange(1, count + 1),
        t_ns=np.arange(count) + 10**18,
        step=np.arange(count),
        epoch=np.full(count, 2.0),
        values=np.array(values, dtype=np.float64),
    )
    aggregator = EpochAggregator()
    end = Event(Moment(STREAM, count + 1, 10**18 + 10**9, -1, math.nan), "epoch_end", {"epoch": 2.0})
    begin = Event(Moment(STREAM, 0, 10**18, -1, math.nan), "epoch_begin", {"epoch": 2.0})
    aggregator.add([block], [begin, end])
    return aggregator.take()


def asked(root, rows):
    """Means of an epoch by SQL."""
    start = Event(Moment(STREAM, 0, 10**18, -1, math.nan), "start", {"id": "r", "project": "p"})
    store = Store.open(root)
    store.commit(Batch(items=[start], epochs=rows), {})
    with connect(root) as connection:
        found = connection.execute("select metric, mean from epochs where epoch = 2").fetchall()
    store.close()
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("loss", ["train/loss_total", "train/loss"])
def test_spread_of_the_loss_and_share_of_clipped_steps_are_asked_for_by_sql(tmp_path, loss):
    values = [[1.0, 1.0], [2.0, 0.0], [4.0, 0.0], [math.nan, 0.0]]
    found = asked(tmp_path, rows_of((loss, "train/gradient/clipped"), values))

    assert found["train/loss_std"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert found["train/gradients/clip_fraction"] == 0.25
    assert found["train/gradient/clipping_percentage"] == 25.0
    assert found[loss] == pytest.approx(7 / 3)


NORMS = ("train/gradients/global_norm", "train/gradient/global_norm_before_clip")


@pytest.mark.parametrize("norm", NORMS)
def test_what_a_classifier_is_judged_by_is_the_same_by_sql_and_in_documents(tmp_path, norm):
    names = ("train/loss_total", "val/loss_total", norm, "train/updates/relative_update_norm")
    values = [[2.0, 1.0, 3.0, 1e-3], [1.0, 1.5, 5.0, 3e-3], [math.nan, 1.5, 4.0, 2e-3]]
    rows, (summary,) = aggregated(names, values)
    expected = {
        "train/mean_grad_norm": 4.0,
        "train/min_grad_norm": 3.0,
        "train/max_grad_norm": 5.0,
        "train/weight_change": 2e-3,
        "train/num_batches": 3.0,
        "val/num_batches": 3.0,
    }

    found = asked(tmp_path, rows)

    assert {tag: found[tag] for tag in expected} == pytest.approx(expected)
    assert {tag: summary.statistics[tag]["mean"] for tag in expected} == pytest.approx(expected)
    assert summary.derived == {*expected, "train/loss_std", "perf/epoch_time_sec"}


def test_norms_of_clipping_come_first_for_they_are_taken_at_every_step(tmp_path):
    rows, (summary,) = aggregated(NORMS, [[1.0, 7.0], [3.0, 9.0]])
    assert asked(tmp_path, rows)["train/mean_grad_norm"] == 8.0
    assert summary.statistics["train/mean_grad_norm"]["mean"] == 8.0


def test_what_the_run_tells_itself_is_not_derived_and_one_loss_an_epoch_tells_of_no_batches(tmp_path):
    rows, (summary,) = aggregated(("train/loss_total", "train/num_batches", "val/loss_total"), [[2.0, 40.0, 1.0]])
    found = asked(tmp_path, rows)
    assert found["train/num_batches"] == 40.0
    assert "val/num_batches" not in found
    assert "val/num_batches" not in summary.statistics
    assert summary.statistics["train/num_batches"]["mean"] == 40.0
