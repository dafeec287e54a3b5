"""The stage: records and epochs in, findings out.

A defect here must not keep data out of the store: a run that cannot be judged is said once, and judged no more.

A record is judged when it comes, an epoch when it has ended. What a rule compares a value with is the last value of
the other metric up to that record, in the same stream; so it does not matter how records are split into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from sidestep_collector.blocks import EpochSummary, Event, Finding, Item, ScalarBlock, Stream
from sidestep_collector.profiles import Choices, RuleSpec, suggested
from sidestep_collector.profiles.spec import PREVIOUS, Override
from sidestep_collector.rules.casebook import Casebook, When
from sidestep_collector.rules.counts import CountSeries
from sidestep_collector.rules.judge import Floats, Judged, judge, may_hit
from sidestep_collector.rules.past import EPOCHS_KEPT, Past
from sidestep_collector.rules.ruleset import Part, RuleSet, RuleSets
from sidestep_collector.rules.track import Track

log: Any = structlog.get_logger()

#: Rank of a finding that is judged over all ranks.
ALL_RANKS: Final = -1
#: Values of a compared metric that are remembered: those up to the oldest record that may yet come.
_COMPARED_KEPT: Final = 256
#: Epochs after which what is taken each epoch is there: that of the first may be logged behind its end.
_EPOCHS_UNTIL_TOLD: Final = 2
#: Beside names of rules in what a run was told.
_SUGGESTION: Final = "<profile>"

Steps = NDArray[np.int64]
_Key = tuple[Any, ...]
#: seq and values of a metric that others are compared with.
_History = tuple[Steps, Floats]


@dataclass(slots=True)
class _Run:
    """What is known of a run.

    Attributes:
        names: names of its records.
        seen: tags that its epochs tell of.
        epochs: how many have ended, the last of them being `last_epoch`.
        going: for each rank that goes on, the stream of its last start.
        told: rules of which it was said that they have nothing to judge.
    """

    name: str
    rules: RuleSet
    cases: Casebook
    tracks: dict[_Key, Track] = field(default_factory=dict[_Key, Track])
    previous: dict[_Key, Floats] = field(default_factory=dict[_Key, Floats])
    compared: dict[tuple[bytes, str], _History] = field(default_factory=dict[tuple[bytes, str], _History])
    past: dict[tuple[str, str], Past] = field(default_factory=dict[tuple[str, str], Past])
    names: dict[tuple[str, ...], None] = field(default_factory=dict[tuple[str, ...], None])
    seen: set[str] = field(default_factory=set[str])
    epochs: int = 0
    last_epoch: int = -1
    going: dict[int, bytes] = field(default_factory=dict[int, bytes])
    told: set[str] = field(default_factory=set[str])

    def ended(self, summary: EpochSummary) -> None:
        """Note an epoch that has ended."""
        self.seen.update(summary.statistics)
        if summary.epoch > self.last_epoch:
            self.last_epoch = summary.epoch
            self.epochs += 1


class Rules:
    """Judges all runs, each by the rules of its profile.

    Args:
        choices: which run goes by which profile; this stage notes what starts say.
        settings: what the collector's settings say of rules.
    """

    def __init__(self, choices: Choices, settings: Mapping[str, Override] | None = None) -> None:
        self._choices = choices
        self._sets = RuleSets(settings or {})
        self._runs: dict[str, _Run] = {}
        self._given_up: set[str] = set()
        self._series = CountSeries()
        self._over: list[Stream] = []

    @staticmethod
    def begin(epochs: Sequence[int]) -> int:
        """From which epoch on summaries are needed after a restart, of epochs in ascending order."""
        return epochs[-EPOCHS_KEPT:][0]

    def restore(
        self,
        events: Iterable[Event],
        rows: Iterable[Mapping[str, Any]],
        summaries: Iterable[EpochSummary] = (),
        names: Iterable[tuple[Stream, tuple[str, ...]]] = (),
    ) -> None:
        """Resume after a restart, before anything is added.

        Args:
            events: of runs that go on.
            rows: their findings.
            summaries: of their last epochs that have ended, which were judged before.
            names: what their streams have recorded.
        """
        for event in events:
            self._series.note(event)
            if event.event == "start":
                self._begin(event)
        for row in rows:
            run = self._run(row["run"], row["project"])
            run.cases.restore(row, run.rules.rules)
        for summary in summaries:
            run = self._run(summary.run, summary.project)
            run.ended(summary)
            for part in _epoch_parts(run, summary):
                _past(run, part).add(summary.epoch, float(_statistic(summary, part.tags[0], part.rule.spec)[0, 0]))
        for stream, recorded in names:
            self._run(stream.run, stream.project).names[recorded] = None

    def add(self, blocks: Sequence[ScalarBlock], items: Sequence[Item]) -> None:
        """Judge records, each stream's in the order of their seq."""
        events = [item for item in items if isinstance(item, Event)]
        for event in events:
            if event.event == "start":
                self._begin(event)
        blocks = [block for block in blocks if len(block.seq)]
        for block in blocks:
            self._guarded(block.stream.run, partial(self._remember, block))
        for block in blocks:
            self._guarded(block.stream.run, partial(self._judge, block))
        for event in events:
            self._guarded(event.at.stream.run, partial(self._count, event))
            if event.event == "end":
                self.end(event.at.stream)

    def end(self, stream: Stream) -> None:
        """A stream is over; what is pending of it goes when its last epoch was judged."""
        self._over.append(stream)

    def take_counts(self) -> list[ScalarBlock]:
        """Numbers of alerts at the ends of epochs, since the last take."""
        return self._series.take()

    def add_epochs(self, summaries: Iterable[EpochSummary]) -> None:
        """Judge epochs that have ended; one that was judged is not judged again."""
        for summary in summaries:
            self._guarded(summary.run, partial(self._judge_epochs, summary))
        for stream in self._over:
            self._guarded(stream.run, partial(self._close, stream))
        self._over.clear()

    def take(self) -> list[Finding]:
        """Findings that are new or have changed since the last take."""
        return [finding for run in self._runs.values() for finding in run.cases.take()]

    def forget(self, run: str) -> None:
        """Drop a run that has ended; take first."""
        self._runs.pop(run, None)
        self._given_up.discard(run)
        self._choices.forget(run)

    def _begin(self, start: Event) -> None:
        stream, said = start.at.stream, start.details.get("rules")
        self._choices.note(stream.run, start.details)
        rules = self._sets.of(stream.run, self._choices.of(stream.run), said if isinstance(said, dict) else {})
        run = self._run(stream.run, stream.project)
        run.going[stream.rank] = stream.key
        if run.rules is not rules:
            run.rules = rules
            run.tracks.clear()

    def _run(self, name: str, project: str) -> _Run:
        run = self._runs.get(name)
        if run is None:
            rules = self._sets.of(name, self._choices.of(name), {})
            run = self._runs[name] = _Run(name, rules, Casebook(name, project))
        return run

    def _count(self, event: Event) -> None:
        run = self._runs.get(event.at.stream.run)
        if run is not None:
            self._series.tell(event, run.cases.counted, run.rules.rules, self._choices.of(run.name).own)

    def _remember(self, block: ScalarBlock) -> None:
        """Keep values that others are compared with."""
        run = self._run(block.stream.run, block.stream.project)
        run.names.setdefault(block.key_set.names)
        for column in run.rules.compared(block.key_set.names):
            key = (block.stream.key, block.key_set.names[column])
            seq, values = run.compared.get(key, (np.empty(0, dtype=np.int64), np.empty(0)))
            seq = np.concatenate([seq[-_COMPARED_KEPT:], block.seq])
            values = np.concatenate([values[-_COMPARED_KEPT:], block.values[:, column].astype(np.float64)])
            order = np.argsort(seq, kind="stable")
            run.compared[key] = (seq[order], values[order])

    def _judge(self, block: ScalarBlock) -> None:
        run = self._runs[block.stream.run]
        for part in run.rules.plan(block.key_set.names):
            track = self._track(run, (block.stream.key, block.key_set.id, part.rule.name), part, block.stream.rank)
            spec, count = part.rule.spec, len(block.seq)
            is_plain = spec.to is None and track.is_quiet and count >= track.kept
            if is_plain and not may_hit(spec, block.values[:, part.columns]):
                # Most blocks end here: nothing to find, and only their end may be evidence some time.
                track.replace(*self._judged(run, part, block, slice(count - track.kept, None)))
                continue
            steps, times, judged = self._judged(run, part, block, slice(None))
            run.cases.advance(part, track, When(steps, times, block.stream.rank), judged)

    @staticmethod
    def _judged(run: _Run, part: Part, block: ScalarBlock, rows: slice) -> tuple[Steps, Steps, Judged]:
        """Steps and times of some records of a block, and what a rule says of them."""
        spec = part.rule.spec
        values = block.values[rows, part.columns].astype(np.float64)
        seq, times = block.seq[rows], block.t_ns[rows]
        steps = np.where(block.step[rows] < 0, seq, block.step[rows])
        to = None
        if spec.to == PREVIOUS:
            to = _previous(run, (block.stream.key, block.key_set.id, part.rule.name), values)
        elif part.to is not None:
            to = _compared(run, block.stream.key, seq, part.to)
        also = [_compared(run, block.stream.key, seq, tags) for tags in part.also]
        return steps, times, judge(spec, values, to, also, steps < part.rule.warmup)

    def _guarded(self, run: str, call: Callable[[], None]) -> None:
        if run in self._given_up:
            return
        try:
            call()
        except Exception:
            self._given_up.add(run)
            log.exception("a run cannot be judged; its data are stored all the same", run=run)

    def _judge_epochs(self, summary: EpochSummary) -> None:
        run = self._run(summary.run, summary.project)
        for part in _epoch_parts(run, summary):
            self._judge_epoch(run, part, summary)
        run.ended(summary)
        if run.epochs == _EPOCHS_UNTIL_TOLD:
            self._tell(run)

    def _judge_epoch(self, run: _Run, part: Part, summary: EpochSummary) -> None:
        """Judge one metric of an epoch."""
        rule, key = part.rule, (part.rule.name, part.tags[0])
        past = _past(run, part)
        if summary.epoch <= past.epoch:
            return
        values = _statistic(summary, part.tags[0], rule.spec)
        to = np.array([[past.previous]]) if rule.spec.to == PREVIOUS else None
        best = past.best(rule.spec)
        past.add(summary.epoch, float(values[0, 0]))
        if part.to is not None:
            to = _statistic(summary, part.to[0], rule.spec)
        also = [_statistic(summary, tags[0], rule.spec) for tags in part.also]
        muted = np.array([rule.warmup > 0 and summary.epoch <= rule.warmup])
        judged = judge(rule.spec, values, to, also, muted, best=best)
        when = When(np.array([summary.global_step]), np.array([summary.last_t_ns]), ALL_RANKS)
        run.cases.advance(part, self._track(run, key, part, ALL_RANKS), when, judged)
        incident = run.cases.get(rule.name, part.subjects[0])
        if incident is not None:
            incident.epoch = summary.epoch

    @staticmethod
    def _track(run: _Run, key: _Key, part: Part, rank: int) -> Track:
        track = run.tracks.get(key)
        if track is None:
            track = run.tracks[key] = run.cases.track(part, rank)
        return track

    def _close(self, stream: Stream) -> None:
        """Nothing more comes of a stream, and of its run where it was the last."""
        run = self._run(stream.run, stream.project)
        if run.going.get(stream.rank, stream.key) != stream.key:
            return  # its rank has started again
        run.cases.end(stream.rank)
        run.going.pop(stream.rank, None)
        if not run.going:
            run.cases.end(ALL_RANKS)
            self._tell(run, is_over=True)

    def _tell(self, run: _Run, *, is_over: bool = False) -> None:
        """Say once of a run which profile it might have, or which of its profile's rules have nothing to judge.

        What is taken each step or epoch is there after some epochs; what is taken more seldom may come until the end.
        """
        seen = run.seen.union(*run.names)
        own = self._choices.of(run.name).own
        if own is None:
            fitting = suggested(seen) if _SUGGESTION not in run.told else ()
            run.told.add(_SUGGESTION)
            if fitting:
                log.info(
                    "a profile fits this run; choose one with sidestep.init(profile=...)", run=run.name, fits=fitting
                )
            return
        blind = {
            name: tags
            for name, tags in run.rules.blind(own.name, seen).items()
            if name not in run.told and (is_over or not any(map(run.rules.is_periodic, tags)))
        }
        run.told |= blind.keys()
        if blind:
            log.info(
                "rules that have nothing to judge: the run records no such metrics",
                run=run.name,
                rules="; ".join(f"{name}: {', '.join(tags)}" for name, tags in sorted(blind.items())),
            )


