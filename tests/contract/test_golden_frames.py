"""Golden frames of wire version 1: bytes that every later version must write and read as they are.

`python tests/contract/test_golden_frames.py` writes the files of a new version; those of a released one never change.
"""

import math
import struct
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest

from sidestep_collector.blocks import Event, Histogram, Image, KeySet, Stream, Tensor, Text
from sidestep_collector.decode import Decoder, decode_frame
from sidestep_schemas.errors import WireError
from sidestep_schemas.wire import (
    DTYPE_FLOAT32,
    DTYPE_FLOAT64,
    FRAME_ALIVE,
    FRAME_GAP,
    FRAME_RECORDS,
    NO_EPOCH,
    NO_STEP,
    RECORD_PREFIX,
    aligned,
    pack_scalars_header,
)

GOLDEN = Path(__file__).parent / "golden"
RUN = bytes(range(16))
STREAM = bytes(range(100, 108))
T0 = 1_700_000_000_000_000_000
PNG = b"\x89PNG\r\n\x1a\n" + b"not decoded here"


def sealed(payload: bytes) -> bytes:
    prefix = RECORD_PREFIX.pack(len(payload), zlib.crc32(payload))
    return (prefix + payload).ljust(aligned(len(prefix) + len(payload)), b"\0")


def scalars(seq: int, step: int, epoch: float, schema: int, dtype: int, *values: float) -> bytes:
    raw = struct.pack(f"<{len(values)}{'fd'[dtype]}", *values)
    return sealed(pack_scalars_header(seq, T0 + seq, step, epoch, schema, dtype, len(raw)) + raw)


def other(kind: int, seq: int, *fields: object) -> bytes:
    return sealed(msgpack.packb((kind, seq, T0 + seq, 7, 1.5, *fields)))


def frame(kind: int, first_seq: int, count: int, body: bytes) -> bytes:
    return msgpack.packb((1, kind, RUN, 3, 2, STREAM, first_seq, count, body, zlib.crc32(body)))


def golden_frames() -> dict[str, bytes]:
    schema64 = other(2, 0, 1, DTYPE_FLOAT64, "step", ["train/loss", "größe", "lr"], [])
    schema32 = other(2, 1, 2**31 + 5, DTYPE_FLOAT32, "periodic", ["a", "b"], ["mean", "l2"])
    rows64 = (
        scalars(2, 0, 0.0, 1, DTYPE_FLOAT64, 0.5, math.nan, math.inf),
        scalars(3, NO_STEP, NO_EPOCH, 1, DTYPE_FLOAT64, 1e308, -0.0, 2**53 + 0.0),
        scalars(4, 2**40, 12.75, 1, DTYPE_FLOAT64, -1.0, 1e-320, -math.inf),
    )
    row32 = scalars(5, 9, 1.25, 2**31 + 5, DTYPE_FLOAT32, 0.1, math.nan)
    items = (
        other(3, 6, "weights", "bfloat16", [2, 3], bytes(range(12))),
        other(4, 7, "config", "config", '{"lr": 0.1}'),
        other(5, 8, "epoch_end", '{"epoch": 1, "deep": {"list": [1, null, "ü"]}}'),
        other(6, 9, "image", "picture", PNG, b""),
        other(6, 10, "histogram", "gradients", struct.pack("<3d", 0.0, 1.0, 2.0), struct.pack("<2d", 5.0, 7.0)),
    )
    return {
        "v1_schema.bin": frame(FRAME_RECORDS, 0, 2, schema64 + schema32),
        "v1_scalars_float64.bin": frame(FRAME_RECORDS, 2, 3, b"".join(rows64)),
        "v1_scalars_float32.bin": frame(FRAME_RECORDS, 5, 1, row32),
        "v1_items.bin": frame(FRAME_RECORDS, 6, 5, b"".join(items)),
        "v1_mixed.bin": frame(FRAME_RECORDS, 0, 11, b"".join((schema64, schema32, *rows64, row32, *items))),
        "v1_alive.bin": frame(FRAME_ALIVE, 11, 0, b""),
        "v1_gap.bin": frame(FRAME_GAP, 11, 40, "disk full: größe".encode()),
    }


def decoded(*names: str):
    stream = Stream(STREAM, RUN, "run", "project", 3, 0)
    decoder = Decoder()
    for name in names:
        opened = decode_frame((GOLDEN / name).read_bytes())
        decoder.add(stream, opened.body, opened.first_seq, opened.count)
    return decoder.take()


