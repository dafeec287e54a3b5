import math

import numpy as np
import pytest

from sidestep_collector.aggregate import EpochAggregator
from sidestep_collector.blocks import Batch, EpochRows, Event, KeySet, Moment, ScalarBlock, Stream
from sidestep_collector.store import Store, connect

STREAM = Stream(b"12345678", b"1234567890123456", "r", "p", 0, 0)


def rows_of(names, values) -> list[EpochRows]:
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
    aggregator.add([block], [])
    return aggregator.take()[0]


@pytest.mark.parametrize("loss", ["train/loss_total", "train/loss"])
def test_spread_of_the_loss_and_share_of_clipped_steps_are_asked_for_by_sql(tmp_path, loss):
    values = [[1.0, 1.0], [2.0, 0.0], [4.0, 0.0], [math.nan, 0.0]]
    start = Event(Moment(STREAM, 0, 10**18, -1, math.nan), "start", {"id": "r", "project": "p"})
    store = Store.open(tmp_path)
    store.commit(Batch(items=[start], epochs=rows_of((loss, "train/gradient/clipped"), values)), {})

    with connect(tmp_path) as connection:
        found = dict(connection.execute("select metric, mean from epochs where epoch = 2").fetchall())
    store.close()

    assert found["train/loss_std"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert found["train/gradients/clip_fraction"] == 0.25
    assert found["train/gradient/clipping_percentage"] == 25.0
    assert found[loss] == pytest.approx(7 / 3)
