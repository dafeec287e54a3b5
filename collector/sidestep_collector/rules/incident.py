"""The life of a finding: pending ─▶ firing ─▶ resolved, one open at a time for each rule and subject of a run.

A finding that fires again soon after it was resolved is the same one. It fires while any of its series does: a
series is one metric on one rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sidestep_collector.blocks import Finding
from sidestep_collector.profiles.spec import SEVERITIES
from sidestep_collector.rules.judge import HIT, bound
from sidestep_collector.rules.ruleset import Rule
from sidestep_collector.rules.track import Observed

PENDING: Final = "pending"
FIRING: Final = "firing"
RESOLVED: Final = "resolved"
GONE: Final = "gone"
#: Steps after its end within which a finding that fires again is the same one.
COOL_DOWN_STEPS: Final = 200

#: (rank, tag): -1 stands for all ranks.
Series = tuple[int, str]


@dataclass(slots=True)
class Incident:
    """A finding of a run.

    Attributes:
        firing: series that fire now.
        windows: the last observations of series that are busy; what a restart goes on from.
    """

    run: str
    project: str
    rule: Rule
    subject: str
    metric: str
    rank: int
    state: str
    first_step: int
    first_t_ns: int
    severity: str = ""
    last_step: int = -1
    last_t_ns: int = 0
    count: int = 0
    value: float = float("nan")
    message: str = ""
    shown: Mapping[str, Any] = field(default_factory=dict[str, Any])
    firing: set[Series] = field(default_factory=set[Series])
    windows: dict[Series, Observed] = field(default_factory=dict[Series, Observed])
    epoch: int = -1
    news: str = ""
    stored_as: str = ""
    is_changed: bool = True

    @property
    def key(self) -> tuple[str, str]:
        """Its rule and subject."""
        return self.rule.name, self.subject

    @property
    def name(self) -> str:
        """What it is called in its run."""
        return f"{self.rule.name}{f'/{self.subject}' if self.subject else ''}@{self.first_step}"

    @property
    def is_open(self) -> bool:
        """Whether it fires."""
        return self.state == FIRING

    def fire(self, series: Series, seen: Observed, *, worse: bool) -> None:
        """A series fires; `seen` ends with the observation that made it."""
        if not self.is_open:
            self.state, self.news = FIRING, "opened"
            self.severity = self.rule.spec.severity
            self.shown = _evidence(seen)
            if self.count == 0:
                self.rank, self.metric = series
                self.first_step, self.first_t_ns = first_hit(seen, self.rule)
        self.firing.add(series)
        self.observe(int(seen.steps[-1]), int(seen.times[-1]), float(seen.values[-1]), 0, worse=worse)

    def keep(self, series: Series, window: Observed) -> None:
        """Remember the window of a series that is busy; one that is pending begins with the oldest hit that counts."""
        self.windows[series] = window
        if self.state == PENDING:
            coming = max(1, self.rule.held[1] - 1)
            self.first_step, self.first_t_ns = min(_first_hit(seen, coming) for seen in self.windows.values())

    def observe(self, step: int, t_ns: int, value: float, hits: int, *, worse: bool) -> None:
        """More observations beyond the bound; the values are those of the last."""
        self.count += hits
        self.is_changed = True
        self.last_step, self.last_t_ns, self.value = step, t_ns, value
        self.message = self._message(self.first_step)
        escalate = self.rule.spec.escalate
        if worse and escalate and SEVERITIES.index(escalate.severity) > SEVERITIES.index(self.severity or "info"):
            self.severity = escalate.severity
            self.news = self.news or "worse"

    def clear(self, series: Series, step: int, t_ns: int) -> None:
        """A series is safe again; the last one resolves it."""
        self.firing.discard(series)
        self.is_changed = True
        if self.is_open and not self.firing:
            self.state = RESOLVED
            self.last_step, self.last_t_ns = step, t_ns
            self.news = self.news or "resolved"

    def is_cooling(self, step: int) -> bool:
        """Whether what fires at a step is still this one."""
        return self.state == RESOLVED and (self.epoch >= 0 or step - self.last_step <= COOL_DOWN_STEPS)

    def _message(self, step: int) -> str:
        spec = self.rule.spec
        filled = {"value": self.value, "threshold": bound(spec, self.value), "step": step}
        return spec.message.format(subject=self.subject, metric=self.metric, **filled)

    def finding(self) -> Finding:
        """As it stands now; its news are told by this."""
        news, self.news, self.stored_as = self.news, "", self.name
        self.is_changed = False
        return Finding(
            run=self.run,
            project=self.project,
            finding=self.name,
            rule=self.rule.name,
            profile=self.rule.profile,
            subject=self.subject,
            metric=self.metric,
            rank=self.rank,
            severity=self.severity or self.rule.spec.severity,
            state=self.state,
            first_step=self.first_step,
            last_step=self.last_step,
            first_t_ns=self.first_t_ns,
            last_t_ns=self.last_t_ns,
            count=self.count,
            value=self.value,
            threshold=bound(self.rule.spec, self.value),
            message=self.message,
            advice=tuple(self.rule.spec.advice),
            evidence={**self.shown, **self._suggested(), "resume": self._resume()},
            news=news,
        )

    def _suggested(self) -> dict[str, Any]:
        suggest = self.rule.spec.suggest
        return {} if suggest is None else {"suggest": suggest.model_dump(exclude_none=True)}

    def _resume(self) -> dict[str, Any]:
        windows = [
            {
                "rank": rank,
                "metric": tag,
                "steps": seen.steps.tolist(),
                "t_ns": seen.times.tolist(),
                "values": seen.values.tolist(),
                "codes": seen.codes.tolist(),
            }
            for (rank, tag), seen in sorted(self.windows.items())
        ]
        return {"windows": windows, "firing": sorted(map(list, self.firing)), "epoch": self.epoch}


def first_hit(seen: Observed, rule: Rule) -> tuple[int, int]:
    """Step and time of the oldest hit of the window that a rule looks at."""
    return _first_hit(seen, rule.held[1])


def _first_hit(seen: Observed, window: int) -> tuple[int, int]:
    start = max(0, len(seen.codes) - window)
    first = start + int(np.argmax(seen.codes[start:] == HIT))
    return int(seen.steps[first]), int(seen.times[first])


def _evidence(seen: Observed) -> dict[str, Any]:
    """The values that made it fire, and what they were before: the median of those that were no hits."""
    quiet = seen.values[(seen.codes != HIT) & np.isfinite(seen.values)]
    return {
        "steps": seen.steps.tolist(),
        "values": seen.values.tolist(),
        "beyond": (seen.codes == HIT).tolist(),
        "baseline": float(np.median(quiet)) if len(quiet) else None,
    }


def restored(row: Mapping[str, Any], project: str, rule: Rule) -> Incident:
    """A finding from its row of the table; `evidence` is JSON text, times are microseconds."""
    evidence: Mapping[str, Any] = json.loads(row["evidence"] or "{}")
    resume: Mapping[str, Any] = evidence.get("resume") or {}
    incident = Incident(
        **{name: row[name] for name in ("run", "subject", "metric", "rank", "state", "severity")},
        **{name: row[name] for name in ("first_step", "last_step", "count", "message")},
        first_t_ns=row["first_time"] * 1000,
        last_t_ns=row["last_time"] * 1000,
        project=project,
        rule=rule,
        value=float("nan" if row["value"] is None else row["value"]),
        shown={name: part for name, part in evidence.items() if name not in ("resume", "suggest")},
        firing={(rank, tag) for rank, tag in resume.get("firing", ())},
        epoch=resume.get("epoch", -1),
        stored_as=row["finding"],
        is_changed=False,
    )
    for window in resume.get("windows", ()):
        values = [np.nan if value is None else value for value in window["values"]]
        incident.windows[window["rank"], window["metric"]] = Observed(
            np.array(window["steps"], dtype=np.int64),
            np.array(window["t_ns"], dtype=np.int64),
            np.array(values, dtype=np.float64),
            np.array(window["codes"], dtype=np.int8),
        )
    return incident