@pytest.mark.parametrize("name", golden_frames())
def test_todays_encoder_writes_the_golden_bytes(name: str) -> None:
    assert golden_frames()[name] == (GOLDEN / name).read_bytes()


def test_every_golden_file_is_known() -> None:
    assert {path.name for path in GOLDEN.glob("v1_*.bin")} == set(golden_frames())


def test_the_envelope_says_who_sent_it() -> None:
    opened = decode_frame((GOLDEN / "v1_mixed.bin").read_bytes())
    assert (opened.version, opened.kind, opened.run, opened.rank, opened.attempt) == (1, FRAME_RECORDS, RUN, 3, 2)
    assert (opened.stream, opened.first_seq, opened.count) == (STREAM, 0, 11)


def test_a_gap_carries_its_reason() -> None:
    opened = decode_frame((GOLDEN / "v1_gap.bin").read_bytes())
    assert (opened.kind, opened.first_seq, opened.count) == (FRAME_GAP, 11, 40)
    assert bytes(opened.body).decode() == "disk full: größe"


def test_a_sign_of_life_has_no_records_and_nothing_else_has_none() -> None:
    opened = decode_frame((GOLDEN / "v1_alive.bin").read_bytes())
    assert (opened.kind, opened.stream, opened.first_seq, opened.count) == (FRAME_ALIVE, STREAM, 11, 0)
    for kind, count in ((FRAME_RECORDS, 0), (FRAME_GAP, 0), (FRAME_ALIVE, 1)):
        with pytest.raises(WireError, match=f"kind {kind} with {count} records"):
            decode_frame(frame(kind, 0, count, b""))


@pytest.mark.parametrize(
    "names",
    [("v1_mixed.bin",), ("v1_schema.bin", "v1_scalars_float64.bin", "v1_scalars_float32.bin", "v1_items.bin")],
    ids=["in one frame", "in four frames"],
)
def test_the_golden_records_read_as_what_was_written(names: tuple[str, ...]) -> None:
    found = decoded(*names)
    double = KeySet(1, DTYPE_FLOAT64, "step", ("train/loss", "größe", "lr"), ())
    single = KeySet(2**31 + 5, DTYPE_FLOAT32, "periodic", ("a", "b"), ("mean", "l2"))
    assert [key_set for _, key_set in found.key_sets] == [double, single]

    doubles, singles = found.blocks
    assert (doubles.key_set, singles.key_set) == (double, single)
    assert doubles.seq.tolist() == [2, 3, 4]
    assert doubles.t_ns.tolist() == [T0 + 2, T0 + 3, T0 + 4]
    assert doubles.step.tolist() == [0, NO_STEP, 2**40]
    np.testing.assert_array_equal(doubles.epoch, [0.0, math.nan, 12.75])
    np.testing.assert_array_equal(
        doubles.values, [[0.5, math.nan, math.inf], [1e308, -0.0, 2.0**53], [-1.0, 1e-320, -math.inf]]
    )
    assert np.signbit(doubles.values[1, 1])
    assert (singles.values.dtype, doubles.values.dtype) == (np.dtype("float32"), np.dtype("float64"))
    np.testing.assert_array_equal(singles.values, np.array([[0.1, math.nan]], np.float32))

    tensor, text, event, image, histogram = found.items
    assert isinstance(tensor, Tensor)
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.data) == ("weights", "bfloat16", (2, 3), bytes(range(12)))
    assert isinstance(text, Text)
    assert (text.what, text.name, text.text) == ("config", "config", '{"lr": 0.1}')
    assert isinstance(event, Event)
    assert (event.event, event.details) == ("epoch_end", {"epoch": 1, "deep": {"list": [1, None, "ü"]}})
    assert isinstance(image, Image)
    assert image.png == PNG
    assert isinstance(histogram, Histogram)
    assert (histogram.edges.tolist(), histogram.counts.tolist()) == ([0.0, 1.0, 2.0], [5.0, 7.0])
    assert [(item.at.seq, item.at.t_ns, item.at.step, item.at.epoch) for item in found.items] == [
        (seq, T0 + seq, 7, 1.5) for seq in range(6, 11)
    ]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, data in golden_frames().items():
        (GOLDEN / name).write_bytes(data)
