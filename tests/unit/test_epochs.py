"""What `Run.epoch` gives."""

import pytest

from sidestep.epochs import EpochMark


@pytest.fixture
def said():
    return []


@pytest.fixture
def mark(said):
    return lambda epochs: EpochMark(
        epochs, lambda epoch: said.append(("begin", epoch)), lambda epoch: said.append(("end", epoch))
    )


def test_a_number_begins_at_once_and_ends_with_its_context(mark, said):
    given = mark(3)
    assert said == [("begin", 3)]
    with given:
        assert len(said) == 1
    assert said == [("begin", 3), ("end", 3)]


def test_an_iterable_begins_nothing_before_it_is_gone_through(mark, said):
    given = mark(iter([1, 2]))
    assert said == []
    assert list(given) == [1, 2]
    assert said == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


def test_leaving_a_loop_early_leaves_its_epoch_to_whoever_ends_it(mark, said):
    for _ in mark(range(5)):
        break
    assert said == [("begin", 0)]
