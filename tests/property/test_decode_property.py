"""Any records, cut into frames anywhere, read the same; any damage is refused as what it is."""

import itertools
import json
import zlib

import msgpack
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sidestep_collector.blocks import Event, Stream, Text
from sidestep_collector.decode import Decoded, Decoder, decode_frame
from sidestep_schemas.errors import VersionError, WireError
from sidestep_schemas.wire import RECORD_PREFIX, aligned, pack_scalars_header

STREAM = Stream(b"k" * 8, b"r" * 16, "run", "project", 0, 0)
#: names and dtype of the key sets 0, 1, 2
KEY_SETS = ((("a",), 0), (("a", "b", "c"), 1), (tuple(f"m{index}" for index in range(7)), 0))

integers64 = st.integers(-(2**63), 2**63 - 1)
scalars = st.tuples(
    st.just("scalars"),
    st.integers(0, 2),
    integers64,
    integers64,
    st.floats(),
    st.lists(st.floats(width=32), min_size=7, max_size=7),
)
texts = st.tuples(st.just("text"), st.text(max_size=30), integers64)
events = st.tuples(st.just("event"), st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=3), integers64)
# long runs of equal records are what the bulk path reads, mixtures what the walk reads
sequences = st.lists(
    st.one_of(scalars, scalars, scalars, texts, events).flatmap(
        lambda one: st.integers(1, 6).map(lambda times: [one] * times)
    ),
    max_size=12,
).map(lambda runs: [one for run in runs for one in run])


def record(payload: bytes) -> bytes:
    return (RECORD_PREFIX.pack(len(payload), 0) + payload).ljust(aligned(8 + len(payload)), b"\0")


def encode(index: int, what: tuple) -> bytes:
    if what[0] == "scalars":
        _, key_set, t_ns, step, epoch, values = what
        names, dtype = KEY_SETS[key_set]
        raw = np.array(values[: len(names)], ("<f4", "<f8")[dtype]).tobytes()
        return record(pack_scalars_header(index, t_ns, step, epoch, key_set, dtype, len(raw)) + raw)
    if what[0] == "text":
        return record(msgpack.packb((4, index, what[2], 0, 0.5, "text", "name", what[1])))
    details = msgpack.packb((5, index, what[2], 0, 0.5, "mark", json.dumps(what[1])))
    return record(details)


def declarations() -> list[bytes]:
    return [
        record(msgpack.packb((2, index, 0, 0, 0.0, index, dtype, "step", names, ())))
        for index, (names, dtype) in enumerate(KEY_SETS)
    ]


def frames_of(records: list[bytes], cuts: set[int]) -> list[bytes]:
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(records)), len(records)]
    found = []
    for start, stop in itertools.pairwise(edges):
        body = b"".join(records[start:stop])
        envelope = (1, 0, STREAM.run_uid, 0, 0, STREAM.key)
        found.append(msgpack.packb((*envelope, start, stop - start, body, zlib.crc32(body))))
    return found


def decode(frames: list[bytes]) -> Decoded:
    decoder = Decoder()
    for data in frames:
        frame = decode_frame(data)
        decoder.add(STREAM, frame.body, frame.first_seq, frame.count)
    return decoder.take()


@settings(deadline=None)
@given(sequences, st.sets(st.integers(1, 80)))
def test_records_read_as_written_however_they_are_cut(what: list[tuple], cuts: set[int]) -> None:
    records = declarations() + [encode(index, one) for index, one in enumerate(what, len(KEY_SETS))]
    found = decode(frames_of(records, cuts))
    assert len(found.key_sets) == len(KEY_SETS)
    assert found.nbytes == sum(map(len, records))

    expected: dict[int, list] = {}
    items = []
    for seq, one in enumerate(what, len(KEY_SETS)):
        if one[0] == "scalars":
            expected.setdefault(one[1], []).append((seq, *one[2:]))
        else:
            items.append((seq, one[1]))
    assert {block.key_set.id for block in found.blocks} == set(expected)
    for block in found.blocks:
        rows = expected[block.key_set.id]
        names, dtype = KEY_SETS[block.key_set.id]
        assert block.key_set.names == names
        assert block.values.dtype == ("float32", "float64")[dtype]
        assert (block.seq.tolist(), block.t_ns.tolist(), block.step.tolist()) == tuple(
            [row[column] for row in rows] for column in range(3)
        )
        np.testing.assert_array_equal(block.epoch, [row[3] for row in rows])
        np.testing.assert_array_equal(block.values, np.array([row[4][: len(names)] for row in rows]))
    assert [
        (item.at.seq, item.text if isinstance(item, Text) else dict(item.details))
        for item in found.items
        if isinstance(item, (Text, Event))
    ] == items


@settings(deadline=None, max_examples=300)
@given(sequences, st.data())
def test_damage_is_refused_and_never_anything_else(what: list[tuple], data: st.DataObject) -> None:
    records = declarations() + [encode(index, one) for index, one in enumerate(what, len(KEY_SETS))]
    body = bytearray(b"".join(records))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(body), data.draw(st.integers(0, len(body)))]))
    decoder = Decoder()
    try:
        decoder.add(STREAM, bytes(body[:cut]), 0, len(records))
    except WireError:
        left = decoder.take()
        assert (left.blocks, left.items, left.key_sets) == ([], [], [])
    else:  # a value that is another one by now; the checksum of a frame would have told
        taken = decoder.take()
        seqs = [seq for block in taken.blocks for seq in block.seq.tolist()] + [item.at.seq for item in taken.items]
        assert len(set(seqs)) == len(seqs) <= len(records)
        assert set(seqs) <= set(range(len(records)))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_message_is_refused_and_never_anything_else(data: st.DataObject) -> None:
    (message,) = frames_of(declarations(), set())
    damaged = bytearray(message)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    try:
        found = decode([bytes(damaged)])
    except (WireError, VersionError):
        return
    assert [(key_set.names, key_set.dtype) for _, key_set in found.key_sets] == list(KEY_SETS)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_no_frame_and_no_body(data: bytes) -> None:
    for attempt in (lambda: decode_frame(data), lambda: Decoder().add(STREAM, data, 0, 1)):
        try:
            attempt()
        except (WireError, VersionError):
            continue
        raise AssertionError("random bytes were taken")
