"""A webhook: JSON posted to a URL, from a thread of its own behind a bounded queue."""

from __future__ import annotations

import json
import queue
import threading
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

import structlog

log: Any = structlog.get_logger()

#: Messages that may wait; more are dropped and counted.
QUEUE_MAX: Final = 256
TIMEOUT_SECONDS: Final = 5.0


class Webhook:
    """Posts messages one after the other; `post` never waits.

    Args:
        url: http or https.

    Attributes:
        sent, dropped: messages that were taken there, and that were not.
    """

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.sent = 0
        self.dropped = 0
        self._url = url
        self._timeout_seconds = timeout_seconds
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(maxsize=QUEUE_MAX)
        self._is_failing = False
        # A daemon thread: one that hangs in a name lookup does not hold up the collector's end.
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self._thread.start()

    def post(self, message: Mapping[str, Any]) -> None:
        """Queue a message; dropped where too many wait already."""
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Deliver what waits, for so long at most; what is left then is dropped."""
        try:
            self._queue.put(None, timeout=timeout_seconds)
        except queue.Full:
            return
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                self._send(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the webhook's and nobody else's
                self.dropped += 1
                if not self._is_failing:
                    log.warning("the webhook takes nothing; what it misses is dropped", url=self._url, why=str(error))
                self._is_failing = True
            else:
                self.sent += 1
                if self._is_failing:
                    log.info("the webhook works again", url=self._url, dropped=self.dropped)
                self._is_failing = False

    def _send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message, allow_nan=False, default=str).encode("utf-8", "replace")
        request = urllib.request.Request(  # noqa: S310 - the settings admit http and https alone
            self._url, data=body, headers={"Content-Type": "application/json", "User-Agent": "sidestep"}
        )
        with urllib.request.urlopen(request, timeout=self._timeout_seconds):  # noqa: S310 - as above
            pass
