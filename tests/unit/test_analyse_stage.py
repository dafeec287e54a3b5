"""The stage: who is asked, what is given for whom, what is remembered, and what a failure costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.analysed import STREAM, Points, Recorded, analysed, points, tails, values

from sidestep_collector.analyse import Analysis, load
from sidestep_collector.analyse.protocol import Analyser, Given, Span, Values
from sidestep_collector.analyse.registry import BUILT_IN
from sidestep_collector.analyse.stage import FIRST_KEY_SET
from sidestep_collector.analyse.windows import Window
from sidestep_collector.blocks import Event, Histogram, Moment, Stream, Text
from sidestep_collector.telemetry import Counters
from sidestep_schemas import catalog
from sidestep_schemas.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "analysers.md"
OTHER = Stream(b"stream 1", b"s" * 16, "another run", "project", 0, 0)


class Running(Analyser):
    """The sum of the last three values, at each."""

    reads = ("a",)
    gives = ("a_sum",)
    memory = 2

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def add(self, span: Span) -> Iterator[Given]:
        self.spans.append(span)
        series = span.series["a"]
        rows = np.arange(series.fresh, len(series.seq))
        sums = np.array([series.values[max(0, row - 2) : row + 1].sum() for row in rows])
        yield Values.along(series, rows, {"a_sum": sums})


class Broken(Analyser):
    reads = ("a",)
    gives = ("nothing",)

    def __init__(self) -> None:
        self.calls = 0

    def add(self, span: Span) -> Iterator[Given]:
        self.calls += 1
        raise ZeroDivisionError("on purpose")
        yield


class Ends(Analyser):
    reads = ("a",)
    gives = ("end",)
    when = "epochs"

    def add(self, span: Span) -> Iterator[Given]:
        for end in span.ended:
            yield Values.at(end.at, {"end": float(end.epoch)})


def counted(count: int, stream: Stream = STREAM) -> Recorded:
    recorded = Recorded(stream)
    for step in range(count):
        recorded.log({"other": 0.0, "a": float(step)}, step=step)
    return recorded


def test_what_is_given_stands_at_its_record_in_a_key_set_of_the_stage() -> None:
    analysis = Analysis([Running()], Counters())
    analysis.add(*counted(4).decoded(0, 4))
    [block], items = analysis.take()
    assert not items
    assert block.key_set.derived
    assert block.key_set.id >= FIRST_KEY_SET
    assert (block.stream, block.key_set.names) == (STREAM, ("a_sum",))
    assert block.seq.tolist() == block.step.tolist() == [0, 1, 2, 3]
    assert block.values[:, 0].tolist() == [0, 1, 3, 6]
    assert analysis.take() == ([], [])


def test_an_analyser_is_handed_as_many_past_values_as_it_asked_for_and_the_new_ones() -> None:
    running = Running()
    analysed(counted(500), [running], cuts=range(7, 500, 7))
    last = running.spans[-1].series["a"]
    assert (last.fresh, last.first) == (2, 497 - 2)
    assert last.values.tolist() == list(range(495, 500))
    assert [span.series["a"].fresh for span in running.spans[:3]] == [0, 2, 2]


def test_a_run_without_a_tag_that_is_read_costs_no_call() -> None:
    running = Running()
    recorded = Recorded()
    for step in range(10):
        recorded.log({"train/loss": 1.0}, step=step)
    assert analysed(recorded, [running]) == ({}, [])
    assert running.spans == []


def test_a_pattern_reads_families_and_not_what_the_catalogue_declares_in_full() -> None:
    class Norms(Running):
        reads = ("train/gradients/<block>", "x*")

        def add(self, span: Span) -> Iterator[Given]:
            self.spans.append(span)
            yield from ()

    norms = Norms()
    recorded = Recorded()
    recorded.log(
        {"train/gradients/stem": 1.0, "train/gradients/global_norm": 2.0, "x/y/z": 3.0, "train/gradients/a/b": 1.0}
    )
    analysed(recorded, [norms])
    assert list(norms.spans[0].series) == ["train/gradients/stem", "x/y/z"]


@pytest.mark.parametrize(("said", "is_derived"), [("", True), ("mean", True), ("l2", False), ("rms:w", False)])
def test_nothing_is_derived_from_what_a_rank_says_of_its_part_of_a_sharded_model(said: str, is_derived: bool) -> None:
    recorded = Recorded()
    for step in range(4):
        norms = {f"train/gradients/{block}": 10.0**number for number, block in enumerate("abc")}
        recorded.log({**norms, "train/loss_nats": 1.0}, step=step, epoch=0.0, reductions=(said, said, said, ""))
    recorded.event("epoch_end", epoch=0)
    found, _ = analysed(recorded, load())
    assert ("train/flow/slope" in found) == is_derived
    assert "train/loss_bits" in found  # of the same record; each rank's own loss is whole
    restarted = after_restart(recorded, 2)
    assert ("train/flow/slope" in restarted) == is_derived


def test_a_tag_in_several_key_sets_is_one_series() -> None:
    recorded = Recorded()
    for step in range(40):
        recorded.log({"a": float(step)} if step % 3 else {"b": 0.0, "a": float(step)}, step=step)
    found, _ = analysed(recorded, [Running()], cuts=[5, 6, 20])
    assert values(found, "a_sum") == [sum(range(max(0, step - 2), step + 1)) for step in range(40)]


def test_what_a_stream_logs_itself_is_given_only_until_then() -> None:
    recorded = counted(5)
    recorded.log({"a_sum": 100.0}, step=5)
    recorded.log({"other": 0.0, "a": 6.0}, step=6)
    for cuts in ([], [5], [6]):
        found, _ = analysed(recorded, [Running()], cuts)
        assert [row[2] for row in found["a_sum"]] == [0, 1, 2, 3, 4]


def test_an_analyser_that_raises_is_counted_once_and_switched_off_for_its_run_alone() -> None:
    broken, counters = Broken(), Counters()
    analysis = Analysis([broken, Running()], counters)
    blocks = []
    for recorded in (counted(4), counted(4, OTHER)):
        for start in range(4):
            analysis.add(*recorded.decoded(start, start + 1))
            blocks += analysis.take()[0]
    assert (broken.calls, counters.analyser_failures) == (2, 2)
    assert len(points(blocks)["a_sum"]) == 8


def gives(made: Callable[[Span], Any]) -> Analyser:
    """An analyser that gives what `made` makes."""

    class Odd(Running):
        def add(self, span: Span) -> Iterator[Given]:
            yield made(span)

    return Odd()


def ones(span: Span, rows: int, columns: int, *tags: str) -> Values:
    series = span.series["a"]
    at = (series.seq[:rows], series.t_ns[:rows], series.step[:rows], series.epoch[:rows])
    return Values(tags, *at, np.ones((rows, columns)))


@pytest.mark.parametrize(
    "made",
    [
        lambda span: ones(span, 2, 1, "undeclared"),
        lambda span: ones(span, 2, 2, "a_sum"),
        lambda span: ones(span, 2, 2, "a_sum", "a_sum"),
        lambda span: ones(span, 2, 0),
        lambda span: replace(ones(span, 2, 1, "a_sum"), seq=np.array([0])),
        lambda span: replace(ones(span, 2, 1, "a_sum"), seq=np.array([1, 0])),
        lambda span: replace(ones(span, 2, 1, "a_sum"), step=np.array([0.5, 1.0])),
        lambda span: replace(ones(span, 2, 1, "a_sum"), values=np.array([["x"], ["y"]])),
        lambda span: {"a_sum": 1.0},
        lambda span: Text(Moment(STREAM, 0, 0, 0, 0.0), "text", "a", None),  # type: ignore[arg-type]
        lambda span: Text(Moment(OTHER, 0, 0, 0, 0.0), "text", "a", "b"),
        lambda span: Event(Moment(STREAM, 0, 0, 0, 0.0), "x", {"y": object()}),
        lambda span: Histogram(Moment(STREAM, 0, 0, 0, 0.0), "h", np.ones(3), np.ones(3)),
        lambda span: span.series["a"].values.fill(0.0),
    ],
)
def test_what_could_not_be_stored_is_a_failure_of_its_analyser(made: Callable[[Span], Any]) -> None:
    counters = Counters()
    analysis = Analysis([gives(made), Running()], counters)
    analysis.add(*counted(3).decoded(0, 3))
    blocks, items = analysis.take()
    assert (counters.analyser_failures, items) == (1, [])
    assert [block.values[:, 0].tolist() for block in blocks] == [[0, 1, 3]]


def test_epochs_end_by_event_by_the_next_one_and_with_the_stream() -> None:
    recorded = Recorded()
    recorded.log({"a": 1.0}, step=0, epoch=0.0)
    recorded.event("epoch_end", epoch=0)  # seq 1
    recorded.log({"a": 1.0}, step=1, epoch=0.9)  # late
    recorded.log({"a": 1.0}, step=2, epoch=1.0)
    recorded.log({"a": 1.0}, step=3, epoch=1.5)  # seq 4: the last of epoch 1
    recorded.log({"a": 1.0}, step=4, epoch=math.nan)
    recorded.log({"a": 1.0}, step=5, epoch=2.0)
    recorded.event("epoch_begin", epoch=4)
    recorded.log({"a": 1.0}, step=6, epoch=4.0)
    recorded.event("end")
    for cuts in ([], [3], range(10)):
        found, _ = analysed(recorded, [Ends()], cuts)
        assert [(row[0], row[-1]) for row in found["end"]] == [(1, 0.0), (4, 1.0), (6, 2.0), (8, 4.0)]


def test_an_epoch_that_is_opened_again_ends_again() -> None:
    recorded = Recorded()
    for _ in range(2):
        recorded.event("epoch_begin", epoch=0)
        recorded.log({"a": 1.0}, epoch=0.0)
        recorded.event("epoch_end", epoch=0)
    found, _ = analysed(recorded, [Ends()], cuts=[2, 4])
    assert [row[0] for row in found["end"]] == [2, 5]


def test_memory_stays_bounded_by_what_is_remembered() -> None:
    window = Window(("a",), [1], memory=50)
    recorded = counted(20_000)
    for start in range(0, 20_000, 20):
        [block], _ = recorded.decoded(start, start + 20)
        window.append(block)
        window.settle()
    assert window.series("a", 50).values.tolist() == list(range(19_950, 20_000))
    assert sum(array.nbytes for array in window._arrays) < 10 * 50 * 40
    assert window.count == 20_000


def test_an_ended_stream_and_an_earlier_attempt_are_forgotten() -> None:
    analysis = Analysis([Running()], Counters())
    later = Stream(b"stream 1", b"r" * 16, "run", "project", 0, 1)
    analysis.add(*counted(3).decoded(0, 3))
    analysis.take()
    analysis.add(*counted(3, later).decoded(0, 3))
    assert list(analysis._states) == [later.key]
    analysis.take()
    analysis.forget(later)
    assert not analysis._states
    assert analysis.take() == ([], [])


def test_every_built_in_gives_tags_that_the_catalogue_has() -> None:
    analysers = load()
    assert [analyser.name for analyser in analysers] == list(BUILT_IN)
    for analyser in analysers:
        assert analyser.gives
        for tag in analyser.gives:
            assert catalog.find(tag.replace("*", "train/collapse/level0").replace("<", "").replace(">", "")), tag


def test_every_built_in_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in BUILT_IN if f"| `{name}` |" not in page] == []


def test_analysers_that_cannot_be_loaded_are_told_all_at_once() -> None:
    with pytest.raises(ConfigError, match=r"no_such_module:X \(ModuleNotFoundError.*json:loads.*math:floor"):
        load(["no_such_module:X", "json:loads", "math:floor"])


def after_restart(recorded: Recorded, cut: int) -> Points:
    """What follows from the records behind `cut`, where a store has those before it."""
    analysis = Analysis(load(), Counters())
    logged = {tuple(record) for _, record in recorded.records[:cut] if isinstance(record, dict)}
    key_sets = [key_set for names, key_set in recorded.key_sets.items() if names in logged]
    _, items = recorded.decoded(0, cut)
    analysis.restore(recorded.stream, key_sets, tails(recorded, cut, analysis.wants(key_sets)), items)
    assert analysis.take() == ([], [])
    analysis.add(*recorded.decoded(cut, len(recorded.records)))
    return points(analysis.take()[0])


@pytest.mark.parametrize("cut", [1, 7, 50, 120, 199])
def test_after_a_restart_the_same_is_given_as_without(cut: int) -> None:
    recorded = Recorded()
    rng = np.random.default_rng(cut)
    for step in range(200):
        epoch = step // 40
        recorded.log({"train/loss": 1 + rng.random(), "train/loss_nats": rng.random()}, step=step, epoch=epoch)
        if step % 5 == 0:
            recorded.log({f"train/gradients/{block}": rng.random() for block in "abc"}, step=step, epoch=epoch)
    whole, _ = analysed(recorded, load())
    after = {tag: [row for row in rows if row[0] >= cut] for tag, rows in whole.items()}
    found = after_restart(recorded, cut)
    assert found.keys() == {tag for tag, rows in after.items() if rows}
    for tag, rows in found.items():
        np.testing.assert_allclose(np.array(rows), np.array(after[tag]), rtol=1e-12, err_msg=tag)
