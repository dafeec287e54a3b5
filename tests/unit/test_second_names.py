"""Second names: what a profile calls otherwise is there under both tags, once, and combined over ranks alike."""

import numpy as np
import pytest

from sidestep_collector.blocks import KeySet, ScalarBlock, Stream
from sidestep_collector.profiles import Choices, SecondNames, check

STREAM = Stream(b"stream 0", b"r" * 16, "run", "project", 0, 0)
OTHER = Stream(b"stream 1", b"q" * 16, "other", "project", 0, 0)
PROFILE = """name: mine
title: Mine
meaning: What I train.
metrics:
  mine/rate:
    name: rate
    unit: 1/s
    tier: step
    meaning: The learning rate.
    source: training process
    same_as: train/lr
  mine/norm:
    name: norm
    unit: "1"
    tier: step
    meaning: The norm.
    source: training process
    same_as: train/gradients/global_norm
"""


def key_set(*names, number=0, reductions=()):
    return KeySet(number, 1, "step", names, reductions)


def block(keys, stream=STREAM):
    rows = np.arange(3)
    values = np.arange(3 * len(keys.names), dtype=np.float64).reshape(3, -1)
    return ScalarBlock(stream, keys, rows, rows, rows, np.zeros(3), values)


@pytest.fixture
def second_names():
    choices = Choices()
    choices.note("run", {"profile": "mine", "profile_text": PROFILE})
    return SecondNames(choices)


def test_values_are_given_again_under_the_second_name(second_names):
    keys = key_set("train/wd", "train/lr", "train/gradients/global_norm")
    [again] = second_names.of([block(keys)])
    assert again.key_set.names == ("mine/rate", "mine/norm")
    assert again.key_set.derived
    assert again.values.tolist() == [[1.0, 2.0], [4.0, 5.0], [7.0, 8.0]]
    assert second_names.declared([again])["mine/rate"].unit == "1/s"


def test_ranks_become_one_as_under_the_first_name(second_names):
    sharded = key_set("train/lr", "train/gradients/global_norm", reductions=("", "l2"))
    [again] = second_names.of([block(sharded)])
    assert again.key_set.reductions == ("mean", "l2")


def test_a_tag_that_the_run_logs_itself_is_no_second_name_from_then_on(second_names):
    keys, own = key_set("train/lr"), key_set("mine/rate", number=1)
    second_names.declare(STREAM, [keys])
    assert len(second_names.of([block(keys)])) == 1
    second_names.declare(STREAM, [own])
    assert second_names.of([block(keys), block(own)]) == []


def test_a_run_without_the_profile_has_none(second_names):
    keys = key_set("train/lr")
    second_names.declare(OTHER, [keys])
    assert second_names.of([block(keys, OTHER)]) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("same_as: train/nothing", "nobody declares a metric 'train/nothing'"),
        ("same_as: train/gradients/<block>", "same_as stands between two tags without placeholders"),
        ("same_as: train/gradients/global_norm", "same_as names 'train/gradients/global_norm' twice"),
    ],
)
def test_a_second_name_that_cannot_be_meant_is_an_error(given, said):
    problems = check(PROFILE.replace("same_as: train/lr", given), "mine.yaml")[1]
    assert any(said in problem.what for problem in problems)
