"""The findings of one run: what its tracks do becomes findings that open, go on and end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from sidestep_collector.blocks import Finding
from sidestep_collector.rules.counts import Counts
from sidestep_collector.rules.incident import GONE, PENDING, RESOLVED, Incident, Series, first_hit, restored
from sidestep_collector.rules.judge import HIT, Judged
from sidestep_collector.rules.ruleset import Part, Rule
from sidestep_collector.rules.track import Observed, Track, Turn

log: Any = structlog.get_logger()

#: Findings of a rule in a run. A network of a thousand blocks that explodes is one thing, not a thousand.
FINDINGS_MAX: Final = 64


class When(NamedTuple):
    """When and where values were taken: steps and times in nanoseconds of shape (records,), and the rank."""

    steps: NDArray[np.int64]
    times: NDArray[np.int64]
    rank: int


class Casebook:
    """The findings of a run.

    Attributes:
        counted: how often each rule counted into them.
    """

    def __init__(self, run: str, project: str) -> None:
        self.counted = Counts()
        self._run = run
        self._project = project
        self._incidents: dict[tuple[str, str], Incident] = {}
        self._counts: dict[str, int] = {}
        self._touched: dict[tuple[str, str], None] = {}
        self._out: list[Finding] = []

    def restore(self, row: Mapping[str, Any], rules: Sequence[Rule]) -> Incident | None:
        """Take a stored finding; None where its rule is none of the run's any more."""
        self._counts[row["rule"]] = self._counts.get(row["rule"], 0) + 1
        self.counted.begin(row["rule"], row["rank"], row["count"])
        rule = next((rule for rule in rules if rule.name == row["rule"]), None)
        if rule is None:
            return None
        incident = restored(row, self._project, rule)
        known = self._incidents.get(incident.key)
        if known is None or known.first_step <= incident.first_step:
            self._incidents[incident.key] = incident
        return incident

    def get(self, rule: str, subject: str) -> Incident | None:
        """The last finding of a rule about a subject."""
        return self._incidents.get((rule, subject))

    def track(self, part: Part, rank: int) -> Track:
        """A track for what a rule reads on a rank, with what was stored of its columns."""
        track = Track(len(part.tags), part.rule.held)
        for column, (tag, subject) in enumerate(zip(part.tags, part.subjects, strict=True)):
            incident = self.get(part.rule.name, subject)
            seen = None if incident is None else incident.windows.get((rank, tag))
            if incident is not None and seen is not None:
                track.restore(column, seen, firing=(rank, tag) in incident.firing)
        return track

    def advance(self, part: Part, track: Track, when: When, judged: Judged) -> None:
        """Let a track go on, and write down what it does."""
        for column, turns in track.advance(when.steps, when.times, judged):
            series, subject = (when.rank, part.tags[column]), part.subjects[column]
            self._touched[part.rule.name, subject] = None
            for turn in turns:
                if turn.what == "fire":
                    seen = track.column(column, turn.row)
                    incident = self._open(part.rule, subject, series, seen)
                    if incident is not None:
                        incident.fire(series, seen, worse=turn.worse)
                else:
                    incident = self.get(part.rule.name, subject)
                    if incident is not None and series in incident.firing:
                        _follow(incident, series, turn, when, float(judged.values[turn.last, column]))
                        if turn.hits:
                            self.counted.add(part.rule.name, when.rank, when.steps[_hits(judged, column, turn)])
            busy = track.firing[column] or track.is_pending(column)
            self._keep_window(part.rule, subject, series, track.column(column) if busy else None)

    def end(self, rank: int) -> None:
        """Nothing more comes of a rank: what is pending there goes; what fires stays so, for nobody saw it end."""
        for key, incident in self._incidents.items():
            for series in [one for one in incident.windows if one[0] == rank and one not in incident.firing]:
                del incident.windows[series]
            if incident.state == PENDING and not incident.windows:
                incident.state = GONE
                self._touched[key] = None

    def take(self) -> list[Finding]:
        """Findings that are new or have changed since the last take."""
        found, self._out = self._out, []
        for key in self._touched:
            incident = self._incidents.get(key)
            if incident is not None:
                found += _rows(incident)
                if incident.state == GONE:
                    del self._incidents[key]
                    self._counts[key[0]] -= 1
        self._touched.clear()
        return found

    def _open(self, rule: Rule, subject: str, series: Series, seen: Observed) -> Incident | None:
        """The finding that an observation belongs to: the one there is, or a new one; None where there are too many."""
        key = (rule.name, subject)
        known = self._incidents.get(key)
        if known is not None and (known.state != RESOLVED or known.is_cooling(int(seen.steps[-1]))):
            return known
        count = self._counts.get(rule.name, 0)
        if count >= FINDINGS_MAX:
            if count == FINDINGS_MAX:
                log.warning("a rule found too much; no more of it is kept", run=self._run, rule=rule.name, kept=count)
                self._counts[rule.name] = count + 1
            return None
        if known is not None and known.is_changed:
            self._out += _rows(known)
        self._counts[rule.name] = count + 1
        step, t_ns = first_hit(seen, rule)
        incident = Incident(self._run, self._project, rule, subject, series[1], series[0], PENDING, step, t_ns)
        self._incidents[key] = incident
        return incident

    def _keep_window(self, rule: Rule, subject: str, series: Series, window: Observed | None) -> None:
        """Store the window of a series that is busy, so that a restart goes on from it; drop that of a quiet one."""
        if window is not None:
            incident = self._open(rule, subject, series, window)
            if incident is not None:
                incident.keep(series, window)
            return
        incident = self.get(rule.name, subject)
        if incident is not None:
            incident.windows.pop(series, None)
            if incident.state == PENDING and not incident.windows:
                incident.state = GONE


def _hits(judged: Judged, column: int, turn: Turn) -> NDArray[np.intp]:
    """Rows of what a turn counts."""
    return turn.row + np.flatnonzero(judged.codes[turn.row : turn.last + 1, column] == HIT)


def _follow(incident: Incident, series: Series, turn: Turn, when: When, value: float) -> None:
    if turn.what == "clear":
        incident.clear(series, int(when.steps[turn.row]), int(when.times[turn.row]))
    else:
        at = turn.last
        incident.observe(int(when.steps[at]), int(when.times[at]), value, turn.hits, worse=turn.worse)


def _rows(incident: Incident) -> Iterator[Finding]:
    """The row of a finding, and before it the end of the one it was stored as, where it has another name since."""
    stored_as, news = incident.stored_as, incident.news
    row = incident.finding()
    if stored_as not in ("", row.finding):
        yield replace(row, finding=stored_as, state=GONE, news="")
    if row.state != GONE or stored_as:
        yield replace(row, news=news)
