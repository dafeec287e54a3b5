"""`sidestep status` and `sidestep tail`: what the running collector says of itself, and what comes in now."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import click
import msgspec
import zmq

from sidestep_collector.commands.dial import Peer, ask, connected, find, reaching
from sidestep_collector.commands.options import common
from sidestep_schemas.errors import UsageError
from sidestep_schemas.layout import endpoints
from sidestep_schemas.wire import LIVE_TOPIC


@click.command()
@common
@reaching
def status(folder: str | None, collector: str | None, key: str | None, *, as_document: bool) -> None:
    """What the collector is doing: its streams and how far each is stored."""
    document = _status(find(folder, collector, key))
    if as_document:
        click.echo(json.dumps(document))
        return
    counters = document["counters"]
    click.echo(f"collector pid {document['pid']} at {document['address']}, data in {document['dir']}")
    click.echo(
        f"{counters['records']:,} records, {counters['scalars']:,} scalars; commits {counters['commits']:,} "
        f"(p50 {document['commit']['p50_ms']} ms); rejected frames {counters['rejected_frames']}, "
        f"lost records {counters['lost_records']}"
    )
    free = document["disk_free_bytes"]
    click.echo(
        f"{document['pending_bytes'] / 1e6:.1f} MB wait for a commit, {document['journal_bytes'] / 1e6:.1f} MB of "
        f"journals on its host, {'?' if free is None else f'{free / 1e9:.1f}'} GB left on its disk"
    )
    for reason in document["not_ready"]:
        click.echo(f"NOT READY: {reason}", err=True)
    if document["failing"]:
        click.echo(f"COMMITS FAIL, nothing is acknowledged: {document['failing']}", err=True)
    for stream in document["streams"]:
        state = "ended" if stream["ended"] else f"{stream['state']}, seen {stream['seen_seconds_ago']:.1f} s ago"
        click.echo(
            f"  {stream['project']}/{stream['run']} rank {stream['rank']} attempt {stream['attempt']}: "
            f"{stream['committed']:,} stored, lag {stream['lag']:,}, lost {stream['lost']:,}, {state}"
        )


@click.command()
@common
@reaching
@click.option("--records", default=0, help="end after so many records; default never")
@click.option("--timeout", default=0.0, help="end after so many seconds without one; default never")
@click.argument("run")
def tail(  # noqa: PLR0917 - click hands in options by name
    folder: str | None,
    collector: str | None,
    key: str | None,
    records: int,
    timeout: float,
    run: str,
    *,
    as_document: bool,
) -> None:
    """Follow what RUN logs, as it comes in, and what its rules find; with --json a line a record."""
    peer = find(folder, collector, key)
    streams = _status(peer)["streams"]
    uids = {stream["run_uid"] for stream in streams if run in (stream["run"], f"{stream['project']}/{stream['run']}")}
    if len(uids) != 1:
        known = ", ".join(sorted({stream["run"] for stream in streams})) or "none"
        raise UsageError(f"the collector knows no run {run!r}; it knows: {known}")
    topic = LIVE_TOPIC + bytes.fromhex(uids.pop())
    seen = 0
    with connected(peer, zmq.SUB, endpoints(peer.address).ack, topic) as line:
        while line.wait(timeout or None):
            record = msgspec.json.decode(line.socket.recv()[17:])
            click.echo(json.dumps(record) if as_document else _line(record))
            seen += 1
            if seen == records:
                return


def _status(peer: Peer) -> Any:
    return ask(peer.address, {"ask": "status"}, peer.key)


def _line(record: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(record["t_ns"] / 1e9))
    if "finding" in record:
        return f"{clock}  {record['severity']} {record['state']}: {record['rule']}: {record['message']}"
    values = "  ".join(f"{name} {_short(value)}" for name, value in list(record["values"].items())[:8])
    more = f"  (+{len(record['values']) - 8})" if len(record["values"]) > 8 else ""
    return f"{clock}  rank {record['rank']}  step {record['step']:>7}  {values}{more}"


def _short(value: float | None) -> str:
    return "nan" if value is None or math.isnan(value) else f"{value:.5g}"
