"""The stage: what was decoded in, what follows from it out, once a flush.

What an analyser gives becomes a block of a key set of the stage's own: its number is above all that the wire has,
and it is marked as derived, so that its values are stored but no second record of its step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import structlog

from sidestep_collector.analyse.checks import Checks
from sidestep_collector.analyse.plan import Planner
from sidestep_collector.analyse.protocol import Analyser, Given, Values, matcher
from sidestep_collector.analyse.state import State
from sidestep_collector.blocks import Event, Item, KeySet, ScalarBlock, Stream, Tensor
from sidestep_collector.telemetry import Counters
from sidestep_schemas import catalog
from sidestep_schemas.wire import DTYPE_FLOAT64, TIER_STEP

log: Any = structlog.get_logger()

#: Numbers of key sets on the wire are below it.
FIRST_KEY_SET: Final = 1 << 32


class Analysis:
    """Runs analysers over all streams.

    Args:
        analysers: what to run, in this order.
        counters: totals; failures are counted there.
    """

    def __init__(self, analysers: Sequence[Analyser], counters: Counters) -> None:
        self._analysers = analysers
        self._counters = counters
        self._planner = Planner(analysers)
        self._checks = [Checks(analyser) for analyser in analysers]
        self._tensors = [matcher(analyser.tensors) for analyser in analysers]
        self._states: dict[bytes, State] = {}
        self._touched: dict[bytes, State] = {}
        self._failed: set[tuple[str, int]] = set()
        self._key_sets: dict[tuple[str, ...], KeySet] = {}

    def add(self, blocks: Iterable[ScalarBlock], items: Iterable[Item]) -> None:
        """Take what was decoded; each stream's in the order of its seq."""
        states = self._states
        for block in blocks:
            state = states.get(block.stream.key) or self._state(block.stream)
            number = block.key_set.id
            if number not in state.plans:
                state.declare(number, self._planner.plan(block.key_set))
            plan = state.plans[number]
            if plan is not None:
                state.add(block, plan)
                self._touched[block.stream.key] = state
        for item in items:
            if isinstance(item, Event):
                if (states.get(item.at.stream.key) or self._state(item.at.stream)).signal(item):
                    self._touched[item.at.stream.key] = self._states[item.at.stream.key]
            elif isinstance(item, Tensor):
                self._tensor(item)

    def take(self) -> tuple[list[ScalarBlock], list[Item]]:
        """What follows from all that was added since the last take."""
        blocks: list[ScalarBlock] = []
        items: list[Item] = []
        for state in self._touched.values():
            for given in self._analyse(state):
                if isinstance(given, Values):
                    blocks += self._blocks(state, given)
                else:
                    items.append(given)
            state.settle()
        self._touched.clear()
        return blocks, items

    def wants(self, key_sets: Iterable[KeySet]) -> dict[str, int]:
        """Tags of a stream's key sets whose past is needed after a restart, and how many values of each."""
        found: dict[str, int] = {}
        for key_set in key_sets:
            plan = self._planner.plan(key_set)
            for tag in plan.names if plan is not None else ():
                found[tag] = max(plan.memory if plan is not None else 0, found.get(tag, 0))
        return found

    def wants_tensor(self, name: str) -> bool:
        """Whether the last tensor of this name is needed after a restart."""
        return any(self._analysers[number].keeps_tensors for number in self._readers_of(name))

    def restore(
        self,
        stream: Stream,
        key_sets: Iterable[KeySet],
        tails: Iterable[tuple[ScalarBlock, int]],
        items: Sequence[Item] = (),
    ) -> None:
        """Learn the past of a stream that goes on, before anything of it is added.

        Args:
            stream: the stream.
            key_sets: what it declared.
            tails: for each tag that `wants` named, its last values as a block of that one name, and how many
                there are in all.
            items: its events, and the last tensor of each name that `wants_tensor` took.
        """
        state = self._state(stream)
        for key_set in sorted(key_sets, key=lambda key_set: key_set.id):
            plan = self._planner.plan(key_set)
            state.declare(key_set.id, plan)
            if plan is not None:
                state.own.update(dict.fromkeys(plan.own, 0))
        for block, count in tails:
            plan = self._planner.plan(block.key_set)
            if plan is not None and plan.columns:
                state.remember(block, plan, count)
        for item in items:
            if isinstance(item, Tensor):
                state.before[item.name] = item
            elif isinstance(item, Event):
                state.signal(item)
        state.ended()
        state.settle()

    def forget(self, stream: Stream) -> None:
        """Drop a stream that has ended."""
        self._states.pop(stream.key, None)
        self._touched.pop(stream.key, None)

    def forget_run(self, run: str) -> None:
        """Drop what is known of a run; an analyser that failed for it is tried again if it ever comes back."""
        self._failed = {entry for entry in self._failed if entry[0] != run}
        for state in [state for state in self._states.values() if state.stream.run == run]:
            self.forget(state.stream)

    def _state(self, stream: Stream) -> State:
        state = self._states.get(stream.key)
        if state is None:
            for other in [
                other.stream
                for other in self._states.values()
                if (other.stream.run, other.stream.rank) == (stream.run, stream.rank)
                and other.stream.attempt < stream.attempt
                and other.stream.key not in self._touched
            ]:
                self.forget(other)
            state = self._states[stream.key] = State(stream)
        return state

    def _readers_of(self, name: str) -> list[int]:
        return [
            number for number, pattern in enumerate(self._tensors) if pattern is not None and pattern.fullmatch(name)
        ]

    def _tensor(self, item: Tensor) -> None:
        readers = self._readers_of(item.name)
        if readers:
            state = self._state(item.at.stream)
            keeps = any(self._analysers[number].keeps_tensors for number in readers)
            state.tensors.append((item, readers, keeps))
            self._touched[item.at.stream.key] = state

    def _analyse(self, state: State) -> Iterator[Given]:
        ended = state.ended()
        for number in state.readers(ended=bool(ended), analysers=self._analysers):
            analyser = self._analysers[number]
            if (state.stream.run, number) in self._failed:
                continue
            try:
                given = list(analyser.add(state.span(number, analyser, ended)))
                for one in given:
                    self._checks[number].check(one, state.stream)
            except Exception as error:  # noqa: BLE001 - whatever an analyser of somebody's raises
                self._fail(state.stream, number, error)
                continue
            yield from given

    def _fail(self, stream: Stream, number: int, error: Exception) -> None:
        self._failed.add((stream.run, number))
        self._counters.analyser_failures += 1
        analyser = self._analysers[number]
        name = analyser.name or type(analyser).__name__
        log.error(
            "an analyser failed; it is switched off for this run, all else goes on",
            analyser=name,
            run=stream.run,
            why=f"{type(error).__name__}: {error}",
        )

    def _blocks(self, state: State, given: Values) -> Iterator[ScalarBlock]:
        own = state.own
        if not own or not any(tag in own for tag in given.tags):
            yield from self._block(state.stream, given.tags, given, slice(None), list(range(len(given.tags))))
            return
        free = [column for column, tag in enumerate(given.tags) if tag not in own]
        if free:
            yield from self._block(state.stream, tuple(given.tags[column] for column in free), given, slice(None), free)
        for column, tag in enumerate(given.tags):
            if tag in own:  # until the record with which the stream began to log it itself
                yield from self._block(state.stream, (tag,), given, given.seq < own[tag], [column])

    def _block(
        self, stream: Stream, tags: tuple[str, ...], given: Values, rows: Any, columns: list[int]
    ) -> Iterator[ScalarBlock]:
        seq = given.seq[rows]
        if len(seq):
            # copies: an analyser may have given views into a window
            t_ns, step, epoch = given.t_ns[rows].copy(), given.step[rows].copy(), given.epoch[rows].copy()
            values = given.values[rows][:, columns].astype(np.float64)
            yield ScalarBlock(stream, self._key_set(tags), seq.copy(), t_ns, step, epoch, values)

    def _key_set(self, tags: tuple[str, ...]) -> KeySet:
        found = self._key_sets.get(tags)
        if found is None:
            declared = catalog.find(tags[0])
            tier = declared.tier if declared is not None else TIER_STEP
            number = FIRST_KEY_SET + len(self._key_sets)
            found = self._key_sets[tags] = KeySet(number, DTYPE_FLOAT64, tier, tags, (), derived=True)
        return found
