"""The daemon: start, fail fast, tell where it is, run the pipeline, and end cleanly on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import structlog

from sidestep_collector.config import Config
from sidestep_collector.keys import KeyRing
from sidestep_collector.leftovers import LeftoverWatch
from sidestep_collector.logs import configure
from sidestep_collector.pipeline import Pipeline
from sidestep_collector.receive import Sockets, reaches_out
from sidestep_collector.store import Store
from sidestep_collector.telemetry import disk_free_bytes, journal_bytes, not_ready
from sidestep_schemas.errors import ConfigError, FolderError

if TYPE_CHECKING:
    from sidestep_collector.serve import Endpoint

log: Any = structlog.get_logger()

ANNOUNCEMENT: Final = "collector.json"


def serve(root: Path, config: Config) -> None:
    """Run a collector for a data folder until it is told to end (SIGTERM, SIGINT) or has been idle for long.

    Raises:
        FolderError: the folder cannot be written, or another collector has it.
        AddressError: the address cannot be bound, or is refused.
        VersionError: the store is of a newer version.
    """
    configure(config.log_format)
    asked_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: asked_to_end.append(received))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"{root} cannot be written ({error.strerror}): choose another with --dir or SIDESTEP_DIR"
        ) from error
    store = Store.open(root)
    (root / ANNOUNCEMENT).unlink(missing_ok=True)  # of one that was killed; nobody may take it for this one
    try:
        _serve(root, config, store, asked_to_end)
    finally:
        store.close()


def _serve(root: Path, config: Config, store: Store, asked_to_end: list[int]) -> None:
    boot = uuid.uuid4()
    address = config.address(root)
    ring = _ring(root, config, address)
    sockets = Sockets(address, boot.bytes, insecure=config.insecure, ring=ring)
    identity: dict[str, Any] = {
        "pid": os.getpid(),
        "address": address,
        "key": str(ring.local) if ring is not None else "",
        "dir": str(root),
        "boot": boot.hex,
        "started": time.time(),
        "version": version("sidestep"),
    }
    pipeline: Pipeline | None = None

    def answer(question: dict[str, Any]) -> Any:
        if question.get("ask") == "status" and pipeline is not None:
            return identity | status(pipeline, root) | {"access": sockets.access()}
        return {"error": f"unknown question {question.get('ask')!r}; known: status"}

    pipeline = Pipeline(root, config, store, sockets, answer)
    watch = LeftoverWatch(root, address, str(identity["key"])) if config.take_leftovers else None
    announcement = root / ANNOUNCEMENT
    endpoint: Endpoint | None = None
    try:
        endpoint = _endpoint(config, lambda: identity | status(pipeline, root))
        identity["metrics"] = endpoint.url if endpoint is not None else ""
        _announce(announcement, identity)
        log.info("listening", address=address, dir=str(root), pid=os.getpid())
        if watch is not None:
            watch.start()
        pipeline.run(until=lambda: bool(asked_to_end) or _is_idle(pipeline, watch, config))
    finally:
        if endpoint is not None:
            endpoint.close()
        if watch is not None:
            watch.close()
        announcement.unlink(missing_ok=True)
        sockets.close()
        log.info("ended", commits=pipeline.counters.commits, records=pipeline.counters.records)


def _ring(root: Path, config: Config, address: str) -> KeyRing | None:
    """The keys that say who may connect; None where nobody is asked for one."""
    if config.require_keys and (config.insecure or not address.startswith("tcp://")):
        raise ConfigError(
            f"require_keys: {address} needs none or is to have none; keys are for tcp addresses without --insecure"
        )
    ring = KeyRing(config.keys_folder(root))
    if config.require_keys and not ring.exists:
        raise ConfigError(f"require_keys: {ring.folder} holds no key: `sidestep keys new NAME` makes the first")
    is_asked_for = config.require_keys or (reaches_out(address) and not config.insecure)
    return ring if is_asked_for and ring.exists else None


def _endpoint(config: Config, document: Callable[[], dict[str, Any]]) -> Endpoint | None:
    if config.metrics_port is None:
        return None
    from sidestep_collector.serve import Endpoint  # noqa: PLC0415 - HTTP and Prometheus, where they are asked for

    endpoint = Endpoint(config.metrics_host, config.metrics_port, document)
    endpoint.start()
    log.info("serving /healthz, /readyz and /metrics", url=endpoint.url)
    if reaches_out(f"tcp://{config.metrics_host}:0"):
        log.warning("whoever reaches that address is told names of runs", metrics_host=config.metrics_host)
    return endpoint


def status(pipeline: Pipeline, root: Path) -> dict[str, Any]:
    """What `sidestep status --json` tells: streams with their lag, totals, commit times. Asked by several threads."""
    now = time.monotonic()
    document: dict[str, Any] = {
        "streams": [
            {
                "run": state.stream.run,
                "project": state.stream.project,
                "run_uid": state.stream.run_uid.hex(),
                "rank": state.stream.rank,
                "attempt": state.stream.attempt,
                "received": state.received,
                "committed": state.committed,
                "lag": state.received - state.committed,
                "lost": state.lost,
                "ended": state.ended,
                "state": "ended" if state.ended else pipeline.vigil.word(state.stream.key),
                "seen_seconds_ago": round(now - state.seen, 3),
            }
            for state in list(pipeline.registry.states())
        ],
        "counters": pipeline.counters.as_dict(),
        "commit": pipeline.committer.times.as_dict(),
        "pending_bytes": pipeline.pending_bytes(),
        "failing": pipeline.committer.failing,
        "webhook": pipeline.notifier.as_dict(),
        "reading": pipeline.is_reading,
        "turned_seconds_ago": round(now - pipeline.turned_at, 3),
        "journal_bytes": journal_bytes(root),
        "disk_free_bytes": disk_free_bytes(root),
        "now": time.time(),
    }
    return document | {"not_ready": not_ready(document)}


def _is_idle(pipeline: Pipeline, watch: LeftoverWatch | None, config: Config) -> bool:
    if config.idle_exit is None or (watch is not None and watch.busy):
        return False
    return pipeline.idle_seconds() > config.idle_exit


def _announce(path: Path, identity: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(identity), encoding="utf-8")
        temporary.rename(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written ({error.strerror})") from error
