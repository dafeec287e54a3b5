"""From what a script hands in to plain values."""

import argparse
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sidestep import snapshot


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"a": 1, 2: (3, 4)}, {"a": 1, "2": [3, 4]}),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (np.float32(0.5), 0.5),
        (np.float64(math.nan), "nan"),
        (np.int64(3), 3),
        (torch.tensor(3), 3),
        (np.bool_(True), True),
        (Path("/x"), "/x"),
        (argparse.Namespace(lr=0.1, deep=argparse.Namespace(n=1)), {"lr": 0.1, "deep": {"n": 1}}),
        (frozenset({1}), [1]),
        (None, None),
        (b"x", "b'x'"),
    ],
)
def test_anything_becomes_what_strict_json_holds(given, kept):
    assert snapshot.jsonable(given) == kept
    json.dumps(snapshot.jsonable(given), allow_nan=False)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (7, 5, 3), (7, 5, 4), (3, 7, 5)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "bool", "int64"])
def test_a_png_holds_the_same_pixels(shape, dtype):
    given = (np.random.default_rng(1).random(shape) * (255 if dtype in {"uint8", "int64"} else 1)).astype(dtype)
    decoded = np.asarray(Image.open(io.BytesIO(snapshot.png(given))))
    scale = {"float32": 255.0, "bool": 255}.get(dtype, 1)
    expected = (given * scale + (0.5 if dtype == "float32" else 0)).astype(np.uint8)
    assert np.array_equal(decoded, np.moveaxis(expected, 0, -1) if shape == (3, 7, 5) else expected)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_a_tensor_keeps_its_bytes(dtype):
    given = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    raw = snapshot.raw_tensor(given)
    assert (raw.dtype, raw.shape) == (str(dtype).removeprefix("torch."), (2, 2))
    assert torch.equal(torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(2, 2), given)


def test_a_tensor_of_no_dimension_has_one_element():
    assert snapshot.raw_tensor(np.float32(1.5))[1:] == ((), b"\0\0\xc0\x3f")
    assert snapshot.raw_tensor(torch.tensor(1.5))[1:] == ((), b"\0\0\xc0\x3f")


def test_only_what_is_on_a_device_would_wait_for_it():
    assert not snapshot.is_on_device(torch.ones(1))
    assert not snapshot.is_on_device(np.ones(1))
    assert snapshot.is_on_device(torch.ones(1, device="meta"))


def test_counts_need_one_edge_more():
    with pytest.raises(ValueError, match="3 counts need 4 edges, not 3"):
        snapshot.counted_histogram([1, 2, 3], [0, 1, 2])
