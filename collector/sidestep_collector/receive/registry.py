"""What is known of each stream: how far it was received, how far it is stored, and what it is called.

Names runs and numbers attempts. A trainer proposes a number; two processes may propose the same one, by mistake
or because they could not know of each other, and then the second gets the next that is free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidestep_collector.blocks import Stream
from sidestep_schemas.layout import DEFAULT_PROJECT

#: At most one request a stream in this time: whatever is on its way arrives first.
_REWIND_SECONDS = 0.5


@dataclass(slots=True)
class StreamState:
    """How far a stream is. All counts are records from its first.

    Attributes:
        received: seq expected next.
        committed: watermark in the store.
        lost: records below `received` that were declared lost.
        ended: it said its end.
        seen: monotonic time of its last frame.
    """

    stream: Stream
    received: int = 0
    committed: int = 0
    lost: int = 0
    ended: bool = False
    seen: float = 0.0
    asked: float = field(default=-_REWIND_SECONDS)

    def may_ask(self, now: float) -> bool:
        """Whether it is time to ask for a rewind (again)."""
        if now - self.asked < _REWIND_SECONDS:
            return False
        self.asked = now
        return True


class Registry:
    """All streams that the store or a socket has told of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._states: dict[bytes, StreamState] = {}
        self._names: dict[bytes, str] = {}  # run uid to run id
        self._projects: dict[bytes, str] = {}
        self._attempts: dict[tuple[bytes, int], set[int]] = {}

    def restore(self, stream: Stream, watermark: int, lost: int, *, ended: bool) -> None:
        """Take over a stream as the store knows it."""
        self._states[stream.key] = StreamState(stream, watermark, watermark, lost, ended, self._clock())
        self._names[stream.run_uid] = stream.run
        self._projects[stream.run_uid] = stream.project
        self._attempts.setdefault((stream.run_uid, stream.rank), set()).add(stream.attempt)

    def get(self, key: bytes) -> StreamState | None:
        """What is known of a stream."""
        return self._states.get(key)

    def register(self, key: bytes, run_uid: bytes, rank: int, attempt: int, start: Mapping[str, Any]) -> StreamState:
        """Take up a new stream.

        Args:
            key: identity of the stream.
            run_uid: identity of its run.
            rank: rank of the process.
            attempt: the number it proposes.
            start: details of its start: `id` and `project`; empty where its first record is lost.
        """
        if run_uid not in self._names:
            self._projects[run_uid] = str(start.get("project") or DEFAULT_PROJECT)
            self._names[run_uid] = self._free_name(str(start.get("id") or run_uid.hex()[:8]), self._projects[run_uid])
        taken = self._attempts.setdefault((run_uid, rank), set())
        number = attempt if attempt not in taken else max(taken) + 1
        taken.add(number)
        stream = Stream(key, run_uid, self._names[run_uid], self._projects[run_uid], rank, number)
        state = self._states[key] = StreamState(stream, seen=self._clock())
        return state

    def states(self) -> Iterable[StreamState]:
        """All streams."""
        return self._states.values()

    def _free_name(self, run: str, project: str) -> str:
        # Ids are unique in their project; where two projects share one, the later is told apart by its project.
        taken = set(self._names.values())
        if run not in taken:
            return run
        candidate, number = f"{project}/{run}", 2
        while candidate in taken:
            candidate, number = f"{project}/{run}-{number}", number + 1
        return candidate
