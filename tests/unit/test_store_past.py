"""The past of streams as a restarted collector reads it: last values by tag with their counts, last tensors by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sidestep_collector.blocks import Batch, KeySet, Moment, Progress, ScalarBlock, Stream, Tensor
from sidestep_collector.store import Store
from sidestep_collector.store import past as module
from sidestep_collector.store.past import read_past

SECOND = 10**9
STREAMS = [
    Stream(bytes([number]) * 8, bytes([number // 2]) * 16, f"run{number // 2}", "p", number % 2, 0)
    for number in range(4)
]


def block(stream: Stream, names: tuple[str, ...], seq: np.ndarray) -> ScalarBlock:
    """Records of every second seq as steps; the value tells stream, column and seq."""
    values = seq[:, None] + 1000.0 * np.arange(len(names)) + 10_000.0 * stream.rank
    values[seq == 4] = np.nan
    epoch = np.where(seq < 2, np.nan, seq / 10)
    return ScalarBlock(stream, KeySet(0, 1, "step", names, ()), seq, seq * SECOND, 2 * seq, epoch, values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store = Store.open(tmp_path)
    for start in (0, 6):
        batch = Batch(progress=[Progress(stream, start + 6, 0, ended=False) for stream in STREAMS])
        for stream in STREAMS:
            batch.blocks.append(block(stream, ("loss", "it's"), np.arange(start, start + 6)))
            at = Moment(stream, start, start * SECOND, start, 0.5)
            data = np.full((2, 2), start + stream.rank, "<f4")
            batch.items += [Tensor(at, name, "float32", (2, 2), data.tobytes()) for name in ("kept", "other")]
        store.commit(batch, {})
    store.close()
    return tmp_path


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_each_stream_gets_its_own_last_values_in_their_order(
    root: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STREAMS_AT_ONCE", at_once)
    wanted = {stream: {"loss": 9, "it's": 3, "absent": 5} for stream in STREAMS[:3]}
    wanted[STREAMS[3]] = {}
    past = read_past(root, wanted, lambda name: name == "kept")
    assert list(past) == STREAMS
    assert past[STREAMS[3]].tails == []
    for stream in STREAMS[:3]:
        tails = {found.key_set.names[0]: (found, count) for found, count in past[stream].tails}
        assert {tag: count for tag, (_, count) in tails.items()} == {"loss": 12, "it's": 12}
        for tag, column, memory in (("loss", 0, 9), ("it's", 1, 3)):
            found, expected = tails[tag][0], block(stream, ("loss", "it's"), np.arange(12 - memory, 12))
            for name in ("seq", "t_ns", "step", "epoch"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
            np.testing.assert_array_equal(found.values[:, 0], expected.values[:, column])
        [tensor] = past[stream].tensors
        assert (tensor.at.stream, tensor.name, tensor.at.seq, tensor.shape) == (stream, "kept", 6, (2, 2))
        assert np.frombuffer(tensor.data, "<f4").tolist() == [6.0 + stream.rank] * 4


def test_values_that_nobody_needs_are_counted_alone(root: Path) -> None:
    [(found, count)] = read_past(root, {STREAMS[0]: {"loss": 0}}, lambda _: False)[STREAMS[0]].tails
    assert (len(found.seq), found.values.shape, count) == (0, (0, 1), 12)
    assert read_past(root, {}, lambda _: True) == {}
