"""Records to judge, and a stage that judges them by rules of the test's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sidestep_collector.blocks import EpochSummary, Event, Finding, KeySet, Moment, ScalarBlock, Stream
from sidestep_collector.profiles import Choices
from sidestep_collector.rules import Rules

T0 = 1_700_000_000_000_000_000
HEAD = "name: mine\ntitle: Mine\nmeaning: What I train.\n"
METRICS = "metrics:\n" + "".join(
    f"  {tag}:\n    name: n\n    unit: J\n    tier: step\n    meaning: M.\n    source: script\n"
    for tag in ("mine/heat", "mine/work", "mine/block/<block>", "mine/part/<block>")
)


def rule(name: str = "hot", **given: Any) -> str:
    """A rule as YAML; it has a message and an advice where none is given, and no warm-up."""
    said = {"form": "threshold", "metric": "mine/heat", "warmup": 0, **given}
    said.setdefault("message", '"{subject} {value:g} beyond {threshold:g}"')
    said.setdefault("advice", "[cool it down by 10 K]")
    return f"  {name}:\n" + "".join(f"    {key}: {value}\n" for key, value in said.items())


def stream(rank: int = 0, attempt: int = 0, run: str = "r") -> Stream:
    return Stream(bytes([rank, attempt]) + run.encode().ljust(6), run.encode().ljust(16), run, "p", rank, attempt)


def start(to: Stream, *rules: str, **details: Any) -> Event:
    text = HEAD + METRICS + ("rules:\n" + "".join(rules) if rules else "")
    return Event(Moment(to, 0, T0, -1, float("nan")), "start", {"profile": "mine", "profile_text": text, **details})


def block(
    values: Sequence[float] | Sequence[Sequence[float]],
    names: Sequence[str] = ("mine/heat",),
    first: int = 0,
    to: Stream | None = None,
    key_set: int = 1,
) -> ScalarBlock:
    """Records at steps `first`, `first + 1`, ...; seq is the step."""
    table = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    seq = np.arange(first, first + len(table))
    known = KeySet(key_set, 1, "step", tuple(names), ("mean",) * len(names))
    return ScalarBlock(to or stream(), known, seq, T0 + seq * 1000, seq, np.full(len(seq), 0.5), table)


def epoch(number: int, **mean: float) -> EpochSummary:
    """An epoch with the means of some metrics; `_` in a name stands for a slash."""
    statistics = {tag.replace("_", "/"): {"mean": value, "last": value, "n": 1} for tag, value in mean.items()}
    return EpochSummary("r", "p", number, 100 * number, 1.0, 1, statistics, T0 + number)


def stage(*rules: str, **details: Any) -> Rules:
    """A stage whose run "r" has begun with these rules."""
    made = Rules(Choices())
    made.add([], [start(stream(), *rules, **details)])
    return made


def as_row(one: Finding) -> dict[str, Any]:
    """A finding as the store gives it back."""
    row = {name: getattr(one, name) for name in one.__dataclass_fields__}
    row |= {"first_time": one.first_t_ns // 1000, "last_time": one.last_t_ns // 1000, "value": str(one.value)}
    plain = json.dumps(one.evidence, default=str).replace("NaN", "null").replace("Infinity", "1e999")
    return row | {"evidence": plain}


def told(found: Sequence[Finding]) -> list[tuple[str, str, str, int]]:
    """What matters of findings: (finding, state, severity, count)."""
    return [(one.finding, one.state, one.severity, one.count) for one in found]
