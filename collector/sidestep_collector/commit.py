"""Commit: what the pipeline hands over becomes files, then rows and watermarks in one transaction.

Works on a thread of its own. A batch that cannot be committed (a full disk) is tried again until it can.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog

from sidestep_collector.blocks import Batch
from sidestep_collector.sinks.replacing import FileSink
from sidestep_collector.sinks.tensorboard import TensorBoardSink
from sidestep_collector.store import Store
from sidestep_collector.telemetry import CommitTimes, Counters
from sidestep_schemas.errors import StoreWriteError

log: Any = structlog.get_logger()

_RETRY_SECONDS: Final = (0.5, 10.0)
_COMPACT_SECONDS: Final = 1.0


class Committer:
    """Commits one batch at a time, and compacts the store beside it.

    Args:
        store: where rows and watermarks go.
        tensorboard: event files; their lengths are committed with the rows.
        files: sinks whose files are replaced as a whole: epoch documents, samples, settings.
        counters: totals.

    Attributes:
        times: how long commits took.
        failing: why commits fail now; "" while they work.
        pending_bytes: size of the batch under way; 0 when none is.
    """

    def __init__(
        self, store: Store, tensorboard: TensorBoardSink, files: Sequence[FileSink], counters: Counters
    ) -> None:
        self.times = CommitTimes()
        self.failing = ""
        self.pending_bytes = 0
        self._store = store
        self._tensorboard = tensorboard
        self._files = files
        self._counters = counters
        self._handed: queue.Queue[Batch | None] = queue.Queue(maxsize=1)
        self._done: queue.Queue[Batch] = queue.Queue()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, wake: Callable[[], None]) -> None:
        """Start; `wake` is called on the commit thread after each commit."""
        self._threads = [
            threading.Thread(target=self._commit_all, args=(wake,), name="commit"),
            threading.Thread(target=self._compact_all, name="compact", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def hand_over(self, batch: Batch) -> None:
        """Give it a batch; one may be under way at a time."""
        self.pending_bytes = max(1, batch.nbytes)
        self._handed.put(batch)

    def committed(self) -> list[Batch]:
        """Batches that were committed since the last call."""
        found: list[Batch] = []
        while not self._done.empty():
            found.append(self._done.get_nowait())
            self.pending_bytes = 0
        return found

    def stop(self) -> None:
        """End after the batch under way; a batch that cannot be committed now is left."""
        self._stop.set()
        self._handed.put(None)
        for thread in self._threads:
            thread.join()
        self._tensorboard.close()

    def _commit_all(self, wake: Callable[[], None]) -> None:
        while True:
            batch = self._handed.get()
            if batch is None:
                return
            if self._commit_until_done(batch):
                self._done.put(batch)
                wake()

    def _commit_until_done(self, batch: Batch) -> bool:
        wait, longest = _RETRY_SECONDS
        while True:
            started = time.monotonic()
            try:
                self._commit(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the batch stays and is tried again
                self._counters.failed_commits += 1
                if str(error) != self.failing:
                    self.failing = str(error)
                    log.error("commit failed; nothing is acknowledged until it works", why=self.failing)  # noqa: TRY400
                if self._stop.wait(wait):
                    return False
                wait = min(2 * wait, longest)
            else:
                if self.failing:
                    log.info("commits work again")
                self.failing = ""
                self._counters.commits += 1
                self.times.add(time.monotonic() - started)
                return True

    def _commit(self, batch: Batch) -> None:
        try:
            lengths = self._tensorboard.write(batch)
            for sink in self._files:
                sink.write(batch)
        except OSError as error:
            self._tensorboard.discard()
            raise StoreWriteError(
                f"event files, epoch documents or samples could not be written ({error}); make room on the disk"
            ) from error
        except Exception:
            # A defect in a view of the data must not keep the data itself out of the store.
            self._counters.sink_failures += 1
            log.exception("TensorBoard, epoch documents or samples could not be written; the rows are stored")
            self._tensorboard.discard()
            lengths = {}
        try:
            self._store.commit(batch, lengths)
        except BaseException:
            self._tensorboard.discard()
            raise

    def _compact_all(self) -> None:
        while not self._stop.wait(_COMPACT_SECONDS):
            try:
                while self._store.compact() and not self._stop.is_set():
                    pass
            except Exception:
                log.exception("compaction failed; the parts stand as they were")
                if self._stop.wait(_RETRY_SECONDS[1]):
                    return
