"""What a run's profile asks of its metrics, against their last values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sidestep_collector.profiles import COMMON, Choices, Profile, builtin, vocabulary
from sidestep_collector.profiles.choices import suggested
from sidestep_collector.profiles.spec import Judged, Target
from sidestep_collector.query.epochs import ByEpoch

OK: Final = "ok"
WORRY: Final = "worry"


@dataclass(frozen=True, slots=True)
class Asked:
    """A metric with a target.

    Attributes:
        metric: its tag; of a family the member that is furthest from its target, and how many there are.
        last: mean of its last epoch.
        target: in words.
        state: "ok" or "worry" where the target has bounds, else "".
        worry: when to worry, in words.
    """

    metric: str
    last: float
    target: str
    state: str
    worry: str


def profiles_of(run: str, start: Mapping[str, Any], tags: Iterable[str]) -> tuple[list[Profile], str]:
    """The profiles that a run goes by, the common one first, and a word on the last: "" where it chose it.

    Args:
        run: its id.
        start: what its start said.
        tags: what it has; a run that chose none is read by the profile that fits them best.
    """
    choices = Choices()
    choices.note(run, start)
    own = choices.of(run).own
    if own is not None:
        return [builtin(COMMON), own], ""
    fitting = suggested(tags)
    return [builtin(name) for name in (COMMON, *fitting[:1])], "by its metrics" if fitting else ""


def against_targets(profiles: Iterable[Profile], metrics: Mapping[str, ByEpoch]) -> list[Asked]:
    """Every metric of a run that one of the profiles asks something of, in the order of their names."""
    known = vocabulary(*profiles)
    families: dict[str, list[tuple[float, Asked]]] = {}
    for tag, curve in sorted(metrics.items()):
        match = known.find(tag)
        judged = match.declared.judged if match is not None else None
        last = _last(curve)
        if match is None or judged is None or judged.target is None or last is None:
            continue
        asked = Asked(tag, last, judged.target.text, _state(judged.target, last), _worry(judged))
        families.setdefault(match.declared.metric.tag, []).append((_beyond(judged.target, last), asked))
    return [_worst(members) for members in families.values()]


def _worst(members: list[tuple[float, Asked]]) -> Asked:
    _, worst = max(members, key=lambda member: member[0])
    if len(members) == 1:
        return worst
    return Asked(f"{worst.metric} (worst of {len(members)})", worst.last, worst.target, worst.state, worst.worry)


def _last(curve: ByEpoch) -> float | None:
    finite = curve.mean[np.isfinite(curve.mean)]
    return float(finite[-1]) if len(finite) else None


def _beyond(target: Target, value: float) -> float:
    """How far beyond a bound; negative or 0 for within."""
    below = target.min - value if target.min is not None else -np.inf
    above = value - target.max if target.max is not None else -np.inf
    return float(max(below, above))


def _state(target: Target, value: float) -> str:
    if target.min is None and target.max is None:
        return ""
    return WORRY if _beyond(target, value) > 0 else OK


def _worry(judged: Judged) -> str:
    return judged.worry or ""
