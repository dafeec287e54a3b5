"""Merging aggregates over any split equals computing them at once; points come back in order, all of them."""

import math
import tempfile
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sidestep_collector.blocks import Batch, EpochRows, KeySet, ScalarBlock, Stream
from sidestep_collector.store import columns
from sidestep_collector.store.parts import PartWriter
from sidestep_collector.store.views import view_query
from sidestep_schemas.tables import TABLE

values = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf])), min_size=1, max_size=40
)


def stream(run="r", rank=0, attempt=0):
    return Stream(f"{run}{rank}{attempt}".encode().ljust(8)[:8], b"u" * 16, run, "p", rank, attempt)


def aggregate(sample, first):
    finite = sample[np.isfinite(sample)]
    n = len(finite)
    mean = finite.mean() if n else np.nan
    numbers = (n, len(sample) - n, finite.min() if n else np.nan, finite.max() if n else np.nan, mean)
    more = (((finite - mean) ** 2).sum() if n else 0.0, sample[0], sample[-1], first, first + len(sample) - 1)
    return EpochRows(stream(), 3, ("m",), *(np.array([number]) for number in (*numbers, *more)))


def read(parts, folder):
    with duckdb.connect() as connection:
        return connection.execute(view_query(TABLE["epochs"], [folder / part.part for part in parts])).fetchall()


@settings(max_examples=25, deadline=None)
@given(values, st.data(), st.sampled_from([0.0, 1e9]))
def test_aggregates_merged_from_any_split_equal_those_of_the_whole(sample, data, offset):
    whole = np.array(sample) + offset
    cuts = data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6))
    edges = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    pieces = [aggregate(whole[a:b], a) for a, b in pairwise(edges)]
    order = data.draw(st.permutations(range(len(pieces))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "parts").mkdir()
        writer = PartWriter(folder)
        half = len(order) // 2
        parts = [
            part
            for some in (order[:half], order[half:])
            if some
            for part in writer.write(Batch(epochs=[pieces[at] for at in some]), 1)
        ]
        writer.close()
        [row] = read(parts, folder)
    expected = aggregate(whole, 0)
    assert row[:7] == ("r", "m", 0, 0, 3, int(expected.n[0]), int(expected.n_nonfinite[0]))
    found = [math.nan if value is None else value for value in row[7:13]]
    names = ("vmin", "vmax", "mean", "m2", "vfirst", "vlast")
    spread = np.nanmax(np.abs(np.where(np.isfinite(whole), whole, 0.0)), initial=1.0)
    # A mean is right to the last bits of its size, and m2 to those of the squares it was made from.
    rounding = {
        "mean": 1e-14 * spread,
        "m2": 1e-12 * max(1.0, float(expected.m2[0])) + len(whole) * (1e-15 * spread) ** 2 * 100,
    }
    for at, key in enumerate(names):
        np.testing.assert_allclose(
            found[at], getattr(expected, key)[0], rtol=1e-9, atol=rounding.get(key, 0.0), err_msg=key
        )
    assert row[13:] == (0, len(whole) - 1)


@st.composite
def blocks(draw):
    made = []
    for _ in range(draw(st.integers(1, 6))):
        of = stream(draw(st.sampled_from(["a", "é", "b"])), draw(st.integers(0, 1)), draw(st.integers(0, 1)))
        names = tuple(draw(st.lists(st.sampled_from("wxyzß"), min_size=1, max_size=4, unique=True)))
        count = draw(st.integers(1, 5))
        steps = draw(arrays(np.int64, count, elements=st.integers(-1, 6)))
        cells = draw(arrays(np.float64, (count, len(names)), elements=st.floats(-9, 9)))
        seq = np.arange(count)
        made.append(ScalarBlock(of, KeySet(0, 1, "step", names, ()), seq, seq, steps, np.zeros(count), cells))
    return made


@given(blocks())
def test_points_are_all_there_and_sorted_and_equal_steps_keep_their_order(made):
    got = columns.points(made)
    rows = list(
        zip(
            [got.words["run"][code] for code in got.arrays["run"]],
            [got.words["metric"][code] for code in got.arrays["metric"]],
            *(got.arrays[name].tolist() for name in ("rank", "attempt", "step", "value")),
            strict=True,
        )
    )
    expected = [
        (b.stream.run, name, b.stream.rank, b.stream.attempt, int(b.step[record]), float(b.values[record, at]))
        for b in _grouped(made)
        for at, name in enumerate(b.key_set.names)
        for record in range(len(b.step))
    ]
    assert rows == sorted(expected, key=lambda row: row[:5])


def _grouped(made):
    """Blocks of one stream and key set are one run of records, in the place of the first."""
    first = {}
    for at, block in enumerate(made):
        first.setdefault((block.stream.key, block.key_set.names), at)
    return sorted(made, key=lambda block: first[block.stream.key, block.key_set.names])
