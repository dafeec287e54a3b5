"""What the stage knows of one stream: windows of what is read, its clock of epochs, and what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sidestep_collector.analyse.clock import SIGNALS, EpochClock
from sidestep_collector.analyse.plan import Plan
from sidestep_collector.analyse.protocol import Analyser, EpochEnd, Series, Span
from sidestep_collector.analyse.windows import Window, merged
from sidestep_collector.blocks import Event, ScalarBlock, Stream, Tensor

#: A larger tensor is analysed when it comes, and not kept for those that follow.
KEPT_TENSOR_BYTES: Final = 8 << 20


class State:
    """One stream.

    Attributes:
        plans: by number of its key set; None where nobody reads of it.
        own: tags that an analyser would give and the stream logs itself, with the seq from which on it does.
        tensors: new ones, with the numbers of the analysers that read them, and whether one of those keeps it.
        before: the last tensor of each name before those, of the names that are kept.
    """

    __slots__ = ("_clock", "_events", "_fresh", "_tags", "_windows", "before", "own", "plans", "stream", "tensors")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.plans: dict[int, Plan | None] = {}
        self.own: dict[str, int] = {}
        self.tensors: list[tuple[Tensor, list[int], bool]] = []
        self.before: dict[str, Tensor] = {}
        self._clock = EpochClock(stream)
        self._events: list[Event] = []
        self._windows: dict[int, tuple[Window, Plan]] = {}
        self._fresh: set[int] = set()
        self._tags: dict[int, dict[str, list[Window]]] = {}

    def declare(self, key_set: int, plan: Plan | None) -> Plan | None:
        """Note the plan for a key set that is new here."""
        self.plans[key_set] = plan
        if plan is not None and plan.columns:
            self._open(key_set, plan, 0)
        return plan

    def add(self, block: ScalarBlock, plan: Plan) -> None:
        """Take records of a key set that somebody reads."""
        if not len(block.seq):
            return
        for tag in plan.own:
            self.own.setdefault(tag, int(block.seq[0]))
        if plan.columns:
            self._windows[block.key_set.id][0].append(block)
            self._fresh.update(number for number, _ in plan.readers)

    def remember(self, block: ScalarBlock, plan: Plan, count: int) -> None:
        """Take the stored tail of one tag, of which there are `count` values in all."""
        window = self._open(-1 - len(self._windows), plan, count - len(block.seq))
        if len(block.seq):
            window.append(block)

    def signal(self, event: Event) -> bool:
        """Take an event; returns whether it matters."""
        if event.event not in SIGNALS:
            return False
        self._events.append(event)
        return True

    def ended(self) -> list[EpochEnd]:
        """The epochs that ended with what is new."""
        parts = [window.records() for window, plan in self._windows.values() if plan.times]
        return self._clock.add(parts, self._events)

    def readers(self, analysers: Sequence[Analyser], *, ended: bool) -> list[int]:
        """Numbers of the analysers that have something to do, in order."""
        found = {number for number in self._fresh if analysers[number].when == "records"}
        found |= {number for _, numbers, _ in self.tensors for number in numbers}
        if ended:
            found |= {number for number in self._tags if analysers[number].when == "epochs"}
        return sorted(found)

    def span(self, number: int, analyser: Analyser, ended: Sequence[EpochEnd]) -> Span:
        """What an analyser is handed."""
        tensors = [tensor for tensor, numbers, _ in self.tensors if number in numbers]
        series = {
            tag: self._series(tag, windows, analyser.memory) for tag, windows in self._tags.get(number, {}).items()
        }
        before = self.before if analyser.keeps_tensors else {}
        known = {tag: found for tag, found in series.items() if len(found.seq)}
        return Span(self.stream, known, tensors, before, ended)

    def settle(self) -> None:
        """What was new is past."""
        for window, _ in self._windows.values():
            window.settle()
        for tensor, _, is_kept in self.tensors:
            if is_kept and len(tensor.data) <= KEPT_TENSOR_BYTES:
                self.before[tensor.name] = tensor
        self.tensors, self._events = [], []
        self._fresh.clear()

    def _open(self, key_set: int, plan: Plan, count: int) -> Window:
        window = Window(plan.names, plan.columns, plan.memory, count)
        self._windows[key_set] = (window, plan)
        for number, tags in plan.readers:
            for tag in tags:
                self._tags.setdefault(number, {}).setdefault(tag, []).append(window)
        return window

    @staticmethod
    def _series(tag: str, windows: Sequence[Window], memory: int) -> Series:
        return merged([window.series(tag, memory) for window in windows], memory)
