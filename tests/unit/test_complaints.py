"""Complaints: counted always, said once, raised when strict."""

import types
from pathlib import Path

import pytest

from sidestep import complaints as module
from sidestep.complaints import Complaints, call_site
from sidestep.errors import SidestepWarning, UsageError


def test_each_cause_is_said_once_where_it_came_from_and_always_counted():
    complaints = Complaints(strict=False)
    with pytest.warns(SidestepWarning) as said:
        for subject in ("a", "b", "a"):
            complaints.add("value", subject, f"{subject} is wrong")
        complaints.add("name", "a", "a is wrong too")
    assert complaints.counts == {"value": 3, "name": 1}
    assert len(said) == 3
    assert str(said[0].message).startswith("sidestep: a is wrong (" + __file__)
    assert "it is counted, and said only once" in str(said[0].message)


def test_causes_without_end_are_not_remembered_without_end(monkeypatch):
    monkeypatch.setattr(module, "_SAID_MAX", 2)
    complaints = Complaints(strict=False)
    with pytest.warns(SidestepWarning) as said:
        for number in range(5):
            complaints.add("value", str(number), "wrong")
    assert (len(said), complaints.counts) == (2, {"value": 5})


def test_strict_complaints_raise_and_count():
    complaints = Complaints(strict=True)
    with pytest.raises(UsageError, match="wrong"):
        complaints.add("value", "a", "wrong")
    assert complaints.counts == {"value": 1}


def test_a_caller_whose_folder_begins_like_ours_is_a_caller():
    theirs = types.ModuleType("theirs")
    file = str(Path(module.__file__).parent) + "_of_mine/train.py"
    exec(compile("def call(f):\n    return f()", file, "exec"), theirs.__dict__)
    assert theirs.call(call_site) == (file, 2)
