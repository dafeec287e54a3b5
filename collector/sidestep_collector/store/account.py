"""What a batch means for the small tables: runs, attempts, metrics, watermarks, gaps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import isfinite, isnan
from typing import Any, Final, cast

from sidestep_collector.blocks import (
    Batch,
    Event,
    Finding,
    Histogram,
    Image,
    Item,
    KeySet,
    Progress,
    ScalarBlock,
    Stream,
    Tensor,
    Text,
)
from sidestep_collector.store.items import ABOUT_THE_RUN
from sidestep_collector.store.ledger import Draft
from sidestep_collector.store.records import Row
from sidestep_collector.store.text import clean, strict_json
from sidestep_schemas import catalog
from sidestep_schemas.tables import STORE_VERSION

RUNNING: Final = "running"
#: State of a finding that came to nothing: it has no row.
GONE: Final = "gone"
#: How a run ended whose ranks ended in several ways: the first that one of them has.
_CAUSES: Final = ("failed", "killed", "lost", "finished")


def enter(draft: Draft, batch: Batch, marks: Mapping[bytes, tuple[Stream, str]], now_us: int) -> None:
    """Write a batch, and streams that were found dead, into the small tables."""
    streams = _streams(batch, marks, now_us)
    for stream, first_us in streams.items():
        _ensure(draft, stream, first_us)
    for progress in batch.progress:
        _revive(draft, progress)
    _enter_records(draft, batch)
    _enter_delivery(draft, batch, now_us)
    for stream, cause in marks.values():
        _mark(draft, stream, cause, now_us)
    for run in {stream.run for stream in streams}:
        _settle(draft, run)


def _mark(draft: Draft, stream: Stream, cause: str, now_us: int) -> None:
    attempt = _attempt(draft, stream)
    if cause == RUNNING:
        if attempt["cause"] == "lost":
            draft.put("attempts", attempt | {"cause": None, "ended": None})
    elif attempt["cause"] is None:
        draft.put("attempts", attempt | {"cause": cause, "ended": now_us})


def _revive(draft: Draft, progress: Progress) -> None:
    """A stream that was given up for lost and speaks again was not lost."""
    stream = progress.stream
    attempt = _attempt(draft, stream)
    if attempt["cause"] == "lost":
        before = draft.get("ingest", stream.run_uid.hex(), stream.rank, stream.key.hex())
        if progress.watermark > (before["watermark"] if before else 0):
            draft.put("attempts", attempt | {"cause": None, "ended": None})


def _enter_records(draft: Draft, batch: Batch) -> None:
    for tag in {tag for names in {block.key_set.names for block in batch.blocks} for tag in names}:
        _enter_metric(draft, tag, "scalar", batch.metrics)
    for block in batch.blocks:
        _enter_start_step(draft, block)
    for item in batch.items:
        _enter_item(draft, item, batch.metrics)


def _enter_delivery(draft: Draft, batch: Batch, now_us: int) -> None:
    for stream, key_set in batch.key_sets:
        draft.put("key_sets", _key_set_row(stream, key_set))
    for finding in batch.findings:
        _enter_finding(draft, finding)
    for gap in batch.gaps:
        row = {
            "run": gap.stream.run,
            "rank": gap.stream.rank,
            "attempt": gap.stream.attempt,
            "first_seq": gap.first_seq,
        }
        draft.put("gaps", row | {"records": gap.records, "reason": gap.reason, "noticed": now_us})
    for progress in batch.progress:
        _enter_progress(draft, progress, now_us)


def _streams(batch: Batch, marks: Mapping[bytes, tuple[Stream, str]], now_us: int) -> dict[Stream, int]:
    """Streams of a batch, with when the first of their records in it was taken."""
    first: dict[Stream, int] = {}
    for block in batch.blocks:
        if len(block.t_ns):
            taken = int(block.t_ns[0]) // 1000
            first[block.stream] = min(taken, first.get(block.stream, taken))
    for item in batch.items:
        taken = item.at.t_ns // 1000
        first[item.at.stream] = min(taken, first.get(item.at.stream, taken))
    quiet: list[Stream] = [part.stream for part in (*batch.progress, *batch.gaps)]
    quiet += [stream for stream, _ in (*batch.key_sets, *marks.values())]
    for stream in quiet:
        first.setdefault(stream, now_us)
    return first


def _ensure(draft: Draft, stream: Stream, first_us: int) -> None:
    """A run and an attempt have a row even when the record of their start was lost."""
    if _run(draft, stream) is None:
        row: Row = {"run": stream.run, "run_uid": stream.run_uid.hex(), "project": stream.project, "name": stream.run}
        row |= {"group": None, "state": RUNNING, "started": first_us, "ended": None, "world_size": None}
        row |= {"config": None, "tags": [], "notes": None, "profile": None, "schema_version": STORE_VERSION}
        draft.put("runs", row)
    if draft.get("attempts", stream.run, stream.attempt, stream.rank) is None:
        row = {"run": stream.run, "attempt": stream.attempt, "rank": stream.rank, "stream": stream.key.hex()}
        row |= {"start_step": None, "started": first_us, "ended": None, "cause": None, "host": None, "pid": None}
        draft.put("attempts", row)


def _enter_start_step(draft: Draft, block: ScalarBlock) -> None:
    attempt = _attempt(draft, block.stream)
    if attempt["start_step"] is None and len(steps := block.step[block.step >= 0]):
        draft.put("attempts", attempt | {"start_step": int(steps[0])})


def _enter_metric(draft: Draft, tag: str, kind: str, declared: Mapping[str, catalog.Metric]) -> None:
    stored = clean(tag)
    before = draft.get("metrics", stored)
    if before is not None and before["reduction"] is not None:
        return
    known = declared.get(tag) or catalog.find(tag)
    row: Row = {"metric": stored, "name": known.name if known else stored, "kind": kind, "block": catalog.block_of(tag)}
    row |= {"unit": known.unit if known else "", "better": known.better if known else None}
    draft.put("metrics", row | {"reduction": known.reduction if known else "mean"})


def _enter_item(draft: Draft, item: Item, declared: Mapping[str, catalog.Metric]) -> None:
    match item:
        case Event(event="start"):
            _enter_start(draft, item)
        case Event(event="end"):
            attempt = _attempt(draft, item.at.stream)
            status = str(item.details.get("status") or "finished")
            draft.put("attempts", attempt | {"cause": status, "ended": item.at.t_ns // 1000})
        case Event():
            pass
        case Text(what=what) if what in ABOUT_THE_RUN:
            _describe(draft, item.at.stream, {what: item.text if what == "notes" else _parsed(item.text)})
        case Text(what="text"):
            _enter_metric(draft, item.name, "text", declared)
        case Tensor() | Image() | Histogram():
            _enter_metric(draft, item.name, type(item).__name__.lower(), declared)
        case _:
            pass


def _enter_start(draft: Draft, item: Event) -> None:
    stream, details = item.at.stream, item.details
    started = _int(details.get("started_ns"), item.at.t_ns) // 1000
    host, pid = details.get("host"), details.get("pid")
    attempt = _attempt(draft, stream) | {"started": started, "host": None if host is None else str(host)}
    draft.put("attempts", attempt | {"pid": None if pid is None else _int(pid, 0)})
    run = _known_run(draft, stream)
    earliest = min((row["started"] for row in draft.group("attempts", stream.run)), default=started)
    draft.put("runs", run | {"started": earliest})
    _describe(draft, stream, details)


def _describe(draft: Draft, stream: Stream, said: Mapping[str, Any]) -> None:
    """Write what is said about a run over what was known; nothing said changes nothing."""
    run = _known_run(draft, stream)
    for column in ("name", "group", "notes", "profile"):
        if said.get(column):
            run[column] = str(said[column])
    if said.get("world_size") is not None:
        run["world_size"] = _int(said["world_size"], 1, 2**31 - 1)
    tags = said.get("tags")
    if isinstance(tags, (list, tuple)) and tags:
        run["tags"] = [str(tag) for tag in cast("Iterable[object]", tags)]
    config = said.get("config")
    if config:
        known = json.loads(run["config"] or "{}")
        whole = {**known, **config} if isinstance(known, dict) and isinstance(config, Mapping) else config
        run["config"] = strict_json(whole)
    draft.put("runs", run)


def _enter_finding(draft: Draft, finding: Finding) -> None:
    key = (clean(finding.run), clean(finding.finding))
    if finding.state == GONE:
        if draft.get("findings", *key) is not None:
            draft.drop("findings", key)
        return
    row: Row = {"run": key[0], "finding": key[1], "rule": finding.rule, "profile": finding.profile}
    row |= {"subject": clean(finding.subject), "metric": clean(finding.metric), "rank": finding.rank}
    row |= {"severity": finding.severity, "state": finding.state, "count": finding.count}
    row |= {"first_step": finding.first_step, "last_step": finding.last_step}
    row |= {"first_time": finding.first_t_ns // 1000, "last_time": finding.last_t_ns // 1000}
    row |= {"value": _number(finding.value), "threshold": None if isnan(finding.threshold) else finding.threshold}
    row |= {"message": clean(finding.message), "advice": list(finding.advice)}
    draft.put("findings", row | {"evidence": strict_json(finding.evidence)})


def _enter_progress(draft: Draft, progress: Progress, now_us: int) -> None:
    stream = progress.stream
    row: Row = {
        "run_uid": stream.run_uid.hex(),
        "rank": stream.rank,
        "stream": stream.key.hex(),
        "attempt": stream.attempt,
    }
    row |= {"watermark": progress.watermark, "lost": progress.lost, "ended": progress.ended, "updated": now_us}
    draft.put("ingest", row)
    if progress.ended:
        # Nobody will refer to them again; kept for all runs ever, they would make every publish longer.
        for known in draft.group("key_sets", row["stream"]):
            draft.drop("key_sets", (known["stream"], known["id"]))


def _settle(draft: Draft, run: str) -> None:
    """The state of a run follows from the last attempt of each of its ranks."""
    latest: dict[int, Row] = {}
    for row in draft.group("attempts", run):
        if row["rank"] not in latest or row["attempt"] > latest[row["rank"]]["attempt"]:
            latest[row["rank"]] = row
    causes = {row["cause"] for row in latest.values()}
    state, ended = RUNNING, None
    if None not in causes:
        state = next((cause for cause in _CAUSES if cause in causes), "finished")
        ended = max(row["ended"] for row in latest.values())
    row = draft.get("runs", run)
    if row is not None and (row["state"], row["ended"]) != (state, ended):
        draft.put("runs", row | {"state": state, "ended": ended})


def _key_set_row(stream: Stream, key_set: KeySet) -> Row:
    row: Row = {"stream": stream.key.hex(), "id": key_set.id, "dtype": key_set.dtype, "tier": key_set.tier}
    return row | {"names": list(key_set.names), "reductions": list(key_set.reductions)}


def _run(draft: Draft, stream: Stream) -> Row | None:
    return draft.get("runs", stream.run)


def _known_run(draft: Draft, stream: Stream) -> Row:
    return dict(_run(draft, stream) or {})


def _attempt(draft: Draft, stream: Stream) -> Row:
    return draft.get("attempts", stream.run, stream.attempt, stream.rank) or {}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _number(value: float) -> float | str:
    return value if isfinite(value) else str(value)


def _int(value: object, otherwise: int, most: int = 2**63 - 1) -> int:
    """What a peer said, where it is a whole number that a column can hold."""
    return value if isinstance(value, int) and 0 <= value <= most else otherwise
