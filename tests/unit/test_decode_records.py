"""Records and bodies: what is kept, what is refused, and that a refusal keeps nothing."""

import json
import struct
import tracemalloc

import msgpack
import numpy as np
import pytest

from sidestep_collector.blocks import Event, KeySet, Stream, Tensor, Text
from sidestep_collector.decode import Decoder, UnknownKeySetError
from sidestep_schemas.errors import WireError
from sidestep_schemas.wire import RECORD_PREFIX, aligned, pack_scalars_header

STREAM = Stream(b"k" * 8, b"r" * 16, "run", "project", 0, 0)
OTHER = Stream(b"o" * 8, b"r" * 16, "run", "project", 1, 0)
AB = KeySet(1, 1, "step", ("a", "b"), ())
C = KeySet(2, 0, "epoch", ("c",), ())


def record(payload: bytes) -> bytes:
    return (RECORD_PREFIX.pack(len(payload), 0) + payload).ljust(aligned(8 + len(payload)), b"\0")


def scalars(seq: int, *values: float, key_set: KeySet = AB, dtype: int | None = None) -> bytes:
    raw = np.array(values, ("<f4", "<f8")[key_set.dtype]).tobytes()
    code = key_set.dtype if dtype is None else dtype
    return record(pack_scalars_header(seq, seq * 10, seq * 2, 0.5, key_set.id, code, len(raw)) + raw)


def other(kind: int, seq: int, *fields: object) -> bytes:
    return record(msgpack.packb((kind, seq, 1, 2, 3.0, *fields)))


def schema(seq: int, key_set: KeySet = AB) -> bytes:
    return other(2, seq, key_set.id, key_set.dtype, key_set.tier, list(key_set.names), list(key_set.reductions))


@pytest.fixture
def decoder() -> Decoder:
    made = Decoder()
    made.restore(STREAM, [AB, C])
    return made


