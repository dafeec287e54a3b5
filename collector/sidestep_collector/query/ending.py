"""How the attempts of a run ended, and where it hung: events of the collector in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import duckdb

_EVENTS: Final = """
    select event, rank, attempt, step, wall_time, details::varchar as details from events
    where run = ? and event in ('post_mortem', 'hang', 'hang_over', 'heard_again') order by wall_time, rank, attempt
"""
_STACKS: Final = """
    select rank, attempt, arg_max(text, seq) from texts where run = ? and name = 'system/stacks' group by rank, attempt
"""
# What the collector's memory did not have: it was started again, and nothing came since.
_LAST: Final = """
    with last as (select max(step) as step from snapshots where (run, rank, attempt) = ($run, $rank, $attempt))
    select step, (select arg_max(value, step) from points where (run, rank, attempt) = ($run, $rank, $attempt)
        and metric in ('train/loss_total', 'train/loss')) from last
"""


def endings(connection: duckdb.DuckDBPyConnection, run: str) -> list[dict[str, Any]]:
    """Post-mortems, hangs and returns of a run in the order of time; each with `event`, `rank`, `attempt`, `step`,
    `wall_time`, `details` and `said`: lines for people."""
    stacks = {(rank, attempt): text for rank, attempt, text in connection.execute(_STACKS, [run]).fetchall()}
    found: list[dict[str, Any]] = []
    for event, rank, attempt, step, wall_time, text in connection.execute(_EVENTS, [run]).fetchall():
        details: dict[str, Any] = json.loads(text or "{}")
        if event == "post_mortem" and "step" not in details:
            last = connection.execute(_LAST, {"run": run, "rank": rank, "attempt": attempt}).fetchone()
            details |= {"step": last[0], "loss": last[1]} if last and last[0] is not None else {}
        if event == "hang" and (rank, attempt) in stacks:
            details["stacks"] = stacks[rank, attempt]
        row = {"event": event, "rank": rank, "attempt": attempt, "step": step, "wall_time": wall_time}
        found.append(row | {"details": details, "said": in_words(event, details)})
    return found


def in_words(event: str, details: Mapping[str, Any]) -> list[str]:
    """An event as lines: what happened, then what is known of it."""
    if event == "hang":
        usual = details.get("step_seconds_p99")
        lines = [
            f"no step for {_seconds(details)} at step {details.get('step')} (a step took {usual} s at most, nearly)"
        ]
        lines += [] if details.get("heartbeats") else ["its process stands still"]
        return lines + str(details.get("stacks", "")).splitlines()
    if event == "hang_over":
        return [f"steps came again after {_seconds(details)}"]
    if event == "heard_again":
        return ["it was lost, and is back"]
    return [_cause(details), *_last(details), *str(details.get("traceback") or details.get("stack") or "").splitlines()]


def _cause(details: Mapping[str, Any]) -> str:
    code, error, signal = (details.get(name) for name in ("exit_code", "error", "signal"))
    words = {
        "failed": f"it failed: {error or 'it said so, and not why'}"
        if code is None
        else f"it failed with exit code {code} ({error})",
        "killed": f"{signal} ended it" if signal else "killed without a word: SIGKILL, or something as final",
        "out_of_memory": "killed, and for want of memory as it seems: since it began, the kernel did that "
        f"{details.get('oom_kills')} times in its group",
        "lost": f"it fell silent for {details.get('silent_seconds')} s, and its process cannot be seen from here: its "
        "host may be gone",
    }
    return words.get(str(details.get("cause")), f"it ended: {details.get('cause')}")


def _last(details: Mapping[str, Any]) -> list[str]:
    ranks = [rank for rank in details.get("ranks", ()) if isinstance(rank, dict)]
    lasts = ranks if len(ranks) > 1 else [details] if "step" in details else []
    lines: list[str] = []
    for last in lasts:
        loss = last.get("loss")
        line = f"last step {last.get('step')}"
        line += f", loss {loss:.6g}" if isinstance(loss, float) else f", loss {loss}" if loss is not None else ""
        since = last.get("seconds_since_last_record")
        line += f", {since} s before this was noticed" if since is not None else ""
        lines.append(f"rank {last['rank']}: {line}" if len(lasts) > 1 else line)
    return lines


def _seconds(details: Mapping[str, Any]) -> str:
    return f"{details.get('seconds')} s"