def _epoch_parts(run: _Run, summary: EpochSummary) -> Iterator[Part]:
    """What rules read of an epoch, one metric at a time."""
    if run.rules.has_epoch_rules:
        for part in run.rules.plan(tuple(summary.statistics), "epoch"):
            yield from part.singly()


def _past(run: _Run, part: Part) -> Past:
    return run.past.setdefault((part.rule.name, part.tags[0]), Past())


def _previous(run: _Run, key: _Key, values: Floats) -> Floats:
    """For each value the one before it."""
    before = run.previous.get(key)
    if before is None:
        before = np.full(values.shape[1], np.nan)
    run.previous[key] = values[-1].copy()
    return np.concatenate([before[None], values[:-1]])


def _compared(run: _Run, stream: bytes, at_seq: Steps, tags: tuple[str, ...]) -> Floats:
    """For each record the last value of each tag up to it, shape (records, tags); NaN where there was none."""
    columns: list[Floats] = []
    for tag in tags:
        seq, values = run.compared.get((stream, tag), (np.empty(0, dtype=np.int64), np.empty(0)))
        at = np.searchsorted(seq, at_seq, side="right") - 1
        columns.append(np.where(at >= 0, values[at], np.nan) if len(seq) else np.full(len(at_seq), np.nan))
    return np.stack(columns, axis=1)


def _statistic(summary: EpochSummary, tag: str, spec: RuleSpec) -> Floats:
    value = summary.statistics.get(tag, {}).get(spec.statistic)
    return np.array([[np.nan if value is None else float(value)]])