def refused(decoder: Decoder, body: bytes, count: int = 1, first_seq: int = 0) -> str:
    with pytest.raises(WireError) as caught:
        decoder.add(STREAM, body, first_seq, count)
    left = decoder.take()
    assert (left.blocks, left.items, left.key_sets, left.nbytes) == ([], [], [], 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_many_bodies_of_a_stream_become_one_block(decoder: Decoder) -> None:
    decoder.add(STREAM, scalars(0, 1, 2), 0, 1)
    decoder.add(STREAM, scalars(1, 3, 4) + scalars(2, 5, 6), 1, 2)
    (block,) = decoder.take().blocks
    assert (block.stream, block.key_set) == (STREAM, AB)
    assert block.seq.tolist() == [0, 1, 2]
    assert (block.t_ns.tolist(), block.step.tolist()) == ([0, 10, 20], [0, 2, 4])
    assert block.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    for array in (block.seq, block.t_ns, block.step, block.epoch, block.values):
        assert array.flags.c_contiguous
        assert array.dtype.isnative


def test_take_gives_each_record_once(decoder: Decoder) -> None:
    decoder.add(STREAM, scalars(0, 1, 2), 0, 1)
    assert decoder.nbytes == 72
    assert len(decoder.take().blocks) == 1
    assert decoder.nbytes == 0
    assert decoder.take().blocks == []


def test_streams_and_key_sets_are_kept_apart(decoder: Decoder) -> None:
    decoder.restore(OTHER, [AB])
    body = scalars(0, 1, 2) + scalars(1, 9, key_set=C) + scalars(2, 3, 4)
    decoder.add(STREAM, body, 0, 3)
    decoder.add(OTHER, scalars(0, 7, 8), 0, 1)
    blocks = decoder.take().blocks
    assert [(block.stream.rank, block.key_set.id, block.seq.tolist()) for block in blocks] == [
        (0, 1, [0, 2]),
        (0, 2, [1]),
        (1, 1, [0]),
    ]


def test_a_key_set_declared_in_a_body_serves_the_records_behind_it() -> None:
    decoder = Decoder()
    decoder.add(STREAM, schema(0) + scalars(1, 1, 2), 0, 2)
    decoder.add(STREAM, schema(2) + scalars(3, 3, 4), 2, 2)
    decoded = decoder.take()
    assert decoded.key_sets == [(STREAM, AB)]
    assert decoded.blocks[0].values.tolist() == [[1, 2], [3, 4]]


def test_a_key_set_without_names_has_blocks_without_columns() -> None:
    decoder = Decoder()
    nothing = KeySet(4, 1, "step", (), ())
    decoder.add(STREAM, schema(0, nothing) + scalars(1, key_set=nothing) + scalars(2, key_set=nothing), 0, 3)
    assert decoder.take().blocks[0].values.shape == (2, 0)


@pytest.mark.parametrize("skip", [0, 1, 2, 3, 4])
def test_known_records_are_skipped(decoder: Decoder, skip: int) -> None:
    equal = b"".join(scalars(seq, seq, seq) for seq in range(4))
    decoder.add(STREAM, equal, 0, 4, skip=skip)
    mixed = other(4, 4, "text", "n", "t") + scalars(5, 5, 5) + other(4, 6, "text", "n", "t") + scalars(7, 7, 7)
    decoder.add(STREAM, mixed, 4, 4, skip=skip)
    decoded = decoder.take()
    seqs = [seq for block in decoded.blocks for seq in block.seq.tolist()] + [item.at.seq for item in decoded.items]
    assert sorted(seqs) == [*range(skip, 4), *range(4 + skip, 8)]


def test_skipped_records_need_no_key_set_and_still_declare_theirs() -> None:
    decoder = Decoder()
    decoder.add(STREAM, scalars(0, 1, key_set=C) + schema(1) + scalars(2, 1, 2), 0, 3, skip=2)
    decoded = decoder.take()
    assert decoded.key_sets == [(STREAM, AB)]
    assert decoded.blocks[0].seq.tolist() == [2]


def test_a_last_record_without_padding_is_whole(decoder: Decoder) -> None:
    body = scalars(0, 1, key_set=C) + scalars(1, 2, key_set=C)
    assert len(body) == 2 * 64
    decoder.add(STREAM, body[:-4], 0, 2)
    decoder.add(STREAM, scalars(2, 3, key_set=C), 2, 1)
    assert decoder.take().blocks[0].values.tolist() == [[1], [2], [3]]


def test_an_unknown_key_set_is_told_apart(decoder: Decoder) -> None:
    decoder.forget(STREAM)
    with pytest.raises(UnknownKeySetError, match="did not declare") as caught:
        decoder.add(STREAM, schema(6, C) + scalars(7, 1, 2), 6, 2)
    assert (caught.value.key_set_id, caught.value.seq) == (1, 7)
    assert decoder.take().key_sets == []


def test_a_forgotten_stream_still_gives_what_waits(decoder: Decoder) -> None:
    decoder.add(STREAM, scalars(0, 1, 2), 0, 1)
    decoder.forget(STREAM)
    assert len(decoder.take().blocks) == 1


def test_a_damaged_record_names_its_place(decoder: Decoder) -> None:
    good = b"".join(scalars(seq, 1, 2) for seq in range(5))
    assert "record 0 of 5 (seq 10, byte 0): carries seq 0" in refused(decoder, good, 5, 10)
    bad = bytearray(good)
    bad[2 * 72 + 9] = 0
    assert "record 2 of 5 (seq 2, byte 144)" in refused(decoder, bytes(bad), 5)


@pytest.mark.parametrize("offset", [0, 8, 9, 10, 11, 12, 15, 16, 23, 48, 51, 52, 55])
@pytest.mark.parametrize("index", [0, 1])
def test_every_fixed_byte_of_scalars_is_checked(decoder: Decoder, offset: int, index: int) -> None:
    body = bytearray(scalars(0, 1, 2) + scalars(1, 1, 2))
    body[index * 72 + offset] ^= 0x55
    refused(decoder, bytes(body), 2)


@pytest.mark.parametrize(
    ("body", "count", "words"),
    [
        (b"", 1, "ends before"),
        (scalars(0, 1, 2), 2, "ends before"),
        (scalars(0, 1, 2) + scalars(1, 1, 2), 1, "behind the last"),
        (scalars(0, 1, 2)[:-1], 1, "length"),
        (bytes(72), 1, "length of 0"),
        (scalars(1, 1, 2), 1, "carries seq 1"),
        (scalars(0, 1, 2, 3), 1, "do not fit"),
        (scalars(0, 1, 2, dtype=0), 1, "dtype or size"),
        (record(b"\x92\xcc\x01\xc6\x00"), 1, "shorter"),
        (record(msgpack.packb((1, 0, 1, 2, 3.0, 1, 1, b""))), 1, "fixed layout"),
        (other(7, 0), 1, "known kind"),
        (other(4, 0, "text", "name"), 1, "known kind"),
        (other(4, 0, "text", "name", "t", 1), 1, "known kind"),
        (other(4, 5, "text", "name", "text"), 1, "carries seq 5"),
        (schema(0, KeySet(9, 1, "step", ("n" * 1025,), ())), 1, "1024"),
        (schema(0, KeySet(1, 1, "step", ("other",), ())), 1, "anew"),
        (schema(0, KeySet(9, 3, "step", ("a",), ())), 1, "dtype code 3"),
        (schema(0, KeySet(9, 1, "daily", ("a",), ())), 1, "tier 'daily'"),
        (schema(0, KeySet(9, 1, "step", ("a", "a"), ())), 1, "twice"),
        (schema(0, KeySet(9, 1, "step", ("ü" * 600,), ())), 1, "1024 bytes"),
        (schema(0, KeySet(9, 1, "step", ("a", "b"), ("mean",))), 1, "reductions"),
        (schema(0, KeySet(9, 1, "step", tuple(map(str, range(10_001))), ())), 1, "10000"),
        (other(3, 0, "t", "float32", [2, 2], bytes(15)), 1, "not 16"),
        (other(3, 0, "t", "float32", [2**40, 2**40], b""), 1, "bytes"),
        (other(3, 0, "t", "float32", [-1], b""), 1, "known kind"),
        (other(5, 0, "start", "[1]"), 1, "no JSON object"),
        (other(5, 0, "start", '{"a":' * 50_000), 1, "no JSON object"),
        (other(5, 0, "start", '{"a": [' + "[],[]," * 200_000 + "[]]}"), 1, "parts"),
        (other(6, 0, "image", "i", b"GIF89a", b""), 1, "no PNG"),
        (other(6, 0, "movie", "i", b"", b""), 1, "form 'movie'"),
        (other(6, 0, "histogram", "h", bytes(16), bytes(16)), 1, "one edge more"),
        (other(6, 0, "histogram", "h", bytes(12), bytes(4)), 1, "one edge more"),
    ],
)
def test_what_is_wrong_is_said(decoder: Decoder, body: bytes, count: int, words: str) -> None:
    assert words in refused(decoder, body, count)


def test_nothing_is_kept_of_a_body_whose_last_record_is_wrong(decoder: Decoder) -> None:
    new = KeySet(9, 1, "step", ("x",), ())
    refused(decoder, schema(0, new) + scalars(1, 1, 2) + other(4, 2, "text", "n", "t") + scalars(9, 1, 2), 4)
    with pytest.raises(UnknownKeySetError):
        decoder.add(STREAM, scalars(0, 1, key_set=new), 0, 1)


def test_announced_sizes_take_no_memory(decoder: Decoder) -> None:
    huge = [
        b"\x9a\x02\x00\x01\x02\x03\x01\x01\xa4step\xdd\xff\xff\xff\xff",
        b"\x99\x03\x00\x01\x02\x03\xa1t\xa1f\xdd\xff\xff\xff\xff",
        b"\x98\x04\x00\x01\x02\x03\xa1t\xa1t\xdb\xff\xff\xff\xff",
        b"\x99\x06\x00\x01\x02\x03\xa5image\xa1t\xc6\xff\xff\xff\xff",
    ]
    tracemalloc.start()
    try:
        for payload in huge:
            refused(decoder, record(payload))
        refused(decoder, scalars(0, 1, 2), 2**62)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_half_a_surrogate_pair_is_mended_and_not_the_loss_of_a_frame(decoder: Decoder) -> None:
    details = {"path": "run-\udcff", "emoji": "\U0001f600", "both": "\ud83d\udc00\udc01"}
    decoder.add(STREAM, other(5, 0, "checkpoint", json.dumps(details)), 0, 1)
    (event,) = decoder.take().items
    assert isinstance(event, Event)
    assert event.details == {"path": "run-\ufffd", "emoji": "\U0001f600", "both": "\U0001f400\ufffd"}


def test_an_item_may_have_a_long_name_and_a_long_text(decoder: Decoder) -> None:
    prose = "one, two: [three] " * 5_000
    body = other(4, 0, "text", "n" * 5_000, prose) + other(5, 1, "m" * 5_000, json.dumps({"text": prose * 10}))
    decoder.add(STREAM, body, 0, 2)
    text, event = decoder.take().items
    assert isinstance(text, Text)
    assert (text.name, text.text) == ("n" * 5_000, prose)
    assert isinstance(event, Event)
    assert (event.event, event.details) == ("m" * 5_000, {"text": prose * 10})


def test_items_carry_their_moment(decoder: Decoder) -> None:
    body = (
        other(3, 0, "t", "int64", [], struct.pack("<q", 7))
        + other(3, 1, "t", "a dtype of tomorrow", [5], b"abc")
        + other(4, 2, "notes", "", "Grüße")
        + other(5, 3, "end", json.dumps({"status": "finished"}))
    )
    decoder.add(STREAM, body, 0, 4)
    scalar, future, text, event = decoder.take().items
    assert isinstance(scalar, Tensor)
    assert scalar.shape == ()
    assert isinstance(future, Tensor)
    assert future.data == b"abc"
    assert isinstance(text, Text)
    assert (text.what, text.text) == ("notes", "Grüße")
    assert isinstance(event, Event)
    assert event.details == {"status": "finished"}
    assert (event.at.stream, event.at.seq, event.at.t_ns, event.at.step, event.at.epoch) == (STREAM, 3, 1, 2, 3.0)
