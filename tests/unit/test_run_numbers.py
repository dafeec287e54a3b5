"""Numbers that a script logs: of any kind, under any name, and what becomes of those that are none."""

import math
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from support.runs import begin, records, scalars

from sidestep.errors import SidestepWarning, UsageError

__all__ = ["begin"]


@pytest.mark.parametrize(
    "value",
    [
        0.5,
        1,
        True,
        np.float64(0.5),
        np.float32(0.5),
        np.float16(0.5),
        np.int8(3),
        np.uint64(3),
        np.bool_(True),
        np.array(0.5),
        np.array([0.5]),
        torch.tensor(0.5),
        torch.tensor([[2]]),
        torch.tensor(0.5, dtype=torch.bfloat16),
        torch.tensor(0.5, requires_grad=True),
        Fraction(1, 2),
    ],
    ids=lambda value: f"{type(value).__name__} {value!r}",
)
def test_a_number_of_any_kind_is_recorded_alone_and_beside_a_float(begin, value):
    run = begin()
    run.log({"a": value})
    run.log({"a": value, "b": 2.0})
    number = float(value.item() if hasattr(value, "item") else value)
    assert scalars(run) == [(0, {"train/a": number}), (1, {"train/a": number, "train/b": 2.0})]
    assert run.stats["refused"] == {}


def test_numbers_that_are_not_finite_are_kept(begin):
    run = begin()
    run.log({"a": math.nan, "b": math.inf, "c": -math.inf})
    ((_, values),) = scalars(run)
    assert math.isnan(values["train/a"])
    assert (values["train/b"], values["train/c"]) == (math.inf, -math.inf)


def test_names_without_a_split_get_one_and_others_stay(begin):
    run = begin()
    run.log({"loss": 1.0, "val/loss": 2.0})
    run.log({"loss": 3.0}, split="val")
    run.log({"loss": 4.0}, split=None)
    assert scalars(run) == [(0, {"train/loss": 1.0, "val/loss": 2.0}), (1, {"val/loss": 3.0}), (2, {"loss": 4.0})]


def test_a_key_set_is_declared_once(begin):
    run = begin()
    for _ in range(5):
        run.log({"a": 1.0, "b": 2.0})
    run.log({"b": 1.0, "a": 2.0})
    assert len(records(run, "schema")) == 2


def test_a_small_array_is_kept_as_a_tensor_beside_the_numbers(begin):
    run = begin()
    run.log({"loss": 1.0, "w": np.arange(4, dtype=np.int16).reshape(2, 2), "v": torch.ones(3)})
    assert scalars(run) == [(0, {"train/loss": 1.0})]
    first, second = records(run, "tensor")
    assert first.fields == ("train/w", "int16", [2, 2], struct.pack("<4h", 0, 1, 2, 3))
    assert second.fields[:3] == ("train/v", "float32", [3])


@pytest.mark.parametrize(
    "value", ["text", None, [1.0], {}, 1j, pytest.param(object(), id="object"), 10**400, b"1", np.array("x")], ids=repr
)
def test_a_value_that_is_no_number_is_counted_said_once_and_left_out(begin, value):
    run = begin()
    with pytest.warns(SidestepWarning, match="'bad' is no number and is left out") as said:
        for _ in range(3):
            run.log({"a": 1.0, "bad": value, "b": 2.0})
    assert [values for _, values in scalars(run)] == [{"train/a": 1.0, "train/b": 2.0}] * 3
    assert len(said) == 1
    assert said[0].filename == __file__
    assert run.stats["refused"] == {"value": 3}


@pytest.mark.parametrize("name", [1, "", None, "n" * 1025, ("a",)], ids=lambda name: repr(name)[:10])
def test_a_name_that_is_none_is_counted_said_once_and_left_out(begin, name):
    run = begin()
    with pytest.warns(SidestepWarning, match="is no name") as said:
        for _ in range(2):
            run.log({name: np.float32(1), "a": 2.0})
    assert [values for _, values in scalars(run)] == [{"train/a": 2.0}] * 2
    assert run.stats["refused"]["name"] == 2
    assert sum("is no name" in str(warning.message) for warning in said) == 1


@pytest.mark.parametrize("mapping", [[1, 2], "text", None, 7, {1.0}], ids=repr)
def test_what_is_no_mapping_is_counted(begin, mapping):
    run = begin()
    with pytest.warns(SidestepWarning, match="takes a mapping"):
        run.log(mapping)
    assert scalars(run) == []


def test_two_names_of_one_tag_record_nothing_and_say_which(begin):
    run = begin()
    with pytest.warns(SidestepWarning, match="the same tag 'train/a'"):
        run.log({"a": 1.0, "train/a": 2.0})
    assert scalars(run) == []


def test_an_empty_mapping_records_nothing_but_the_key_set_it_is(begin):
    run = begin()
    run.log({})
    assert scalars(run) == []
    assert run.stats["refused"] == {}


def test_a_name_that_is_no_utf8_is_mended(begin):
    run = begin()
    run.log({"a\udcff": 1.0})
    assert scalars(run) == [(0, {"train/a?": 1.0})]


def test_strict_runs_raise(begin, monkeypatch):
    monkeypatch.setenv("SIDESTEP_STRICT", "1")
    run = begin()
    with pytest.raises(UsageError, match="is no number"):
        run.log({"a": "text"})
    with pytest.raises(ValueError, match="inhomogeneous"):
        run.tensor("t", [[1], [1, 2]])


def test_a_filter_that_makes_errors_of_warnings_raises_nothing_into_the_loop(begin, caplog):
    run = begin()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.log({"a": "text"})
    assert "'a' is no number" in caplog.text
    assert "test_run_numbers.py" in caplog.text
