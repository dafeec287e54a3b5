"""What a script logs besides numbers: images, histograms, tensors, texts and marks."""

import io
import math
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import begin, events, records, scalars

from sidestep.errors import SidestepWarning

__all__ = ["begin"]


def pixels(run):
    (record,) = records(run, "figure")
    assert record.fields[:2] == ("image", "x")
    return np.asarray(Image.open(io.BytesIO(record.fields[2])))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_an_image_of_bytes_is_the_same_pixels(begin, shape):
    run = begin()
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    run.image("x", given)
    assert np.array_equal(pixels(run), given.reshape(given.shape[:2]) if shape[2:] in ((), (1,)) else given)


def test_an_image_of_floats_goes_from_black_to_white(begin):
    run = begin()
    run.image("x", np.array([[0.0, 0.5, 1.0, 2.0, -1.0, np.nan]]))
    assert pixels(run).tolist() == [[0, 128, 255, 255, 0, 0]]


def test_an_image_of_torch_has_its_channels_first(begin):
    run = begin()
    given = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    run.image("x", given)
    assert np.array_equal(pixels(run), given.permute(1, 2, 0).numpy())


def test_an_image_of_pillow_or_png_is_kept(begin):
    run = begin()
    image = Image.fromarray(np.eye(6, dtype=np.uint8) * 200)
    run.image("x", image)
    assert np.array_equal(pixels(run), np.asarray(image))


@pytest.mark.parametrize(
    "image",
    [np.zeros(4), np.zeros((2, 3, 5)), np.zeros((0, 4)), b"GIF89a", "x.png", np.zeros((1, 2, 3, 4)), None],
    ids=repr,
)
def test_what_is_no_image_is_counted(begin, image):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.image("x", image)
    assert records(run) == []


def test_a_histogram_counts_finite_values(begin):
    run = begin()
    run.histogram("h", [0.0, 1.0, 1.0, math.nan, math.inf], bins=2, step=7)
    run.histogram("c", counts=[1, 2], edges=[0, 1, 2], split="val")
    first, second = records(run, "figure")
    assert (first.step, first.fields[:2]) == (7, ("histogram", "h"))
    assert struct.unpack("<3d", first.fields[2]) == (0.0, 0.5, 1.0)
    assert struct.unpack("<2d", first.fields[3]) == (1.0, 2.0)
    assert second.fields[1] == "val/c"


@pytest.mark.parametrize(
    "given", [{}, {"values": [1], "counts": [1]}, {"counts": [1], "edges": [1]}, {"values": ["x"]}]
)
def test_a_histogram_that_cannot_be_meant_is_counted(begin, given):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.histogram("h", **given)
    assert records(run) == []


def test_tensors_of_all_types_are_kept_with_their_bytes(begin):
    run = begin()
    run.tensor("b", torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    run.tensor("n", np.array([[1, 2]], dtype=">i4"), step=4, split="train")
    run.tensor("e", torch.empty(0, 3))
    run.tensor("l", [[1.5, 2.5]])
    run.tensor("t", torch.arange(6).reshape(2, 3).T)
    first, second, empty, nested, turned = (record.fields for record in records(run, "tensor"))
    assert first == ("b", "bfloat16", [2], b"\x80\x3f\x00\xc0")
    assert second == ("train/n", "int32", [1, 2], struct.pack("<2i", 1, 2)) or second[3] == struct.pack("<2i", 1, 2)
    assert empty == ("e", "float32", [0, 3], b"")
    assert nested == ("l", "float64", [1, 2], struct.pack("<2d", 1.5, 2.5))
    assert turned == ("t", "int64", [3, 2], struct.pack("<6q", 0, 3, 1, 4, 2, 5))


@pytest.mark.parametrize(
    "value", [[[1], [1, 2]], ["a"], None, pytest.param(object(), id="object"), np.array([None])], ids=repr
)
def test_what_is_no_tensor_is_counted(begin, value):
    run = begin()
    with pytest.warns(SidestepWarning):
        run.tensor("t", value)
    assert records(run) == []


def test_a_tensor_beyond_a_record_is_refused_and_the_rest_goes_on(begin):
    run = begin()
    with pytest.warns(SidestepWarning, match="do not fit a record"):
        run.tensor("t", np.zeros(3 << 20))
    run.log({"a": 1.0})
    assert scalars(run) == [(0, {"train/a": 1.0})]


def test_texts_and_marks_are_recorded(begin):
    run = begin()
    run.text("note", "hello", step=3)
    run.mark("checkpoint", path="/x", size_mb=1.5, bad=math.nan, step=4)
    (text,) = records(run, "text")
    assert (text.step, text.fields) == (3, ("text", "note", "hello"))
    assert events(run) == [("checkpoint", {"path": "/x", "size_mb": 1.5, "bad": "nan"})]
