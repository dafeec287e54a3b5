"""Journals of dead processes on this host: noticed here, shipped by `sidestep sync` over the ordinary sockets."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from sidestep_schemas.claims import find_leftovers
from sidestep_schemas.keys import KEY_VARIABLE

log: Any = structlog.get_logger()

_LOOK_SECONDS: Final = 3.0
_PATIENCE: Final = 10


class LeftoverWatch:
    """Looks for them now and then, and starts a sync when there are some.

    Args:
        root: data folder.
        address: the collector's own.
        key: file of the key that it asks its neighbours for; empty where it asks for none.
    """

    def __init__(self, root: Path, address: str, key: str = "") -> None:
        self._environ = {**os.environ, KEY_VARIABLE: key}
        self._root = root
        self._address = address
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._failures: dict[frozenset[Path], int] = {}
        self._thread = threading.Thread(target=self._watch, name="leftovers", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking; a sync under way is ended, and goes on at the next start."""
        self._stop.set()
        with self._starting:
            if self._process is not None:
                self._process.terminate()
        self._thread.join()

    @property
    def busy(self) -> bool:
        """Whether journals are being shipped."""
        return self._process is not None

    def _watch(self) -> None:
        while True:
            try:
                self._sync()
            except OSError as error:
                log.warning("journals left behind could not be looked at", why=str(error))
            if self._stop.wait(_LOOK_SECONDS):
                return

    def _sync(self) -> None:
        found = frozenset(find_leftovers(self._root))
        if not found or self._failures.get(found, 0) >= _PATIENCE or self._stop.is_set():
            return
        log.info("shipping journals that ended processes left", streams=len(found))
        command = [sys.executable, "-m", "sidestep", "sync", str(self._root), "--collector", self._address, "--json"]
        with self._starting:
            if self._stop.is_set():
                return
            process = self._process = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        _, errors = process.communicate()
        if process.returncode != 0 and not self._stop.is_set():
            self._failures[found] = self._failures.get(found, 0) + 1
            log.warning("journals could not be shipped", why=errors.decode("utf-8", "replace")[-500:].strip())
        self._process = None
