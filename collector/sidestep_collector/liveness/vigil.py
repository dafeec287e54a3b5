"""Watching over streams: which fell silent and why, which hang, which are back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import structlog

from sidestep_collector.blocks import Event, Item, Moment, ScalarBlock, Stream, Text
from sidestep_collector.liveness.origin import Origin
from sidestep_collector.liveness.pace import Pace
from sidestep_collector.liveness.post_mortem import Last, post_mortem
from sidestep_schemas.wire import NO_EPOCH, NO_STEP

log: Any = structlog.get_logger()

RUNNING: Final = "running"
_LOOK_SECONDS: Final = 1.0
#: Turns of the pipeline are shorter. A longer one is a pause of the collector, in which nobody was silent.
_TURN_SECONDS: Final = 1.0
_STACKS: Final = "system/stacks"


class State(Protocol):
    """What receiving knows of a stream."""

    stream: Stream
    received: int
    ended: bool
    seen: float


@dataclass(slots=True)
class News:
    """What the pipeline is to do: streams whose state changed ("killed", "lost", or running again), and events."""

    states: list[tuple[Stream, str]] = field(default_factory=list[tuple[Stream, str]])
    events: list[Event] = field(default_factory=list[Event])


@dataclass(slots=True)
class _Watched:
    """A stream that has not ended. Times are seconds of attention."""

    heard: float
    seen: float
    progressed: float
    origin: Origin = field(default_factory=Origin)
    pace: Pace = field(default_factory=Pace)
    cause: str = ""
    is_hanging: bool = False
    is_silent: bool = False


class Vigil:
    """Watches over the streams of a collector, on the pipeline's thread.

    Args:
        silent_seconds: without a frame for so long, a stream is looked after.
        hang_seconds: no pause between steps that is shorter is a hang.
        latest: what each stream of a run said last.
        clock: seconds that only rise.
        now_ns: nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        silent_seconds: float,
        hang_seconds: float,
        latest: Callable[[str], Sequence[Last]],
        clock: Callable[[], float] = time.monotonic,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._silent_seconds = silent_seconds
        self._hang_seconds = hang_seconds
        self._latest = latest
        self._clock = clock
        self._now_ns = now_ns
        self._looked = clock()
        self._attention = 0.0  # seconds in which what trainers sent was read
        self._due = 0.0
        self._watched: dict[bytes, _Watched] = {}
        self._events: list[Event] = []

    def restore(self, state: State, cause: str | None, start: Event | None) -> None:
        """Go on with a stream of the store: with what was found of it, and its start where that is known."""
        watched = self._of(state.stream, state.seen)
        watched.cause = cause or ""
        if start is not None:
            watched.origin = Origin.of(start.details)

    def add(self, blocks: Iterable[ScalarBlock], items: Iterable[Item]) -> None:
        """Take what was decoded."""
        for block in blocks:
            if not block.key_set.derived and len(block.seq):
                watched = self._of(block.stream)
                if watched.pace.add(block):
                    self._progress(block.stream, watched)
        for item in items:
            watched = self._of(item.at.stream)
            if isinstance(item, Event) and item.event == "start":
                watched.origin = Origin.of(item.details)
            if not (isinstance(item, Text) and item.name == _STACKS):
                self._progress(item.at.stream, watched)

    def end(self, end: Event) -> Event | None:
        """A stream said its end; what is known of it, unless it ended well."""
        watched = self._watched.pop(end.at.stream.key, None)
        cause = str(end.details.get("status") or "finished")
        if cause == "finished":
            return None
        return self._post_mortem(end.at.stream, watched or _Watched(0, 0, 0), end.at.seq, cause, end.details)

    def look(self, states: Iterable[State], *, is_reading: bool) -> News | None:
        """Look after all streams once a second; None where there is nothing to tell.

        Args:
            states: all streams.
            is_reading: whether what trainers send is read at present; while it is not, nobody counts as silent.
        """
        now = self._clock()
        if is_reading:
            self._attention += min(now - self._looked, _TURN_SECONDS)
        self._looked = now
        if self._attention < self._due:
            return None
        self._due = self._attention + _LOOK_SECONDS
        news = News()
        for state in states:
            if not state.ended:
                self._judge(state, news)
        news.events += self._events
        self._events = []
        return news if news.states or news.events else None

    def word(self, key: bytes) -> str:
        """How a stream that has not ended stands: running, silent, hanging, lost or killed."""
        watched = self._watched.get(key)
        if watched is None:
            return RUNNING
        return watched.cause or ("hanging" if watched.is_hanging else "silent" if watched.is_silent else RUNNING)

    def _of(self, stream: Stream, seen: float = 0.0) -> _Watched:
        watched = self._watched.get(stream.key)
        if watched is None:
            watched = self._watched[stream.key] = _Watched(self._attention, seen, self._attention)
        return watched

    def _progress(self, stream: Stream, watched: _Watched) -> None:
        if watched.is_hanging:
            paused = self._attention - watched.progressed
            watched.pace.longest_pause = max(watched.pace.longest_pause, paused)
            watched.is_hanging = False
            self._events.append(self._event(stream, watched, NO_STEP, "hang_over", {"seconds": round(paused, 1)}))
        watched.progressed = self._attention

    def _judge(self, state: State, news: News) -> None:
        watched = self._of(state.stream, state.seen)
        if watched.seen != state.seen:
            watched.seen, watched.heard = state.seen, self._attention
            self._hear_again(state, watched, news)
        silence = self._attention - watched.heard
        watched.is_silent = silence > self._silent_seconds
        if watched.cause:
            return
        if watched.is_silent and not (lives := watched.origin.lives()):
            self._give_up(state, watched, "lost" if lives is None else "killed", news)
            return
        patience = watched.pace.patience(self._hang_seconds)
        waited = self._attention - watched.progressed
        if not watched.is_hanging and patience is not None and waited > patience:
            watched.is_hanging = True
            p99 = watched.pace.p99() or 0.0
            details = {"step": watched.pace.step, "seconds": round(waited, 1), "step_seconds_p99": round(p99, 3)}
            details["heartbeats"] = not watched.is_silent
            news.events.append(self._event(state.stream, watched, state.received - 1, "hang", details))
            log.warning("no step for long", run=state.stream.run, rank=state.stream.rank, **details)

    def _hear_again(self, state: State, watched: _Watched, news: News) -> None:
        if watched.cause != "lost":
            return  # of one that was killed, only what it left can still come
        watched.cause, watched.progressed = "", self._attention
        news.states.append((state.stream, RUNNING))
        news.events.append(self._event(state.stream, watched, state.received - 1, "heard_again", {}))
        log.info("a stream that was lost is back", run=state.stream.run, rank=state.stream.rank)

    def _give_up(self, state: State, watched: _Watched, cause: str, news: News) -> None:
        watched.cause = cause
        news.states.append((state.stream, cause))
        silence = {"silent_seconds": round(self._attention - watched.heard, 1)}
        news.events.append(self._post_mortem(state.stream, watched, state.received - 1, cause, {}, **silence))
        log.warning("a stream fell silent", run=state.stream.run, rank=state.stream.rank, cause=cause)

    def _post_mortem(self, stream: Stream, watched: _Watched, seq: int, cause: str, said: Any, **more: Any) -> Event:
        lasts = self._latest(stream.run)
        details = post_mortem(cause, stream, watched.origin, said=said, lasts=lasts, now_ns=self._now_ns())
        return self._event(stream, watched, seq, "post_mortem", details | more)

    def _event(self, stream: Stream, watched: _Watched, seq: int, event: str, details: dict[str, Any]) -> Event:
        at = Moment(stream, max(0, seq), self._now_ns(), watched.pace.step, NO_EPOCH)
        return Event(at, event, details)
