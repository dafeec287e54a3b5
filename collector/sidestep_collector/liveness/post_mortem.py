"""What is known of an attempt that ended otherwise than well: the details of the event `post_mortem`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Final, Protocol

from sidestep_collector.blocks import Stream
from sidestep_collector.liveness.origin import Origin

OUT_OF_MEMORY: Final = "out_of_memory"
#: What the `end` of a stream may tell of its cause.
_SAID: Final = ("error", "exception", "traceback", "exit_code", "signal", "stack")
_LOSSES: Final = ("train/loss_total", "train/loss")


class Last(Protocol):
    """What a stream said last."""

    @property
    def stream(self) -> Stream: ...  # noqa: D102
    @property
    def t_ns(self) -> int: ...  # noqa: D102
    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def values(self) -> Mapping[str, float]: ...  # noqa: D102


def post_mortem(
    cause: str, stream: Stream, origin: Origin, *, said: Mapping[str, Any], lasts: Iterable[Last], now_ns: int
) -> dict[str, Any]:
    """Put together what is known.

    Args:
        cause: failed, killed or lost.
        stream: whose end it is.
        origin: where it came from.
        said: details of its `end`; empty where it said none.
        lasts: what each stream of the run said last, as far as it is remembered.
        now_ns: the time now.

    Returns:
        `cause` (a killed one's is `out_of_memory` where the kernel counted that since its start), what was said of
        it, `oom_kills`, and for each rank's latest attempt `step`, `loss` and `seconds_since_last_record`.
    """
    kills = origin.oom_kills() if cause == "killed" else None
    details: dict[str, Any] = {"cause": OUT_OF_MEMORY if kills and not said.get("signal") else cause}
    details |= {name: said[name] for name in _SAID if said.get(name) is not None}
    if kills is not None:
        details["oom_kills"] = kills
    latest: dict[int, Last] = {}
    for last in lasts:
        if last.stream.rank not in latest or last.stream.attempt > latest[last.stream.rank].stream.attempt:
            latest[last.stream.rank] = last
    if stream.rank in latest:
        details |= _last(latest[stream.rank], now_ns)
    return details | {"ranks": [{"rank": rank, **_last(latest[rank], now_ns)} for rank in sorted(latest)]}


def _last(last: Last, now_ns: int) -> dict[str, Any]:
    return {
        "step": last.step,
        "loss": loss_of(last.values),
        "seconds_since_last_record": round(max(0, now_ns - last.t_ns) / 1e9, 1),
    }


def loss_of(values: Mapping[str, float]) -> float | str | None:
    """The loss among values: the total, else the plain one, else the first of the training's that is called one."""
    named = (tag for tag in values if tag.startswith("train/") and "loss" in tag)
    found = next((values[tag] for tag in (*_LOSSES, *named) if tag in values), None)
    return found if found is None or isfinite(found) else str(found)
