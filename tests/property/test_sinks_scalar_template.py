import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorboard.compat.proto.event_pb2 import Event

from sidestep_collector.sinks.crc32c import masked_crc32c
from sidestep_collector.sinks.scalar_template import padded_varints, templates

INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, 127, 128, 2**14 - 1, 2**14, 2**31, 2**32, 2**53, 2**63 - 1, -1, -2, -(2**63)]
NAMES = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=20)


def read(data):
    """Events of a buffer, by TensorBoard's message classes; every checksum is recomputed."""
    at = 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert crc == masked_crc32c(data[at : at + 8])
        event = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length) == (masked_crc32c(event),)
        yield Event.FromString(event)
        at += 16 + length


def filled(names, wall_time, step, values):
    rows = [[] for _ in step]
    for columns, template in templates(names):
        data = b"".join(chunk.tobytes() for chunk in template.fill(wall_time, step, values[:, columns]))
        for row, event in zip(rows, read(data), strict=True):
            row.append(event)
    return rows


def same(a, b):
    return a == b or (math.isnan(a) and math.isnan(b))


@given(st.data())
@settings(deadline=None)
def test_a_filled_template_is_what_protobuf_reads_back(data):
    names = data.draw(NAMES)
    records = data.draw(st.integers(1, 5))
    step = data.draw(hnp.arrays(np.int64, records, elements=st.one_of(INT64, st.sampled_from(EDGES))))
    wall_time = data.draw(hnp.arrays(np.float64, records))
    values = data.draw(hnp.arrays(data.draw(st.sampled_from([np.float32, np.float64])), (records, len(names))))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float32)
    for index, events in enumerate(filled(names, wall_time, step, values)):
        assert {event.step for event in events} == {int(step[index])}
        assert all(same(event.wall_time, float(wall_time[index])) for event in events)
        found = [value for event in events for value in event.summary.value]
        assert [value.tag for value in found] == names
        assert all(same(a.simple_value, b) for a, b in zip(found, expected[index].tolist(), strict=True))


@pytest.mark.parametrize("number", EDGES)
def test_padded_varints_hold_every_int64(number):
    octets = padded_varints(np.array([number], dtype=np.int64))
    assert octets.shape == (1, 10)
    assert Event.FromString(b"\x10" + octets.tobytes()).step == number


@pytest.mark.parametrize("lengths", [[1] * 2000, [5000], [10, 5000, 10], [4050, 4050], [0]])
def test_many_and_long_tags_are_split_over_events(lengths):
    names = [f"{index:x}".rjust(length, "t")[:length] for index, length in enumerate(lengths)]
    values = np.arange(3 * len(names), dtype=np.float32).reshape(3, -1)
    step = np.arange(3, dtype=np.int64)
    for index, events in enumerate(filled(names, step / 2, step, values)):
        assert [value.tag for event in events for value in event.summary.value] == names
        assert [value.simple_value for event in events for value in event.summary.value] == values[index].tolist()


def test_more_records_than_a_chunk_come_in_order():
    step = np.arange(30_000, dtype=np.int64)
    rows = filled(["a/b"], step / 2, step, step[:, None].astype(np.float64))
    assert [(event.step, event.summary.value[0].simple_value) for (event,) in rows] == [(n, n) for n in range(30_000)]
